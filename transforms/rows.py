"""The three structs that every row carries: usage, cost and origin."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from typing import Any

from schemas.failures import FailureClass
from schemas.outcomes import FREE, Outcome, Usage, money
from schemas.run import RunContext
from transforms.route import PASSED
from transforms.work import Prior, WorkBatch


def gen_ai_value(outcome: Outcome, prior: Prior | None) -> dict[str, Any]:
    """The `gen_ai` struct of a row, over all calls of all attempts."""
    usage = outcome.usage if prior is None else prior.usage + outcome.usage
    return {
        "operation": {"name": outcome.operation},
        "provider": {"name": outcome.provider},
        "request": {"model": outcome.request_model},
        "response": {
            "model": storable(outcome.response_model),
            "id": storable(outcome.response_id),
            "finish_reasons": [storable(reason) for reason in outcome.finish_reasons],
        },
        "usage": _usage_value(usage),
    }


def _usage_value(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read": {"input_tokens": usage.cache_read_input_tokens},
        "cache_creation": {"input_tokens": usage.cache_creation_input_tokens},
    }


def cost_value(outcome: Outcome, prior: Prior | None) -> dict[str, Any]:
    """The `cost` struct of a row, over all calls of all attempts."""
    before = prior or Prior(Usage(), FREE, 0, 0, 0, "0")
    charge = before.charge + outcome.charge
    return {
        "amount": charge.amount,
        "list_amount": charge.list_amount,
        "currency": charge.currency,
        "basis": charge.basis,
        "price_source": charge.price_source,
        "price_as_of": charge.price_as_of,
        "certainty": charge.certainty,
        "device_seconds": charge.device_seconds,
        "energy_wh_low": charge.energy_wh_low,
        "energy_wh_high": charge.energy_wh_high,
        "calls": before.calls + outcome.calls,
        "replayed_calls": before.replayed_calls + outcome.replayed_calls,
        "ambiguous_calls": before.ambiguous_calls + outcome.ambiguous_calls,
        "ambiguous_amount": money(Decimal(before.ambiguous_amount) + outcome.ambiguous_amount),
    }


def storable(text: str | None) -> str | None:
    """Text as it can be stored: lone surrogates, which JSON answers may hold, are escaped."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def lineage_value(run: RunContext, batch: WorkBatch, outcome: Outcome) -> dict[str, Any]:
    """The `lineage` struct of a row."""
    ref = batch.ref
    rejected = outcome.failure is FailureClass.POLICY_REJECTED
    return {
        "run_id": run.run_id,
        "batch_id": ref.batch_id,
        "attempt": ref.attempt,
        "workload_sha256": run.workload_sha256,
        "code_version": run.code_version,
        "source": {
            "uri": ref.uri,
            "generation": ref.generation,
            "row_group": ref.row_group,
            "row": outcome.assignment.row,
        },
        "document_sha256": batch.digests[outcome.assignment.row - ref.first_row],
        "prompt_sha256": outcome.prompt_sha256,
        "request_sha256": outcome.request_sha256,
        "route": outcome.assignment.route or None,
        "rule": outcome.assignment.rule or None,
        "chain_tried": list(outcome.chain_tried),
        "policy": (outcome.message if rejected else PASSED) if outcome.assignment.route else None,
        "shared_from": None if outcome.shared_from is None else asdict(outcome.shared_from),
        "latency_ms": outcome.latency_ms,
        "answered_at": datetime.fromisoformat(outcome.answered_at) if outcome.answered_at else None,
    }
