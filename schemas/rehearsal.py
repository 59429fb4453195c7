"""How the stand-in for hosted models behaves in a rehearsal."""

from __future__ import annotations

from pydantic import Field, model_validator

from schemas.sections import Section


class Faults(Section):
    """How often the rehearsal's stand-in misbehaves: shares of the calls, 0 to 1, added up at most 1."""

    rate_limited: float = Field(0.0, ge=0, le=1, description="429 with Retry-After")
    server_error: float = Field(0.0, ge=0, le=1, description="500")
    overloaded: float = Field(0.0, ge=0, le=1, description="529")
    connection_reset: float = Field(0.0, ge=0, le=1, description="the connection is reset")
    hang: float = Field(0.0, ge=0, le=1, description="no answer comes")
    truncated_body: float = Field(0.0, ge=0, le=1, description="the body breaks off")
    max_tokens: float = Field(0.0, ge=0, le=1, description="the answer is cut off at the limit")
    invalid_json: float = Field(0.0, ge=0, le=1, description="the answer is no JSON")
    refusal: float = Field(0.0, ge=0, le=1, description="the model refuses")

    @model_validator(mode="after")
    def _shares(self) -> Faults:
        if sum(self.model_dump().values()) > 1.0:
            raise ValueError("the shares add up to more than 1")
        return self


class Rehearsal(Section):
    """How the loopback stand-in behaves; deterministic by seed and request."""

    seed: int = Field(0, description="same seed and request, same answer")
    latency_ms: tuple[float, float] = Field((20.0, 80.0), description="least and most")
    faults: Faults = Field(Faults(), description="see below")
