from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.batches import BatchRef
from schemas.errors import InputError, OutputError
from schemas.failures import FailureClass
from schemas.ids import batch_id
from schemas.limits import Limits
from schemas.outcomes import Outcome
from tests.support.batches import part_writer, staged, work_batch
from tests.support.documents import rows, write
from tests.support.records import answered, failed, run_context
from tests.support.workloads import load
from transforms.batch_refs import BatchRefs, no_refs
from transforms.commit import commit
from transforms.cut import cut_batches
from transforms.input_files import InputFile, RowGroup
from transforms.plan import Plan, find_due, plan_run
from transforms.plan_file import group_slice, plan_bytes, read_group, read_plan
from transforms.previous import load_previous
from transforms.store import LocalStore


class Bench:
    """A workload over files, planned again and again; batches are committed by hand."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.loaded = load(folder, **{"limits__batch_rows": 4, **changes})
        self.store = LocalStore(self.loaded.output_uri)
        self.runs = 0

    def write(self, name: str, table: pa.Table, **options: Any) -> Path:
        return write(self.folder / "in" / f"{name}.parquet", table, **options)

    def plan(self, *retry_classes: str, only: Sequence[str] = ()) -> Plan:
        self.runs += 1
        context = run_context(self.store.root, run_id=f"run-{self.runs}", only_batches=only)
        return plan_run(self.loaded, context, retry_classes=retry_classes)

    def commit(self, ref: BatchRef, *failures: FailureClass) -> None:
        """Commit a batch: its first rows have these failures, the others are results."""
        writer = part_writer(self.loaded.workload, run_context(self.store.root), self.store)
        previous = load_previous(self.store, ref)
        due = range(ref.row_count) if previous is None else sorted(row for row, _ in previous.retry)
        base = ref.first_row if previous is None else 0
        numbers = [base + n for n in due]
        outcomes: list[Outcome] = [failed(n, failure) for n, failure in zip(numbers, failures, strict=False)]
        outcomes += [answered(n) for n in numbers[len(failures) :]]
        more = {} if previous is None else {"carried": previous.carried, "prior": previous.retry}
        commit(self.store, staged(writer, work_batch(ref, outcomes, **more)))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def where(refs: Sequence[BatchRef]) -> list[tuple[str, int, int, int]]:
    return [(Path(r.uri).stem, r.row_group, r.first_row, r.row_count) for r in refs]


def duplicates(refs: Sequence[BatchRef]) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(Path(r.uri).stem, r.first_row): r.duplicate_rows for r in refs if r.duplicate_rows}


# ---- cutting


def test_files_are_cut_in_order_of_name_row_group_and_row(bench: Bench) -> None:
    bench.write("b", rows(range(6)))
    bench.write("a", rows(range(10, 19)), row_group=6)
    plan = bench.plan()
    assert where(plan.refs) == [
        ("a", 0, 0, 4),
        ("a", 0, 4, 2),
        ("a", 1, 0, 3),
        ("b", 0, 0, 4),
        ("b", 0, 4, 2),
    ]
    assert (plan.rows_due, plan.rows_total, plan.batches_total, plan.batches_committed) == (15, 15, 5, 0)
    assert (plan.files, plan.skipped_files) == (2, ())


def test_a_batch_is_named_after_where_its_rows_stand(bench: Bench) -> None:
    path = bench.write("a", rows(range(6)))
    ref = bench.plan().refs[1]
    assert ref.batch_id == batch_id(str(path), ref.generation, 0, 4, 2)
    assert (ref.size, ref.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert (ref.attempt, ref.previous_attempt) == (1, None)


def test_files_and_row_groups_without_rows_have_no_batches(bench: Bench) -> None:
    bench.write("a", rows([]))
    with pq.ParquetWriter(bench.folder / "in" / "b.parquet", rows([]).schema) as writer:
        for ids in ([1, 2], [], [3]):
            writer.write_table(rows(ids))
    assert sum(ref.row_count for ref in bench.plan().refs) == 3
    assert bench.plan().files == 2


GROUPS = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 10**7)), max_size=4)


@given(GROUPS, st.integers(1, 600), st.integers(1024, 10**6))
def test_batches_tile_every_row_group_exactly(
    sizes: list[tuple[int, int]], batch_rows: int, batch_bytes: int
) -> None:
    groups = tuple(RowGroup(index, count, size) for index, (count, size) in enumerate(sizes))
    file = InputFile("/a", "g", 1, 1, pa.schema([]), groups)
    refs = list(cut_batches([file], Limits(batch_rows=batch_rows, batch_bytes=batch_bytes)))
    tiles = [(r.row_group, row) for r in refs for row in range(r.first_row, r.first_row + r.row_count)]
    assert tiles == [(g.index, row) for g in groups for row in range(g.rows)]
    assert all(1 <= r.row_count <= batch_rows for r in refs)
    assert len({r.batch_id for r in refs}) == len(refs)
    for ref in refs:
        group = groups[ref.row_group]
        assert ref.row_count == 1 or ref.row_count * group.bytes <= batch_bytes * group.rows


def test_large_rows_make_small_batches(tmp_path: Path) -> None:
    bench = Bench(tmp_path, limits__batch_rows=1000, limits__batch_bytes=10_000)
    bench.write("a", rows(range(40), text=[str(i) * 500 for i in range(10, 50)]), compression="none")
    counts = [ref.row_count for ref in bench.plan().refs]
    assert max(counts) in (8, 9, 10)
    assert sum(counts) == 40


# ---- what is due


def test_what_is_committed_is_not_due(bench: Bench) -> None:
    bench.write("a", rows(range(10)))
    first = bench.plan()
    bench.commit(first.refs[1])
    second = bench.plan()
    assert where(second.refs) == [("a", 0, 0, 4), ("a", 0, 8, 2)]
    assert (second.rows_due, second.batches_committed, second.batches_total) == (6, 1, 3)


def test_failures_that_can_be_tried_again_are_due_and_those_alone(bench: Bench) -> None:
    bench.write("a", rows(range(8)))
    one, two = bench.plan().refs
    bench.commit(one, FailureClass.TIMEOUT, FailureClass.NULL_TEXT, FailureClass.CONNECTION)
    bench.commit(two, FailureClass.REFUSED)
    plan = bench.plan()
    (ref,) = plan.refs
    assert (ref.batch_id, ref.attempt, ref.previous_attempt) == (one.batch_id, 2, 1)
    assert plan.rows_due == 2


def test_classes_that_are_asked_for_are_due_too(bench: Bench) -> None:
    bench.write("a", rows(range(8)))
    one, two = bench.plan().refs
    bench.commit(one, FailureClass.TIMEOUT)
    bench.commit(two, FailureClass.REFUSED, FailureClass.TRUNCATED)
    plan = bench.plan("refused", "refused")
    assert [(r.attempt, r.retry_classes) for r in plan.refs] == [(2, ("refused",)), (2, ("refused",))]
    assert plan.rows_due == 2


def test_the_third_attempt_follows_the_second(bench: Bench) -> None:
    bench.write("a", rows(range(4)))
    (ref,) = bench.plan().refs
    bench.commit(ref, FailureClass.TIMEOUT, FailureClass.TIMEOUT)
    bench.commit(bench.plan().refs[0], FailureClass.TIMEOUT)
    (third,) = bench.plan().refs
    assert (third.attempt, third.previous_attempt) == (3, 2)
    bench.commit(third)
    assert not bench.plan().refs


def test_a_file_that_is_added_is_due_and_nothing_else(bench: Bench) -> None:
    bench.write("b", rows(range(4)))
    bench.commit(bench.plan().refs[0])
    bench.write("a", rows(range(10, 12)))
    assert where(bench.plan().refs) == [("a", 0, 0, 2)]


def test_a_file_that_is_gone_leaves_its_results_alone(bench: Bench) -> None:
    path = bench.write("a", rows(range(4)))
    bench.write("b", rows([7]))
    bench.commit(bench.plan().refs[0])
    path.unlink()
    plan = bench.plan()
    assert (where(plan.refs), plan.batches_total) == ([("b", 0, 0, 1)], 1)


def test_a_file_that_was_replaced_after_documents_of_it_were_answered_is_refused(bench: Bench) -> None:
    path = bench.write("a", rows(range(8)))
    bench.commit(bench.plan().refs[0])
    write(path, rows(range(9)))
    with pytest.raises(OutputError, match=r"a\.parquet was replaced after run .* had answered documents"):
        bench.plan()


def test_a_file_that_was_touched_or_replaced_before_anything_was_answered_is_planned(bench: Bench) -> None:
    path = bench.write("a", rows(range(8)))
    first = bench.plan()
    write(path, rows(range(9)))
    assert len(bench.plan().refs) == 3
    write(path, rows(range(8)))
    again = bench.plan()
    assert [r.batch_id for r in again.refs] == [r.batch_id for r in first.refs]


def test_results_below_the_input_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, output__uri="in/out")
    bench.write("a", rows([1]))
    bench.write("out/results/x", rows([1]))
    with pytest.raises(InputError, match="results would be read as documents"):
        bench.plan()


def test_planning_finishes_what_a_killed_run_had_committed(bench: Bench) -> None:
    bench.write("a", rows(range(4)))
    (ref,) = bench.plan().refs
    writer = part_writer(bench.loaded.workload, run_context(bench.store.root), bench.store)
    draft = staged(writer, work_batch(ref, [answered(n) for n in range(4)]))
    bench.store.create(f"commits/{ref.batch_id}.0001.json", draft.to_bytes())
    assert not bench.plan().refs
    assert bench.store.exists(draft.record.parts[0].final)


def test_asking_what_is_due_writes_nothing(bench: Bench) -> None:
    bench.write("a", rows(range(4)))
    work = find_due(bench.loaded, None)
    assert list(work.rows) == [4]
    assert not Path(bench.store.root).exists()


# ---- repeated ids


def test_repeated_ids_are_noted_across_files_row_groups_and_batches(bench: Bench) -> None:
    bench.write("a", rows(["p", "q", "r", "s", "p", "t"]), row_group=5)
    bench.write("b", rows(["t", "u"]))
    assert duplicates(bench.plan().refs) == {("a", 4): (4,), ("b", 0): (0,)}


def test_ids_need_only_be_unique_in_a_batch_where_that_is_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, input__unique_ids="batch")
    bench.write("a", rows(["p"] * 6))
    assert duplicates(bench.plan().refs) == {}


def test_a_document_is_never_answered_twice_when_a_file_is_added_that_sorts_earlier(bench: Bench) -> None:
    bench.write("b", rows(["x", "y"]))
    bench.commit(bench.plan().refs[0])
    bench.write("a", rows(["w", "x"]))
    assert duplicates(bench.plan().refs) == {("a", 0): (1,)}


def test_nor_when_that_file_is_half_committed(bench: Bench) -> None:
    bench.write("b", rows(["x", "y"]))
    bench.commit(bench.plan().refs[0])
    bench.write("a", rows(["1", "2", "3", "4", "x"]))
    bench.commit(bench.plan().refs[0])
    assert duplicates(bench.plan().refs) == {("a", 4): (4,)}


def test_a_document_whose_batch_failed_is_due_although_its_duplicate_was_committed(bench: Bench) -> None:
    bench.write("a", rows(["x", "y"]))
    bench.write("b", rows(["x", "z"]))
    _, b = bench.plan().refs
    assert b.duplicate_rows == (0,)
    bench.commit(b, FailureClass.DUPLICATE_ID)
    plan = bench.plan()
    assert where(plan.refs) == [("a", 0, 0, 2)]
    assert duplicates(plan.refs) == {}


def test_a_further_attempt_keeps_the_duplicates_of_the_first(bench: Bench) -> None:
    bench.write("a", rows(["x", "x", "y"]))
    (ref,) = bench.plan().refs
    bench.commit(ref, FailureClass.TIMEOUT, FailureClass.DUPLICATE_ID)
    bench.write("b", rows(["new"]))
    again, new = bench.plan().refs
    assert (again.attempt, again.duplicate_rows) == (2, (1,))
    assert (new.attempt, new.duplicate_rows) == (1, ())


# ---- the frozen plan


def test_a_plan_comes_back_with_the_schema_that_workers_read_as(bench: Bench) -> None:
    bench.write("a", rows(["x", "x"]))
    plan = bench.plan()
    refs, schema = read_plan(bench.store, plan.plan_uri)
    assert list(refs) == list(plan.refs)
    assert schema.names == ["id", "text", "kind", "size"]
    assert schema.field("text").type == pa.large_string()


def test_every_field_of_a_reference_survives(bench: Bench) -> None:
    ref = BatchRef(
        "b" * 32, "/ü.parquet", "g", 3, 2**40, 9, 2, 1, (2**40, 2**40 + 1), ("refused",), 2**41, 2**60
    )
    refs = [ref, replace(ref, previous_attempt=None)]
    bench.store.create("p", plan_bytes(BatchRefs.of(refs), pa.schema([])))
    assert list(read_plan(bench.store, "p")[0]) == refs


def test_a_plan_that_was_damaged_is_named_with_what_to_do(bench: Bench) -> None:
    whole = plan_bytes(no_refs(), pa.schema([("id", pa.int64())]))
    bench.store.create("p", whole[:-20])
    with pytest.raises(OutputError, match=r"/p can't be read .* Run again"):
        read_plan(bench.store, "p")


def test_an_empty_plan_comes_back(bench: Bench) -> None:
    bench.store.create("p", plan_bytes(no_refs(), pa.schema([("id", pa.int64())])))
    refs, schema = read_plan(bench.store, "p")
    assert (len(refs), schema) == (0, pa.schema([("id", pa.int64())]))
    assert len(read_group(bench.store, "p", 0, 1)[0]) == 0


def test_the_workload_is_kept_beside_the_plan_as_it_was(bench: Bench) -> None:
    bench.write("a", rows([1]))
    bench.plan()
    assert bench.store.read("runs/run-1/workload.toml") == bench.loaded.source


@given(st.integers(0, 200), st.integers(1, 40))
def test_groups_tile_the_batches_exactly(count: int, groups: int) -> None:
    refs = [BatchRef(f"{n:032x}", "", "", 0, n, 1) for n in range(count)]
    slices = [group_slice(BatchRefs.of(refs), group, groups) for group in range(groups)]
    assert [ref for part in slices for ref in part] == refs
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


@pytest.mark.parametrize("group", [-1, 3])
def test_a_group_that_is_none_is_refused(group: int) -> None:
    with pytest.raises(OutputError, match=f"group {group} of 3: must be 0 to 2"):
        group_slice(no_refs(), group, 3)


def test_a_run_that_is_told_its_batches_leaves_the_others_alone_and_counts_them(bench: Bench) -> None:
    bench.write("a", rows(range(12)))
    first, second, third = bench.plan().refs

    told = bench.plan(only=[first.batch_id[:6], third.batch_id])

    assert list(told.refs) == [first, third]
    assert (told.rows_due, told.batches_left_out) == (8, 1)
    bench.commit(first)
    assert not bench.plan(only=[first.batch_id]).refs
    assert bench.plan(only=[second.batch_id]).batches_left_out == 1


def test_a_batch_that_the_input_does_not_have_is_named(bench: Bench) -> None:
    bench.write("a", rows(range(4)))

    with pytest.raises(InputError, match="batch 'ffffffff': the input has no such batch"):
        bench.plan(only=["ffffffff"])
