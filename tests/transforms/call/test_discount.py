from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from schemas.backends import HostedBackend, TokenPrice
from schemas.outcomes import Usage
from tests.transforms.call.fakes import HAIKU, MINI, VirtualClock, make_request
from transforms.call.codecs import base_url_of
from transforms.call.discount import batch_charge, batch_worst_case, charge_online, worst_case_online
from transforms.call.site import Site, build_sites, place_of
from transforms.call.wire import Answer
from transforms.price import PriceBook

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ANSWER = Answer("fine", Usage(1_000_000, 100_000))
OWN = TokenPrice(input_per_million=Decimal(3), output_per_million=Decimal(10))
UNLISTED = HostedBackend(provider="openai", model="gpt-4.1-mini", mode="batch", price=OWN)


def site_of(backend: HostedBackend, *, rehearsal: bool = False) -> Site:
    places = {"x": place_of("x", base_url_of(backend), None)}
    return build_sites({"x": backend}, places, VirtualClock(), PriceBook(), rehearsal)["x"]


@pytest.mark.parametrize("backend", [HAIKU, MINI])
def test_the_price_books_batch_price_is_half_and_exact(backend: HostedBackend) -> None:
    site = site_of(backend)
    full, batch = site.charge(ANSWER, NOW), batch_charge(site, ANSWER, NOW)
    assert full.amount is not None
    assert full.amount > 0
    assert (batch.amount, batch.list_amount) == (full.amount / 2, full.amount / 2)
    assert (batch.certainty, batch.basis) == ("exact", "tokens")


def test_a_price_without_a_batch_price_is_halved_and_estimated() -> None:
    batch = batch_charge(site_of(UNLISTED), ANSWER, NOW)
    assert (batch.amount, batch.list_amount, batch.certainty) == (Decimal(2), Decimal(2), "estimated")


def test_what_has_no_price_has_none_in_a_batch_either() -> None:
    site = site_of(HostedBackend(provider="openai", model="of-tomorrow"))
    charge = batch_charge(site, ANSWER, NOW)
    assert (charge.amount, charge.certainty) == (None, "unknown")
    assert batch_worst_case(site, site.encode(make_request(1)), NOW) is None


def test_cached_tokens_keep_their_discount_on_top() -> None:
    cached = Answer("fine", Usage(1_000_000, 0, 900_000, 0))
    site = site_of(HAIKU)
    full, batch = site.charge(cached, NOW).amount, batch_charge(site, cached, NOW).amount
    assert full is not None
    assert batch is not None
    assert full < (site.charge(Answer("x", Usage(1_000_000, 0)), NOW).amount or 0)
    assert batch <= full / 2


@pytest.mark.parametrize("backend", [HAIKU, MINI])
def test_the_worst_case_is_the_batch_price_where_the_book_has_one(backend: HostedBackend) -> None:
    site = site_of(backend)
    encoded = site.encode(make_request(1))
    full, batch = site.worst_case(encoded, NOW), batch_worst_case(site, encoded, NOW)
    assert full is not None
    assert batch is not None
    assert full / 2 <= batch < full * Decimal("0.51")


def test_where_the_batch_price_is_a_guess_the_full_price_is_set_aside() -> None:
    site = site_of(UNLISTED)
    encoded = site.encode(make_request(1))
    assert batch_worst_case(site, encoded, NOW) == site.worst_case(encoded, NOW)


def test_the_worst_case_covers_every_answer_that_fits_the_limits() -> None:
    for backend in (HAIKU, MINI, UNLISTED):
        site = site_of(backend)
        encoded = site.encode(make_request(1))
        most = Usage(len(encoded.wire.body), backend.max_output_tokens, 0, len(encoded.wire.body))
        charge = batch_charge(site, Answer("x", most), NOW).amount
        worst = batch_worst_case(site, encoded, NOW)
        assert charge is not None
        assert worst is not None
        assert charge <= worst


def test_a_rehearsal_costs_what_the_batches_would_and_a_late_online_call_the_full_price() -> None:
    batched = HAIKU.model_copy(update={"mode": "batch"})
    live, rehearsed = site_of(batched), site_of(batched, rehearsal=True)
    full = live.charge(ANSWER, NOW).amount
    assert full is not None
    assert charge_online(live, ANSWER, NOW).amount == full
    charge = charge_online(rehearsed, ANSWER, NOW)
    assert (charge.amount, charge.list_amount, charge.basis) == (0, full / 2, "rehearsal")
    online = charge_online(site_of(HAIKU, rehearsal=True), ANSWER, NOW)
    assert online.list_amount == full
    encoded = live.encode(make_request(1))
    assert worst_case_online(live, encoded, NOW) == live.worst_case(encoded, NOW)
    assert worst_case_online(rehearsed, encoded, NOW) == batch_worst_case(live, encoded, NOW)
