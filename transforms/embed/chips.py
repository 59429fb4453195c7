"""What a TPU chip can do, what it costs and what it draws: facts with their sources. Imports no JAX.

The figures are the vendor's or derived from the vendor's; nothing here was measured by us.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from math import prod
from typing import Literal

from schemas.errors import ConfigurationError

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Chip:
    """One chip of a generation. JAX sees `cores` devices on it, each with its share of everything.

    `flops` are bfloat16 operations a second, `bandwidth` bytes a second of its memory, `interconnect` bytes a
    second to other chips, both directions together. `watts` is an interval, `device_kind` JAX's name.
    """

    name: str
    title: str
    cores: int
    flops: float
    memory: int
    bandwidth: float
    interconnect: float
    watts: tuple[float, float]
    device_kind: str
    source: str

    @property
    def device_memory(self) -> int:
        """Bytes of one device."""
        return self.memory // self.cores


WATTS_METHOD = (
    "watts of a chip are derived, not measured: most is what the vendor's statements imply (a TPU7x pod of "
    "9,216 chips draws nearly 10 MW; performance per watt of 8-bit operations is twice Trillium's, and "
    "Trillium's 1.67 times v5e's: Google, April 2025 and May 2024), least is the share of its most that an "
    "idle TPU v4 takes, 90 of 192 W (Jouppi et al. 2023, arXiv:2304.01433)"
)
CHIPS = {
    "v5e": Chip(
        *("v5e", "TPU v5e", 1, 197e12, 16 * GIB, 819e9, 400e9, (73.0, 155.0), "TPU v5 lite"),
        "cloud.google.com/tpu/docs/v5e",
    ),
    "v6e": Chip(
        *("v6e", "TPU v6e (Trillium)", 1, 918e12, 32 * GIB, 1638e9, 800e9, (203.0, 432.0), "TPU v6 lite"),
        "cloud.google.com/tpu/docs/v6e",
    ),
    "tpu7x": Chip(
        *("tpu7x", "TPU7x (Ironwood)", 2, 2307e12, 192 * GIB, 7380e9, 1200e9, (509.0, 1085.0), "TPU7x"),
        "cloud.google.com/tpu/docs/tpu7x",
    ),
}
_TOPOLOGY = re.compile(r"([a-z0-9]+):([1-9][0-9]*(?:x[1-9][0-9]*){1,2})")


@dataclass(frozen=True, slots=True)
class Topology:
    """Chips that are wired together, `v5e:2x2`."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As it was written."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Number of chips."""
        return prod(self.shape)

    @property
    def devices(self) -> int:
        """Number of devices that JAX sees."""
        return self.chips * self.chip.cores


def read_topology(text: str) -> Topology:
    """A topology such as `v5e:2x2` or `tpu7x:2x2x1`.

    Raises:
        ConfigurationError: it is written otherwise, or the chip is not known.
    """
    found = _TOPOLOGY.fullmatch(text)
    if found is None or found[1] not in CHIPS:
        raise ConfigurationError(
            f"topology {text!r} is not known: give a chip and its arrangement, for example v5e:2x2 or "
            f"tpu7x:2x2x1; chips: {', '.join(CHIPS)}"
        )
    shape = tuple(int(side) for side in found[2].split("x"))
    sides = 3 if found[1] == "tpu7x" else 2
    if len(shape) != sides:
        example = "2x2x1" if sides == 3 else "2x2"
        raise ConfigurationError(
            f"topology {text!r}: {found[1]} is arranged in {sides} dimensions, for example "
            f"{found[1]}:{example}"
        )
    return Topology(CHIPS[found[1]], shape)


@dataclass(frozen=True, slots=True)
class DevicePrice:
    """A list price of one chip for an hour, from a day on. No amount: there is no public list price."""

    chip: str
    usd_per_chip_hour: Decimal | None
    as_of: date
    source: str
    certainty: Literal["exact", "estimated", "unknown"]


_LIST = (
    "Google's list price on demand in the United States as known then; compare cloud.google.com/tpu/pricing"
)
# Looked for in November 2026: no version of Google's page of prices with v5e or later could be had. 1.20 and
# 2.70 are what third parties name as its list prices in the United States, and one of them 1.35 for v6e from
# Google's page on flex-start. Nobody names TPU7x's. No vendor's figure of a chip's power was found either.
DEVICE_PRICES = (
    # Dated, appended, never overwritten: a price that changes gets a line of its own below.
    DevicePrice("v5e", Decimal("1.20"), date(2026, 11, 22), _LIST, "estimated"),
    DevicePrice("v6e", Decimal("2.70"), date(2026, 11, 22), _LIST, "estimated"),
    DevicePrice("tpu7x", None, date(2026, 11, 22), "no public list price is known", "unknown"),
)


def price_of(chip: str, day: date, book: tuple[DevicePrice, ...] = DEVICE_PRICES) -> DevicePrice | None:
    """The price of a chip in force on a day: the latest entry that is not later; None before the first."""
    entries = [price for price in book if price.chip == chip and price.as_of <= day]
    return max(entries, key=lambda price: price.as_of, default=None)


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """What the price book says of one device; a chip may have several. No amount: it is not known."""

    usd_per_hour: Decimal | None
    watts: tuple[float, float]
    source: str
    as_of: date


def rates_of(device_kind: str, day: date) -> DeviceRates | None:
    """What the price book says of the devices that JAX calls so; None if it doesn't know them."""
    chip = next((chip for chip in CHIPS.values() if chip.device_kind == device_kind), None)
    price = None if chip is None else price_of(chip.name, day)
    if chip is None or price is None:
        return None
    whole, (low, high) = price.usd_per_chip_hour, chip.watts
    return DeviceRates(
        usd_per_hour=None if whole is None else whole / chip.cores,
        watts=(low / chip.cores, high / chip.cores),
        source=f"list price of {chip.title}",
        as_of=price.as_of,
    )
