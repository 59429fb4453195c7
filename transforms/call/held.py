"""Requests that wait for a provider's batch instead of being sent one by one."""

from __future__ import annotations

from decimal import Decimal

from schemas.failures import FailureClass, is_retryable
from schemas.outcomes import ZERO
from transforms.call.desk import Desk
from transforms.call.ledger import RecordedCall
from transforms.call.ports import HeldRequest, OutboxBatch
from transforms.call.site import Site
from transforms.call.wire import CallFailure, EncodedRequest


async def hold(
    desk: Desk,
    outbox: OutboxBatch,
    pair: tuple[int, str],
    site: Site,
    encoded: EncodedRequest,
    recorded: list[RecordedCall],
) -> CallFailure | None:
    """Why the document has no answer yet, or none at all; None when it is due to be called online.

    `pair` is its (row, route), `recorded` what the ledger has of this attempt. A request that the
    provider refused for good in a batch stays refused. One that is already on its way waits on. A new
    one goes to the outbox, its worst case set aside in the budget from here on.
    """
    refused = _refused_for_good(site, encoded, recorded)
    if refused is not None:
        return refused
    state = outbox.state(*pair, site.name)
    if state == "online":
        return None
    if state == "new":
        worst = site.worst_case(encoded, desk.clock.now())
        if worst is None and desk.refuse_unknown_price:
            return CallFailure(
                FailureClass.UNKNOWN_PRICE,
                f"the price book has no price for {site.backend.model!r} of {site.backend.provider}, so that "
                f"the budget can't be kept; nothing was sent",
                sent=False,
                final=True,
            )
        if not await desk.budget.reserve(worst or ZERO):
            return CallFailure(FailureClass.BUDGET_EXHAUSTED, desk.budget.sentence, sent=False, final=True)
        outbox.add(_held(pair, site, encoded, worst))
        desk.budget.settle(worst or ZERO, worst or ZERO)  # counted until the answer is collected
    return CallFailure(
        FailureClass.AWAITING_BATCH,
        "its request goes out with a provider batch, whose answers a later run collects",
        sent=False,
        final=True,
    )


def _held(pair: tuple[int, str], site: Site, encoded: EncodedRequest, worst: Decimal | None) -> HeldRequest:
    row, route = pair
    return HeldRequest(row, route, site.name, encoded.sha256, worst, encoded.wire.body)


def _refused_for_good(
    site: Site, encoded: EncodedRequest, recorded: list[RecordedCall]
) -> CallFailure | None:
    """A definite refusal of this very request that came back with a provider batch."""
    for call in reversed(recorded):
        same = call.backend == site.name and call.request_sha256 == encoded.sha256
        if call.via is not None and call.end == "failed" and same:
            failure = FailureClass(call.final["class"])
            if not is_retryable(failure):
                return CallFailure(failure, call.final["message"], sent=False, final=True)
    return None
