"""What became of each batch, a line a batch: as an object where one is looked at, as columns where all are.

A run keeps the lines of all its batches to its end. As objects they take ten times what they take as columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.batches import BatchReport
from schemas.failures import NO_FAULT, FailureClass, is_retryable
from transforms.batch_ids import ID_BYTES
from transforms.unfinished import Unfinished

_COMMITTED = ("committed", "already_committed")
_AT_A_TIME = 4096
_SCHEMA = pa.schema(
    [
        ("group", pa.int32()),
        ("batch_id", pa.binary(ID_BYTES)),
        ("attempt", pa.int32()),
        ("state", pa.dictionary(pa.int32(), pa.string())),
        ("rows", pa.int32()),
        ("results", pa.int32()),
        ("failures", pa.int32()),
        ("retryable", pa.int32()),
        ("amount", pa.string()),
        ("uri", pa.dictionary(pa.int32(), pa.string())),
        ("error", pa.dictionary(pa.int32(), pa.string())),
        ("faults", pa.int32()),
        ("again", pa.map_(pa.string(), pa.int64())),
    ]
)


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One batch as the tables show it. `amount` is a decimal string, None when a price is unknown.

    `faults` are the failures where something went wrong: a document that policy kept back is none.
    `again` are the failures that a retry takes up, by class; those that wait for a provider's batch are none.
    """

    group: int
    batch_id: str
    attempt: int
    state: str
    rows: int
    results: int
    failures: int
    retryable: int
    amount: str | None
    uri: str
    error: str
    faults: int = 0
    again: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_failed(self) -> bool:
        """Whether nothing of the batch was committed."""
        return self.state not in _COMMITTED


class BatchLines(Sequence[BatchLine]):
    """Lines as the columns of a table; made by `of`."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @classmethod
    def of(cls, lines: Iterable[BatchLine]) -> BatchLines:
        """These lines, in this order."""
        if isinstance(lines, BatchLines):
            return lines
        rows = [{**asdict(line), **_packed(line)} for line in lines]
        return cls(pa.Table.from_pylist(rows, schema=_SCHEMA))

    @classmethod
    def joined(cls, parts: Iterable[BatchLines]) -> BatchLines:
        """All lines, part after part."""
        every = pa.concat_tables([_SCHEMA.empty_table(), *(part._table for part in parts)])
        return cls(every.unify_dictionaries())

    @classmethod
    def failed(cls, failed: Unfinished, groups: pa.Array) -> BatchLines:
        """The lines of batches that were not committed, each with the group that had it."""
        count = len(failed)
        zeros = pa.repeat(pa.scalar(0, pa.int32()), count)
        columns = {
            **dict.fromkeys(("rows", "results", "failures", "retryable", "faults"), zeros),
            "group": groups,
            "batch_id": failed.batches,
            "attempt": failed.attempts,
            "state": _same("failed", count),
            "amount": pa.nulls(count, pa.string()),
            "uri": _same("", count),
            "error": failed.errors,
            "again": pa.array([[]] * count, _SCHEMA.field("again").type),
        }
        return cls(pa.table([columns[name] for name in _SCHEMA.names], schema=_SCHEMA))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[BatchLine]:
        for first in range(0, len(self), _AT_A_TIME):
            yield from map(_line, self._table.slice(first, _AT_A_TIME).to_pylist())

    @overload
    def __getitem__(self, index: int) -> BatchLine: ...

    @overload
    def __getitem__(self, index: slice) -> BatchLines: ...

    def __getitem__(self, index: int | slice) -> BatchLine | BatchLines:
        if isinstance(index, int):
            return _line(self._table.slice(range(len(self))[index], 1).to_pylist()[0])
        start, stop, step = index.indices(len(self))
        assert step == 1
        return BatchLines(self._table.slice(start, max(0, stop - start)))

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return int(self._table.nbytes)

    @property
    def table(self) -> pa.Table:
        """The columns, named as the fields of a line."""
        return self._table

    def is_committed(self) -> pa.ChunkedArray:
        """Of each line, whether its batch is committed."""
        return pc.is_in(self._table["state"], pa.array(_COMMITTED))

    def committed(self) -> BatchLines:
        """The lines of batches that are committed."""
        return BatchLines(self._table.filter(self.is_committed()))

    def worst_first(self) -> pa.Array:
        """The places of committed ones: most to try again first, then most failures, then by group."""
        keys = [("retryable", "descending"), ("failures", "descending"), ("group", "ascending")]
        table = self._table.select([name for name, _ in keys])
        table = table.append_column("place", pa.array(np.arange(len(self)))).filter(self.is_committed())
        return table["place"].combine_chunks().take(pc.sort_indices(table, keys))

    def at(self, places: pa.Array) -> BatchLines:
        """The lines at some places."""
        return BatchLines(self._table.take(places))

    @property
    def batches(self) -> pa.ChunkedArray:
        """The batches' ids, 16 bytes each."""
        return self._table["batch_id"]

    def total(self, column: str) -> int:
        """The sum of a column of counts."""
        return int(pc.sum(self._table[column]).as_py() or 0)

    def amount(self) -> tuple[Decimal, bool]:
        """What they cost, as far as prices are known, and whether all are known."""
        amounts = self._table["amount"].to_pylist()
        known = [Decimal(amount) for amount in amounts if amount is not None]
        return sum(known, Decimal(0)), len(known) == len(amounts)

    def again(self) -> Counter[str]:
        """The failures that a retry takes up, by class."""
        found: Counter[str] = Counter()
        for entries in self._table["again"].to_pylist():
            found.update(dict(entries))
        return found


def _same(text: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([text]))


def _line(row: dict[str, Any]) -> BatchLine:
    return BatchLine(**{**row, "batch_id": row["batch_id"].hex(), "again": dict(row["again"])})


def _packed(line: BatchLine) -> dict[str, Any]:
    return {"batch_id": bytes.fromhex(line.batch_id), "again": list(line.again.items())}


def batch_line(group: int, report: BatchReport) -> BatchLine:
    """A report as a line of the batch table."""
    record = report.record
    if record is None:
        return BatchLine(
            group, report.batch_id, report.attempt, report.state, 0, 0, 0, 0, "0", "", report.error
        )
    totals = [t for backends in record.totals.values() for t in backends.values()]
    amount = sum((Decimal(t.amount) for t in totals), Decimal(0))
    return BatchLine(
        group=group,
        batch_id=report.batch_id,
        attempt=report.attempt,
        state=report.state,
        rows=record.rows_in,
        results=record.results,
        failures=record.failures,
        retryable=record.retryable,
        amount=None if any(t.unknown for t in totals) else str(amount),
        uri=record.ref.uri,
        error=report.error,
        faults=sum(n for name, n in record.failures_by_class.items() if name not in NO_FAULT),
        again={
            name: n
            for name, n in record.failures_by_class.items()
            if is_retryable(FailureClass(name)) and name != FailureClass.AWAITING_BATCH
        },
    )
