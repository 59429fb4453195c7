"""The quote of a route whose documents go to hosted models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schemas.workload import HostedBackend, Route
from transforms.quote.alternatives import find_alternatives
from transforms.quote.ground import Ground
from transforms.quote.history import AnswerLength, measured_answers, measured_ratio
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
from transforms.quote.values import RouteQuote

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

    def quote(self, frame: Frame, drawn: Sample) -> RouteQuote:
        """The route's quote, from the sample that was drawn of its frame."""
        models = self.models()
        observed = drawn.observed[self.route.name]
        costs = [[cost_of(m, models) for m in o.measured] for o in observed]
        totals = RouteTotals(frame, observed, costs)
        main = models[max(self.route.chains, key=lambda arm: arm.weight).backends[0]]
        others = [model for model in models.values() if model is not main]
        alternatives, notes = find_alternatives(totals, main, others, self.measure.shared_bytes)
        price = totals.price()
        return RouteQuote(
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
            alternatives=alternatives,
            notes=(*self._notes(totals, models), *notes),
        )

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
        return BackendModel(name, self.measure.sites[name], self.measure.at, ratio, answer)

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
