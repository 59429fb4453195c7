"""What the estimates of a device plan rest on: prices, watts, assumptions with their sources."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal

from schemas.backends import EmbedderBackend
from transforms.embed.chips import GIB, WATTS_METHOD, Topology, price_of
from transforms.embed.roofline import FILLED, LEAST_SHARE


def chip_price(topology: Topology, backend: EmbedderBackend, day: date) -> tuple[Decimal | None, str]:
    """Dollars of a chip and hour, and where they come from; the workload's own price wins."""
    if backend.price_per_device_hour is not None:
        return backend.price_per_device_hour * topology.chip.cores, "the workload's price_per_device_hour"
    found = price_of(topology.chip.name, day)
    if found is None or found.usd_per_chip_hour is None:
        source = "there is none in the price book" if found is None else found.source
        return None, f"{source}; set the backend's price_per_device_hour"
    return found.usd_per_chip_hour, f"{found.source} (as of {found.as_of}, {found.certainty})"


def chip_watts(topology: Topology, backend: EmbedderBackend) -> tuple[float, float]:
    """Watts of a chip, least and most; the workload's own win."""
    if backend.device_watts is None:
        return topology.chip.watts
    low, high = backend.device_watts
    return low * topology.chip.cores, high * topology.chip.cores


def assumptions(topologies: Sequence[Topology], backend: EmbedderBackend, day: date) -> list[str]:
    """What the figures rest on, with sources; a line each."""
    lines = [
        "all figures are estimates: the program was compiled for the chip and not run on one",
        "bound: the longer of operations at the chip's peak and bytes at its memory's bandwidth, both as the "
        "compiler counts them, and then the exchange between devices",
        f"documents, price and energy: from {LEAST_SHARE:.0%} of the bound (assumed) to all of it, with "
        f"{FILLED:.0%} of the slots filled where the texts' lengths are not known; one device of a topology "
        "is as fast as the next, and the host feeds them",
    ]
    for topology in {each.chip.name: each for each in topologies}.values():
        chip = topology.chip
        amount, source = chip_price(topology, backend, day)
        price = "price unknown" if amount is None else f"${amount} a chip and hour"
        low, high = chip_watts(topology, backend)
        lines.append(
            f"{chip.title}: {chip.flops / 1e12:,.0f} TFLOP/s in bfloat16, {chip.memory / GIB:.0f} GiB at "
            f"{chip.bandwidth / 1e9:,.0f} GB/s, {chip.interconnect / 1e9:,.0f} GB/s to other chips "
            f"({chip.source}); {price}: {source}; {low:.0f} to {high:.0f} W a chip"
        )
    watts = "watts are the workload's device_watts" if backend.device_watts else WATTS_METHOD
    return [*lines, f"energy: chips only, no host, network or cooling; {watts}"]
