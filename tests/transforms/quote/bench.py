"""A workload over small files that is quoted again and again; batches are committed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.batches import BatchRef
from schemas.failures import FailureClass
from schemas.outcomes import Outcome, Usage
from tests.support.batches import part_writer, work_batch
from tests.support.batches import staged as stage
from tests.support.documents import rows, write
from tests.support.records import answered, failed, run_context
from tests.support.workloads import load
from transforms.commit import commit
from transforms.output import open_output
from transforms.plan import find_due, mark_duplicates
from transforms.previous import load_previous
from transforms.quote.build import quote_workload
from transforms.quote.values import Quote, RouteQuote
from transforms.store import LocalStore

NOW = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)


class Bench:
    """The minimal workload (one hosted route at 1 and 10 USD a million tokens) with changes."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.changes = changes
        self.load()

    def load(self, **changes: Any) -> None:
        """Read the workload again, with further changes."""
        self.changes = {**self.changes, **changes}
        self.loaded = load(self.folder, **self.changes)
        self.store = LocalStore(self.loaded.output_uri)

    def write(self, name: str, table: pa.Table, **options: Any) -> None:
        write(self.folder / "in" / f"{name}.parquet", table, **options)

    def documents(self, count: int, **columns: Any) -> None:
        """One file with so many documents."""
        self.write("a", rows(range(count), **columns))

    def quote(self, **options: Any) -> Quote:
        return quote_workload(self.loaded, NOW, **options)

    def route(self, name: str = "ask", **options: Any) -> RouteQuote:
        return next(route for route in self.quote(**options).routes if route.route == name)

    def due(self, *classes: str) -> tuple[BatchRef, ...]:
        return mark_duplicates(self.loaded, find_due(self.loaded, self.store, classes)).refs

    def begin(self, *, rehearsal: bool = False) -> None:
        """Make the output a run's."""
        with open_output(self.loaded, rehearsal=rehearsal):
            pass

    def commit(
        self,
        ref: BatchRef,
        failures: Sequence[FailureClass] = (),
        outcome: Callable[[int], Outcome] = lambda row: answered(row),
        *,
        publish: bool = True,
    ) -> None:
        """Commit a batch: its first rows have these failures, the others are results."""
        writer = part_writer(self.loaded.workload, run_context(self.store.root), self.store)
        previous = load_previous(self.store, ref)
        numbers = range(ref.first_row, ref.first_row + ref.row_count)
        due = list(numbers) if previous is None else sorted(row for row, _ in previous.retry)
        outcomes = [failed(n, failure) for n, failure in zip(due, failures, strict=False)]
        outcomes += [outcome(n) for n in due[len(failures) :]]
        more = {} if previous is None else {"carried": previous.carried, "prior": previous.retry}
        draft = stage(writer, work_batch(ref, outcomes, **more))
        if publish:
            commit(self.store, draft)
        else:  # a run that was killed between the two
            self.store.create(f"commits/{ref.batch_id}.{ref.attempt:04d}.json", draft.to_bytes())


def used(input_tokens: int, output_tokens: int) -> Callable[[int], Outcome]:
    """Results that took so many tokens each."""
    return lambda row: answered(row, usage=Usage(input_tokens, output_tokens))
