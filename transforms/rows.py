"""The three structs that every row carries, usage, cost and origin, built column by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

from schemas.arrow import COST, GEN_AI, LINEAGE
from schemas.failures import FailureClass
from schemas.outcomes import FREE, Charge, Outcome, SharedFrom, Usage, money
from schemas.run import RunContext
from transforms.route import PASSED
from transforms.work import Prior, WorkBatch

Priors = Sequence[Prior | None]
_NONE_YET = Prior(Usage(), FREE, 0, 0, 0, "0")


@dataclass(frozen=True, slots=True)
class _Same:
    """One value for all rows."""

    value: Any


def gen_ai_column(outcomes: Sequence[Outcome], priors: Priors) -> pa.StructArray:
    """The `gen_ai` structs of rows, over all calls of all attempts."""
    usages = [o.usage if p is None else p.usage + o.usage for o, p in zip(outcomes, priors, strict=True)]
    values = {
        "operation": {"name": [o.operation for o in outcomes]},
        "provider": {"name": [o.provider for o in outcomes]},
        "request": {"model": [o.request_model for o in outcomes]},
        "response": {
            "model": [storable(o.response_model) for o in outcomes],
            "id": [storable(o.response_id) for o in outcomes],
            "finish_reasons": [[storable(reason) for reason in o.finish_reasons] for o in outcomes],
        },
        "usage": {
            "input_tokens": [u.input_tokens for u in usages],
            "output_tokens": [u.output_tokens for u in usages],
            "cache_read": {"input_tokens": [u.cache_read_input_tokens for u in usages]},
            "cache_creation": {"input_tokens": [u.cache_creation_input_tokens for u in usages]},
        },
    }
    return _column(GEN_AI, values, len(outcomes))


def cost_column(outcomes: Sequence[Outcome], priors: Priors) -> pa.StructArray:
    """The `cost` structs of rows, over all calls of all attempts."""
    before = [prior or _NONE_YET for prior in priors]
    charges = [_charge(o, p) for o, p in zip(outcomes, priors, strict=True)]
    values = {
        name: [getattr(charge, name) for charge in charges]
        for name in (
            *("amount", "list_amount", "currency", "basis", "price_source", "price_as_of", "certainty"),
            *("device_seconds", "energy_wh_low", "energy_wh_high"),
        )
    }
    for name in ("calls", "replayed_calls", "ambiguous_calls"):
        values[name] = [getattr(p, name) + getattr(o, name) for o, p in zip(outcomes, before, strict=True)]
    values["ambiguous_amount"] = [_at_stake(o, p) for o, p in zip(outcomes, priors, strict=True)]
    return _column(COST, values, len(outcomes))


def _charge(outcome: Outcome, prior: Prior | None) -> Charge:
    return outcome.charge if prior is None else prior.charge + outcome.charge


def _at_stake(outcome: Outcome, prior: Prior | None) -> Decimal:
    if prior is None:
        return outcome.ambiguous_amount
    return money(Decimal(prior.ambiguous_amount) + outcome.ambiguous_amount)


def storable(text: str | None) -> str | None:
    """Text as it can be stored: lone surrogates, which JSON answers may hold, are escaped."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def lineage_column(run: RunContext, batch: WorkBatch, outcomes: Sequence[Outcome]) -> pa.StructArray:
    """The `lineage` structs of rows."""
    ref = batch.ref
    rows = [o.assignment.row for o in outcomes]
    values = {
        "run_id": _Same(run.run_id),
        "batch_id": _Same(ref.batch_id),
        "attempt": _Same(ref.attempt),
        "workload_sha256": _Same(run.workload_sha256),
        "code_version": _Same(run.code_version),
        "source": {
            "uri": _Same(ref.uri),
            "generation": _Same(ref.generation),
            "row_group": _Same(ref.row_group),
            "row": rows,
        },
        "document_sha256": [batch.digests[row - ref.first_row] for row in rows],
        "prompt_sha256": [o.prompt_sha256 for o in outcomes],
        "request_sha256": [o.request_sha256 for o in outcomes],
        "route": [o.assignment.route or None for o in outcomes],
        "rule": [o.assignment.rule or None for o in outcomes],
        "chain_tried": [o.chain_tried for o in outcomes],
        "policy": [_policy(o) for o in outcomes],
        "shared_from": _shared_from([o.shared_from for o in outcomes]),
        "latency_ms": [o.latency_ms for o in outcomes],
        "answered_at": [datetime.fromisoformat(o.answered_at) if o.answered_at else None for o in outcomes],
    }
    return _column(LINEAGE, values, len(outcomes))


def _policy(outcome: Outcome) -> str | None:
    if not outcome.assignment.route:
        return None
    return outcome.message if outcome.failure is FailureClass.POLICY_REJECTED else PASSED


def _shared_from(origins: Sequence[SharedFrom | None]) -> Any:
    """Few rows share another's answer: usually one NULL for all."""
    if not any(origins):
        return _Same(None)
    names = SharedFrom.__slots__
    return [None if o is None else {name: getattr(o, name) for name in names} for o in origins]


def _column(kind: pa.DataType, values: Any, count: int) -> pa.Array:
    """A column from a list, from one value for all rows, or for a struct from its fields' columns.

    Column by column this takes a tenth of what a dictionary per row does.
    """
    if isinstance(values, Mapping):
        fields = list(kind)
        columns = [_column(field.type, values[field.name], count) for field in fields]
        return pa.StructArray.from_arrays(columns, fields=fields)
    if isinstance(values, _Same):
        return (
            pa.nulls(count, kind) if values.value is None else pa.repeat(pa.scalar(values.value, kind), count)
        )
    return pa.array(values, kind)
