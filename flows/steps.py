"""What the `enrich` flow is made of, and whom it tells how far it is.

A Prefect flow's signature is the form of its parameters, so its collaborators can't be arguments of it.
They are bound around the call instead: `with bound(steps, watcher, ending): enrich(parameters)`. A run
that a deployment started has none bound and gets the real ones, and nobody watching but Prefect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from flows.batch_lines import BatchLine
from flows.groups import GroupJob, worker_arguments
from flows.parameters import EnrichParameters
from pipelines.engines import Engine
from pipelines.stages import require_engine
from schemas.batches import BatchReport, CommitRecord
from schemas.load import LoadedWorkload, load_workload, with_budget
from schemas.run import Manifest, Progress, RunContext
from transforms.plan import Plan


class Lock(Protocol):
    """The lock on an output, as a file descriptor that workers inherit."""

    def fileno(self) -> int:
        """The descriptor."""


class Watcher(Protocol):
    """Whoever shows how far a run is. Its methods are called from several threads."""

    def planned(self, plan: Plan, rehearsal: bool) -> None:
        """The run knows what it has to do."""

    def progressed(self, progress: Progress) -> None:
        """A worker says how far it is."""

    def batch_ended(self, line: BatchLine) -> None:
        """A worker is through with a batch."""

    def say(self, text: str) -> None:
        """Something that is worth a line."""


class SilentWatcher:
    """Shows nothing."""

    def planned(self, plan: Plan, rehearsal: bool) -> None:
        """See `Watcher`."""

    def progressed(self, progress: Progress) -> None:
        """See `Watcher`."""

    def batch_ended(self, line: BatchLine) -> None:
        """See `Watcher`."""

    def say(self, text: str) -> None:
        """See `Watcher`."""


class CheckResult(Protocol):
    """What checking a workload found worth saying."""

    def lines(self) -> Sequence[str]:
        """For people."""

    def to_dict(self) -> dict[str, Any]:
        """For machines."""


def no_quote(_loaded: LoadedWorkload, _run: RunContext, _classes: Sequence[str]) -> None:
    """A step of a run that is not quoted."""


def nothing_to_say(_loaded: LoadedWorkload, _run: RunContext) -> Sequence[str]:
    """A step of a run without provider batches."""
    return ()


class CommitNotes(Protocol):
    """Whoever takes note of what a run commits while it goes on."""

    def note(self, record: CommitRecord) -> None:
        """Take a committed record; called from several threads."""

    def close(self) -> None:
        """There are no more."""


class NoNotes:
    """Takes note of nothing."""

    def note(self, record: CommitRecord) -> None:
        """See `CommitNotes`."""

    def close(self) -> None:
        """See `CommitNotes`."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a run, and the clock.

    `collect` comes before `plan`, and `submit` after the workers: what there is to say about provider
    batches. `quote` comes after `plan` and is kept with the run, for its report. `note_commits` is told what
    is committed meanwhile.
    """

    load: Callable[[Path, str | None, str | None], LoadedWorkload]
    check: Callable[[LoadedWorkload], CheckResult]
    require_keys: Callable[[LoadedWorkload], None]
    require_safe_runner: Callable[[Sequence[str], Engine], None]
    open_output: Callable[[LoadedWorkload, bool], AbstractContextManager[Lock]]
    plan: Callable[[LoadedWorkload, RunContext, Sequence[str]], Plan]
    arguments: Callable[[GroupJob], tuple[str, ...]]
    settle: Callable[[LoadedWorkload, RunContext, Plan, Sequence[BatchReport], datetime], Manifest]
    now: Callable[[], datetime]
    collect: Callable[[LoadedWorkload, RunContext], Sequence[str]] = nothing_to_say
    submit: Callable[[LoadedWorkload, RunContext], Sequence[str]] = nothing_to_say
    quote: Callable[[LoadedWorkload, RunContext, Sequence[str]], None] = no_quote
    note_commits: Callable[[RunContext], CommitNotes] = lambda _run: NoNotes()


def load_for(parameters: EnrichParameters, steps: Steps) -> LoadedWorkload:
    """Load the workload and settle what needs no look at the input: keys and runner.

    Raises:
        ConfigurationError: the workload, a missing key, or a runner that is refused.
    """
    loaded = steps.load(Path(parameters.workload), parameters.input, parameters.output)
    loaded = with_budget(loaded, parameters.budget)
    if parameters.runner_flags or parameters.engine != "local" or parameters.tpu:
        steps.require_safe_runner(parameters.runner_flags, parameters.engine)
        require_engine(loaded, parameters.engine, parameters.tpu)
    if not parameters.rehearsal and parameters.engine != "dataflow":  # whose workers have keys of their own
        steps.require_keys(loaded)
    return loaded


@dataclass(slots=True)
class Ending:
    """How a run ended, for whoever called the flow in this process. `error` is for the user to mend."""

    output: str = ""
    plan: Plan | None = None
    manifest: Manifest | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is bound around a call of the flow."""

    steps: Steps
    watcher: Watcher = field(default_factory=SilentWatcher)
    ending: Ending = field(default_factory=Ending)


_BOUND: ContextVar[Surroundings | None] = ContextVar("switchgear_surroundings", default=None)


@contextmanager
def bound(surroundings: Surroundings) -> Iterator[Surroundings]:
    """Bind what the flow works with; threads that Prefect starts for its tasks inherit it."""
    token = _BOUND.set(surroundings)
    try:
        yield surroundings
    finally:
        _BOUND.reset(token)


def surroundings() -> Surroundings:
    """What is bound, or the real steps with nobody watching."""
    return _BOUND.get() or Surroundings(real_steps())


def real_steps() -> Steps:
    """The steps of a real run."""
    from flows.looks import Looks
    from transforms.batchmode.driving import collect_batches, submit_batches
    from transforms.compaction import Compactor
    from transforms.output import open_output
    from transforms.settle import settle_run
    from transforms.store import open_store

    looks = Looks()
    return Steps(
        load=lambda path, input_uri, output_uri: load_workload(
            path, input_uri=input_uri, output_uri=output_uri
        ),
        check=looks.check,
        require_keys=_require_keys,
        require_safe_runner=_require_safe_runner,
        open_output=lambda loaded, rehearsal: open_output(loaded, rehearsal=rehearsal),
        plan=looks.plan,
        arguments=worker_arguments,
        settle=settle_run,
        now=lambda: datetime.now(UTC),
        collect=lambda loaded, run: collect_batches(loaded.workload, run),
        submit=lambda loaded, run: submit_batches(loaded.workload, run),
        quote=looks.quote,
        note_commits=lambda run: Compactor(open_store(run.output)),
    )


def _require_keys(loaded: LoadedWorkload) -> None:
    from flows.secret_blocks import keys_from_blocks
    from transforms.check import require_keys

    keys_from_blocks(loaded.workload)
    require_keys(loaded.workload)


def _require_safe_runner(flags: Sequence[str], engine: Engine) -> None:
    from pipelines.options import pipeline_options

    pipeline_options(flags, engine)
