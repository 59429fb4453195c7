"""Chips and their prices: facts with sources, dated, never overwritten."""

from dataclasses import astuple
from datetime import date
from decimal import Decimal

import pytest

from schemas.errors import ConfigurationError
from schemas.ids import sha256_hex
from transforms.embed.chips import CHIPS, DEVICE_PRICES, GIB, DevicePrice, price_of, read_topology

DIGESTS = ["20dca1ed6c75", "fa4985c4e33d", "e0bc0f3fdc79"]


def test_a_topology_has_chips_and_devices():
    small, pair = read_topology("v5e:2x4"), read_topology("tpu7x:2x2x1")
    assert (small.name, small.chips, small.devices, small.chip.device_memory) == ("v5e:2x4", 8, 8, 16 * GIB)
    assert (pair.name, pair.chips, pair.devices, pair.chip.device_memory) == ("tpu7x:2x2x1", 4, 8, 96 * GIB)


@pytest.mark.parametrize(
    "text", ["v5e", "v4:2x2x1", "v5e:0x2", "v5e:2x", "V5E:2x2", "v5e:2x2;rm", "v5e:2x2x2"]
)
def test_a_topology_that_is_not_known_is_refused_with_an_example(text: str):
    with pytest.raises(ConfigurationError, match="for example v5e:2x2"):
        read_topology(text)


def test_a_chip_of_three_dimensions_is_not_taken_in_two():
    with pytest.raises(ConfigurationError, match="3 dimensions, for example tpu7x:2x2x1"):
        read_topology("tpu7x:2x2")


def test_published_prices_are_frozen():
    """If this fails, a published price was changed: append a line of its own day, and its digest."""
    digests = [sha256_hex(repr(astuple(price)).encode())[:12] for price in DEVICE_PRICES]
    assert digests == DIGESTS


def test_the_price_in_force_is_the_latest_that_is_not_later_whatever_their_order():
    def price(day: int, amount: str) -> DevicePrice:
        return DevicePrice("v5e", Decimal(amount), date(2026, 1, day), "a list", "exact")

    book = (price(20, "3"), price(1, "1"), price(10, "2"))
    assert price_of("v5e", date(2025, 12, 31), book) is None
    found = [price_of("v5e", date(2026, 1, day), book) for day in (1, 9, 10, 19, 20, 31)]
    assert [each and str(each.usd_per_chip_hour) for each in found] == ["1", "1", "2", "2", "3", "3"]
    assert price_of("v6e", date(2026, 1, 31), book) is None


def test_every_chip_has_an_entry_and_no_unknown_price_is_a_number():
    assert {price.chip for price in DEVICE_PRICES} == set(CHIPS)
    for price in DEVICE_PRICES:
        assert (price.certainty == "unknown") == (price.usd_per_chip_hour is None)
        assert price.source
