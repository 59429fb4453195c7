"""Settling a run: add up what is committed, prove that nothing is missing, write the manifest last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from schemas.batches import BackendTotals, BatchReport
from schemas.failures import FAILURE_KINDS, FailureClass
from schemas.load import LoadedWorkload
from schemas.outcomes import ZERO, money_text
from schemas.run import FailureGroup, Manifest, RunContext, State
from transforms import lease
from transforms.batchmode.tickets import FOLDER
from transforms.call.segments import CLAIMS
from transforms.commit import recover
from transforms.commit_index import CommitIndex
from transforms.committed import Committed
from transforms.compaction import FEW_FILES, take_stock
from transforms.device_use import collect_use
from transforms.failure_files import show_failures
from transforms.failures import failures_left
from transforms.layout import COMMITS, COMPACTED, FAILURES, run_path
from transforms.plan import Plan
from transforms.store import Store, is_remote, open_store, sweep_temporaries
from transforms.tally import Sums, add_up, examples_of, require_parts
from transforms.unfinished import LeftOpen, note_left_open

_EXAMPLES = 5
_CREATED_IN = (COMMITS, COMPACTED, FAILURES, "runs", "budget", FOLDER)
"""Folders of an output in which objects are created in one step."""


def settle_run(
    loaded: LoadedWorkload,
    run: RunContext,
    plan: Plan,
    failed: Sequence[BatchReport],
    started_at: datetime,
    *,
    now: datetime | None = None,
    store: Store | None = None,
) -> Manifest:
    """Settle a run over a locked output: sweep, reconcile, show what failed, and write `manifest.json` last.

    Raises:
        ReconcileError: the commit records contradict each other.
        StoreError: a committed part is not there, or not what was committed.
    """
    store = store or open_store(run.output)
    recover(store)
    sweep_temporaries(store.root, _CREATED_IN)
    if is_remote(store.root):
        lease.sweep(store, CLAIMS)
    sums, groups, committed = _added_up(store, run)
    show_failures(store, committed)
    left = note_left_open(store, run.run_id, plan.refs, committed, failed)
    reason_class, reason = _reason(groups, left, loaded, plan)
    if run.skip_routes and reason_class == "budget":
        reason = f"{reason}. Skipped in this run, as decided: {', '.join(run.skip_routes)}"
    manifest = _manifest(loaded, run, plan, sums, groups, left)
    state: State = "incomplete" if reason else "complete"
    manifest.update(
        devices=collect_use(store, run.run_id),
        state=state,
        reason=reason or "every document is a result or a final failure",
        reason_class=reason_class,
        started_at=started_at.isoformat(),
        ended_at=(now or datetime.now(UTC)).isoformat(),
    )
    result = Manifest(**manifest)  # type: ignore[arg-type]
    store.create(run_path(run.run_id, "manifest.json"), result.to_json())
    return result


def _added_up(store: Store, run: RunContext) -> tuple[Sums, tuple[FailureGroup, ...], Committed]:
    """All sums, the failures as they stand, and how batches stand; of the commits nothing else is kept."""
    index = take_stock(store, require_parts, FEW_FILES)
    sums = add_up(index, run)
    return sums, tuple(_failure_groups(store, index, sums)), index.committed


def _failure_groups(store: Store, index: CommitIndex, sums: Sums) -> Iterator[FailureGroup]:
    """The failures as they stand, most frequent first, with a few ids to look at."""
    examples = _find_examples(store, index, sums)
    for name, count in sorted(sums.failures_by_class.items(), key=lambda item: (-item[1], item[0])):
        kind = FAILURE_KINDS[FailureClass(name)]
        rows = examples.get(name, [])
        yield FailureGroup(
            error_class=name,
            count=count,
            retryable=kind.retryable,
            meaning=kind.meaning,
            remedy=kind.remedy,
            example_ids=tuple("(no id)" if document_id is None else document_id for document_id, _ in rows),
            example_message=rows[0][1] if rows else "",
        )


def _find_examples(store: Store, index: CommitIndex, sums: Sums) -> dict[str, list[tuple[str | None, str]]]:
    """Up to a few (id, message) of each class; of each, the few batches that it takes are read."""
    found: dict[str, list[tuple[str | None, str]]] = defaultdict(list)
    read: set[str] = set()
    for name, count in sums.failures_by_class.items():
        for batch_id, attempt in examples_of(index, name, _EXAMPLES):
            if len(found[name]) >= min(count, _EXAMPLES) or batch_id in read:
                continue
            read.add(batch_id)
            table = failures_left(store, batch_id, attempt)
            for row in table.select(["document_id", "error_class", "message"]).to_pylist():
                if len(found[row["error_class"]]) < _EXAMPLES:
                    found[row["error_class"]].append((row["document_id"], row["message"]))
    return found


def _reason(
    groups: Sequence[FailureGroup], left: LeftOpen, loaded: LoadedWorkload, plan: Plan
) -> tuple[str, str]:
    """Why a run is incomplete: the class and one plain sentence; empty strings if it is not."""
    retryable = sum(g.count for g in groups if g.retryable)
    if left.count:
        more = f" {_documents(retryable)} can be tried again." if retryable else ""
        one = "1 batch was" if left.count == 1 else f"{left.count} batches were"
        return "batches", f"{one} not finished: {left.listed[0].error}.{more} Run again to do what is missing"
    budget = next((g for g in groups if g.error_class == FailureClass.BUDGET_EXHAUSTED), None)
    if budget is not None:
        return "budget", _budget_sentence(budget, loaded, plan)
    waiting = sum(g.count for g in groups if g.error_class == FailureClass.AWAITING_BATCH)
    if waiting and waiting == retryable:
        return "provider_batches", (
            f"{_documents(waiting)} still in provider batches, all else is done. Run again later: that "
            f"collects the answers"
        )
    if retryable:
        worst = max((g for g in groups if g.retryable), key=lambda g: g.count)
        same = sum(g.count for g in groups if g.error_class == worst.error_class)
        mostly = "" if same == retryable else "mostly "
        return "failures", (
            f"{_documents(retryable)} can be tried again ({mostly}{worst.error_class}: {worst.meaning}; "
            f"{worst.remedy}). Run again to do just those"
        )
    if plan.batches_left_out:
        one = "1 batch" if plan.batches_left_out == 1 else f"{plan.batches_left_out} batches"
        return (
            "batches",
            f"{one} still to do: this run was told to leave the rest alone. Run again to do that",
        )
    return "", ""


def _budget_sentence(budget: FailureGroup, loaded: LoadedWorkload, plan: Plan) -> str:
    """Why documents are left at the cap, and what to do about it."""
    amount = loaded.workload.budget.amount
    if amount is not None and "the cap of " not in budget.example_message:
        used_up = f"the budget of {amount} {loaded.workload.budget.currency} was used up"
        raised = "budget.amount"
    else:
        used_up, raised = f"a cap was used up ({budget.example_message})", "the cap"
    idle = ""
    if plan.rows_beyond and not plan.refs:
        idle = " Nothing was tried: what is left is less than any of them needs."
    return (
        f"{used_up}: {_documents(budget.count)} left.{idle} Raise {raised} and run again to go on from here"
    )


def _documents(count: int) -> str:
    return "1 document" if count == 1 else f"{count} documents"


def _manifest(
    loaded: LoadedWorkload,
    run: RunContext,
    plan: Plan,
    sums: Sums,
    groups: Sequence[FailureGroup],
    left: LeftOpen,
) -> dict[str, object]:
    every = [totals for backends in sums.totals.values() for totals in backends.values()]
    failures = sum(sums.failures_by_class.values())
    budget, soft = loaded.workload.budget.amount, loaded.workload.budget.soft
    return {
        "run_id": run.run_id,
        "workload": loaded.workload.name,
        "workload_sha256": run.workload_sha256,
        "rehearsal": run.rehearsal,
        "input_files": plan.files,
        "skipped_files": plan.skipped_files,
        "rows_in": sums.rows_in,
        "rows_skipped": sums.rows_skipped,
        "assignments": sums.results + failures,
        "results": sums.results,
        "failures": failures,
        "retryable": sum(g.count for g in groups if g.retryable),
        "batches": plan.batches_total,
        "batches_committed": sums.batches,
        "batches_committed_by_this_run": sums.by_this_run,
        "calls_by_this_run": sums.calls_by_this_run,
        "results_by_route": dict(sums.results_by_route),
        "failures_by_route": dict(sums.failures_by_route),
        "failure_groups": tuple(groups),
        "failed_batches": left.listed,
        "failed_batches_count": left.count,
        "failed_batches_file": left.file,
        "totals": {route: dict(backends) for route, backends in sums.totals.items()},
        "amount": money_text(sum((Decimal(t.amount) for t in every), ZERO)),
        "list_amount": money_text(sum((Decimal(t.list_amount) for t in every), ZERO)),
        "unknown_prices": sum(t.unknown for t in every),
        "budget_amount": None if budget is None else str(budget),
        "budget_soft_amount": None if soft is None else str(soft),
        "budget_soft_passed": soft is not None and against_caps(sums.totals) >= soft,
        "ambiguous": tuple(sums.ambiguous),
        "approvals": tuple(dict(approval) for approval in run.approvals),
    }


def against_caps(totals: Mapping[str, Mapping[str, BackendTotals]]) -> Decimal:
    """What was spent as budgets count it: hosted calls at list price, unknown ends at their worst."""
    every = (found for backends in totals.values() for found in backends.values())
    hosted = [found for found in every if found.basis != "device_seconds"]
    return sum((Decimal(t.list_amount) + Decimal(t.ambiguous_amount) for t in hosted), ZERO)
