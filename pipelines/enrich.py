"""The worker process: one Beam pipeline over one group of a run's batches.

It says what it does in lines of JSON on standard output, logs to standard error, and takes its keys
from the environment. Started by `flows.worker`; by hand::

    python -m pipelines.enrich --workload W.toml --run CONTEXT.json --plan runs/ID/plan.parquet \
        --group 0 --groups 4 -- --direct_runner_bundle_repeat=1

Exit code 0: ran to its end (failed batches are reported, not raised), 2: the configuration must be
mended first, 1: anything else.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, TestOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from pipelines.dataflow import TPUS, Tpu
from pipelines.engines import ENGINES, Engine
from pipelines.log_lines import log_lines, tell, tell_batch
from pipelines.options import pipeline_options, works_here
from pipelines.stages import Stage, stages_of
from pipelines.watch import Watched, run_stages
from schemas.batches import BatchRef, BatchReport
from schemas.changes import with_changes
from schemas.errors import ConfigurationError
from schemas.load import load_workload
from schemas.run import Progress, RunContext
from transforms.coders import register_arrow_coders
from transforms.layout import stop_path
from transforms.plan_file import read_group
from transforms.process_workers import forget_worker, worker_of
from transforms.store import open_store
from transforms.wiring.process import PATIENCE_S, ProcessBatches
from transforms.worker import Worker, WorkerConfig

_PROGRESS_EVERY_S = 0.5
_LOOK_EVERY_S = 1.0
DRAIN_S = 6.0  # with the engine's own grace less than the launcher waits before it kills
END_BY_ITSELF_S = 12.0  # less than a launcher waits between SIGTERM and SIGKILL
_TERMINATED = 128 + signal.SIGTERM
_LOGGER = logging.getLogger(__name__)

Emit = Callable[[dict[str, Any]], None]


class Elsewhere:
    """The pipeline that an engine runs in other processes, once it was handed over."""

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.result: PipelineResult | None = None
        self._monotonic = monotonic
        self._sleep = sleep

    def stop(self, run: RunContext) -> None:
        """Have its workers send nothing more and settle; cancel it if END_BY_ITSELF_S does not end it."""
        if self.result is None:
            return
        until = self._monotonic() + END_BY_ITSELF_S
        open_store(run.output).create(stop_path(run.run_id), b"")
        while not PipelineState.is_terminal(self.result.state):
            if self._monotonic() >= until:
                self.result.cancel()
                return
            self._sleep(_LOOK_EVERY_S)


@dataclass(frozen=True, slots=True)
class Job:
    """What one worker process is asked to do."""

    config: WorkerConfig
    refs: tuple[BatchRef, ...]
    group: int
    flags: tuple[str, ...]
    engine: Engine = "local"
    tpu: Tpu | None = None
    elsewhere: Elsewhere = field(default_factory=Elsewhere, compare=False)


def build(
    pipeline: beam.Pipeline,
    refs: Sequence[BatchRef],
    config: WorkerConfig,
    patience_s: float = PATIENCE_S,
    calls_only: bool = False,
) -> beam.PCollection:
    """The pipeline: references of batches in, reports of batches out."""
    process = ProcessBatches(config, patience_s, calls_only)
    return pipeline | "Batches" >> beam.Create(list(refs)) | "ProcessBatches" >> process


def run_job(job: Job, emit: Emit) -> None:
    """Run a job's pipelines to their end and emit progress and a report for every batch of it."""
    register_arrow_coders()
    said = _logged(emit)
    stages = [
        (stage, pipeline_options(job.flags, job.engine, stage.tpu))
        for stage in stages_of(job.config.workload, job.tpu)
    ]
    if works_here(stages[0][1]):  # where nothing is asked of the kind of worker: so there is one stage
        _run_here(job, stages[0][1], said)
    else:
        _run_elsewhere(job, stages, said)


def _logged(emit: Emit) -> Emit:
    """Batches that are emitted stand in the log too."""

    def both(event: dict[str, Any]) -> None:
        emit(event)
        if event["event"] == "batch":
            tell_batch(BatchReport.from_dict(event["report"]))

    return both


def _run_here(job: Job, options: PipelineOptions, emit: Emit) -> None:
    """The batches are worked on in this process, whatever runs the pipeline."""
    worker = worker_of(job.config)
    worker.on_report = lambda report: emit({"event": "batch", "report": report.to_dict()})
    try:
        with _progress(worker, job.group, emit):
            pipeline = beam.Pipeline(options=options)
            build(pipeline, job.refs, job.config)
            pipeline.run().wait_until_finish()
    finally:
        forget_worker(job.config)


def _run_elsewhere(job: Job, stages: Sequence[tuple[Stage, PipelineOptions]], emit: Emit) -> None:
    """The batches are worked on in other processes; what they leave in the output says how far they are."""
    run = job.config.run
    watched = Watched(open_store(run.output), run.run_id, job.group, job.refs, emit, run.rehearsal)

    def work(of: tuple[Stage, PipelineOptions], refs: Sequence[BatchRef]) -> None:
        stage, options = of
        pipeline = beam.Pipeline(options=options)
        build(pipeline, refs, job.config, calls_only=stage.calls_only)
        result = job.elsewhere.result = pipeline.run()
        while not PipelineState.is_terminal(result.state):
            time.sleep(_LOOK_EVERY_S)
            watched.look()
        result.wait_until_finish()  # raises what broke it

    run_stages(stages, watched, work)
    if stages[0][1].view_as(TestOptions).dry_run:
        raise ConfigurationError(
            "--dry_run: every job was described as it would be asked for, and none was handed over. Leave "
            "the flag out to run"
        )


def progress_of(worker: Worker, group: int) -> Progress:
    """How far a worker is; documents of batches that are still under way count too."""
    counters, stats = worker.counters, worker.engine_stats()
    documents = counters.documents + worker.under_way()
    if stats is None:
        return Progress(group, documents, counters.batches, 0, "0")
    amount = stats.list_amount if worker.config.run.rehearsal else stats.amount
    return Progress(group, documents, counters.batches, stats.calls, str(amount), stats.soft_passed)


@contextmanager
def _progress(worker: Worker, group: int, emit: Emit) -> Iterator[None]:
    """Emit progress twice a second while the pipeline runs, and once at its end."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_PROGRESS_EVERY_S):
            emit({"event": "progress", **progress_of(worker, group).to_dict()})

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        emit({"event": "progress", **progress_of(worker, group).to_dict()})


def _emitter() -> Emit:
    """Writes events as whole lines, from any thread; the pipeline's own prints go to standard error."""
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lock = threading.Lock()

    def emit(event: dict[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=True)
        with lock:
            stream.write(line + "\n")
            stream.flush()

    return emit


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    own, flags = list(argv), []
    if "--" in own:
        cut = own.index("--")
        own, flags = own[:cut], own[cut + 1 :]
    parser = argparse.ArgumentParser(prog="python -m pipelines.enrich", description=__doc__)
    parser.add_argument("--workload", required=True, type=Path)
    parser.add_argument("--run", required=True, type=Path, help="the run's context, JSON")
    parser.add_argument("--plan", required=True, help="path of the plan in the output")
    parser.add_argument("--group", required=True, type=int)
    parser.add_argument("--groups", required=True, type=int)
    parser.add_argument("--engine", choices=ENGINES, default="local")
    parser.add_argument("--tpu", choices=TPUS, help="the kind of Dataflow's workers")
    return parser.parse_args(own), flags


def load_job(argv: Sequence[str]) -> Job:
    """The job that a command line asks for.

    Raises:
        ConfigurationError: the workload can't be read, or is not the one that was planned.
    """
    arguments, flags = _parse(argv)
    loaded = load_workload(arguments.workload)
    run = RunContext(**json.loads(arguments.run.read_text("utf-8")))
    if loaded.workload.digest() != run.workload_sha256:
        raise ConfigurationError(
            f"{loaded.path} has changed since run {run.run_id} was planned. Nothing of this group was "
            "sent; run again to plan with what it says now"
        )
    refs, schema = read_group(open_store(run.output), arguments.plan, arguments.group, arguments.groups)
    loaded = with_changes(loaded, run)
    config = WorkerConfig(loaded.workload, str(loaded.base_dir), run, schema.serialize().to_pybytes())
    return Job(
        config=config,
        refs=tuple(refs),
        group=arguments.group,
        flags=tuple(flags),
        engine=arguments.engine,
        tpu=arguments.tpu,
    )


def _stop_on_signal(job: Job) -> None:
    """On SIGTERM: send nothing more, settle what is in flight, commit what is whole, and end.

    A rerun goes on from there. What is not through `DRAIN_S` seconds later is left to it as well.
    """

    def stop() -> None:
        try:
            worker_of(job.config).stop()
            job.elsewhere.stop(job.config.run)
            time.sleep(DRAIN_S)  # the process usually ends before: this thread is a daemon
        finally:
            os._exit(_TERMINATED)

    def handle(_signal: int, _frame: FrameType | None) -> None:
        threading.Thread(target=stop, name="stop", daemon=True).start()

    signal.signal(signal.SIGTERM, handle)


def run(argv: Sequence[str]) -> int:
    """Run a worker process; its exit code."""
    emit = _emitter()
    try:
        log_lines({})
        job = load_job(argv)
        log_lines({"run": job.config.run.run_id, "group": job.group})
        tell("worker.started", {"batches": len(job.refs), "workload": job.config.workload.name})
        _stop_on_signal(job)
        run_job(job, emit)
    except ConfigurationError as error:
        emit({"event": "error", "class": type(error).__name__, "message": str(error)})
        return 2
    except Exception as error:
        _LOGGER.exception("the pipeline failed")
        emit({"event": "error", "class": type(error).__name__, "message": _sentence(error)})
        return 1
    emit({"event": "done"})
    return 0


def _sentence(error: Exception) -> str:
    """The first line of the error, without the name of the stage that Beam puts behind it."""
    first = (str(error).strip().splitlines() or [""])[0].split(" [while running ")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
