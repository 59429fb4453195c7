"""What device time costs, in money and in energy."""

from __future__ import annotations

from decimal import Decimal

from schemas.outcomes import Charge, money
from schemas.workload import EmbedderBackend

_SECONDS_PER_HOUR = 3600


def device_charge(backend: EmbedderBackend, device_seconds: float) -> Charge:
    """The charge for device seconds at the backend's own price; unknown without one.

    The amount is exact arithmetic on the shortest decimal of the measured seconds. The time is
    measured and the price is the workload's word, so the certainty is `estimated`.
    """
    price = backend.price_per_device_hour
    amount = None
    if price is not None:
        amount = money(price * Decimal(repr(device_seconds)) / _SECONDS_PER_HOUR)
    low, high = (
        (None, None)
        if backend.device_watts is None
        else (watts * device_seconds / _SECONDS_PER_HOUR for watts in backend.device_watts)
    )
    return Charge(
        amount=amount,
        list_amount=amount,
        basis="device_seconds",
        certainty="unknown" if amount is None else "estimated",
        price_source=None if amount is None else "workload",
        device_seconds=device_seconds,
        energy_wh_low=low,
        energy_wh_high=high,
    )
