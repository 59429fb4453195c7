"""What a seed is: a job, its surroundings, and what will befall it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from random import Random

from schemas.backends import HostedBackend, TokenPrice
from schemas.batches import BatchRef
from schemas.budget import Budget
from schemas.ids import batch_id
from schemas.limits import Limits
from schemas.routes import Prompt, Route
from schemas.workload import Input, Output, Workload
from tests.simulator.caps import Cap, budget_section, draw_caps, run_cap
from tests.simulator.world import Disaster

SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string"}, "note": {"type": "string"}},
    "required": ["label", "note"],
}
PROVIDERS = {"alpha": "openai", "beta": "anthropic"}
MAX_OUTPUT_TOKENS = 50
PLAIN, TYPED = "plain", "typed"


@dataclass
class Shape:
    """A job and its world, as drawn for a seed."""

    refs: tuple[BatchRef, ...]
    limits: Limits
    chain: tuple[str, ...] = ("alpha",)
    in_flight: int = 4
    backend_in_flight: int = 4
    workers: int = 1
    overlap: bool = False  # two workers get the same batches
    claims: bool = True  # whether a batch is kept for one worker from before it is read until it is committed
    side_by_side: bool = True  # workers at the same time, not one after the other
    share: bool = False  # identical requests are paid once
    twins: dict[tuple[str, int], str] = field(
        default_factory=dict
    )  # (batch, row) → its text, where others have it too
    one_by_one: bool = False  # a worker's next batch begins when the one before is committed
    cap: Decimal | None = None
    caps: list[Cap] = field(default_factory=list)  # besides
    repairs: bool = False  # an answer that does not fit is sent back once
    settles: bool = False  # runs are settled
    scratch: Path = Path("/nowhere")
    faults: dict[str, float] = field(default_factory=dict)
    poison: dict[tuple[str, int], str] = field(default_factory=dict)  # (batch, row) → what always happens
    script: dict[tuple[str, int], list[str]] = field(
        default_factory=dict
    )  # (batch, row) → what happens first
    no_text: frozenset[tuple[str, int]] = frozenset()  # (batch, row) that fail before they are sent
    down: dict[str, str] = field(default_factory=dict)  # backend → what it says all the time
    retry_after_s: float = 2.0
    io_faults: float = 0.0
    pauses: float = 0.0
    lives: int = 0  # that something happens to
    strike: Callable[[Random, int], list[Disaster]] = lambda source, steps: []
    changes_question: bool = False  # the prompt is another one from the second life on
    cancels: bool = False  # a life may be ended in an orderly way
    parquet: bool = False
    max_output_tokens: int = MAX_OUTPUT_TOKENS
    parts: int = 1  # of each cap's record, but for a cost centre's
    window: int = 0  # of ledgers on object storage; 0: they are local files
    lag_s: float = 0.0  # of the store's listings
    longest_stop_s: float = 20.0

    @property
    def backend_of_model(self) -> dict[str, str]:
        return {f"model-{name}": name for name in PROVIDERS}

    @property
    def rows(self) -> int:
        return sum(ref.row_count for ref in self.refs)

    def text_of(self, batch: str, row: int) -> str:
        """What the document says: its own name, or what its twins say."""
        return self.twins.get((batch, row), f"{batch}/{row}")

    def workload(self) -> Workload:
        """The workload of this job."""
        budget = budget_section(self.cap, self.caps, self.scratch).model_dump_json()
        return _workload(self.chain, self.limits.model_dump_json(), self.backend_in_flight, budget)

    def approve(self) -> None:
        """Somebody raises every cap."""
        self.cap = None if self.cap is None else self.cap + 10
        for cap in self.caps:
            cap.limit += 10 if cap.unit == "amount" else 1_000_000

    def every_cap(self) -> list[Cap]:
        """The run's own cap and those besides."""
        return [*run_cap(self.cap), *self.caps]


@lru_cache(4096)
def _workload(chain: tuple[str, ...], limits: str, in_flight: int, budget: str) -> Workload:
    price = TokenPrice(input_per_million=Decimal(3), output_per_million=Decimal(15))
    backends = {
        name: HostedBackend(
            provider=provider,  # type: ignore[arg-type]
            model=f"model-{name}",
            max_output_tokens=MAX_OUTPUT_TOKENS,
            price=price,
            max_in_flight=in_flight,
        )
        for name, provider in PROVIDERS.items()
    }
    return Workload(
        name="simulated",
        input=Input(uri="in", id="id", text="text"),
        routes=(
            Route(name=PLAIN, backends=chain, prompt="plain"),
            Route(name=TYPED, backends=chain, prompt="typed"),
        ),
        backends=backends,  # type: ignore[arg-type]
        prompts={
            "plain": Prompt(template="{{ text }}"),
            "typed": Prompt(template="{{ text }}", json_schema=SCHEMA),
        },
        output=Output(uri="out", compression="none"),
        limits=Limits.model_validate_json(limits),
        budget=Budget.model_validate_json(budget),
    )


def route_of(row: int) -> str:
    """Every other row wants JSON."""
    return TYPED if row % 2 else PLAIN


def make_refs(sizes: list[int]) -> tuple[BatchRef, ...]:
    """Batches of these many rows, one after the other in one row group."""
    refs = []
    first = 0
    for size in sizes:
        refs.append(BatchRef(batch_id("in", "g", 0, first, size), "in", "g", 0, first, size))
        first += size
    return tuple(refs)


def draw(seed: int) -> Shape:
    """The shape of a seed."""
    source = Random(seed)
    refs = make_refs([source.choice((1, 1, 2, 3, 5, 8)) for _ in range(source.choice((1, 1, 2, 3)))])
    limits = Limits(
        max_calls=source.choice((2, 4, 6)),
        request_timeout_s=source.choice((2.0, 10.0)),
        document_deadline_s=source.choice((15.0, 60.0, 300.0)),
    )
    shape = Shape(refs, limits)
    shape.chain = source.choice((("alpha",), ("beta",), ("alpha", "beta"), ("beta", "alpha")))
    shape.in_flight, shape.backend_in_flight = source.choice((1, 2, 4, 16)), source.choice((1, 3, 8))
    shape.workers = source.choice((1, 2, 2, 3))
    shape.overlap = source.random() < 0.4
    shape.side_by_side = source.random() < 0.6
    shape.share = source.random() < 0.5
    if source.random() < 0.35:
        shape.twins = _twins(source, refs)
    shape.one_by_one = source.random() < 0.4
    shape.cap = _cap(source, shape.rows)
    shape.faults = _faults(source)
    shape.poison = _some(source, refs, 0.04, ("400", "refused", "cut off"))
    shape.no_text = frozenset(_some(source, refs, 0.05, ("",)))
    if source.random() < 0.08:
        shape.down[shape.chain[0]] = source.choice(("500", "401", "429 wait", "hang"))
    shape.retry_after_s = source.choice((0.5, 3.0, 40.0))
    shape.io_faults = source.choice((0.0, 0.0, 0.0, 0.005, 0.03))
    shape.pauses = source.choice((0.0, 0.1, 0.5))
    shape.lives = source.choice((0, 1, 1, 2, 3, 5))
    shape.strike = _strikes
    shape.changes_question = source.random() < 0.06
    shape.cancels = source.random() < 0.15
    shape.parquet = seed % 25 == 0
    _draw_more(shape, Random(f"more {seed}"))
    if shape.overlap and source.random() < 0.4:
        _without_claims(shape)
    return shape


def draw_on_object_storage(seed: int) -> Shape:
    """The shape of a seed, its ledgers and records being objects."""
    source, shape = Random(f"segments {seed}"), draw(seed)
    shape.claims = True  # they stand in the ledgers
    shape.window = source.choice((1, 2, 4, 256))
    shape.lag_s = source.choice((0.0, 0.5, 5.0, 60.0))
    shape.longest_stop_s = source.choice((20.0, 90.0))
    if shape.lag_s:
        shape.settles = False  # what it adds up it finds by listing: then it says what the listing said
    if source.random() < 0.3:
        _with_sleepers(shape, source)
    shape.parts = Random(f"parts {seed}").choice((1, 1, 2, 3))
    return shape


def draw_in_parts(seed: int) -> Shape:
    """The shape of a seed whose workers share a cap in parts, most often less than what they need."""
    source, shape = Random(f"in parts {seed}"), draw_on_object_storage(seed)
    shape.parts, shape.workers = source.choice((2, 3)), source.choice((2, 3))
    shape.side_by_side = source.random() < 0.8
    if source.random() < 0.8:
        shape.cap = Decimal("0.0035") * source.randint(2, 2 * shape.rows + 1)
    if source.random() < 0.5:
        shape.lives, shape.io_faults, shape.faults = 0, 0.0, {}
    return shape


def draw_with_sleepers(seed: int) -> Shape:
    """The shape of a seed on object storage in which a worker is taken over and knows nothing of it.

    Its cap is tight, its calls go side by side, and some of them are sealed before others.
    """
    source, shape = Random(f"sleepers {seed}"), draw_on_object_storage(seed)
    shape.refs = make_refs([source.choice((3, 5, 8)) for _ in range(source.choice((1, 2)))])
    shape.poison, shape.script, shape.no_text, shape.twins = {}, {}, frozenset(), {}
    _with_sleepers(shape, source)
    shape.cap, shape.caps = Decimal("0.0035") * source.randint(2, shape.rows), []
    shape.in_flight, shape.backend_in_flight = source.choice((2, 4, 16)), 8
    shape.window, shape.lag_s, shape.longest_stop_s = source.choice((2, 4, 256)), 0.0, 90.0
    shape.lives, shape.io_faults, shape.cancels = 1, 0.0, False
    return shape


def draw_at(where: str, seed: int) -> Shape:
    """The shape of a seed: of local files, or on object storage as `where` says."""
    return _DRAWN_AT[where](seed)


_DRAWN_AT = {
    "": draw,
    "--objects": draw_on_object_storage,
    "--parts": draw_in_parts,
    "--sleepers": draw_with_sleepers,
}


def _with_sleepers(shape: Shape, source: Random) -> None:
    """Two workers with the same batches and a cap, and one of them stands still longer than a lease lasts."""
    shape.workers, shape.overlap, shape.side_by_side = 2, True, True
    shape.lives, shape.pauses = max(1, shape.lives), 0.5
    if source.random() < 0.7:
        shape.cap = Decimal("0.0035") * source.randint(1, shape.rows + 1)
    shape.strike = _stops


def _stops(source: Random, steps: int) -> list[Disaster]:
    return [Disaster(source.randint(1, max(2, steps)), "stop") for _ in range(source.choice((1, 2)))]


def draw_with_one_stopped_and_cancelled(seed: int) -> Shape:
    """Two workers with the same batches, one after the other; the first stands still and is cancelled."""
    source, shape = Random(f"cancelled {seed}"), draw(seed)
    shape.workers, shape.overlap, shape.side_by_side, shape.claims = 2, True, False, True
    shape.lives, shape.cancels, shape.settles, shape.io_faults = 1, True, False, 0.0
    shape.faults, shape.poison, shape.down, shape.caps = {}, {}, {}, []
    shape.cap = Decimal("0.0035") * source.randint(1, shape.rows + 1)
    shape.strike = lambda source, steps: [Disaster(source.randint(15, max(16, steps)), "stop")]
    return shape


def _draw_more(shape: Shape, source: Random) -> None:
    """From a source of its own, so that the seeds without any of it stay the stories that they were."""
    shape.caps = draw_caps(source, shape.rows, (PLAIN, TYPED))
    shape.repairs = source.random() < 0.3
    if shape.repairs:
        shape.poison |= _some(source, shape.refs, 0.1, ("no json", "no match"))
        for place, first in _some(source, shape.refs, 0.3, ("no json", "no match")).items():
            shape.script[place] = [first]
    shape.settles = source.random() < 0.15


def _without_claims(shape: Shape) -> None:
    """Claims are lost, as those are that expire: several workers get to the end of one batch.

    With nothing else going wrong at the vendor, so that none of them has a call to make that the other
    has not made: who loses the race to the commit would have paid for it, and no record would say so.
    """
    shape.claims = False
    shape.faults, shape.poison, shape.down = {}, {}, {}
    shape.caps = []
    shape.cap, shape.cancels, shape.changes_question = None, False, False


def _cap(source: Random, rows: int) -> Decimal | None:
    """None, plenty, or less than what is needed."""
    worst = Decimal("0.0035")  # a call's worst case is about 1,000 bytes in and 50 tokens out
    plenty = worst * 100 * (rows + 1)
    tight = worst * source.choice((1, 2)) * source.randint(1, rows + 1)
    return source.choice((None, plenty, tight, tight))


def _faults(source: Random) -> dict[str, float]:
    from tests.simulator.vendor import FAULTS, RARE

    if source.random() < 0.2:
        return {}
    share = source.choice((0.01, 0.03, 0.06))
    return {kind: source.random() * (share / 4 if kind in RARE else share) for kind in FAULTS}


def _some(
    source: Random, refs: tuple[BatchRef, ...], share: float, kinds: tuple[str, ...]
) -> dict[tuple[str, int], str]:
    return {
        (ref.batch_id, ref.first_row + offset): source.choice(kinds)
        for ref in refs
        for offset in range(ref.row_count)
        if source.random() < share
    }


def _twins(source: Random, refs: tuple[BatchRef, ...]) -> dict[tuple[str, int], str]:
    """About half of the documents say one of two things; a request also depends on the route."""
    return {
        place: f"twin {text} {route_of(place[1])}"
        for place, text in _some(source, refs, 0.5, ("yes", "no")).items()
    }


def _strikes(source: Random, steps: int) -> list[Disaster]:
    """One or two disasters within about so many steps."""
    kinds = ("kill", "kill run", "kill run", "power", "power", "stop", "ENOSPC", "EIO")
    struck = []
    for _ in range(source.choice((1, 1, 2))):
        kind, step = source.choice(kinds), source.randint(1, max(2, steps))
        struck.append(Disaster(step, kind, source.random() < 0.4, source.random() < 0.5))
    return struck
