"""`switchgear demo`: the main job on real documents, with nothing set up, and what came of it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from rich.text import Text

from flows.parameters import EnrichParameters
from flows.report import report, table
from flows.searching import Found, open_search
from flows.tables import Row
from flows.words import count, shortened, usd
from schemas.errors import ConfigurationError, InputError, OutputError
from schemas.load import LoadedWorkload, load_workload
from transforms.check import missing_key
from transforms.output import MARKER, read_marker

if TYPE_CHECKING:
    from flows.backstage import Backstage

EXAMPLE = Path("infra", "examples", "package-docs.toml")
QUERIES = (
    "wait between attempts, longer each time",
    "colourful text in the terminal",
    "how do I encrypt a message?",
)
_HITS = 3
_SAMPLE_ROWS = 2
_MAX_CELL = 44


def run_demo(backstage: Backstage, folder: Path, as_json: bool) -> bool:
    """Make the documents, run the example over them, and show what came out; whether all is done.

    Raises:
        ConfigurationError: the example workload is missing, or the folder holds something else.
    """
    folder = folder.resolve()
    _tell(backstage, "Collecting the documentation of the installed packages …")
    documents = backstage.write_documents(folder / "input")
    loaded = load_workload(_place_workload(folder))
    rehearsal, why = decide_rehearsal(loaded, os.environ)
    _refuse_other_kind(loaded.output_uri, rehearsal)
    _tell(backstage, f"{count(documents, 'document')} in {folder / 'input'}")
    _tell(backstage, why)
    ending = backstage.enrich(EnrichParameters(workload=str(loaded.path), rehearsal=rehearsal))
    assert ending.manifest is not None
    assert ending.plan is not None
    nothing_due = not ending.plan.refs
    found = _search(loaded.output_uri)
    if as_json:
        searches = {query: [hit.to_dict() for hit in hits] for query, hits in found.items()}
        manifest = ending.manifest.to_dict()
        backstage.answer(
            {"nothing_due": nothing_due, "output": ending.output, "manifest": manifest, "searches": searches}
        )
        return ending.manifest.state == "complete"
    backstage.show(report(ending.manifest, loaded.output_uri, nothing_due=nothing_due))
    _show_samples(backstage, loaded)
    _show_searches(backstage, found)
    _show_files(backstage, loaded, ending.manifest.run_id)
    return ending.manifest.state == "complete"


def decide_rehearsal(loaded: LoadedWorkload, environment: Mapping[str, str]) -> tuple[bool, str]:
    """Whether hosted backends are rehearsed, and the sentence that says why."""
    hosted = loaded.workload.hosted_backends().values()
    missing = sorted({key for key in (missing_key(b, environment) for b in hosted) if key})
    if missing:
        return True, (
            f"Rehearsal: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set, so hosted "
            "models are answered by a stand-in on this machine, and every row says so. Embeddings are real."
        )
    budget = loaded.workload.budget.amount
    cap = "no budget is set" if budget is None else f"the budget caps it at {usd(budget)}"
    return False, f"Real run: all keys are set, so hosted models are asked and paid for; {cap}."


def find_example(start: Path | None = None) -> Path:
    """The example workload in the checkout that this code is from.

    Raises:
        ConfigurationError: this is no checkout (a wheel carries no examples).
    """
    path = (start or Path(__file__).resolve().parent.parent) / EXAMPLE
    if not path.exists():
        raise ConfigurationError(
            f"the example workload {path} is missing: the demo needs a checkout of the repository. "
            "Clone it and run `make demo` there"
        )
    return path


def _place_workload(folder: Path) -> Path:
    """The demo's workload file. One that is there already stays, so that it can be played with."""
    path = folder / "workload.toml"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(find_example(), path)
    return path


def _refuse_other_kind(output: str, rehearsal: bool) -> None:
    """Rehearsed and real results don't stand in one folder: say so before anything runs."""
    if not Path(output, MARKER).exists() or read_marker(output)["rehearsal"] == rehearsal:
        return
    held, wanted = ("real", "rehearsed") if rehearsal else ("rehearsed", "real")
    raise OutputError(
        f"{output} holds {held} results of an earlier demo, and {wanted} ones don't mix with them. "
        "Delete that folder, or give another one with --dir"
    )


def _show_samples(backstage: Backstage, loaded: LoadedWorkload) -> None:
    """A few result rows of every hosted route, with what they cost and where they come from."""
    for route in loaded.workload.routes:
        if loaded.workload.is_embed_route(route):
            continue
        folder = Path(loaded.output_uri, "results", f"route={route.name}")
        rows = [_sample(row) for row in _first_rows(folder)]
        if rows:
            backstage.show(table(f"Rows of results/route={route.name}", rows))


def _first_rows(folder: Path) -> list[dict[str, Any]]:
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as parquet:
            piece = next(parquet.iter_batches(_SAMPLE_ROWS), None)
        if piece is not None and piece.num_rows:
            return piece.to_pylist()
    return []


def _sample(row: dict[str, Any]) -> Row:
    cost, lineage, tokens = row["cost"], row["lineage"], row["gen_ai"]["usage"]
    return {
        "document_id": shortened(str(row["document_id"]), _MAX_CELL),
        "answer": shortened(str(row["answer"]), _MAX_CELL),
        "gen_ai.usage tokens in": tokens["input_tokens"] or 0,
        "out": tokens["output_tokens"] or 0,
        "cost.amount": usd(cost["amount"]),
        "cost.list_amount": usd(cost["list_amount"]),
        "cost.basis": cost["basis"],
        "lineage.source": f"{Path(lineage['source']['uri']).name} row {lineage['source']['row']}",
    }


def _search(output: str) -> dict[str, list[Found]]:
    """What each query finds; nothing when the run has left no vectors to search."""
    search = open_search(output)
    try:
        return {query: search(query, _HITS) for query in QUERIES}
    except InputError:
        return {}


def _show_searches(backstage: Backstage, found: Mapping[str, list[Found]]) -> None:
    for query, hits in found.items():
        rows = [hit.row() for hit in hits]
        backstage.show(table(f"Nearest to “{query}” (real embeddings, cosine)", rows))


def _show_files(backstage: Backstage, loaded: LoadedWorkload, run_id: str) -> None:
    output, shown, command = loaded.output_uri, quote(loaded.output_uri), _own_command()
    backstage.show(
        Text("Where the files are", style="bold"),
        Text(f"  workload   {loaded.path}"),
        Text(f"  input      {loaded.input_uri}"),
        Text(f"  results    {output}/results/route=*/*.parquet"),
        Text(f"  failures   {output}/failures/*.parquet"),
        Text(f"  report     {output}/runs/{run_id}/report.html"),
        Text("Look around", style="bold"),
        Text(f"  {command} status {shown}"),
        Text(f"  {command} failures {shown}"),
        Text(f"  {command} search {shown} 'your words'"),
        Text("Run the demo again: nothing is due."),
    )


def _own_command() -> str:
    """How this command is called: by its name where the path has it, else by where it stands."""
    place = Path(sys.executable).with_name("switchgear")
    if shutil.which("switchgear") or not place.exists():
        return "switchgear"
    return quote(min(str(place), os.path.relpath(place), key=len))


def _tell(backstage: Backstage, text: str) -> None:
    backstage.err.print(Text(text), soft_wrap=True)
