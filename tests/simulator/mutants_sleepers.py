"""Defects that show when a worker stands still, is taken over, and goes on. The simulator found them."""

from __future__ import annotations

from contextlib import ExitStack

from tests.simulator.planting import defect, swap
from transforms.call.book import BatchBook
from transforms.call.settlements import Settlements

DURABLE = "what is committed is durable in the ledger"
SUMS = "the cost column adds up"
PAID_TWICE = "a row is paid for twice at most"
LISTED = "every ambiguous call is listed"


@defect("sleepers", "spend never passes the cap")
def a_call_is_settled_before_its_end_is_sealed(replaced: ExitStack) -> None:
    """Others spend what the ledgers count at its worst, because they have lost the end."""
    swap(replaced, Settlements, "when_durable", lambda self, log, settle: settle(True))


@defect("sleepers", DURABLE, SUMS, PAID_TWICE, LISTED)
def an_attempt_is_committed_without_saying_that_its_calls_have_ended(replaced: ExitStack) -> None:
    """Who took it over makes calls that the commit record knows nothing of."""
    swap(replaced, BatchBook, "end", lambda self: None)
