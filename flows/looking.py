"""The flows that pay for nothing: `quote` a workload, `report` on an output, `sweep` what no run needs."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.groups import default_groups
from flows.outputs import read_status
from flows.parameters import QuoteParameters, ReportParameters, SweepParameters
from flows.quote_tables import (
    basis_lines,
    due_sentence,
    price_row,
    run_time_rows,
    size_row,
    time_row,
    time_sentence,
    total_row,
)
from flows.repair_link import repair_link
from flows.report import end_sentence
from flows.standing import end_with_worker
from flows.summary import Shown, markdown_table, plain, summary_markdown
from flows.tables import compared, failure_rows, spend_rows, time_against_quote
from flows.words import count
from schemas.errors import OutputBusyError, OutputError, SwitchgearError
from schemas.load import load_workload
from schemas.run import Manifest
from transforms.commit import recover
from transforms.compaction import take_stock
from transforms.output import MARKER, read_manifest, read_marker
from transforms.output_lock import locked
from transforms.quote.build import quote_workload
from transforms.quote.values import Quote
from transforms.store import is_remote, open_store


@flow(
    name="quote", description="Prices a workload: no call is made, nothing is written.", persist_result=False
)
def quote(parameters: QuoteParameters) -> State[Any]:
    """Quote what a run would do now; the price by route as a table."""
    end_with_worker()
    try:
        loaded = load_workload(
            Path(parameters.workload), input_uri=parameters.input, output_uri=parameters.output
        )
        found = quote_workload(loaded, datetime.now(UTC), sample=parameters.sample, grouping=default_groups)
    except SwitchgearError as error:
        return _failed(error)
    _show_quote(found)
    said = (due_sentence(found), found.budget.sentence, time_sentence(found))
    return Completed(message=" ".join(filter(None, said)))


@flow(name="report", description="Shows where an output stands, from its files.", persist_result=False)
def report(parameters: ReportParameters) -> State[Any]:
    """Report on the newest run of an output, or on the one that is named."""
    end_with_worker()
    try:
        status = read_status(parameters.output)
        manifest = read_manifest(parameters.output, parameters.run) if parameters.run else status.manifest
        if manifest is None:
            which, hint = "no run has", "Retry, or `switchgear run`, does what is missing"
            if parameters.run:
                which, hint = f"run {parameters.run} has not", "Give another run, or none for the newest"
            raise OutputError(
                f"{parameters.output}: {which} come to its end here; the output is {status.state}. {hint}"
            )
    except SwitchgearError as error:
        return _failed(error)
    _show_report(manifest, parameters.output)
    sentence = f"The output is {status.state}. {end_sentence(manifest)}"
    return Completed(message=sentence)


@flow(
    name="sweep",
    description="Finishes what was committed and not published, and deletes what no commit names.",
    persist_result=False,
)
def sweep(parameters: SweepParameters) -> State[Any]:
    """Sweep an output, or all outputs in a folder. What a run is at work in is left alone."""
    end_with_worker()
    log, swept, busy = get_run_logger(), 0, 0
    try:
        outputs = outputs_in(parameters.folder)
        for output in outputs:
            store = open_store(output)
            try:
                with locked(store):  # on object storage this ends a lease whose holder is gone
                    files = recover(store)
                    take_stock(store)
            except OutputBusyError as error:
                busy += 1
                log.info(str(error))
            else:
                swept += files
                log.info(f"{output}: {count(files, 'file')} deleted")
    except SwitchgearError as error:
        return _failed(error)
    left = f"; {count(busy, 'output')} at work, left alone" if busy else ""
    return Completed(
        message=f"{count(len(outputs), 'output')} looked at, {count(swept, 'file')} deleted{left}"
    )


def outputs_in(folder: str) -> list[str]:
    """The folder itself if it is an output, else the outputs right below it.

    Raises:
        OutputError: there is none.
    """
    if is_remote(folder) or Path(folder, MARKER).exists():
        read_marker(folder)
        return [folder]
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = [str(Path(folder, name)) for name in names if Path(folder, name, MARKER).exists()]
    if not found:
        raise OutputError(
            f"{folder}: neither a Switchgear output nor a folder of such (no {MARKER}). Give the folder "
            "that `switchgear run` wrote to, or the one around it"
        )
    return found


def _show_quote(found: Quote) -> None:
    rows = [{**size_row(route), **price_row(route)} for route in found.routes]
    create_table_artifact(table=rows, key="quote-routes", description=f"Quote for {found.workload}: by route")
    times = [time_row(route) for route in found.routes] + run_time_rows(found)
    create_table_artifact(table=times, key="quote-time", description=f"Quote for {found.workload}: how long")
    prices = [price_row(route) for route in found.routes] + total_row(found)
    lines = [f"# Quote for {found.workload}", due_sentence(found), plain(found.budget.sentence)]
    lines += [
        time_sentence(found),
        "## Price in USD",
        markdown_table(prices, list(prices[0])),
        "## Time",
        markdown_table(times, list(times[0])),
        "## What it rests on",
        *(f"- {plain(x)}" for x in basis_lines(found)),
    ]
    create_markdown_artifact("\n\n".join(lines), key="quote-summary", description="No call was made.")


def _show_report(manifest: Manifest, output: str) -> None:
    failures, spend = failure_rows(manifest), spend_rows(manifest, compared(manifest, output))
    link = "" if manifest.state == "complete" else repair_link(output, manifest.run_id)
    page = summary_markdown(
        manifest, Shown([], failures, spend, output, link, time=time_against_quote(manifest, output))
    )
    create_markdown_artifact(page, key="report-summary", description=f"Run {manifest.run_id}")
    for key, rows in (("report-failures", failures), ("report-cost", spend)):
        if rows:
            create_table_artifact(table=rows, key=key, description=f"Run {manifest.run_id}")


def _failed(error: SwitchgearError) -> State[Any]:
    return Failed(message=str(error), name="Misconfigured")
