"""What the commands do once their options are read: run, look, print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console, RenderableType
from rich.text import Text

from flows.outputs import LiveRun, Status, launched_with, read_failures, read_status
from flows.parameters import EnrichParameters
from flows.progress import watcher_for
from flows.report import console, report, table
from flows.steps import Ending, Steps, Watcher, real_steps
from flows.waiting import waiting_rows
from flows.words import batches as batches_text
from flows.words import count, shortened, usd
from schemas.errors import ConfigurationError
from transforms.store import is_remote

_BRIEF_TEXT = 100


@dataclass(frozen=True, slots=True)
class Backstage:
    """What the commands work with. `out` is for the answer, `err` for progress.

    `write_documents` makes the demo's documents in a folder and gives their number.
    """

    steps: Callable[[], Steps]
    run_enrich: Callable[[EnrichParameters, Watcher], Ending]
    out: Console
    err: Console
    write_documents: Callable[[Path], int]

    @classmethod
    def real(cls) -> Backstage:
        """The real thing."""
        return cls(real_steps, _run_enrich, console(), console(stderr=True), _write_corpus)

    def check(self, workload: Path, input_uri: str | None, as_json: bool) -> None:
        """Check a workload and print what was found; raises what is wrong."""
        steps = self.steps()
        found = steps.check(steps.load(workload, input_uri, None))
        if as_json:
            self.answer(found.to_dict())
            return
        for line in found.lines():
            self.show(Text(line))
        self.show(Text(f"{workload} is good to run.", style="bold green"))

    def run(self, parameters: dict[str, Any], as_json: bool) -> bool:
        """Run a workload and print its report; whether nothing is left to do."""
        ending = self.enrich(_parameters(parameters))
        assert ending.manifest is not None
        assert ending.plan is not None
        nothing_due = not ending.plan.refs
        if as_json:
            manifest = ending.manifest.to_dict()
            self.answer({"nothing_due": nothing_due, "output": ending.output, "manifest": manifest})
        else:
            self.show(report(ending.manifest, ending.output, nothing_due=nothing_due))
        return ending.manifest.state == "complete"

    def enrich(self, parameters: EnrichParameters) -> Ending:
        """Run a workload and show how far it is."""
        watcher = watcher_for(self.err)
        try:
            return self.run_enrich(parameters, watcher)
        finally:
            watcher.close()

    def retry(self, target: str, changes: dict[str, Any], rehearsal: bool, as_json: bool) -> bool:
        """Run again what an output folder, or a workload, was run with; whether nothing is left to do."""
        if is_remote(target) or Path(target).is_dir():
            parameters = launched_with(target).model_copy(update=_given(changes))
            if _place(target) != _place(parameters.output or target):  # it was moved or copied
                parameters = parameters.model_copy(update={"output": _place(target)})
            return self.run(parameters.model_dump(), as_json)
        if not Path(target).exists():
            raise ConfigurationError(
                f"{target}: there is no such folder or file. Give the output folder of a run, or its workload"
            )
        return self.run({"workload": target, "rehearsal": rehearsal, **_given(changes)}, as_json)

    def status(self, output: str, as_json: bool) -> bool:
        """Print where an output stands; False if something is left to do and nobody is at it."""
        found = read_status(output)
        if as_json:
            self.answer(found.to_dict())
        else:
            self._print_status(found)
        return found.state in ("complete", "running")

    def failures(self, output: str, classes: list[str], limit: int | None, as_json: bool) -> None:
        """Print failures as they are read."""
        printed = 0
        for row in read_failures(output, classes=classes, limit=limit):
            printed += 1
            if as_json:
                self.answer(row)
            else:
                self.show(Text(failure_line(row)))
        if not as_json and not printed:
            self.show(Text("No failures" + (f" of class {', '.join(classes)}." if classes else ".")))

    def search(self, output: str, query: str, route: str | None, k: int, as_json: bool) -> None:
        """Print the documents whose vectors are nearest to that of a text."""
        from flows.searching import open_search

        hits = open_search(output, route)(query, k)
        if as_json:
            self.answer([hit.to_dict() for hit in hits])
        else:
            self.show(table(f"Nearest to {query!r}", [hit.row() for hit in hits]))

    def demo(self, folder: Path, as_json: bool) -> bool:
        """Run the main job on real documents; whether nothing is left to do."""
        from flows.demo import run_demo

        return run_demo(self, folder, as_json)

    def show(self, *parts: RenderableType) -> None:
        """Print for people."""
        for part in parts:
            self.out.print(part, soft_wrap=True if isinstance(part, Text) else None)

    def answer(self, value: Any) -> None:
        """Print for machines: one line of JSON on standard output."""
        sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")

    def _print_status(self, found: Status) -> None:
        if found.live is not None:
            self.show(Text(live_line(found, found.live), style="bold"))
            if found.asked is not None and found.state == "waiting":
                self.show(Text(_WAITS.format(what=found.asked.what, until=found.asked.until[:16])))
            elif found.state == "interrupted":
                self.show(Text("Run the same command again: it goes on from here."))
        if found.manifest is not None:
            self.show(report(found.manifest, found.output))
        elif found.live is None:
            self.show(Text(f"{found.output}: no run has been planned yet."))
        if found.provider_batches:
            rows = waiting_rows(found.provider_batches, datetime.now(UTC))
            self.show(table("Provider batches that have not come back", rows))


_DOING = {"running": "is at work", "waiting": "waits for a person"}
_WAITS = "It waits until {until} UTC: {what}. Open it in Prefect's UI, menu ⋮, Resume."


def live_line(found: Status, live: LiveRun) -> str:
    """Where a run without a manifest stands, on one line."""
    label = "rehearsal" if found.rehearsal else "run"
    doing = _DOING.get(found.state, "was interrupted")
    return (
        f"{label} {live.run_id} {doing}: {live.batches_committed:,} of {batches_text(live.batches)} "
        f"committed, {live.rows_committed:,} of {count(live.rows, 'document')}"
    )


def failure_line(row: dict[str, Any]) -> str:
    """A failure on one line, for people."""
    name = "(no id)" if row["document_id"] is None else row["document_id"]
    again = "tried again by the next run" if row["retryable"] else "final"
    cost = "cost unknown" if row["amount"] is None else f"cost {usd(row['amount'])}"
    rehearsed = ", rehearsal" if row["basis"] == "rehearsal" else ""
    return (
        f"{name}  {row['error_class']} ({again}, {cost}{rehearsed})  "
        f"route {row['route'] or '(none)'}: {shortened(row['message'], _BRIEF_TEXT)}"
    )


def _parameters(given: dict[str, Any]) -> EnrichParameters:
    """What was given as the flow takes it; ConfigurationError with all that it can't take."""
    try:
        return EnrichParameters(**given)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))} = {e['input']}: {e['msg']}" for e in error.errors()]
        raise ConfigurationError(f"this can't be run so: {'; '.join(wrong)}. Mend it and run again") from None


def _given(changes: dict[str, Any]) -> dict[str, Any]:
    """The options that were given: those left out keep what the run was started with."""
    return {name: value for name, value in changes.items() if value is not None and value != ()}


def _run_enrich(parameters: EnrichParameters, watcher: Watcher) -> Ending:
    from flows.launch import run_enrich

    return run_enrich(parameters, watcher)


def _write_corpus(folder: Path) -> int:
    from flows.corpus import write_corpus

    return write_corpus(folder).documents


def _place(output: str) -> str:
    """An output's address, the same however it was written."""
    return output.rstrip("/") if is_remote(output) else str(Path(output).resolve())
