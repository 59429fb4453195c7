"""What answers that are there say about those to come."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from schemas.batches import BackendTotals, CommitRecord
from schemas.failures import FailureClass
from tests.support.records import answered, commit_record
from tests.transforms.quote.bench import Bench, used
from transforms.quote.embedding import Throughput, calibrate
from transforms.quote.history import LEAST_ANSWERS, measured_answers, measured_seconds
from transforms.quote.values import Seconds


def record(documents: int, output_tokens: int, **changes: Any) -> CommitRecord:
    totals = BackendTotals(
        documents=documents,
        results=documents,
        calls=documents,
        input_tokens=documents * 10,
        output_tokens=output_tokens,
        basis="tokens",
    )
    return commit_record(totals={"ask": {"mini": replace(totals, **changes)}})


def test_the_mean_is_that_of_all_documents_whatever_their_batch() -> None:
    found = measured_answers([record(10, 1000), record(30, 600)], "ask", "mini", 1024)
    assert found is not None
    assert found.expected == 40
    assert found.low <= 40 <= found.high <= 1024
    assert "40 documents of mini" in found.basis


def test_one_batch_alone_gives_half_to_double() -> None:
    found = measured_answers([record(100, 5000)], "ask", "mini", 1024)
    assert found is not None
    assert (found.low, found.expected, found.high) == (25, 50, 100)


def test_many_batches_alike_give_a_narrow_interval() -> None:
    found = measured_answers([record(100, 5000 + n) for n in range(20)], "ask", "mini", 1024)
    assert found is not None
    assert (found.low, found.expected, found.high) == (50, 50, 51)


def test_nothing_lies_beyond_max_output_tokens() -> None:
    found = measured_answers([record(100, 90_000)], "ask", "mini", 1000)
    assert found is not None
    assert (found.expected, found.high) == (900, 1000)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(LEAST_ANSWERS - 1, 1000)],
        [replace(record(100, 1000), rehearsal=True)],
        [record(100, 1000, basis="none")],
        [commit_record(totals={"other": {"mini": BackendTotals(documents=100, basis="tokens")}})],
        [commit_record(totals={"ask": {"another": BackendTotals(documents=100, basis="tokens")}})],
    ],
    ids=["none", "too few", "rehearsed", "never billed", "another route", "another backend"],
)
def test_what_is_no_measurement_is_not_taken_for_one(records: list[CommitRecord]) -> None:
    assert measured_answers(records, "ask", "mini", 1024) is None


def test_device_seconds_are_measured_by_token() -> None:
    embedded = [record(50, 0, device_seconds=seconds, basis="device_seconds") for seconds in (1.0, 3.0)]
    found = measured_seconds(embedded, "ask", "mini")
    assert found is not None
    assert found.expected == pytest.approx(4.0 / 1000)
    assert found.low <= found.expected <= found.high
    assert measured_seconds([record(50, 0)], "ask", "mini") is None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    found = Bench(tmp_path, limits__batch_rows=30)
    found.documents(90, text="x" * 93)  # 100 bytes with the template's head
    found.begin()
    return found


def test_batches_answered_whole_measure_the_ratio_of_bytes_to_tokens(bench: Bench) -> None:
    for ref, tokens in zip(bench.due()[:2], (20, 30), strict=True):
        bench.commit(ref, outcome=used(tokens, 5))
    route = bench.route()
    assert route.input_tokens.expected == 30 * 25
    assert route.input_tokens.low == int(30 * int(100 / (5 * 1.05)))
    assert "1,500 input tokens billed by mini" in route.input_basis


def test_a_batch_with_failures_or_more_calls_measures_no_ratio(bench: Bench) -> None:
    first, second = bench.due()[:2]
    bench.commit(first, [FailureClass.REFUSED])
    bench.commit(second, outcome=lambda row: answered(row, calls=2))
    assert "o200k_base" in bench.route().input_basis


def test_another_backend_s_answers_measure_nothing(bench: Bench) -> None:
    bench.commit(bench.due()[0], outcome=lambda row: answered(row, backend="other"))
    assert "o200k_base" in bench.route().input_basis
    assert "free text" in bench.route().output_basis


def test_an_input_that_is_gone_is_no_reason_to_fail(bench: Bench) -> None:
    bench.write("b", bench_rows(30))
    last = bench.due()[-1]
    bench.commit(last, outcome=used(20, 5))
    (bench.folder / "in" / "b.parquet").unlink()
    assert "o200k_base" in bench.route().input_basis


def bench_rows(count: int) -> Any:
    from tests.support.documents import rows

    return rows([f"b{n}" for n in range(count)], text="y" * 93)


def test_calibrating_warms_up_and_takes_fastest_median_and_slowest() -> None:
    times = iter([100.0, 3.0, 1.0, 2.0])
    found = calibrate(lambda texts: (len(texts), next(times)), ["a"] * 10)
    assert found == Throughput(
        Seconds(0.1, 0.2, 0.3), "device seconds measured now on this machine with 10 sampled texts"
    )


def test_calibrating_without_texts_or_tokens_measures_nothing() -> None:
    assert calibrate(lambda texts: (1, 1.0), []) is None
    assert calibrate(lambda texts: (0, 1.0), ["a"]) is None


def test_means_are_exact_fractions() -> None:
    found = measured_answers([record(30, 10), record(30, 10)], "ask", "mini", 1024)
    assert found is not None
    assert Fraction(found.expected) == round(Fraction(20, 60))
