"""Embed routes: real tokens, measured time, prices from the device hour."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from schemas.backends import EmbedderBackend
from tests.transforms.embed.tiny_model import write_tiny_model
from tests.transforms.quote.bench import Bench
from transforms.quote.embedding import Throughput
from transforms.quote.values import Price, Range, Seconds


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    write_tiny_model(tmp_path / "model")
    backend = {"provider": "jax", "model_path": "model", "max_length": 6}
    found = Bench(tmp_path, backends__tiny=backend, routes=[{"name": "embed", "backends": ["tiny"]}])
    found.documents(4, text=["a", "a b", "a b c", "a b c d e f g h"])
    return found


def known(backend: EmbedderBackend, texts: Sequence[str]) -> Throughput:
    return Throughput(Seconds(1.0, 2.0, 4.0), f"measured with {len(texts)} texts")


def test_tokens_are_the_model_s_own_cut_at_its_maximum(bench: Bench) -> None:
    route = bench.route("embed")
    assert route.documents == Range(4, 4, 4)
    assert route.input_tokens == Range(3 + 4 + 5 + 6, 18, 18)
    assert route.output_tokens == Range(0, 0, 0)
    assert route.per_document is not None
    assert route.per_document.most == 6


def test_without_a_measurement_time_and_price_are_unknown(bench: Bench) -> None:
    route = bench.route("embed")
    assert (route.device_seconds, route.price, route.certainty) == (None, Price(), "unknown")
    assert any("--calibrate" in note for note in route.notes)
    assert any("price_per_device_hour" in note for note in route.notes)


def test_a_calibration_gives_time_and_with_an_hour_s_price_money(bench: Bench) -> None:
    route = bench.route("embed", calibrate=known)
    assert route.device_seconds == Seconds(18.0, 36.0, 72.0)
    assert route.price.expected is None
    bench.load(backends__tiny__price_per_device_hour="100")
    route = bench.route("embed", calibrate=known)
    price = route.price
    assert (price.low, price.expected, price.high) == (Decimal("0.5"), Decimal(1), Decimal(2))
    assert (price.worst, price.sampling_low, price.sampling_high) == (None, Decimal(1), Decimal(1))
    assert (route.certainty, route.price_source) == ("estimated", "workload")
    assert "measured with 4 texts" in route.notes


def test_device_time_is_in_no_total_and_not_held_by_the_budget(bench: Bench) -> None:
    bench.load(backends__tiny__price_per_device_hour="100", budget__amount="0.01")
    quote = bench.quote(calibrate=known)
    assert (quote.total.expected, quote.budget.fits) == (0, "yes")


def test_the_output_s_own_embeddings_are_the_measurement(bench: Bench) -> None:
    from dataclasses import replace

    from schemas.batches import BackendTotals
    from tests.support.records import commit_record

    bench.begin()
    totals = BackendTotals(
        documents=50, results=50, input_tokens=1000, device_seconds=10.0, basis="device_seconds"
    )
    done: dict[str, Any] = {"embed": {"tiny": totals}}
    record = replace(commit_record(parts=(), totals=done), batch_id="c" * 32)
    bench.store.create(f"commits/{record.batch_id}.0001.json", record.to_json())
    route = bench.route("embed")
    assert route.device_seconds is not None
    assert route.device_seconds.expected == pytest.approx(0.18)
    assert any("in this output" in note for note in route.notes)


def test_blank_texts_are_left_out(bench: Bench) -> None:
    bench.documents(3, text=["a", " ", "b"])
    assert bench.route("embed").documents == Range(2, 2, 2)
