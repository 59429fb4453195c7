"""Which batches are read, and how many documents the conditions send where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.documents import rows, with_bad_utf8
from tests.support.workloads import HOSTED, workload
from tests.transforms.quote.bench import Bench
from transforms.intake import inspect_rows
from transforms.quote.population import MOST_BATCHES, Population, choose, count_candidates, find_population
from transforms.route import choose_routes, compile_rules

ROUTE = {"backends": ["mini"], "prompt": "topic"}


@given(st.integers(0, 5000), st.integers(1, 100), st.integers(0, 2**32))
def test_one_batch_is_drawn_from_each_of_equal_stretches(count: int, most: int, seed: int) -> None:
    chosen = choose(count, most, seed)
    assert len(chosen) == len(set(chosen)) == min(count, most)
    assert list(chosen) == sorted(chosen)
    for index, drawn in enumerate(chosen):
        assert index * count // len(chosen) <= drawn < (index + 1) * count // len(chosen)


def test_every_batch_is_as_likely_as_any_other() -> None:
    drawn = [0] * 100
    for seed in range(2000):
        for index in choose(100, 20, seed):
            drawn[index] += 1
    assert all(300 < times < 500 for times in drawn)  # 400 expected, 18 the standard deviation


@pytest.mark.parametrize("match", ["first", "all"])
@settings(deadline=None)  # the first expression takes long
@given(
    kinds=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=30),
    limits=st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)),
)
def test_candidates_are_exactly_what_routing_decides_for_rows_without_faults(
    match: str, kinds: list[str], limits: tuple[int, int, int]
) -> None:
    rules = compile_rules(
        workload(
            match=match,
            input={"uri": "in", "id": "id", "text": "text", "columns": ["kind", "size"],
                   "filter": f"size <> {limits[0]}"},
            routes=[
                {"name": "one", "when": "kind = 'a'", **ROUTE},
                {"name": "two", "when": f"size < {limits[1]}", **ROUTE},
                {"name": "three", **ROUTE},
            ],
            policy={"reject": [
                {"name": "some", "when": f"size = {limits[2]}", "reason": "r", "routes": ["two", "three"]},
                {"name": "all", "when": "kind = 'c' AND size > 20", "reason": "r"},
            ]},
        )
    )  # fmt: skip
    table = large(rows(range(len(kinds)), kind=kinds))
    intake = inspect_rows(table, rules.workload.input, rules.row_filter, ())
    decided = [a.route for _, a in choose_routes(rules, intake, 0).todo]
    assert count_candidates(rules, table) == {n: decided.count(n) for n in ("one", "two", "three")}


def large(table: pa.Table) -> pa.Table:
    fields = [pa.field(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in table.schema]
    return table.cast(pa.schema(fields))


def population(bench: Bench, seed: int = 0) -> Population:
    from transforms.quote.ground import survey_ground

    ground = survey_ground(bench.loaded, ())
    return find_population(ground.work, ground.rules, ground.store, seed)


def bench_with(folder: Path, batches: int, **changes: Any) -> Bench:
    bench = Bench(folder, limits__batch_rows=5, **changes)
    bench.documents(batches * 5, kind=["rare" if n % 100 == 0 else "often" for n in range(batches * 5)])
    return bench


def test_few_batches_are_all_read(tmp_path: Path) -> None:
    found = population(bench_with(tmp_path, MOST_BATCHES))
    assert found.routing == "every row"
    assert found.frames["ask"].chosen == tuple(range(MOST_BATCHES))
    assert found.frames["ask"].size == found.frames["ask"].chosen_size == MOST_BATCHES * 5


def test_a_rare_route_has_the_few_batches_that_hold_it(tmp_path: Path) -> None:
    routes = [{"name": "rare", "when": "kind = 'rare'", **ROUTE}, {"name": "ask", **ROUTE}]
    found = population(bench_with(tmp_path, 200, routes=routes))
    assert found.routing == "conditions on every row"
    rare, often = found.frames["rare"], found.frames["ask"]
    assert (rare.size, rare.batches, len(rare.chosen)) == (10, 10, 10)
    assert (often.size, often.batches, len(often.chosen)) == (990, 200, MOST_BATCHES)


def test_routes_with_the_same_batches_read_the_same_ones(tmp_path: Path) -> None:
    routes = [{"name": name, **ROUTE} for name in ("one", "two")]
    found = population(bench_with(tmp_path, 200, match="all", routes=routes))
    assert found.frames["one"].chosen == found.frames["two"].chosen


def test_conditions_on_large_texts_are_not_evaluated_on_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transforms.quote.population._SURVEY_TEXT_BYTES", 100)
    routes = [{"name": "ask", "when": "text <> ''", **ROUTE}]
    found = population(bench_with(tmp_path, 200, routes=routes))
    assert found.routing == "sample"
    assert (found.frames["ask"].size, len(found.frames["ask"].chosen)) == (1000, MOST_BATCHES)
    assert "64 of 200 batches" in found.sentence


def test_text_that_is_no_utf8_reaches_no_condition(tmp_path: Path) -> None:
    bench = Bench(tmp_path, limits__batch_rows=5, routes=[{"name": "ask", "when": "kind = 'note'", **ROUTE}])
    bench.write("a", with_bad_utf8(rows(range(500)), "kind", [7]))
    found = population(bench)
    assert found.frames["ask"].size == 500  # its batch counts with all its rows
    assert bench.route().documents.expected in (499, 500)


def test_batches_with_failures_count_with_the_pairs_that_are_tried_again(tmp_path: Path) -> None:
    from schemas.failures import FailureClass

    bench = bench_with(tmp_path, 70)
    bench.begin()
    refs = bench.due()
    bench.commit(refs[0], [FailureClass.TIMEOUT] * 2 + [FailureClass.REFUSED])
    bench.commit(refs[1])
    found = population(bench)
    assert found.routing == "conditions on every row"
    assert found.frames["ask"].size == 68 * 5 + 2
    assert bench.route().documents.expected == 68 * 5 + 2


def test_a_constant_condition_reads_no_more_than_ids(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, 70, backends__mini=HOSTED)
    assert population(bench).frames["ask"].size == 350
