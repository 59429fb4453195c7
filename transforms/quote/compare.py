"""Quote against actual: what a finished run says of the quote that was made before it.

`store_quote` and `read_quote` keep the quote beside the run's plan; a flow stores it when the run
starts, and its report calls `compare` with the manifest when it has ended.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from schemas.batches import BackendTotals
from schemas.failures import FailureClass
from schemas.outcomes import money_text
from schemas.run import Manifest
from transforms.layout import run_path
from transforms.quote.history import add_baseline
from transforms.quote.values import Baseline, Price, Quote, Range, RouteQuote, Seconds
from transforms.store import Store

QUOTE_FILE = "quote.json"
Verdict = Literal["as quoted", "below", "above", "waiting", "not quoted", "unknown"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One route: what was quoted, what came. Actual figures are what was added since the quote was made.

    `amount` is at list price, as the quote is (in a rehearsal nothing is billed); None when the price of
    some documents is unknown. `verdict` places it against the quote's likely least and most; `waiting` is
    less than that while answers are still to come with provider batches.
    """

    route: str
    quoted_documents: Range | None
    documents: int
    quoted_input_tokens: Range | None
    input_tokens: int
    quoted_output_tokens: Range | None
    output_tokens: int
    quoted: Price | None
    amount: Decimal | None
    off_by: float | None
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON; amounts are decimal strings."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def compare(quote: Quote, manifest: Manifest) -> list[Comparison]:
    """The quote against what a run left, route by route in the quote's order; then what was not quoted.

    A manifest adds up the whole output, so what was there when the quote was made is taken off.

    Raises:
        ValueError: they are of two versions of the workload.
    """
    if quote.workload_sha256 != manifest.workload_sha256:
        raise ValueError(
            f"the quote is of workload version {quote.workload_sha256[:12]}, the run of "
            f"{manifest.workload_sha256[:12]}: make a new quote"
        )
    quoted = {route.route: route for route in quote.routes}
    names = [*quoted, *sorted(set(manifest.totals) - set(quoted))]
    waits = any(group.error_class == FailureClass.AWAITING_BATCH.value for group in manifest.failure_groups)
    return [
        _compare_route(
            name,
            quoted.get(name),
            _since(quote, name, manifest.totals.get(name, {})),
            waits=waits and manifest.failures_by_route.get(name, 0) > 0,
        )
        for name in names
    ]


@dataclass(frozen=True, slots=True)
class TimeComparison:
    """How long a run was quoted to work, and how long it did. The verdict is by likely least and most."""

    quoted: Seconds
    seconds: float
    verdict: Verdict


def compare_time(quote: Quote, manifest: Manifest) -> TimeComparison | None:
    """The quoted time against the run's own; None where one of them is not known."""
    quoted, seconds = quote.run_seconds, seconds_of(manifest)
    if quoted is None or seconds is None:
        return None
    verdict: Verdict = "above" if seconds > quoted.high else "as quoted"
    return TimeComparison(quoted, seconds, "below" if seconds < quoted.low else verdict)


def seconds_of(manifest: Manifest) -> float | None:
    """How long a run worked, from its start to its end; None where the manifest does not say."""
    try:
        ended, started = map(datetime.fromisoformat, (manifest.ended_at, manifest.started_at))
    except ValueError:
        return None
    return (ended - started).total_seconds()


def store_quote(store: Store, run_id: str, quote: Quote) -> bool:
    """Keep a run's quote as `runs/<run_id>/quote.json`; False if one is there already, which stays."""
    return store.create(run_path(run_id, QUOTE_FILE), quote.to_json())


def read_quote(store: Store, run_id: str) -> Quote | None:
    """The quote of a run; None if there is none. ValueError if it is another version's."""
    path = run_path(run_id, QUOTE_FILE)
    return Quote.from_json(store.read(path)) if store.exists(path) else None


def _since(quote: Quote, route: str, totals: dict[str, BackendTotals]) -> Baseline:
    now, before = add_baseline(Baseline(), totals), quote.baseline.get(route, Baseline())
    return Baseline(
        now.documents - before.documents,
        now.input_tokens - before.input_tokens,
        now.output_tokens - before.output_tokens,
        now.device_seconds - before.device_seconds,
        now.list_amount - before.list_amount,
        now.unknown - before.unknown,
    )


def _compare_route(name: str, quoted: RouteQuote | None, actual: Baseline, *, waits: bool) -> Comparison:
    amount = None if actual.unknown else actual.list_amount
    expected = None if quoted is None else quoted.price.expected
    off = None if amount is None or not expected else float(amount / expected - 1)
    return Comparison(
        route=name,
        quoted_documents=None if quoted is None else quoted.documents,
        documents=actual.documents,
        quoted_input_tokens=None if quoted is None else quoted.input_tokens,
        input_tokens=actual.input_tokens,
        quoted_output_tokens=None if quoted is None else quoted.output_tokens,
        output_tokens=actual.output_tokens,
        quoted=None if quoted is None else quoted.price,
        amount=amount,
        off_by=off,
        verdict=_verdict(quoted, amount, waits=waits),
    )


def _verdict(quoted: RouteQuote | None, amount: Decimal | None, *, waits: bool) -> Verdict:
    if quoted is None:
        return "not quoted"
    price = quoted.price
    if amount is None or price.low is None or price.high is None:
        return "unknown"
    if amount < price.low:
        return "waiting" if waits else "below"
    return "above" if amount > price.high else "as quoted"


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return money_text(value)
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return value
