"""Device seconds in money and energy."""

from datetime import date
from decimal import Decimal

import pytest

from schemas.outcomes import FREE
from tests.transforms.embed.tiny_model import backend
from transforms.embed.charge import device_charge
from transforms.embed.chips import rates_of


def test_an_hour_costs_the_price_of_an_hour():
    charge = device_charge(backend("m", price_per_device_hour="1.20"), 3600.0)
    assert charge.amount == charge.list_amount == Decimal("1.200000000000")
    assert (charge.basis, charge.certainty, charge.price_source) == (
        "device_seconds",
        "estimated",
        "workload",
    )
    assert charge.device_seconds == 3600.0


def test_amounts_are_exact_decimals_rounded_once():
    charge = device_charge(backend("m", price_per_device_hour="3.6"), 0.1)
    assert charge.amount == Decimal("0.000100000000")
    assert charge.amount.as_tuple().exponent == -12


def test_without_a_price_the_cost_is_unknown_and_not_zero():
    charge = device_charge(backend("m"), 5.0)
    assert charge.amount is None
    assert charge.list_amount is None
    assert (charge.certainty, charge.basis, charge.price_source) == ("unknown", "device_seconds", None)


def test_a_price_of_zero_is_known():
    charge = device_charge(backend("m", price_per_device_hour="0"), 5.0)
    assert charge.amount == 0
    assert charge.certainty == "estimated"


def test_energy_is_an_interval_of_watt_hours():
    charge = device_charge(backend("m", device_watts=(10.0, 40.0)), 1800.0)
    assert (charge.energy_wh_low, charge.energy_wh_high) == (5.0, 20.0)
    assert device_charge(backend("m"), 1.0).energy_wh_low is None


def test_charges_of_rows_add_up():
    chosen = backend("m", price_per_device_hour="3.6", device_watts=(1.0, 2.0))
    total = FREE + device_charge(chosen, 0.25) + device_charge(chosen, 0.75)
    assert total.amount == Decimal("0.001")
    assert total.device_seconds == pytest.approx(1.0)
    assert total.energy_wh_high == pytest.approx(2 / 3600)


V5E = rates_of("TPU v5 lite", date(2026, 12, 1))


def test_a_device_that_the_price_book_knows_costs_its_list_price_and_draws_its_watts():
    charge = device_charge(backend("m"), 1800.0, V5E)
    assert charge.amount == charge.list_amount == Decimal("0.600000000000")
    assert (charge.certainty, charge.price_source, charge.price_as_of) == (
        "estimated",
        "list price of TPU v5e",
        "2026-11-22",
    )
    assert (charge.energy_wh_low, charge.energy_wh_high) == (73 / 2, 155 / 2)


def test_the_workloads_own_price_and_watts_win_over_the_price_book_each_for_itself():
    charge = device_charge(backend("m", price_per_device_hour="2"), 3600.0, V5E)
    assert (charge.amount, charge.price_source, charge.price_as_of) == (Decimal(2), "workload", None)
    assert charge.energy_wh_high == 155
    charge = device_charge(backend("m", device_watts=(10.0, 40.0)), 3600.0, V5E)
    assert (charge.amount, charge.energy_wh_high) == (Decimal("1.2"), 40)


def test_a_device_whose_price_nobody_names_has_its_watts_alone_and_half_of_its_chips():
    rates = rates_of("TPU7x", date(2026, 12, 1))
    charge = device_charge(backend("m"), 3600.0, rates)
    assert (charge.amount, charge.certainty, charge.price_source) == (None, "unknown", None)
    assert (charge.energy_wh_low, charge.energy_wh_high) == (509 / 2, 1085 / 2)


def test_devices_that_are_not_in_the_book_or_not_yet_have_no_rates():
    assert rates_of("cpu", date(2026, 12, 1)) is None
    assert rates_of("NVIDIA H100 80GB HBM3", date(2026, 12, 1)) is None
    assert rates_of("TPU v5 lite", date(2026, 11, 21)) is None
