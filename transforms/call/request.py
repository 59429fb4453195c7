"""What the call engine is asked, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from schemas.batches import AmbiguousCall
from schemas.outcomes import ZERO, Assignment, Outcome


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the conversation with a model."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """An answer that does not fit, and the words that ask for a better one."""

    answer: str
    complaint: str


@dataclass(frozen=True, slots=True)
class CallRequest:
    """One assignment with its rendered prompt; `assignment.chain` names the backends in order.

    `repair` says that an answer which does not fit the JSON Schema is sent back once; `rejected` is
    that answer, in the request that asks again. `shared` says how many characters at the start of the
    prompt are, like the system text, the same for several documents of the batch; None: there is no
    other document to share them with. For embeddings the prompt is the text itself.
    """

    assignment: Assignment
    system: str
    prompt: str
    json_schema: dict[str, Any] | None
    document_sha256: str
    prompt_sha256: str
    repair: bool = False
    rejected: Rejected | None = None
    shared: int | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation as the model gets it."""
        asked = Turn("user", self.prompt)
        if self.rejected is None:
            return (asked,)
        return asked, Turn("assistant", self.rejected.answer), Turn("user", self.rejected.complaint)


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
    came from the ledger instead, `shared` ones from another row that asked the same. `repairs` of
    `answered` are second answers for documents whose first one did not fit. `amount` and
    `list_amount` are those of `answered` alone. `soft_passed` says that the run, as far as this engine
    knows of other workers, has spent what it should warn at.
    """

    calls: int = 0
    in_flight: int = 0
    answered: int = 0
    replayed: int = 0
    shared: int = 0
    repairs: int = 0
    amount: Decimal = ZERO
    list_amount: Decimal = ZERO
    soft_passed: bool = False
