"""Quote against actual, and where a run keeps its quote."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from schemas.batches import BackendTotals
from schemas.run import Manifest
from tests.support import records
from tests.transforms.quote.bench import Bench, used
from transforms.quote.compare import compare, compare_time, read_quote, store_quote
from transforms.quote.values import Quote, Seconds
from transforms.store import LocalStore


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    found = Bench(tmp_path, limits__batch_rows=5)
    found.documents(10)
    return found


def manifest(bench: Bench, **totals: dict[str, BackendTotals]) -> Manifest:
    return records.manifest(workload_sha256=bench.loaded.workload.digest(), totals=totals)


def totals(amount: str, documents: int = 10, **changes: int) -> BackendTotals:
    found = BackendTotals(documents, documents, documents, input_tokens=120, output_tokens=5000)
    return replace(found, list_amount=amount, amount=amount, **changes)


def test_what_came_stands_beside_what_was_quoted(bench: Bench) -> None:
    quote = bench.quote()
    expected = quote.routes[0].price.expected
    assert expected is not None
    (line,) = compare(quote, manifest(bench, ask={"mini": totals(str(expected * 2))}))
    assert (line.route, line.documents, line.input_tokens, line.output_tokens) == ("ask", 10, 120, 5000)
    assert (line.quoted, line.quoted_documents) == (quote.routes[0].price, quote.routes[0].documents)
    assert (line.amount, line.off_by, line.verdict) == (expected * 2, 1.0, "as quoted")


@pytest.mark.parametrize(("factor", "verdict"), [("0.0001", "below"), ("1", "as quoted"), ("2.5", "above")])
def test_the_verdict_is_by_the_quote_s_likely_least_and_most(bench: Bench, factor: str, verdict: str) -> None:
    quote = bench.quote()
    expected = quote.routes[0].price.expected
    assert expected is not None
    (line,) = compare(quote, manifest(bench, ask={"mini": totals(str(expected * Decimal(factor)))}))
    assert line.verdict == verdict


def test_backends_of_a_route_count_together(bench: Bench) -> None:
    both = {"mini": totals("0.01", 4), "other": totals("0.02", 6)}
    (line,) = compare(bench.quote(), manifest(bench, ask=both))
    assert (line.documents, line.amount) == (10, Decimal("0.03"))


def test_what_was_there_before_the_quote_is_taken_off(bench: Bench) -> None:
    bench.begin()
    bench.commit(bench.due()[0], outcome=used(12, 500))
    quote = bench.quote()
    assert quote.baseline["ask"].documents == 5
    assert quote.baseline["ask"].list_amount == Decimal("0.05")
    (line,) = compare(quote, manifest(bench, ask={"mini": totals("0.08", 10)}))
    assert (line.documents, line.amount) == (5, Decimal("0.03"))
    assert (line.input_tokens, line.output_tokens) == (120 - 60, 5000 - 2500)


def test_a_route_without_documents_and_one_without_a_quote_are_named(bench: Bench) -> None:
    lines = compare(bench.quote(), manifest(bench, old={"mini": totals("0.5")}))
    assert [(line.route, line.verdict, line.documents) for line in lines] == [
        ("ask", "below", 0),
        ("old", "not quoted", 10),
    ]
    assert lines[1].quoted is None


def test_unknown_prices_are_compared_with_nothing(bench: Bench) -> None:
    (line,) = compare(bench.quote(), manifest(bench, ask={"mini": totals("0", unknown=3)}))
    assert (line.amount, line.off_by, line.verdict) == (None, None, "unknown")


def test_a_quote_of_another_version_of_the_workload_is_refused(bench: Bench) -> None:
    quote = bench.quote()
    bench.load(prompts__topic__template="Otherwise {{ text }}")
    with pytest.raises(ValueError, match="make a new quote"):
        compare(quote, manifest(bench))


def test_a_line_is_plain_values_for_json(bench: Bench) -> None:
    (line,) = compare(bench.quote(), manifest(bench, ask={"mini": totals("0.01")}))
    plain = json.loads(json.dumps(line.to_dict()))
    assert plain["amount"] == "0.01"
    assert plain["quoted"]["expected"] == format(line.quoted.expected, "f")  # type: ignore[union-attr]


def test_a_run_s_quote_is_kept_once_and_read_again(bench: Bench, tmp_path: Path) -> None:
    store, quote = LocalStore(str(tmp_path / "kept")), bench.quote()
    assert read_quote(store, "run-1") is None
    assert store_quote(store, "run-1", quote)
    assert not store_quote(store, "run-1", replace(quote, seed=9))
    assert read_quote(store, "run-1") == quote
    assert (tmp_path / "kept" / "runs" / "run-1" / "quote.json").exists()
    assert Quote.from_json(store.read("runs/run-1/quote.json")) == quote


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(9, "below"), (10, "as quoted"), (40, "as quoted"), (41, "above")]
)
def test_a_run_s_time_is_held_to_the_quoted_one(bench: Bench, seconds: int, verdict: str) -> None:
    quote = replace(bench.quote(), run_seconds=Seconds(10.0, 20.0, 40.0))
    ended = f"2026-11-22T09:00:{seconds}+00:00" if seconds > 9 else f"2026-11-22T09:00:0{seconds}+00:00"
    ran = replace(manifest(bench), started_at="2026-11-22T09:00:00+00:00", ended_at=ended)
    found = compare_time(quote, ran)
    assert found is not None
    assert (found.seconds, found.verdict, found.quoted) == (seconds, verdict, quote.run_seconds)


def test_without_a_quoted_time_there_is_nothing_to_compare(bench: Bench) -> None:
    assert compare_time(replace(bench.quote(), run_seconds=None), manifest(bench)) is None
    assert compare_time(bench.quote(), manifest(bench)) is None, "the manifest does not say when it ran"
