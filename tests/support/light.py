"""A whole run in one process without Beam: `python -m tests.support.light WORKLOAD [WORKERS]`.

The functions that the Beam stages call, in their order, with every batch's calls in flight at once; a
process of it starts three times as fast as one with Beam. Prints the manifest as JSON.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from schemas.batches import BatchRef
from schemas.ids import new_run_id
from schemas.load import load_workload
from schemas.run import Manifest, RunContext
from transforms.act import finish_calls, prepare_calls
from transforms.commit import Draft, commit, make_record
from transforms.decide import decide
from transforms.output import open_output
from transforms.plan import plan_run
from transforms.plan_file import read_plan
from transforms.previous import load_previous
from transforms.process_workers import forget_worker, worker_of
from transforms.read import BatchReader
from transforms.settle import settle_run
from transforms.store import open_store
from transforms.work import WorkBatch
from transforms.worker import Worker, WorkerConfig


def _start(worker: Worker, reader: BatchReader, ref: BatchRef) -> Callable[[], WorkBatch]:
    """Read, route and submit a batch; what is given waits for its answers."""
    batch = decide(worker.rules(), ref, reader.read(ref), load_previous(worker.store(), ref))
    asked = prepare_calls(worker, batch)
    if asked is None:
        return lambda: batch
    answer = worker.engine().submit(asked)

    def finish() -> WorkBatch:
        finish_calls(batch, asked, answer.result())
        return batch

    return finish


def work_on(config: WorkerConfig, refs: Iterable[BatchRef]) -> None:
    """Work on batches of hosted routes as the stages do, one batch's trouble being everybody's."""
    worker = worker_of(config)
    try:
        reader = BatchReader(config.schema())
        for finish in [_start(worker, reader, ref) for ref in refs]:
            batch, writer = finish(), secrets.token_hex(8)
            written = worker.part_writer().write(batch, writer)
            record = make_record(batch, written.parts, config.run, writer, datetime.now(UTC))
            commit(worker.store(), Draft(record, written.failures))
    finally:
        forget_worker(config)


def run_light(path: Path, *, rehearsal: bool = False, workers: int = 1) -> Manifest:
    """Run a hosted workload over its output, as far as it goes, as one of so many workers."""
    loaded, started = load_workload(path), datetime.now(UTC)
    in_flight = loaded.workload.limits.max_in_flight
    run = RunContext(
        new_run_id(started),
        loaded.output_uri,
        loaded.workload.digest(),
        rehearsal,
        in_flight,
        workers=workers,
    )
    with open_output(loaded, rehearsal=rehearsal):
        plan = plan_run(loaded, run)
        refs, schema = read_plan(open_store(run.output), plan.plan_uri)
        encoded = schema.serialize().to_pybytes()
        work_on(WorkerConfig(loaded.workload, str(loaded.base_dir), run, encoded), refs)
        return settle_run(loaded, run, plan, [], started)


if __name__ == "__main__":
    workload, *workers = sys.argv[1:]
    print(json.dumps(run_light(Path(workload), workers=int(*workers or "1")).to_dict()))
