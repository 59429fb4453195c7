"""The quote of a route whose documents go to hosted models: its price, and the work that it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from schemas.backends import HostedBackend
from schemas.routes import Route
from transforms.quote.alternatives import find_alternatives
from transforms.quote.estimate import Estimate
from transforms.quote.ground import Ground
from transforms.quote.history import AnswerLength, measured_answers, measured_ratio
from transforms.quote.latency import assumed_latency, measured_latency
from transforms.quote.measure import RequestSizes
from transforms.quote.population import Frame
from transforms.quote.pricing import (
    BackendModel,
    Costs,
    RouteTotals,
    assumed_answers,
    cost_of,
    ratio_of,
    span,
)
from transforms.quote.sampling import Sample
from transforms.quote.values import Range, RouteQuote
from transforms.quote.wall_time import WINDOW, Lane, Load, RouteWork, Three, share_that_is_sent, three

_INPUT: tuple[Callable[[Costs], int], ...] = (
    lambda cost: cost.input_low,
    lambda cost: cost.input_expected,
    lambda cost: cost.input_high,
)
_OUTPUT: tuple[Callable[[Costs], int], ...] = (
    lambda cost: cost.output_low,
    lambda cost: cost.output_expected,
    lambda cost: cost.output_high,
)
_NO_OUTPUT = AnswerLength(0, 0, 0, "vectors have no output tokens")


@dataclass(frozen=True, slots=True)
class HostedRoute:
    """A hosted route about to be priced."""

    ground: Ground
    route: Route
    measure: RequestSizes

    def quote(self, frame: Frame, drawn: Sample) -> tuple[RouteQuote, RouteWork]:
        """The route's quote, from the sample that was drawn of its frame, and how much work it is."""
        models = self.models()
        observed = drawn.observed[self.route.name]
        costs = [[cost_of(m, models) for m in o.measured] for o in observed]
        totals = RouteTotals(frame, observed, costs)
        main = models[max(self.route.chains, key=lambda arm: arm.weight).backends[0]]
        others = [model for model in models.values() if model is not main]
        alternatives, notes = find_alternatives(totals, main, others, self.measure.shared_bytes)
        price = totals.price()
        work = self._work(totals, models)
        calls = _sum([load.calls for load in work.loads])
        quote = RouteQuote(
            route=self.route.name,
            kind="hosted",
            backends=tuple(models),
            model=main.backend.model,
            documents=totals.documents(),
            sampled=len(totals.flat),
            input_tokens=span(*(totals.total(of) for of in _INPUT)),
            input_bound=None if totals.is_unseen else -int(-totals.total(lambda c: c.input_bound).high // 1),
            output_tokens=span(*(totals.total(of) for of in _OUTPUT)),
            per_document=totals.quantiles(),
            price=price,
            certainty="unknown" if price.expected is None else "estimated",
            price_source=main.source,
            input_basis=main.ratio.basis,
            output_basis=main.answer.basis,
            wall_basis=self._time_basis(models, work),
            calls=Range(int(calls.low), round(calls.expected), -int(-calls.high // 1)),
            alternatives=alternatives,
            notes=(*self._notes(totals, models), *notes),
        )
        return quote, work

    def models(self) -> dict[str, BackendModel]:
        """What is assumed of each backend of the route's chains, by name, in their order."""
        names = dict.fromkeys(name for arm in self.route.chains for name in arm.backends)
        backends = self.ground.loaded.workload.hosted_backends()
        return {name: self._model(name, backends[name]) for name in names}

    def _model(self, name: str, backend: HostedBackend) -> BackendModel:
        ground, route = self.ground, self.route.name
        measured = measured_ratio(
            ground.commits, ground.work.found.schema, ground.rules, route, name, self.measure
        )
        ratio = measured or ratio_of(backend.provider)
        prompt = None if self.measure.prompt is None else self.measure.prompt.prompt
        answer = _NO_OUTPUT
        if prompt is not None:
            most = backend.max_output_tokens
            answer = measured_answers(ground.commits, route, name, most) or assumed_answers(
                prompt.json_schema, most, ratio_of(backend.provider)
            )
        latency = measured_latency(ground.store, ground.commits, route, name) or assumed_latency(backend)
        longest = ground.loaded.workload.limits.request_timeout_s
        return BackendModel(name, self.measure.sites[name], self.measure.at, ratio, answer, latency, longest)

    def _work(self, totals: RouteTotals, models: dict[str, BackendModel]) -> RouteWork:
        """What the route asks of the lanes of its first backends; documents in provider batches of none."""
        documents = _three(*(totals.total(lambda cost: cost.documents),) * 3)
        share = self._share(totals, documents.expected)
        firsts = [models[name] for name in dict.fromkeys(arm.backends[0] for arm in self.route.chains)]
        loads = [_load(model, totals, share) for model in firsts if model.backend.mode == "online"]
        window = None
        if len(loads) < len(firsts):
            hours = Fraction(self.ground.loaded.workload.limits.batch_deadline_h)
            usual = three(WINDOW)
            window = Three(min(usual.low, hours * 3600), min(usual.expected, hours * 3600), hours * 3600)
        return RouteWork(documents, tuple(loads), window_s=window)

    def _share(self, totals: RouteTotals, documents: Fraction) -> Fraction:
        """The share of the documents for which a request is sent."""
        if not self.ground.loaded.workload.limits.share_identical:
            return Fraction(1)
        measured = [m for o in totals.observed for m in o.measured if m is not None]
        return share_that_is_sent([f"{m.chain[0]} {m.request}" for m in measured], documents)

    def _time_basis(self, models: dict[str, BackendModel], work: RouteWork) -> str:
        """Where a call's time comes from, for each backend that is asked first."""
        names = dict.fromkeys(arm.backends[0] for arm in self.route.chains)
        parts = [
            f"{name}: {_speed_basis(models[name])}" if len(names) > 1 else _speed_basis(models[name])
            for name in names
        ]
        if work.loads and not any(load.lane.requests_per_minute for load in work.loads):
            parts.append("no `requests_per_minute` is stated, so none is counted on")
        return "; ".join(parts)

    def _notes(self, totals: RouteTotals, models: dict[str, BackendModel]) -> list[str]:
        notes = [
            f"no price is known of {model.backend.model!r} (backend {name!r}): set the backend's `price`"
            for name, model in models.items()
            if model.amount(1, 1 if model.answer.high else 0) is None
        ]
        if totals.is_unseen:
            notes.append("no document of the route was met in the sample: there are few of them, or none")
        if len(self.route.chains) > 1:
            notes.append("alternatives are for all documents of the route, whatever arm they take")
        return notes


def _load(model: BackendModel, totals: RouteTotals, share: Fraction) -> Load:
    """What one backend's lane is asked for; `high` is without any sharing."""

    def mine(value: Callable[[Costs], int]) -> Estimate:
        return totals.total(lambda cost: value(cost) if cost.first == model.name else 0)

    def sent(low: Callable[[Costs], int], mid: Callable[[Costs], int], high: Callable[[Costs], int]) -> Three:
        found = _three(mine(low), mine(mid), mine(high))
        return Three(found.low * share, found.expected * share, found.high)

    backend, (low, mid, high) = model.backend, model.milliseconds()
    busy = sent(lambda c: c.busy_low, lambda c: c.busy_expected, lambda c: c.busy_high)
    key = model.site.lane.key
    return Load(
        Lane(
            (key.provider, key.address, key.model, key.key_variable),
            model.site.lane.limit,
            backend.requests_per_minute,
            backend.tokens_per_minute,
        ),
        calls=sent(*(lambda c: c.documents,) * 3),
        tokens=sent(
            lambda c: c.input_low + c.output_low,
            lambda c: c.input_expected + c.output_expected,
            lambda c: c.input_high + c.output_high,
        ),
        busy_s=Three(busy.low / 1000, busy.expected / 1000, busy.high / 1000),
        slowest_s=Three(Fraction(low, 1000), Fraction(mid, 1000), Fraction(high, 1000)),
    )


def _speed_basis(model: BackendModel) -> str:
    if model.backend.mode == "batch":
        return "in provider batches: 24 hours are promised, an hour is usual, and a later run collects them"
    return model.latency.basis


def _three(low: Estimate, expected: Estimate, high: Estimate) -> Three:
    return Three(low.low, expected.total, high.high)


def _sum(values: list[Three]) -> Three:
    return sum(values, Three())
