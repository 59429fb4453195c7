"""What device time costs, in money and in energy."""

from __future__ import annotations

from decimal import Decimal

from schemas.backends import EmbedderBackend
from schemas.outcomes import Charge, money
from transforms.embed.chips import DeviceRates

_SECONDS_PER_HOUR = 3600


def device_charge(backend: EmbedderBackend, device_seconds: float, book: DeviceRates | None = None) -> Charge:
    """The charge for device seconds: at the backend's own price and watts, else the book's, else unknown.

    The amount is exact arithmetic on the shortest decimal of the measured seconds. The time is
    measured and the price is the workload's word or a list's, so the certainty is `estimated`.
    """
    price, watts = backend.price_per_device_hour, backend.device_watts
    listed = book if price is None else None
    if listed is not None:
        price = listed.usd_per_hour
    if watts is None and book is not None:
        watts = book.watts
    amount = None
    if price is not None:
        amount = money(price * Decimal(repr(device_seconds)) / _SECONDS_PER_HOUR)
    low, high = (
        (None, None) if watts is None else (each * device_seconds / _SECONDS_PER_HOUR for each in watts)
    )
    return Charge(
        amount=amount,
        list_amount=amount,
        basis="device_seconds",
        certainty="unknown" if amount is None else "estimated",
        price_source=None if amount is None else "workload" if listed is None else listed.source,
        price_as_of=None if amount is None or listed is None else listed.as_of.isoformat(),
        device_seconds=device_seconds,
        energy_wh_low=low,
        energy_wh_high=high,
    )
