from dataclasses import replace
from typing import Any

import pyarrow as pa

from schemas.arrow import FAILURES_SCHEMA
from schemas.batches import BatchRef
from schemas.failures import FailureClass
from schemas.ids import sha256_hex
from schemas.outcomes import FREE, Usage
from tests.support.documents import rows, with_bad_utf8
from tests.support.workloads import workload
from transforms.decide import decide
from transforms.previous import Previous
from transforms.probe_rows import read_table_as
from transforms.route import compile_rules
from transforms.work import Prior, WorkBatch

REF = BatchRef("b" * 32, "/in/a.parquet", "g", 0, 100, 4)
PRIOR = Prior(Usage(5, 5), FREE, 1, 0, 0, "0")


def decided(
    table: pa.Table, ref: BatchRef = REF, previous: Previous | None = None, **changes: Any
) -> WorkBatch:
    fields = [pa.field(f.name, pa.large_string()) if f.type == pa.string() else f for f in table.schema]
    read = read_table_as(table, pa.schema(fields))
    return decide(compile_rules(workload(**changes)), replace(ref, row_count=table.num_rows), read, previous)


def pairs(batch: WorkBatch) -> set[tuple[int, str]]:
    done = {(o.assignment.row, o.assignment.route) for o in batch.outcomes}
    return done | {(a.row, a.route) for _, a in batch.todo}


def test_every_row_is_to_do_decided_or_skipped() -> None:
    table = rows(["a", "b", None, "d"], size=[0, 1, 2, 3])
    batch = decided(table, input__filter="size > 0")
    assert [(p, a.row) for p, a in batch.todo] == [(1, 101), (3, 103)]
    assert [o.assignment.row for o in batch.outcomes] == [102]
    assert batch.rows_skipped == 1
    assert batch.expected == pairs(batch) == {(101, "ask"), (102, ""), (103, "ask")}
    assert batch.carried is None


def test_duplicates_of_the_plan_are_rows_of_the_row_group() -> None:
    batch = decided(rows(["a", "b", "c"]), replace(REF, duplicate_rows=(102,)))
    assert [(o.assignment.row, str(o.failure)) for o in batch.outcomes] == [(102, "duplicate_id")]


def test_digests_are_of_the_texts_bytes() -> None:
    batch = decided(with_bad_utf8(rows(["a", "b", "c"], text=["ä", None, "x"]), "text", [2]))
    assert batch.digests == [sha256_hex("ä".encode()), None, sha256_hex(b"\xff\xfe bad")]


def test_an_empty_batch_has_nothing_to_do() -> None:
    batch = decided(rows([]))
    assert (batch.todo, batch.outcomes, batch.digests, batch.expected) == ([], [], [], frozenset())


def test_a_further_attempt_works_on_the_retried_pairs_alone() -> None:
    carried = FAILURES_SCHEMA.empty_table()
    previous = Previous({(101, "ask"): PRIOR, (102, ""): PRIOR}, carried)
    batch = decided(rows(["a", "b", None, "d"]), previous=previous)
    assert [a.row for _, a in batch.todo] == [101]
    assert [o.assignment.row for o in batch.outcomes] == [102]
    assert batch.expected == {(101, "ask"), (102, "")}
    assert (batch.carried, batch.prior) == (carried, previous.retry)


def test_a_pair_that_is_no_longer_decided_stays_expected() -> None:
    """So that the commit refuses to forget it."""
    batch = decided(rows(["a"]), previous=Previous({(100, "gone"): PRIOR}, FAILURES_SCHEMA.empty_table()))
    assert (pairs(batch), batch.expected) == (set(), {(100, "gone")})


def test_taking_routes_leaves_the_others() -> None:
    routes = [{"name": n, "backends": ["mini"], "prompt": "topic"} for n in ("one", "two")]
    batch = decided(rows(["a", "b"]), routes=routes, match="all")
    assert [(p, a.route) for p, a in batch.take(frozenset({"two"}))] == [(0, "two"), (1, "two")]
    assert [a.route for _, a in batch.todo] == ["one", "one"]
    assert batch.take(frozenset({"two"})) == []


def test_a_text_that_is_too_long_leaves_the_table_and_keeps_its_digest() -> None:
    batch = decided(rows(["a", "b"], text=["x" * 2_000_000, "short"]))
    assert batch.table.column("text").to_pylist() == [None, "short"]
    assert batch.digests[0] == sha256_hex(b"x" * 2_000_000)
    (failed,) = batch.outcomes
    assert failed.failure is FailureClass.TEXT_TOO_LONG
    assert "2,000,000 characters" in failed.message
