"""What is open at providers, by the records alone: for the plan, the budget and `switchgear status`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from schemas.outcomes import ZERO, money, money_text
from transforms.batchmode.jobs import JobState, read_jobs
from transforms.batchmode.tickets import read_open_tickets
from transforms.call.caps import Need
from transforms.store import Store


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A job that is not collected. `reserved` is the most that it can cost, a decimal string.

    `state` is `submitted`, `cancelled` (its deadline has passed), `refused` (not taken so far),
    `undecided` (the end of the submission is not known) or `intended`.
    """

    tag: str
    backend: str
    model: str
    state: str
    requests: int
    provider_batch_id: str | None
    submitted_at: str | None
    waiting_since: str
    reserved: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def reserved(store: Store) -> dict[str, Need]:
    """The most that what waits can take, by route: money as far as prices are known, and tokens."""
    needs: dict[str, Need] = {}
    not_sent = {place for state in read_jobs(store) for place in state.job.not_sent()}
    for ticket in read_open_tickets(store):
        for position, item in enumerate(ticket.items):
            if (ticket.batch_id, ticket.number, position) in not_sent:
                continue
            before = needs.get(item.route, Need(item.route, ZERO, 0))
            amount = before.amount + (ZERO if item.worst is None else money(item.worst))
            needs[item.route] = Need(item.route, amount, before.tokens + item.worst_tokens)
    return needs


def open_batches(store: Store) -> list[OpenBatch]:
    """The jobs that are not collected, oldest first."""
    return [
        OpenBatch(
            tag=state.job.tag,
            backend=state.job.backend,
            model=state.job.model,
            state=_word(state),
            requests=state.job.requests,
            provider_batch_id=state.provider_batch_id,
            submitted_at=state.submitted_at,
            waiting_since=state.job.since,
            reserved=money_text(state.job.reserved),
        )
        for state in read_jobs(store)
    ]


def _word(state: JobState) -> str:
    if state.cancelled_at is not None:
        return "cancelled"
    if state.provider_batch_id is not None:
        return "submitted"
    if state.undecided:
        return "undecided"
    return "refused" if state.refused else "intended"
