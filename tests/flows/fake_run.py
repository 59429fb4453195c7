"""A run without models: a folder holds what is committed, and a small script plays the worker.

`done/BATCH` is a commit, `broken/BATCH` makes a batch fail, `dead/GROUP` makes a worker die, and
`starts` has one line for every worker that was started.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.batch_lines import BatchLine
from flows.groups import GroupJob
from flows.steps import Steps
from schemas.batches import BatchRef, BatchReport
from schemas.errors import MissingSecretError
from schemas.load import LoadedWorkload, load_workload
from schemas.run import FailedBatch, Manifest, Progress, RunContext
from transforms.batch_refs import BatchRefs, no_refs
from transforms.plan import Plan
from transforms.plan_file import group_slice

WORKLOAD = """
name = "fake"
[input]
uri = "input"
id = "id"
text = "text"
[[routes]]
name = "all"
backends = ["model"]
prompt = "ask"
[prompts.ask]
template = "{{ text }}"
[backends.model]
provider = "openai"
model = "gpt"
[output]
uri = "output"
"""

WORKER = """
import json, os, signal, sys, time
from pathlib import Path
folder, group, ids = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
def say(**event):
    print(json.dumps(event), flush=True)
with open(folder / "starts", "a") as starts:
    starts.write(f"{group} {os.getpid()} {' '.join(ids)}\\n")
if (folder / "misconfigured").exists():
    say(event="error", **{"class": "ModelError"}, message="no model")
    sys.exit(2)
if (folder / "hang").exists():
    say(event="progress", group=group, documents=1, batches=0, calls=1, amount="0.1")
    time.sleep(300)
for number, batch in enumerate(ids, 1):
    if (folder / "dead" / str(group)).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    broken = (folder / "broken" / batch).exists()
    if not broken:
        (folder / "done" / batch).touch()
    say(event="progress", group=group, documents=10 * number, batches=number, calls=number, amount="0.1")
    say(event="batch", report={
        "batch_id": batch, "attempt": 1, "state": "failed" if broken else "committed",
        "error": "its pages can't be read" if broken else "", "record": None})
say(event="done")
"""


@dataclass
class FakeCheck:
    def lines(self) -> Sequence[str]:
        return ["checked"]

    def to_dict(self) -> dict[str, Any]:
        return {"workload": "fake"}


class Watched:
    """Notes what a watcher is told."""

    def __init__(self) -> None:
        self.plans: list[tuple[int, bool]] = []
        self.documents = 0
        self.lines: list[BatchLine] = []
        self.said: list[str] = []

    def planned(self, plan: Plan, rehearsal: bool) -> None:
        self.plans.append((len(plan.refs), rehearsal))

    def progressed(self, progress: Progress) -> None:
        self.documents = max(self.documents, progress.documents)

    def batch_ended(self, line: BatchLine) -> None:
        self.lines.append(line)

    def say(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        self.said.append("closed")


class FakeRun:
    """A folder that plays input, output and models."""

    def __init__(self, folder: Path, batches: int, manifest: Manifest) -> None:
        self.folder = folder
        self.batches = batches
        self._manifest = manifest
        for name in ("done", "broken", "dead", "input"):
            (folder / name).mkdir()
        self.workload = folder / "fake.toml"
        self.workload.write_text(WORKLOAD)
        (folder / "worker.py").write_text(WORKER)
        self.settled: list[list[BatchReport]] = []
        self.contexts: list[RunContext] = []
        self.retry_classes: list[str] = []
        self._due = no_refs()
        self.locks = 0
        self.key = True

    def batch_id(self, number: int) -> str:
        return f"{number:032x}"

    def starts(self) -> list[list[str]]:
        """The batches that each started worker was given, in the order of the starts."""
        path = self.folder / "starts"
        return [line.split()[2:] for line in path.read_text().splitlines()] if path.exists() else []

    def pids(self) -> list[int]:
        return [int(line.split()[1]) for line in (self.folder / "starts").read_text().splitlines()]

    def touch(self, *parts: str) -> Path:
        path = self.folder.joinpath(*parts)
        path.touch()
        return path

    def steps(self, **changes: Any) -> Steps:
        steps = Steps(
            load=lambda path, i, o: load_workload(path, input_uri=i, output_uri=o),
            check=lambda _: FakeCheck(),
            require_keys=self._require_keys,
            require_safe_runner=lambda flags: None,
            open_output=self._open_output,
            plan=self._plan,
            arguments=self._arguments,
            settle=self._settle,
            now=lambda: datetime(2026, 11, 22, 9, 15, tzinfo=UTC),
        )
        return replace(steps, **changes)

    def _require_keys(self, loaded: LoadedWorkload) -> None:
        if not self.key:
            raise MissingSecretError("OPENAI_API_KEY is not set")

    @contextmanager
    def _open_output(self, loaded: LoadedWorkload, rehearsal: bool) -> Iterator[Any]:
        os.makedirs(loaded.output_uri, exist_ok=True)
        self.locks += 1
        try:
            with open(self.folder / "lock", "w") as lock:
                yield lock
        finally:
            self.locks -= 1

    def _plan(self, loaded: LoadedWorkload, run: RunContext, classes: Sequence[str]) -> Plan:
        self.contexts.append(run)
        self.retry_classes = list(classes)
        ids = [self.batch_id(n) for n in range(self.batches)]
        due = [i for i in ids if not (self.folder / "done" / i).exists()]
        refs = BatchRefs.of(BatchRef(i, "/in/part.parquet", "g", 0, 0, 10) for i in due)
        self._due = refs
        done = self.batches - len(due)
        uri = f"runs/{run.run_id}/plan.parquet"
        return Plan(run.run_id, refs, 10 * len(due), 10 * self.batches, self.batches, done, 1, (), uri)

    def _arguments(self, job: GroupJob) -> tuple[str, ...]:
        context = json.loads(Path(job.context).read_text())
        assert context["run_id"] == job.run_id
        ids = [ref.batch_id for ref in group_slice(self._due, job.group, job.groups)]
        return (sys.executable, str(self.folder / "worker.py"), str(self.folder), str(job.group), *ids)

    def _settle(
        self, loaded: LoadedWorkload, run: RunContext, plan: Plan, failed: Sequence[BatchReport], at: datetime
    ) -> Manifest:
        self.settled.append(list(failed))
        listed = tuple(FailedBatch(f.batch_id, "/in/part.parquet", 0, 0, 10, f.error) for f in failed)
        reason = f"{len(failed)} batches were not finished: {failed[0].error}" if failed else "all done"
        return replace(
            self._manifest,
            run_id=run.run_id,
            rehearsal=run.rehearsal,
            state="incomplete" if failed else "complete",
            reason=reason,
            reason_class="batches" if failed else "",
            failed_batches=listed,
        )
