"""Check, plan and quote of a run look at its input once, and each further run looks anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.looks import Looks
from schemas.load import LoadedWorkload
from schemas.run import RunContext
from tests.support import documents, workloads
from transforms.output import open_output
from transforms.quote.compare import read_quote
from transforms.store import open_store


class Bench:
    """A workload over one file, which is replaced between the steps of a run."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "in" / "a.parquet"
        self.write(10)
        self.loaded: LoadedWorkload = workloads.load(folder, limits__batch_rows=4)
        self.looks = Looks()
        self.runs = 0

    def write(self, count: int, name: str = "x") -> None:
        documents.write(self.file, documents.rows([f"{name}{n}" for n in range(count)]))

    def context(self, *only: str) -> RunContext:
        self.runs += 1
        digest = self.loaded.workload.digest()
        return RunContext(f"r{self.runs}", self.loaded.output_uri, digest, False, 8, only_batches=only)

    def quoted(self, context: RunContext) -> tuple[int, int]:
        """Rows and batches that are due, by the quote."""
        self.looks.quote(self.loaded, context, ())
        quote = read_quote(open_store(context.output), context.run_id)
        assert quote is not None
        return quote.rows_due, quote.batches_due


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_run_goes_by_what_its_first_look_has_seen(bench: Bench) -> None:
    """The file is longer at each step: the figures are those of the check. Its workers notice the rest."""
    context = bench.context()
    assert bench.looks.check(bench.loaded).rows == 10
    with open_output(bench.loaded, rehearsal=False):
        bench.write(20)
        plan = bench.looks.plan(bench.loaded, context, ())
        assert (plan.rows_due, len(plan.refs)) == (10, 3)
        bench.write(30)
        assert bench.quoted(context) == (10, 3)


def test_the_next_run_looks_anew(bench: Bench) -> None:
    with open_output(bench.loaded, rehearsal=False):
        for count in (10, 20):
            bench.write(count)
            context = bench.context()
            assert bench.looks.check(bench.loaded).rows == count
            assert bench.looks.plan(bench.loaded, context, ()).rows_due == count
            assert bench.quoted(context)[0] == count


def test_a_step_by_itself_looks_for_itself(bench: Bench) -> None:
    with open_output(bench.loaded, rehearsal=False):
        context = bench.context()
        assert bench.looks.plan(bench.loaded, context, ()).rows_due == 10
        assert bench.quoted(context) == (10, 3)
        bench.write(20)
        assert bench.quoted(bench.context()) == (20, 5)  # nothing is kept after a quote


def test_a_run_that_is_told_its_batches_is_quoted_for_them(bench: Bench) -> None:
    with open_output(bench.loaded, rehearsal=False):
        bench.looks.check(bench.loaded)
        first, *_ = bench.looks.plan(bench.loaded, bench.context(), ()).refs
        context = bench.context(first.batch_id)
        assert bench.looks.plan(bench.loaded, context, ()).rows_due == 4
        assert bench.quoted(context) == (4, 1)


def test_a_rehearsal_over_what_was_rehearsed_is_quoted_as_a_run_into_an_empty_folder(bench: Bench) -> None:
    bench.write(9, name="y")
    with open_output(bench.loaded, rehearsal=True):
        context = bench.context()
        bench.looks.check(bench.loaded)
        assert bench.looks.plan(bench.loaded, context, ()).rows_due == 9
        assert bench.quoted(context) == (9, 3)
