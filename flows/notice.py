"""Events that somebody may want to be woken by, sent to Prefect once each.

Automations act on them (`infra/operate/automations.py` has examples): the name of an event says what
happened, so that an automation needs no arithmetic. Every event carries one plain sentence and the figures
behind it, and is about the flow run and the run.

| event | when |
|---|---|
| `switchgear.budget.50`, `.80`, `.100` | so much of the cap is spent; at 100 the cap has refused calls |
| `switchgear.failures.1`, `.5`, `.20`, `.50` | more than so many percent of documents have failed |
| `switchgear.run.dearer` | the run has cost more than the quote's likely most |
| `switchgear.run.slower` | it works, or its embeddings took, longer than the quote's likely most |
| `switchgear.run.incomplete`, `.complete` | the run has ended |
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any

from flows.batch_lines import BatchLine
from flows.links import flow_run_url, told_base
from flows.progress import Standing
from flows.words import count, duration, usd
from schemas.batches import BackendTotals
from schemas.failures import NO_FAULT
from schemas.run import Manifest
from transforms.quote.compare import seconds_of
from transforms.quote.values import Quote
from transforms.settle import against_caps

BUDGET_MARKS = (50, 80, 100)
FAILURE_MARKS = (1, 5, 20, 50)
MIN_DOCUMENTS = 100
"""Before so many documents have ended, while a run goes on, a rate of failures says nothing."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One event: its name, one plain sentence, and the figures behind it."""

    event: str
    sentence: str
    figures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a run is held to. None: nothing was said. Money is in USD at list price, as caps count it.

    `quoted_seconds` are device seconds of embeddings, `quoted_run_seconds` those of the run's whole work.
    """

    cap: Decimal | None = None
    spent_before: Decimal = Decimal(0)
    quoted_high: Decimal | None = None
    quoted_seconds: float | None = None
    seconds_before: float = 0.0
    amount_before: Decimal = Decimal(0)
    quoted_run_seconds: float | None = None

    @classmethod
    def of(cls, quote: Quote | None) -> Terms:
        """The terms that a run's own quote states."""
        if quote is None:
            return cls()
        cap = next((c for c in quote.budget.caps if not c.route and c.unit == "amount"), None)
        timed = [r.device_seconds.high for r in quote.routes if r.device_seconds is not None]
        return cls(
            cap=None if cap is None else cap.limit,
            spent_before=Decimal(0) if cap is None else cap.spent,
            quoted_high=quote.total.high,
            quoted_seconds=sum(timed) if timed else None,
            seconds_before=sum(b.device_seconds for b in quote.baseline.values()),
            amount_before=sum((b.list_amount for b in quote.baseline.values()), Decimal(0)),
            quoted_run_seconds=None if quote.run_seconds is None else quote.run_seconds.high,
        )


class Notices:
    """Watches a run and sends each notice once. Methods may be called from several threads.

    `elapsed` gives the seconds since the run was started. A run that waits for a person has ended, and is
    another one afterwards, with a quote of its own for what is left: so no such wait is ever in it.
    """

    def __init__(
        self, terms: Terms, send: Callable[[Notice], None], elapsed: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._terms = terms
        self._send = send
        self._elapsed = elapsed
        self._guard = threading.Lock()
        self._sent: set[str] = set()
        self._documents = 0
        self._failures = 0

    def batch_ended(self, line: BatchLine) -> None:
        """Count a batch's documents and failures."""
        with self._guard:
            self._documents += line.rows
            self._failures += line.faults

    def look(self, standing: Standing) -> None:
        """Send what is due while the run goes on."""
        self._spent(self._terms.spent_before + standing.amount, refused=False)
        self._dearer(standing.amount)
        self._late(self._elapsed(), "has been at work for")
        with self._guard:
            documents, failures = self._documents, self._failures
        if documents >= MIN_DOCUMENTS:
            self._failing(failures, documents)

    def settled(self, manifest: Manifest, sentence: str) -> None:
        """Send what is due at the end, by the manifest's figures."""
        every = [t for backends in manifest.totals.values() for t in backends.values()]
        refused = manifest.reason_class == "budget"
        self._spent(against_caps(manifest.totals), refused=refused)
        self._dearer(Decimal(manifest.list_amount) - self._terms.amount_before)
        self._slower(_device_seconds(every) - self._terms.seconds_before)
        self._late(seconds_of(manifest), "took")
        faults = sum(g.count for g in manifest.failure_groups if g.error_class not in NO_FAULT)
        self._failing(faults, manifest.assignments)
        self._once(Notice(f"switchgear.run.{manifest.state}", sentence, {"reason": manifest.reason_class}))

    def _spent(self, spent: Decimal, *, refused: bool) -> None:
        cap = self._terms.cap
        if cap is None:
            return
        share = 100 * spent / cap if cap else Decimal(100)
        figures = {"spent": f"{spent.normalize():f}", "cap": f"{cap.normalize():f}"}
        for mark in BUDGET_MARKS:
            is_last = mark == BUDGET_MARKS[-1]
            if share >= mark or (is_last and refused):
                sentence = f"{mark} % of the budget of {usd(cap)} is spent: {usd(spent)}."
                if is_last:
                    sentence = f"The budget of {usd(cap)} is used up: {usd(spent)} spent, the rest waits."
                self._once(Notice(f"switchgear.budget.{mark}", sentence, figures))

    def _dearer(self, amount: Decimal) -> None:
        high = self._terms.quoted_high
        if high is not None and amount > high:
            sentence = f"The run has cost {usd(amount)}; its quote said {usd(high)} at most was likely."
            self._once(
                Notice(
                    "switchgear.run.dearer",
                    sentence,
                    {"amount": f"{amount.normalize():f}", "quoted": f"{high.normalize():f}"},
                )
            )

    def _slower(self, seconds: float) -> None:
        high = self._terms.quoted_seconds
        if high is not None and seconds > high:
            sentence = (
                f"Embedding took {duration(seconds)} of device time; the quote said {duration(high)} at "
                "most was likely."
            )
            figures = {"seconds": f"{seconds:.1f}", "quoted": f"{high:.1f}"}
            self._once(Notice("switchgear.run.slower", sentence, figures))

    def _late(self, seconds: float | None, took: str) -> None:
        high = self._terms.quoted_run_seconds
        if high is not None and seconds is not None and seconds > high:
            sentence = (
                f"The run {took} {duration(seconds)}; its quote said {duration(high)} at most was likely."
            )
            figures = {"seconds": f"{seconds:.1f}", "quoted": f"{high:.1f}"}
            self._once(Notice("switchgear.run.slower", sentence, figures))

    def _failing(self, failures: int, documents: int) -> None:
        rate = 100 * failures / documents if documents else 0.0
        for mark in FAILURE_MARKS:
            if rate > mark:
                sentence = f"{rate:.1f} % of {count(documents, 'document')} have failed ({failures:,})."
                figures = {"failures": str(failures), "documents": str(documents)}
                self._once(Notice(f"switchgear.failures.{mark}", sentence, figures))

    def _once(self, notice: Notice) -> None:
        with self._guard:
            if notice.event in self._sent:
                return
            self._sent.add(notice.event)
        self._send(notice)


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose events they are."""

    run_id: str
    workload: str
    output: str
    rehearsal: bool
    flow_run_id: str

    def emit(self, notice: Notice) -> None:
        """Send a notice to the Prefect server, in the background."""
        from prefect.events import emit_event

        page = flow_run_url(self.flow_run_id, told_base())
        payload: dict[str, Any] = {
            "sentence": notice.sentence,
            **notice.figures,
            **asdict(self),
            "page": page,
        }
        emit_event(
            event=notice.event,
            resource={
                "prefect.resource.id": f"switchgear.run.{self.run_id}",
                "prefect.resource.name": f"{self.workload} {self.run_id}",
                "switchgear.workload": self.workload,
            },
            related=[
                {
                    "prefect.resource.id": f"prefect.flow-run.{self.flow_run_id}",
                    "prefect.resource.role": "flow-run",
                }
            ],
            payload=payload,
        )


def _device_seconds(totals: Sequence[BackendTotals]) -> float:
    return sum(t.device_seconds for t in totals)
