"""A whole run in one process, without Prefect: `python -m tests.support.drive WORKLOAD [Beam flags]`.

The same plan, pipeline and settlement as `switchgear run`, so that a test can kill a run hundreds of
times without paying for a server at each. Prints the manifest as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.enrich import Job, run_job
from schemas.batches import BatchReport
from schemas.ids import new_run_id
from schemas.load import LoadedWorkload, load_workload
from schemas.run import Manifest, RunContext
from schemas.workload import Workload
from tests.support.light import work_on
from transforms.batchmode.driving import collect_batches, submit_batches
from transforms.output import open_output
from transforms.plan import plan_run
from transforms.plan_file import read_plan
from transforms.settle import settle_run
from transforms.store import open_store
from transforms.worker import WorkerConfig

BatchStep = Callable[[Workload, RunContext], object]


def drive(
    workload: Path,
    flags: Sequence[str] = (),
    *,
    rehearsal: bool = False,
    beam: bool = True,
    collect: BatchStep = collect_batches,
    submit: BatchStep = submit_batches,
    planned: Callable[[LoadedWorkload, RunContext], object] = lambda _loaded, _run: None,
) -> Manifest:
    """Run a workload over its output as far as it goes; `planned` is called when something is due.

    Without `beam` hosted documents take the functions of the stages without the stages, which takes a third
    of the time: for tests of what goes on before and after the pipeline.
    """
    loaded = load_workload(workload)
    started = datetime.now(UTC)
    run = RunContext(
        run_id=new_run_id(started),
        output=loaded.output_uri,
        workload_sha256=loaded.workload.digest(),
        rehearsal=rehearsal,
        max_in_flight=loaded.workload.limits.max_in_flight,
    )
    failed: list[BatchReport] = []

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "batch" and event["report"]["state"] == "failed":
            failed.append(BatchReport.from_dict(event["report"]))

    with open_output(loaded, rehearsal=rehearsal):
        collect(loaded.workload, run)
        plan = plan_run(loaded, run)
        refs, schema = read_plan(open_store(run.output), plan.plan_uri)
        if refs:
            planned(loaded, run)
            config = WorkerConfig(loaded.workload, str(loaded.base_dir), run, schema.serialize().to_pybytes())
            if beam:
                run_job(Job(config, tuple(refs), 0, tuple(flags)), emit)
            else:
                work_on(config, refs)
        submit(loaded.workload, run)
        return settle_run(loaded, run, plan, failed, started)


if __name__ == "__main__":
    print(json.dumps(drive(Path(sys.argv[1]), sys.argv[2:]).to_dict()))
