"""From a program's figures to rates, price and energy, on numbers that can be checked by head."""

from decimal import Decimal

import pytest

from transforms.embed.chips import Chip
from transforms.embed.roofline import (
    FILLED,
    FLOAT32_PASSES,
    LEAST_SHARE,
    Bound,
    Program,
    bound_of,
    estimate,
    exchanged_bytes,
)

CHIP = Chip("x1", "X1", 2, 200e12, 32, 2e12, 400e9, (50.0, 100.0), "X 1", "nowhere")


def program(flops: float = 0.0, moved: float = 0.0, exchanged: float = 0.0) -> Program:
    return Program(512, 1000, flops, moved, exchanged)


def test_a_device_has_its_share_of_the_chip():
    found = bound_of(program(1e14, 1e12, 2e11), CHIP, "bfloat16")
    assert found == Bound(1.0, 1.0, 1.0)
    assert found.seconds == 2.0  # products and memory side by side, then the exchange


@pytest.mark.parametrize(
    ("flops", "moved", "exchanged", "seconds", "by"),
    [(3e14, 1e12, 0, 3, "compute"), (1e14, 4e12, 0, 4, "memory"), (1e14, 1e12, 1e12, 6, "exchange")],
)
def test_the_bound_is_named_after_what_takes_longest(
    flops: float, moved: float, exchanged: float, seconds: float, by: str
):
    found = bound_of(program(flops, moved, exchanged), CHIP, "bfloat16")
    assert (found.seconds, found.by) == (seconds, by)


def test_exact_products_of_float32_take_six_of_bfloat16():
    assert bound_of(program(1e14), CHIP, "float32").compute_seconds == FLOAT32_PASSES == 6


def test_an_alone_device_exchanges_nothing_and_four_send_three_quarters():
    assert exchanged_bytes(layers=6, dim=384, tokens=1000, parts=1) == 0
    # Two sums a layer, each sent twice by a ring, and one gathering; float32.
    assert exchanged_bytes(layers=6, dim=384, tokens=1000, parts=4) == 25 * 0.75 * 1000 * 384 * 4


def test_rates_price_and_energy_come_from_the_bound_and_from_a_share_of_it():
    found = estimate(
        Bound(0.5, 0.25, 0.0),
        program(),
        copies=4,
        chips=2,
        document_tokens=100,
        usd_per_chip_hour=Decimal("1.80"),
        watts=(50.0, 100.0),
    )
    most = 4 * 1000 * FILLED / 0.5
    assert found.tokens_per_second.high == most
    assert found.tokens_per_second.low == pytest.approx(LEAST_SHARE * most)
    assert found.documents_per_second.high == most / 100
    hours = 1_000_000 / most / 3600
    assert found.usd_per_million_tokens is not None
    assert [float(each) for each in found.usd_per_million_tokens] == pytest.approx(
        [3.6 * hours, 3.6 * hours / LEAST_SHARE], abs=1e-8
    )
    assert found.wh_per_million_tokens.low == pytest.approx(2 * 50 * hours)
    assert found.wh_per_million_tokens.high == pytest.approx(2 * 100 * hours / LEAST_SHARE)


def test_an_unknown_price_stays_unknown():
    found = estimate(
        Bound(1.0, 0.0, 0.0),
        program(),
        copies=1,
        chips=1,
        document_tokens=1,
        usd_per_chip_hour=None,
        watts=(1.0, 1.0),
    )
    assert found.usd_per_million_tokens is None
