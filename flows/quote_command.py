"""`switchgear quote`: the price of a workload before it runs, for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from flows.groups import default_groups
from flows.quote_tables import (
    alternative_row,
    basis_lines,
    due_sentence,
    price_row,
    run_time_rows,
    size_row,
    time_row,
    total_row,
)
from flows.report import table
from schemas.backends import EmbedderBackend
from schemas.load import LoadedWorkload
from transforms.quote.build import SAMPLE, quote_workload
from transforms.quote.embedding import Calibrate, Throughput, calibrate
from transforms.quote.values import Quote

if TYPE_CHECKING:
    from flows.backstage import Backstage


def run_quote(
    backstage: Backstage,
    workload: Path,
    *,
    input_uri: str | None = None,
    output_uri: str | None = None,
    sample: int = SAMPLE,
    measure_embedders: bool = False,
    as_json: bool = False,
) -> Quote:
    """Quote a workload and print it. No call is made, no key is needed, nothing is written.

    `measure_embedders` embeds some sampled texts to learn how long the devices of this machine take.

    Raises:
        ConfigurationError: workload, input or model can't be used; see `quote_workload`.
    """
    steps = backstage.steps()
    loaded = steps.load(workload, input_uri, output_uri)
    quote = quote_workload(
        loaded,
        steps.now(),
        sample=sample,
        calibrate=calibrator(loaded) if measure_embedders else None,
        grouping=default_groups,
    )
    if as_json:
        backstage.answer(quote.to_dict())
    else:
        backstage.show(*quote_parts(quote))
    return quote


def calibrator(loaded: LoadedWorkload) -> Calibrate:
    """What measures an embedder on this machine's devices."""

    def measure(backend: EmbedderBackend, texts: Sequence[str]) -> Throughput | None:
        from transforms.embed.embedder import open_embedder

        embedder = open_embedder(backend, base_dir=loaded.base_dir)

        def embed(some: Sequence[str]) -> tuple[int, float]:
            done = embedder.embed(some)
            return int(done.token_counts.sum()), float(done.device_seconds.sum())

        return calibrate(embed, texts)

    return measure


def quote_parts(quote: Quote) -> list[RenderableType]:
    """The quote for a terminal: what is due, routes, alternatives, the budget, what it all rests on."""
    parts: list[RenderableType] = [
        Text(f"Quote for workload {quote.workload}: no call was made", style="bold"),
        Text(due_sentence(quote)),
        table("Documents and tokens", [size_row(route) for route in quote.routes]),
        table("Price in USD", [price_row(route) for route in quote.routes] + total_row(quote)),
    ]
    if quote.rows_due:
        parts.append(table("Time", [time_row(route) for route in quote.routes] + run_time_rows(quote)))
    alternatives = [alternative_row(route, way) for route in quote.routes for way in route.alternatives]
    if alternatives:
        parts.append(table("The same documents another way", alternatives))
    parts += [Text(line) for line in basis_lines(quote)]
    parts.append(Text(quote.budget.sentence, style="bold"))
    return parts
