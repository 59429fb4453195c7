"""What a quote says. Plain frozen values; `to_json` and `from_json` are inverse to each other.

Whatever is not known is None, never zero. Money is Decimal in USD; counts are whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, TypeAdapter

from schemas.lengths import TextLengths
from schemas.outcomes import Certainty, money_text

QUOTE_VERSION = "quote/1"
Amount = Annotated[Decimal, PlainSerializer(money_text, return_type=str, when_used="json")]
Routing = Literal["every row", "conditions on every row", "sample"]
Fits = Literal["yes", "probably", "no", "unknown", "no cap"]


@dataclass(frozen=True, slots=True)
class Range:
    """A count or a number of tokens: likely least, expected, likely most. `high` None has no bound."""

    low: int
    expected: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Seconds:
    """A time: likely least, expected, likely most."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True)
class Price:
    """What something would cost, in USD.

    `low` and `high` span tokenizer, answer length and sampling; `sampling_low` and `sampling_high` are the
    interval around `expected` that comes from sampling alone. `worst` is what the budget would reserve if
    every document were called once, at the dearest backend of its chain: bytes for tokens, the longest
    answer, the dearest reading of the price (its upper confidence bound where documents were sampled).
    """

    low: Amount | None = None
    expected: Amount | None = None
    high: Amount | None = None
    worst: Amount | None = None
    sampling_low: Amount | None = None
    sampling_high: Amount | None = None
    currency: str = "USD"


@dataclass(frozen=True, slots=True)
class Quantiles:
    """How the documents of the sample lie: expected input tokens at 5, 50 and 95 %, and the most."""

    p5: int
    p50: int
    p95: int
    most: int


@dataclass(frozen=True, slots=True)
class Alternative:
    """The same documents another way: another model, the provider's batch API, its prompt cache."""

    kind: Literal["chain", "model", "online", "batch", "cache"]
    provider: str
    model: str
    low: Amount | None
    expected: Amount | None
    high: Amount | None
    certainty: Certainty
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class RouteQuote:
    """What is due on one route, and what it would cost.

    `documents` will be sent (faults and rejections are left out); `sampled` of them were rendered (or
    tokenised). Tokens are totals for the route's first backends; `input_bound` is the hard bound.
    `wall_seconds` is how long the route takes if it runs alone, with provider batches until their answers
    are there; None is unknown. `calls` are those that are left when identical requests are sent once.
    """

    route: str
    kind: Literal["hosted", "embed"]
    backends: tuple[str, ...]
    model: str
    documents: Range
    sampled: int
    input_tokens: Range
    input_bound: int | None
    output_tokens: Range
    per_document: Quantiles | None
    price: Price
    certainty: Certainty
    price_source: str | None
    input_basis: str
    output_basis: str
    device_seconds: Seconds | None = None
    wall_seconds: Seconds | None = None
    wall_basis: str = ""
    calls: Range | None = None
    calls_at_a_time: int | None = None
    alternatives: tuple[Alternative, ...] = ()
    notes: tuple[str, ...] = ()
    lengths: TextLengths | None = None  # of an embed route's texts


@dataclass(frozen=True, slots=True)
class CapQuote:
    """One cap: of the run or of a route, in USD or tokens; what it has left, and whether that is enough.

    `route` is empty for all. `spent` is what the output has cost so far.
    """

    route: str
    unit: Literal["amount", "tokens"]
    limit: Amount
    spent: Amount
    left: Amount
    fits: Fits
    sentence: str


@dataclass(frozen=True, slots=True)
class BudgetQuote:
    """Whether it will fit under every cap, and the sentence about the one that is hardest to keep."""

    fits: Fits
    sentence: str
    caps: tuple[CapQuote, ...] = ()


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a route had cost in the output when the quote was made: `compare` takes it off the manifest's."""

    documents: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    device_seconds: float = 0.0
    list_amount: Amount = Decimal(0)
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class Quote:
    """What a workload would cost before it runs.

    Rows are exact (from footers and commit records). `not_sent` estimates, by failure class, the documents
    that will not leave the process. `total` adds up the routes; its bounds are sums of bounds, so wider
    than need be. `waiting` requests are in provider batches and no part of it; of the batches of rows that
    are due, `batches_new` are new, and `batches_collected` get answers that provider batches have brought.
    `run_seconds` is how long the run works, from its start to its end; `wall_seconds` is until the last
    answer is there, with provider batches that a later run collects. Waits for a person are in neither.
    """

    workload: str
    workload_sha256: str
    made_at: str
    input_files: int
    rows_total: int
    rows_due: int
    batches_total: int
    batches_due: int
    batches_read: int
    rows_read: int
    routing: Routing
    routing_sentence: str
    method: str
    seed: int
    sample: int
    routes: tuple[RouteQuote, ...]
    total: Price
    budget: BudgetQuote
    not_sent: dict[str, int] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    baseline: dict[str, Baseline] = field(default_factory=dict)
    waiting: int = 0
    batches_new: int = 0
    batches_collected: int = 0
    run_seconds: Seconds | None = None
    wall_seconds: Seconds | None = None
    version: str = QUOTE_VERSION

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON; amounts are decimal strings."""
        return dict(_ADAPTER.dump_python(self, mode="json"))

    def to_json(self) -> bytes:
        """JSON bytes."""
        return _ADAPTER.dump_json(self, indent=1)

    @classmethod
    def from_json(cls, data: bytes | str) -> Quote:
        """The quote behind JSON.

        Raises:
            ValueError: it is no quote, or another version's.
        """
        quote = _ADAPTER.validate_json(data)
        if quote.version != QUOTE_VERSION:
            raise ValueError(f"quote of version {quote.version!r}; known: {QUOTE_VERSION!r}")
        return quote


_ADAPTER: TypeAdapter[Quote] = TypeAdapter(Quote)
