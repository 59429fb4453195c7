"""Sums over the `totals` of commit tables, exact and by route and backend."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import COMMITS_SCHEMA
from schemas.batches import BackendTotals
from schemas.outcomes import money_text

_KEYS = ("route", "backend", "basis")
_MONEY = ("ambiguous_amount", "amount", "list_amount")
_SUMMED = tuple(f.name for f in COMMITS_SCHEMA.field("totals").type.value_type if f.name not in _KEYS)
_NO_BASIS = ("none", "shared")


def entries(table: pa.Table, name: str) -> tuple[pa.Table, pa.Array]:
    """The entries of a column of lists as a table, and the row that each comes from."""
    column = table.column(name).combine_chunks()
    return pa.Table.from_struct_array(pc.list_flatten(column)), pc.list_parent_indices(column)


def sum_totals(table: pa.Table) -> dict[tuple[str, str], BackendTotals]:
    """What the attempts of a table spent, by route and backend. Amounts are added as decimals."""
    flat, _ = entries(table, "totals")
    grouped = flat.group_by(list(_KEYS)).aggregate([(name, "sum") for name in _SUMMED])
    sums: dict[tuple[str, str], BackendTotals] = {}
    for row in sorted(grouped.to_pylist(), key=lambda row: (row["basis"] in _NO_BASIS, row["basis"])):
        place = row["route"], row["backend"]
        sums[place] = add_totals(sums.get(place, BackendTotals()), _totals(row))
    return sums


def _totals(row: dict[str, Any]) -> BackendTotals:
    values = {name: row[f"{name}_sum"] for name in _SUMMED}
    values.update({name: money_text(values[name]) for name in _MONEY})
    return BackendTotals(basis=row["basis"], **values)


def add_totals(left: BackendTotals, right: BackendTotals) -> BackendTotals:
    """The sum of two totals; amounts are added as decimals."""
    return BackendTotals(
        documents=left.documents + right.documents,
        results=left.results + right.results,
        calls=left.calls + right.calls,
        replayed=left.replayed + right.replayed,
        ambiguous=left.ambiguous + right.ambiguous,
        ambiguous_amount=_add_amounts(left.ambiguous_amount, right.ambiguous_amount),
        input_tokens=left.input_tokens + right.input_tokens,
        output_tokens=left.output_tokens + right.output_tokens,
        amount=_add_amounts(left.amount, right.amount),
        list_amount=_add_amounts(left.list_amount, right.list_amount),
        unknown=left.unknown + right.unknown,
        device_seconds=left.device_seconds + right.device_seconds,
        basis=right.basis if left.basis in _NO_BASIS else left.basis,
        shared=left.shared + right.shared,
    )


def _add_amounts(left: str, right: str) -> str:
    return money_text(Decimal(left) + Decimal(right))
