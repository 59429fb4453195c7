"""Making a quote: find what is due, sample it, price it. Nothing is written and nobody is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from fractions import Fraction

from schemas.load import LoadedWorkload
from schemas.routes import Route
from transforms.price import PriceBook
from transforms.quote.budget import add_prices, judge_budget
from transforms.quote.embedding import Calibrate, Throughput, quote_embed_route
from transforms.quote.estimate import METHOD
from transforms.quote.ground import UNSEEN, Ground, Seen, survey_ground
from transforms.quote.history import measured_seconds
from transforms.quote.hosted import HostedRoute
from transforms.quote.measure import RequestSizes, TextTokens, keyless_sites, measure_for
from transforms.quote.population import Frame, find_population
from transforms.quote.sampling import Sample, Sampler
from transforms.quote.values import Quote, RouteQuote
from transforms.quote.wall_time import (
    Floor,
    RouteWork,
    Three,
    route_seconds,
    run_seconds,
    three,
    until_answered,
)
from transforms.store import is_remote

SAMPLE = 1000
"""Documents that are measured for each route unless said otherwise."""
_SHOWN = 3
ASSUMPTIONS = (
    "every document is answered by one call: calls that fail are not billed; a lost one may be",
    "expected: the first backend of a document's chain answers; high: the dearest of the chain does",
    'likely most of a backend with mode = "batch": its documents go online, as after `batch_deadline_h`',
    "answers that do not fit their JSON Schema and are sent back once are in the worst case alone",
    "thinking tokens are billed as output: they are in measured lengths and in the upper figures",
    "worst: one token for each byte sent, the longest answer, the dearest reading of the price",
    "identical requests are priced each, though a run may pay for them once",
    "time: routes run side by side, so a run takes as long as the longest bound of places for calls, stated "
    "calls and tokens a minute, device time, and documents a second of its processes; refused and failed "
    "calls, and waits for a person, are not in it",
    "prices are those in force when the quote was made; taxes and discounts of your own are not known",
)


Grouping = Callable[[int, int], int]
"""How many processes a run has for so many batches, of which so many work at a time."""


def quote_workload(
    loaded: LoadedWorkload,
    now: datetime,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    retry_classes: tuple[str, ...] = (),
    calibrate: Calibrate | None = None,
    only_batches: Sequence[str] = (),
    grouping: Grouping = lambda _, parallel: parallel,
    seen: Seen = UNSEEN,
) -> Quote:
    """Price what a run of the workload would do now, at the prices in force at `now`.

    The same input, output, workload, `sample` (documents measured for a route) and `seed` give the same
    quote; `only_batches` (beginnings of batch ids) leaves all others out. What is committed in the output
    is not priced again; an output that a run would refuse (another workload's, a rehearsal's) counts as
    empty, and a note says so. `seen` is what was looked at a moment ago, and is not looked at again. Reads
    the whole input once for its digests, as a run does; then what the conditions need, and a bounded
    number of batches.

    Raises:
        WorkloadError: expressions or prompts can't be used on this input.
        InputError: the input can't be used.
        OutputError: an input file was replaced since its documents were answered.
        ModelError: an embedder's model can't be used.
    """
    ground = survey_ground(loaded, retry_classes, only_batches, seen)
    population = find_population(ground.work, ground.rules, ground.store, seed)
    workload = loaded.workload
    sites = keyless_sites(workload, PriceBook())
    measures = {r.name: measure_for(workload, r, loaded.base_dir, sites, now) for r in workload.routes}
    drawn = Sampler(ground.work, ground.rules, ground.store, population, measures, sample, seed).draw()
    pricing = _Pricing(ground, drawn, calibrate)
    quoted = [
        pricing.quote(route, population.frames[route.name], measures[route.name]) for route in workload.routes
    ]
    floor = _floor(ground, grouping)
    routes = tuple(_timed(route, each, floor) for route, each in quoted)
    works = [each for _, each in quoted]
    work, hosted = ground.work, [route for route in routes if route.kind == "hosted"]
    return Quote(
        workload=workload.name,
        workload_sha256=workload.digest(),
        made_at=now.isoformat(),
        input_files=len(work.found.files),
        rows_total=work.found.files.rows,
        rows_due=ground.rows_due,
        batches_total=len(work.every),
        batches_due=len(work.refs),
        batches_read=drawn.batches_read,
        rows_read=drawn.rows_read,
        routing=population.routing,
        routing_sentence=population.sentence,
        method=METHOD,
        seed=seed,
        sample=sample,
        routes=routes,
        total=add_prices([route.price for route in hosted]),
        budget=judge_budget(workload, hosted, ground.spending()),
        not_sent=_not_sent(ground, drawn),
        assumptions=ASSUMPTIONS,
        notes=(*ground.notes, *_sample_notes(drawn)),
        baseline=dict(ground.baseline()),
        waiting=ground.waiting,
        batches_new=ground.batches_new,
        batches_collected=ground.batches_collected,
        run_seconds=run_seconds(works, floor),
        wall_seconds=until_answered(works, floor),
    )


def _floor(ground: Ground, grouping: Grouping) -> Floor:
    limits, files = ground.loaded.workload.limits, ground.work.found.files
    batches = len(ground.work.refs)
    groups = min(batches, limits.groups or grouping(batches, limits.parallel_groups))
    local = 0 if is_remote(ground.loaded.input_uri) else sum(file.size for file in files)
    return Floor(limits, groups, len(files), local)


def _timed(route: RouteQuote, work: RouteWork, floor: Floor) -> RouteQuote:
    """The route with its time, which takes what all routes share into account."""
    lanes = {load.lane.key: floor.in_lane(load.lane) for load in work.loads}
    return replace(
        route,
        wall_seconds=route_seconds(work, floor),
        calls_at_a_time=min(floor.at_a_time, sum(lanes.values())) if lanes else None,
    )


class _Pricing:
    """Prices one route after the other from one sample."""

    def __init__(self, ground: Ground, drawn: Sample, calibrate: Calibrate | None) -> None:
        self._ground = ground
        self._drawn = drawn
        self._calibrate = calibrate

    def quote(
        self, route: Route, frame: Frame, measure: RequestSizes | TextTokens
    ) -> tuple[RouteQuote, RouteWork]:
        if isinstance(measure, RequestSizes):
            return HostedRoute(self._ground, route, measure).quote(frame, self._drawn)
        name = route.chains[0].backends[0]
        backend = self._ground.loaded.workload.embedder_backends()[name]
        observed = self._drawn.observed[route.name]
        if self._calibrate is not None:
            throughput = self._calibrate(backend, measure.kept)
        else:
            throughput = _measured(self._ground, route.name, name)
        quoted = quote_embed_route(route.name, name, backend, frame, observed, throughput, measure.lengths)
        seconds = quoted.device_seconds
        count = quoted.documents
        documents = Three(*map(Fraction, (count.low, count.expected, count.high or 0)))
        device = None if seconds is None else three(seconds)
        return quoted, RouteWork(documents, is_embedder=True, device_s=device)


def _measured(ground: Ground, route: str, backend: str) -> Throughput | None:
    seconds = measured_seconds(ground.commits, route, backend)
    return (
        None if seconds is None else Throughput(seconds, "device seconds a token as measured in this output")
    )


def _not_sent(ground: Ground, drawn: Sample) -> dict[str, int]:
    """Documents that will not leave the process, by failure class; scaled where not every row was read."""
    due = int(ground.work.refs.row_counts.sum())
    scale = due / drawn.rows_read if drawn.rows_read else 0.0
    return {name: round(count * scale) for name, count in sorted(drawn.not_sent.items()) if count}


def _sample_notes(drawn: Sample) -> list[str]:
    notes = []
    if drawn.recorded:
        notes.append(
            f"{drawn.recorded:,} answers of batches that were not finished are in the ledger of the batches "
            "that were read: they are not paid again, and not priced"
        )
    if drawn.unreadable:
        shown = "; ".join(drawn.unreadable[:_SHOWN])
        notes.append(f"{len(drawn.unreadable):,} batches can't be read and would not be paid for: {shown}")
    return notes
