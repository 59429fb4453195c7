"""What became of one document on one route, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Literal

from schemas.failures import FailureClass

Basis = Literal["tokens", "device_seconds", "replayed", "rehearsal", "shared", "none"]
Certainty = Literal["exact", "estimated", "unknown"]
MONEY_SCALE = 12
_QUANTUM = Decimal(1).scaleb(-MONEY_SCALE)


def money(value: Decimal | int | str) -> Decimal:
    """`value` as an amount of money, rounded half even to 12 decimals; never from a float."""
    return Decimal(value).quantize(_QUANTUM, rounding=ROUND_HALF_EVEN)


def money_text(value: Decimal) -> str:
    """An amount as decimal digits without an exponent, for JSON."""
    return f"{value:f}"


ZERO = money(0)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the provider reports them; None where it reports none.

    `input_tokens` counts all input tokens, cached ones too (the OpenTelemetry GenAI meaning).
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    def __add__(self, other: Usage) -> Usage:
        if self is NO_USAGE:
            return other
        return Usage(
            _add(self.input_tokens, other.input_tokens),
            _add(self.output_tokens, other.output_tokens),
            _add(self.cache_read_input_tokens, other.cache_read_input_tokens),
            _add(self.cache_creation_input_tokens, other.cache_creation_input_tokens),
        )


NO_USAGE = Usage()


def _add(left: int | None, right: int | None) -> int | None:
    if left is None:
        return right
    return left if right is None else left + right


@dataclass(frozen=True, slots=True)
class Charge:
    """What something cost. `amount` None is an unknown price, never zero.

    `amount` is what is billed, `list_amount` what the price book asks: in a rehearsal the first is
    zero and the second is what the real call would have cost.
    """

    amount: Decimal | None
    list_amount: Decimal | None
    basis: Basis
    certainty: Certainty
    price_source: str | None = None
    price_as_of: str | None = None
    device_seconds: float | None = None
    energy_wh_low: float | None = None
    energy_wh_high: float | None = None
    currency: str = "USD"

    def __add__(self, other: Charge) -> Charge:
        """The sum; an unknown part makes the whole unknown. A free 'none' charge changes nothing.

        A share in somebody else's answer is free as well: what was paid before keeps its basis.
        """
        if other.basis == "none" or (other.basis == "shared" and self.basis != "none"):
            return self
        if self.basis == "none":
            return other
        return replace(
            other,
            amount=_add_money(self.amount, other.amount),
            list_amount=_add_money(self.list_amount, other.list_amount),
            certainty=max(self.certainty, other.certainty, key=_CERTAINTIES.index),
            device_seconds=_add_float(self.device_seconds, other.device_seconds),
            energy_wh_low=_add_float(self.energy_wh_low, other.energy_wh_low),
            energy_wh_high=_add_float(self.energy_wh_high, other.energy_wh_high),
        )


_CERTAINTIES: tuple[Certainty, ...] = ("exact", "estimated", "unknown")
FREE = Charge(amount=ZERO, list_amount=ZERO, basis="none", certainty="exact")


def _add_money(left: Decimal | None, right: Decimal | None) -> Decimal | None:
    return None if left is None or right is None else left + right


def _add_float(left: float | None, right: float | None) -> float | None:
    if left is None:
        return right
    return left if right is None else left + right


@dataclass(frozen=True, slots=True)
class Assignment:
    """One (document, route) pair of a batch: what has to be done, and why there.

    `row` is the row's number in its row group, so it is stable over attempts.
    """

    row: int
    route: str
    rule: str
    chain: tuple[str, ...]
    document_id: str | None


@dataclass(frozen=True, slots=True)
class SharedFrom:
    """The row whose call brought an answer that another row shares, because it asks the very same."""

    batch_id: str
    row: int
    route: str
    document_id: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an assignment. `failure` None is a result.

    Hosted results carry `answer` (the raw text) and, with a JSON Schema, `output`; embeddings carry
    `vector_index`, the position in the batch's vector array, and hosted ones, until they are put
    there, `vector` (little-endian float32). Failures that were paid keep usage,
    charge and raw answer.
    """

    assignment: Assignment
    failure: FailureClass | None = None
    message: str = ""
    answer: str | None = None
    output: dict[str, Any] | None = None
    vector: bytes | None = None
    vector_index: int | None = None
    token_count: int | None = None
    truncated: bool | None = None
    chunks: int | None = None
    operation: Literal["chat", "embeddings"] | None = None
    backend: str | None = None
    provider: str | None = None
    request_model: str | None = None
    response_model: str | None = None
    response_id: str | None = None
    finish_reasons: tuple[str, ...] = ()
    usage: Usage = NO_USAGE
    charge: Charge = FREE
    calls: int = 0
    ambiguous_calls: int = 0
    ambiguous_amount: Decimal = ZERO
    replayed_calls: int = 0
    chain_tried: tuple[str, ...] = ()
    document_sha256: str | None = None
    prompt_sha256: str | None = None
    request_sha256: str | None = None
    latency_ms: float | None = None
    answered_at: str | None = None
    shared_from: SharedFrom | None = None
    refused_by: str = ""  # the cap that a call would have passed: `amount`, `tokens`, `route:…`, `centre:…`
    refused_need: Decimal = ZERO  # and what it would have taken of it

    @property
    def is_result(self) -> bool:
        """Whether the assignment has a result."""
        return self.failure is None
