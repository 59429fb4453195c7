"""Batches that are worked on without Beam: from a table to parts and a commit record."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from schemas.batches import BatchRef
from schemas.outcomes import Outcome
from schemas.run import RunContext
from schemas.workload import Workload
from tests.support.documents import rows
from transforms.commit import Draft, make_record
from transforms.store import Store
from transforms.work import WorkBatch
from transforms.write import PartWriter, VectorType

NOW = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
_WRITERS = itertools.count(1)


def table_for(ref: BatchRef) -> pa.Table:
    """The rows of a batch, as a reader gives them; documents are called after their rows."""
    table = rows([f"doc-{ref.first_row + i}" for i in range(ref.row_count)])
    strings = [pa.field(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in table.schema]
    return table.cast(pa.schema(strings))


def work_batch(ref: BatchRef, outcomes: Sequence[Outcome], **changes: Any) -> WorkBatch:
    """A batch of which these outcomes came; they are what was expected, and other rows were skipped."""
    expected = frozenset((o.assignment.row, o.assignment.route) for o in outcomes)
    values: dict[str, Any] = {
        "ref": ref,
        "table": table_for(ref),
        "digests": [f"{i:064x}" for i in range(ref.row_count)],
        "rows_skipped": ref.row_count - len({row for row, _ in expected}),
        "todo": [],
        "outcomes": list(outcomes),
        "expected": expected,
    }
    return WorkBatch(**{**values, **changes})


def part_writer(workload: Workload, run: RunContext, store: Store, **vector_types: VectorType) -> PartWriter:
    """A writer over the documents' schema; `vector_types` by route."""
    schema = table_for(BatchRef("", "", "", 0, 0, 1)).schema
    return PartWriter(workload, run, store, schema, vector_types.__getitem__)


def staged(writer: PartWriter, batch: WorkBatch, name: str | None = None) -> Draft:
    """Stage a batch's parts and make its record; nothing is committed yet."""
    name = name or f"w{next(_WRITERS)}"
    written = writer.write(batch, name)
    return Draft(make_record(batch, written.parts, writer.run, name, NOW), written.failures)
