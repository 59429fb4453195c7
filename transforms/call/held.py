"""Requests that wait for a provider's batch instead of being sent one by one."""

from __future__ import annotations

from decimal import Decimal

from schemas.failures import FailureClass, is_retryable
from schemas.outcomes import ZERO, Assignment
from transforms.call.caps import Need, reserve
from transforms.call.desk import Desk
from transforms.call.discount import batch_worst_case
from transforms.call.ledger import RecordedCall
from transforms.call.ports import HeldRequest, OutboxBatch
from transforms.call.site import Site
from transforms.call.wire import CallFailure, EncodedRequest, unsent


async def hold(
    desk: Desk,
    outbox: OutboxBatch,
    assignment: Assignment,
    site: Site,
    encoded: EncodedRequest,
    recorded: list[RecordedCall],
) -> CallFailure | None:
    """Why the document has no answer yet, or none at all; None when it is due to be called online.

    `recorded` is what the ledger has of this attempt. A request that is on its way waits on, even if
    its backend is no longer in batch mode: it may be billed. One that the provider refused for good in
    a batch stays refused. A new one goes to the outbox, its worst case set aside in the budget.
    """
    row, route = assignment.row, assignment.route
    state = outbox.state(row, route, site.name)
    if state == "waiting":
        return _waiting()
    if site.backend.mode != "batch":
        return None
    refused = _refused_for_good(site, encoded, recorded)
    if refused is not None or state == "online":
        return refused
    if outbox.join(row, route, site.name, encoded.sha256):
        return _waiting()
    return await _put_out(desk, outbox, assignment, site, encoded)


async def _put_out(
    desk: Desk, outbox: OutboxBatch, assignment: Assignment, site: Site, encoded: EncodedRequest
) -> CallFailure:
    worst = batch_worst_case(site, encoded, desk.clock.now())
    need = Need(assignment.route, worst or ZERO, site.worst_tokens(encoded))
    refused = desk.forbids_unpriced(site, worst, "nothing was sent")
    refused = refused or await reserve(desk.budget, desk.caps, need)
    if refused is not None:
        return refused
    spent = need  # stays counted until the answer is collected
    if outbox.join(assignment.row, assignment.route, site.name, encoded.sha256):
        spent = Need(need.route, ZERO, 0)  # an identical one was added while the budget was asked
    else:
        outbox.add(_held(assignment, site, encoded, worst, need.tokens))
    desk.budget.settle(need.amount, spent.amount)
    desk.caps.settle(need, spent)
    return _waiting()


def _waiting() -> CallFailure:
    return unsent(
        FailureClass.AWAITING_BATCH,
        "its request goes out with a provider batch, whose answers a later run collects",
    )


def _held(
    assignment: Assignment, site: Site, encoded: EncodedRequest, worst: Decimal | None, tokens: int
) -> HeldRequest:
    return HeldRequest(
        row=assignment.row,
        route=assignment.route,
        document_id=assignment.document_id,
        backend=site.name,
        request_sha256=encoded.sha256,
        worst=worst,
        worst_tokens=tokens,
        body=encoded.wire.body,
    )


def _refused_for_good(
    site: Site, encoded: EncodedRequest, recorded: list[RecordedCall]
) -> CallFailure | None:
    """A definite refusal of this very request that came back with a provider batch."""
    for call in reversed(recorded):
        same = call.backend == site.name and call.request_sha256 == encoded.sha256
        if call.via is not None and call.end == "failed" and same:
            failure = FailureClass(call.final["class"])
            if not is_retryable(failure):
                return unsent(failure, call.final["message"])
    return None
