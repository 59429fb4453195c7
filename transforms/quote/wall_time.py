"""How long a run takes, from what each route asks of what they share. Plain arithmetic, no I/O.

The time that calls keep a place busy, divided by the places, is the least that they take (Little's law);
calls and tokens a minute that are stated set another bound, and so do the documents a second that one
process carries. Routes run side by side, so a run takes as long as the longest of its bounds, and the
starts of its processes besides. Everything is told three times: likely least, expected, likely most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from schemas.limits import Limits
from transforms.quote.values import Seconds

DOCUMENTS_PER_S = Seconds(4200.0, 2500.0, 300.0)
"""That one process carries, the most first. ADR 016: 4,100 to 4,300 documents of 500 bytes on a core of its
own, 30 % of that on a machine that others keep busy; long documents are slower."""
RUN = Seconds(1.0, 4.0, 120.0)
"""Of a run: its lock, its plan, settling and reporting; most of the last figure is a busy machine's."""
START = Seconds(2.0, 5.0, 20.0)
"""Of each process: imports and the pipeline. Two to five seconds where nothing else runs."""
OPENING = Seconds(3.0, 20.0, 180.0)
"""Of an embedder: its weights, and the programs that it compiles."""
BYTES_PER_S = Seconds(2e9, 4e8, 2e7)
"""Of local input that is read for its digests, the most first."""
FILE = Seconds(0.0005, 0.005, 0.05)
"""Planning one input file."""
WINDOW = Seconds(300.0, 3600.0, 86400.0)
"""Of a provider batch. Providers promise 24 hours and say that most are through much sooner."""


@dataclass(frozen=True, slots=True)
class Three:
    """Likely least, expected and likely most of anything."""

    low: Fraction = Fraction(0)
    expected: Fraction = Fraction(0)
    high: Fraction = Fraction(0)

    def __add__(self, other: Three) -> Three:
        return Three(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def times(self, each: Seconds | int) -> Three:
        """So many of something that takes `each`."""
        value = Seconds(each, each, each) if isinstance(each, int) else each
        pairs = zip(self._parts(), (value.low, value.expected, value.high), strict=True)
        return Three(*(part * Fraction(factor) for part, factor in pairs))

    def at(self, per_s: Seconds | int | Fraction) -> Three:
        """The seconds that so much takes at a rate."""
        rate = per_s if isinstance(per_s, Seconds) else Seconds(*(float(per_s),) * 3)
        pairs = zip(self._parts(), (rate.low, rate.expected, rate.high), strict=True)
        return Three(*(part / Fraction(value) for part, value in pairs))

    def seconds(self) -> Seconds:
        """As plain numbers, in order."""
        low, expected, high = (round(float(part), 3) for part in self._parts())
        return Seconds(min(low, expected), expected, max(expected, high))

    def _parts(self) -> tuple[Fraction, Fraction, Fraction]:
        return self.low, self.expected, self.high


def three(seconds: Seconds) -> Three:
    """The same as fractions."""
    return Three(Fraction(seconds.low), Fraction(seconds.expected), Fraction(seconds.high))


def longest(bounds: Sequence[Three]) -> Three:
    """The longest, for each of the three; nothing without any."""
    every = [Three(), *bounds]

    def most(of: Callable[[Three], Fraction]) -> Fraction:
        return max(map(of, every))

    return Three(most(lambda b: b.low), most(lambda b: b.expected), most(lambda b: b.high))


@dataclass(frozen=True, slots=True)
class Lane:
    """What calls of one provider, model and key share; None is not stated."""

    key: tuple[str, ...]
    at_a_time: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What one route asks of a lane: calls, their tokens, and the seconds that they keep a place busy."""

    lane: Lane
    calls: Three
    tokens: Three
    busy_s: Three
    slowest_s: Three


@dataclass(frozen=True, slots=True)
class RouteWork:
    """What one route asks for. `device_s` is an embedder's, None while that is unknown.

    `window_s` is what provider batches take, for a route that has documents in them.
    """

    documents: Three
    loads: tuple[Load, ...] = ()
    is_embedder: bool = False
    device_s: Three | None = None
    window_s: Three | None = None


@dataclass(frozen=True, slots=True)
class Floor:
    """What all routes share: the run's limits, its processes, and the input that is planned."""

    limits: Limits
    groups: int
    files: int = 0
    input_bytes: int = 0

    @property
    def processes(self) -> int:
        """That work at a time."""
        return max(1, min(self.limits.parallel_groups, self.groups))

    @property
    def at_a_time(self) -> int:
        """Calls of the whole run at a time: every process has its part, and those that are not there none."""
        return self._part(self.limits.max_in_flight)

    def in_lane(self, lane: Lane) -> int:
        """Calls of a lane at a time."""
        return min(self._part(lane.at_a_time), self.at_a_time)

    def rounds(self) -> int:
        """How many processes run one after the other."""
        return -(-self.groups // self.processes)

    def _part(self, limit: int) -> int:
        return max(1, limit // max(1, self.limits.parallel_groups)) * self.processes

    def planning(self) -> Three:
        """What reading the input for its plan takes."""
        one = Three(*(Fraction(1),) * 3)
        return one.times(self.input_bytes).at(BYTES_PER_S) + one.times(self.files).times(FILE)


def route_seconds(work: RouteWork, floor: Floor) -> Seconds | None:
    """How long a run of one route alone takes; with provider batches until their answers are back."""
    own = _work_of([work], floor)
    if own is None:
        return None
    return own.seconds() if work.window_s is None else longest([own, work.window_s]).seconds()


def run_seconds(works: Sequence[RouteWork], floor: Floor) -> Seconds | None:
    """How long a run works: not what it waits for provider batches, which a later run collects."""
    found = _work_of(works, floor)
    return None if found is None else found.seconds()


def until_answered(works: Sequence[RouteWork], floor: Floor) -> Seconds | None:
    """How long it takes until the last answer is there, provider batches and all."""
    found = _work_of(works, floor)
    windows = [work.window_s for work in works if work.window_s is not None]
    return None if found is None else longest([found, *windows]).seconds()


def _work_of(works: Sequence[RouteWork], floor: Floor) -> Three | None:
    if not floor.groups:
        return Three()
    if any(work.is_embedder and work.device_s is None and work.documents.high for work in works):
        return None
    devices = [work.device_s for work in works if work.device_s is not None]
    documents = _sum([work.documents for work in works])
    bounds = [
        *_lane_bounds([load for work in works for load in work.loads], floor),
        _sum(devices),  # of one device: several are faster
        documents.at(DOCUMENTS_PER_S).at(floor.processes),
    ]
    start = three(START)
    if any(work.is_embedder for work in works):
        start += three(OPENING)
    slowest = longest([load.slowest_s for work in works for load in work.loads])
    return floor.planning() + three(RUN) + longest(bounds) + (start + slowest).times(floor.rounds())


def _lane_bounds(loads: Sequence[Load], floor: Floor) -> list[Three]:
    bounds = [_sum([load.busy_s for load in loads]).at(floor.at_a_time)]
    lanes = {load.lane.key: load.lane for load in loads}
    for key, lane in lanes.items():
        mine = [load for load in loads if load.lane.key == key]
        bounds.append(_sum([load.busy_s for load in mine]).at(floor.in_lane(lane)))
        if lane.requests_per_minute is not None:
            bounds.append(_sum([load.calls for load in mine]).at(Fraction(lane.requests_per_minute, 60)))
        if lane.tokens_per_minute is not None:
            bounds.append(_sum([load.tokens for load in mine]).at(Fraction(lane.tokens_per_minute, 60)))
    return bounds


def _sum(values: Sequence[Three]) -> Three:
    return sum(values, Three())


def share_that_is_sent(requests: Sequence[str], documents: Fraction) -> Fraction:
    """The share of documents that are asked for, where identical requests are asked once; 1 at most.

    From the digests of a sample. What stands once in it counts for as many as the sample stands for,
    what stands several times counts once: the upper bound of the guaranteed-error estimator (Charikar
    et al., PODS 2000), so repetitions that the sample does not show are not counted on.
    """
    if not requests or not documents:
        return Fraction(1)
    often = Counter(requests).values()
    once = sum(number == 1 for number in often)
    distinct = Fraction(once * documents, len(requests)) + len(often) - once
    return min(Fraction(1), distinct / documents)
