"""What a document has cost so far, and the outcome that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from schemas.backends import HostedBackend
from schemas.failures import is_retryable
from schemas.outcomes import FREE, NO_USAGE, ZERO, Basis, Charge, Outcome, SharedFrom, Usage
from transforms.call.ledger import RecordedCall
from transforms.call.request import CallRequest
from transforms.call.site import Site
from transforms.call.wire import Answer, CallFailure


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, whose it is, and how it came."""

    site: Site
    answer: Answer
    request_sha256: str
    latency_ms: float
    answered_at: str
    call: RecordedCall


@dataclass(slots=True)
class Tally:
    """Calls, tokens and money of a document in this attempt, replayed ones included."""

    request: CallRequest
    calls: int = 0
    replayed: int = 0
    ambiguous: dict[str, int] = field(default_factory=dict)  # by backend
    ambiguous_amount: Decimal = ZERO
    usage: Usage = NO_USAGE
    charge: Charge = FREE
    tried: list[str] = field(default_factory=list)
    request_sha256: str | None = None  # of the request as last sent
    shared_from: SharedFrom | None = None

    def try_backend(self, name: str) -> None:
        """Notes that the document came to a backend."""
        if name not in self.tried:
            self.tried.append(name)

    def add_answer(self, usage: Usage, charge: Charge) -> None:
        """Adds what was billed."""
        self.usage += usage
        self.charge += charge

    def add_share(self, origin: SharedFrom, site: Site | None) -> None:
        """Notes that an answer was another row's, which has paid for it."""
        self.shared_from = origin
        basis: Basis = "rehearsal" if site is not None and site.rehearsal else "shared"
        self.charge += Charge(amount=ZERO, list_amount=ZERO, basis=basis, certainty="exact")

    def add_ambiguous(self, backend: str, amount: Decimal) -> None:
        """Adds a call that may have been billed, with the most that it can have cost."""
        self.ambiguous[backend] = self.ambiguous.get(backend, 0) + 1
        self.ambiguous_amount += amount

    def answered(self, answered: Answered) -> Outcome:
        """The outcome that an answer is: a result, or a paid failure."""
        answer = answered.answer
        return self._outcome(
            answered.site,
            failure=answer.failure,
            message=answer.message,
            answer=answer.text,
            output=answer.output,
            vector=answer.vector,
            token_count=answer.usage.input_tokens if answer.vector is not None else None,
            response_model=answer.response_model,
            response_id=answer.response_id,
            finish_reasons=answer.finish_reasons,
            request_sha256=answered.request_sha256,
            latency_ms=answered.latency_ms,
            answered_at=answered.answered_at,
        )

    def failed(self, failures: list[tuple[Site, CallFailure]]) -> Outcome:
        """The outcome of a chain without an answer.

        The last failure that a rerun tries again decides, else the last; the message tells of all.
        """
        site, failure = next(
            ((site, failure) for site, failure in reversed(failures) if is_retryable(failure.failure)),
            failures[-1],
        )
        return self._outcome(
            site,
            failure=failure.failure,
            refused_by=failure.refused_by,
            refused_need=failure.refused_need,
            message="; ".join(f"backend {site.name!r}: {failure.message}" for site, failure in failures),
            request_sha256=self.request_sha256,
        )

    def _chain_tried(self) -> tuple[str, ...]:
        tried, chain = tuple(self.tried), self.request.assignment.chain
        return chain if tried == chain else tried  # the same tuple for all rows of a route

    def _outcome(self, site: Site, **of_its_end: Any) -> Outcome:
        return Outcome(
            assignment=self.request.assignment,
            operation=site.backend.operation,
            backend=site.name,
            provider=provider_name(site.backend),
            request_model=site.backend.model,
            usage=self.usage,
            charge=self.charge,
            calls=self.calls,
            ambiguous_calls=sum(self.ambiguous.values()),
            ambiguous_amount=self.ambiguous_amount,
            replayed_calls=self.replayed,
            chain_tried=self._chain_tried(),
            document_sha256=self.request.document_sha256,
            prompt_sha256=self.request.prompt_sha256 or None,
            shared_from=self.shared_from,
            **of_its_end,
        )


def provider_name(backend: HostedBackend) -> str:
    """The backend's provider by the OpenTelemetry GenAI names."""
    if backend.platform == "vertex":
        return "gcp.vertex_ai"
    return "gcp.gemini" if backend.provider == "gemini" else backend.provider
