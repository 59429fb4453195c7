"""What an answer costs that came with a provider's batch.

OpenAI, Anthropic and Google take half of the list price for input and output (their pricing pages, "Batch
API"; Google's guide to the Gemini Batch API: half of the standard cost).
The price book has that price for many models; for the others it silently gives the full price, which is
taken as a sign that it has none: then the charge is half of the full price and `estimated`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import ROUND_CEILING, Decimal

from schemas.outcomes import MONEY_SCALE, Charge, Usage, money
from transforms.call.site import Site
from transforms.call.wire import Answer, EncodedRequest

BATCH_CONTEXT = (("processing", "batch"),)
HALF = Decimal("0.5")
_QUANTUM = Decimal(1).scaleb(-MONEY_SCALE)
_MILLION = 1_000_000
_KINDS = (
    Usage(_MILLION, 0),
    Usage(0, _MILLION),
    Usage(_MILLION, 0, 0, _MILLION),
)
"""The tokens that a worst case is made of: plain, output, written to the cache (reading it is cheaper)."""


def charge_online(site: Site, answer: Answer, at: datetime) -> Charge:
    """The charge of an answer that came online.

    In a rehearsal a backend in batch mode is answered online too, and costs what its batches would.
    """
    if site.rehearsal and site.backend.mode == "batch":
        return batch_charge(site, answer, at)
    return site.charge(answer, at)


def worst_case_online(site: Site, encoded: EncodedRequest, at: datetime) -> Decimal | None:
    """The most that an online call can cost; see `charge_online`."""
    if site.rehearsal and site.backend.mode == "batch":
        return batch_worst_case(site, encoded, at)
    return site.worst_case(encoded, at)


def batch_charge(site: Site, answer: Answer, at: datetime) -> Charge:
    """The charge of an answer of `site` at the batch price in force at `at`."""
    full = site.charge(answer, at)
    if full.list_amount is None:
        return full
    listed = answer.price_context + BATCH_CONTEXT
    batch = site.charge(replace(answer, price_context=listed), at)
    if batch.list_amount is not None and batch.list_amount < full.list_amount:
        return batch
    amount = money(full.list_amount * HALF)
    billed = None if full.amount is None else money(full.amount * HALF)
    return replace(full, amount=billed, list_amount=amount, certainty="estimated")


def batch_worst_case(site: Site, encoded: EncodedRequest, at: datetime) -> Decimal | None:
    """The most that a request can cost in a batch; None when the model has no price.

    Where the price book has no batch price, that is the full price: the cap holds whatever is billed.
    """
    full = site.worst_case(encoded, at)
    if full is None or site.backend.price is not None:
        return full
    share = max(_shares(site, at), default=Decimal(1))
    return (full * min(share, Decimal(1))).quantize(_QUANTUM, rounding=ROUND_CEILING)


def _shares(site: Site, at: datetime) -> list[Decimal]:
    """Batch price over full price, for each kind of token."""
    shares: list[Decimal] = []
    for usage in _KINDS:
        full = site.charge(Answer(None, usage), at).list_amount
        batch = site.charge(Answer(None, usage, price_context=BATCH_CONTEXT), at).list_amount
        if full and batch is not None:
            shares.append(batch / full)
    return shares
