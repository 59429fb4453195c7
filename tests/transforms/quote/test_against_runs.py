"""A quote and the run that follows it, by the real call engine against the stand-in of a rehearsal."""

from __future__ import annotations

from decimal import Decimal

import pytest

from schemas.run import Manifest
from tests.support.drive import drive
from tests.transforms.quote.bench import Bench
from transforms.quote.compare import Comparison, compare
from transforms.quote.values import Quote

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["topic"],
    "properties": {"topic": {"type": "string"}},
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Quote, Manifest]:
    bench = Bench(
        tmp_path_factory.mktemp("run"),
        limits={"batch_rows": 10, "share_identical": False},
        rehearsal={"latency_ms": [0.0, 0.0], "faults": {"invalid_json": 0.2}},
        input__filter="size <> 3",
        match="all",
        routes=[
            {"name": "ask", "backends": ["mini"], "prompt": "topic"},
            {"name": "few", "when": "size < 8", "backends": ["mini"], "prompt": "topic"},
        ],
        prompts__topic__json_schema=SCHEMA,
    )
    bench.documents(40, text=["word " * n for n in range(40)])
    return bench.quote(), drive(bench.loaded.path, rehearsal=True)


def lines(told: tuple[Quote, Manifest]) -> dict[str, Comparison]:
    return {line.route: line for line in compare(*told)}


def test_as_many_documents_are_sent_as_were_quoted(told: tuple[Quote, Manifest]) -> None:
    found = lines(told)
    assert {name: line.documents for name, line in found.items()} == {"ask": 38, "few": 6}
    for line in found.values():
        assert line.quoted_documents is not None
        assert line.quoted_documents.expected == line.documents


def test_no_run_costs_more_than_the_worst_case_though_answers_are_sent_back(
    told: tuple[Quote, Manifest],
) -> None:
    _, manifest = told
    calls = sum(t.calls for backends in manifest.totals.values() for t in backends.values())
    assert calls > 44  # some answers were sent back, and paid twice
    for line in lines(told).values():
        assert line.amount is not None
        assert line.quoted is not None
        assert line.quoted.worst is not None
        assert Decimal(0) < line.amount <= line.quoted.worst


def test_what_is_not_sent_is_what_became_of_it(told: tuple[Quote, Manifest]) -> None:
    quote, manifest = told
    assert quote.not_sent == {"empty_text": 1}
    assert manifest.failures_by_route.get("", 0) == 1
    assert (quote.rows_due, manifest.rows_in, manifest.rows_skipped) == (40, 40, 1)
