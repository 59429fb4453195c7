"""What the call engine is asked, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from schemas.batches import AmbiguousCall
from schemas.outcomes import ZERO, Assignment, Outcome


@dataclass(frozen=True, slots=True)
class CallRequest:
    """One assignment with its rendered prompt; `assignment.chain` names the backends in order."""

    assignment: Assignment
    system: str
    prompt: str
    json_schema: dict[str, Any] | None
    document_sha256: str
    prompt_sha256: str


@dataclass(frozen=True, slots=True)
class CallBatch:
    """The hosted assignments of one batch and attempt; each (row, route) stands in it once."""

    batch_id: str
    attempt: int
    requests: tuple[CallRequest, ...]


@dataclass(frozen=True, slots=True)
class CallBatchResult:
    """One outcome per request in the same order, and every call of this attempt without a known end.

    Everything that `outcomes` refers to is durable: the ledger was synced before this was handed out.
    """

    outcomes: list[Outcome]
    ambiguous: list[AmbiguousCall]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine has done since it was opened.

    `calls` were sent by this engine, `answered` of them have an answer (billed), `replayed` answers
    came from the ledger instead. `amount` and `list_amount` are those of `answered` alone.
    """

    calls: int = 0
    in_flight: int = 0
    answered: int = 0
    replayed: int = 0
    amount: Decimal = ZERO
    list_amount: Decimal = ZERO
