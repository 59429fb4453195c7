"""Who watches calls from outside: told after each, it changes nothing and sees no content and no key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from schemas.outcomes import Usage
from transforms.call.site import Site
from transforms.call.tally import Answered, provider_name
from transforms.call.wire import CallFailure


@dataclass(frozen=True, slots=True)
class SeenCall:
    """One call that was sent, as it ended. `error` is its failure class; empty when it was answered."""

    batch_id: str
    attempt: int
    route: str
    backend: str
    operation: str
    provider: str  # by the OpenTelemetry GenAI names
    request_model: str
    max_tokens: int | None
    base_url: str
    seconds: float
    usage: Usage
    response_model: str | None = None
    response_id: str | None = None
    finish_reasons: tuple[str, ...] = ()
    error: str = ""


class CallObserver(Protocol):
    """Is told of calls and batches on the engine's event loop; must be quick and never raise."""

    def called(self, call: SeenCall) -> None:
        """A call has ended."""
        ...

    def batch_ended(self, batch_id: str, attempt: int) -> None:
        """No more calls of this attempt at a batch."""
        ...


def seen_call(
    result: Answered | CallFailure,
    *,
    site: Site,
    batch_id: str,
    attempt: int,
    route: str,
    seconds: float,
) -> SeenCall:
    """A call's end, without its content."""
    backend = site.backend
    answer = result.answer if isinstance(result, Answered) else None
    return SeenCall(
        batch_id=batch_id,
        attempt=attempt,
        route=route,
        backend=site.name,
        operation=backend.operation,
        provider=provider_name(backend),
        request_model=backend.model,
        max_tokens=backend.max_output_tokens if backend.operation == "chat" else None,
        base_url=site.base_url,
        seconds=seconds,
        usage=Usage() if answer is None else answer.usage,
        response_model=None if answer is None else answer.response_model,
        response_id=None if answer is None else answer.response_id,
        finish_reasons=() if answer is None else answer.finish_reasons,
        error=result.failure.value if isinstance(result, CallFailure) else "",
    )
