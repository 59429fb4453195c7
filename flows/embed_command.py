"""`switchgear embed plan`: what a workload's embedders would do on TPUs that are not at hand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from flows.report import table
from flows.tables import Row
from flows.words import usd
from schemas.backends import EmbedderBackend
from schemas.errors import ConfigurationError, OutputError
from schemas.lengths import TextLengths
from schemas.load import LoadedWorkload
from transforms.embed.chips import GIB, read_topology
from transforms.embed.device_plan import DevicePlan, Question, StepPlan, plan_devices
from transforms.embed.libtpu import Compile, compile_in_a_process, find_libtpu
from transforms.embed.plan_mix import MixPlan
from transforms.embed.roofline import Estimate, Interval
from transforms.output import read_marker
from transforms.quote.build import quote_workload
from transforms.quote.lengths import known_lengths
from transforms.store import Store, open_store

if TYPE_CHECKING:
    from flows.backstage import Backstage

TOPOLOGIES = ("v5e:2x2", "v6e:2x2", "tpu7x:2x2x1")


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the command line says; nothing: all embedders, the usual topologies, rows as a run chooses them.

    With `document_tokens` nothing is sampled: then rows are the longest.
    """

    topologies: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    backend: str | None = None
    document_tokens: float | None = None
    as_json: bool = False


def run_plan(
    backstage: Backstage, workload: Path, options: PlanOptions, compile_: Compile | None = None
) -> list[DevicePlan]:
    """Plan the embedders of a workload and print it.

    Args:
        backstage: where to print.
        workload: the workload's file.
        options: what was asked for.
        compile_: the compiler; None: that of libtpu, which must be installed.

    Raises:
        ConfigurationError: no embedder, no libtpu, a topology that is not known, an unusable model.
    """
    steps = backstage.steps()
    loaded = steps.load(workload, None, None)
    topologies = tuple(read_topology(text) for text in options.topologies or TOPOLOGIES)
    chosen = _embedders(loaded, options.backend)
    if compile_ is None:
        compile_ = compile_in_a_process(find_libtpu(), lambda line: backstage.err.print(Text(line)))
    now = steps.now()
    plans = []
    for name, backend in chosen.items():
        tokens, basis, texts = options.document_tokens, "given", None
        if tokens is None:
            texts = _sampled(name, loaded, now)
            tokens, basis = texts.mean, f"of {texts.sampled:,} sampled"
        question = Question(topologies, options.lengths, tokens, basis, now.date(), texts)
        plans.append(plan_devices(name, backend, loaded.base_dir, question, compile_))
    if options.as_json:
        backstage.answer([plan.to_dict() for plan in plans])
    else:
        for plan in plans:
            backstage.show(*plan_parts(plan))
    return plans


def _embedders(loaded: LoadedWorkload, name: str | None) -> dict[str, EmbedderBackend]:
    found = loaded.workload.embedder_backends()
    if not found:
        raise ConfigurationError(
            'the workload has no embedder that runs here: add a backend with provider = "jax"'
        )
    if name is not None and name not in found:
        raise ConfigurationError(
            f"--backend {name!r}: no embedder of the workload; choose: {', '.join(found)}"
        )
    return found if name is None else {name: found[name]}


def _sampled(name: str, loaded: LoadedWorkload, now: datetime) -> TextLengths:
    """The lengths that a run started now would choose its shapes by."""
    quote = quote_workload(loaded, now)
    found = known_lengths(_own_output(loaded), quote).get(name)
    if found is None:
        raise ConfigurationError(
            f"no document that is due goes to backend {name!r}, so that none can be measured: say with "
            "--document-tokens how many tokens they have"
        )
    return found


def _own_output(loaded: LoadedWorkload) -> Store | None:
    """The workload's output if there is one, and it is no other version's."""
    try:
        marker = read_marker(loaded.output_uri)
    except OutputError:
        return None
    is_own = marker.get("workload_sha256") == loaded.workload.digest()
    return open_store(loaded.output_uri) if is_own else None


def plan_parts(plan: DevicePlan) -> list[RenderableType]:
    """The plan for a terminal: sizes, rates, refusals, what it rests on."""
    parts: list[RenderableType] = [
        Text(
            f"Estimates for backend {plan.backend}: {plan.model} in {plan.dtype}, "
            f"{plan.weights / GIB:.2f} GiB of weights, documents of {plan.document_tokens:,.0f} tokens "
            f"({plan.document_basis})",
            style="bold",
        ),
        table("A step on one device", [_step_row(step) for step in plan.steps]),
    ]
    fitting = [step for step in plan.steps if not step.refusal]
    if plan.mixes:
        title = "All devices together, with documents of the sampled lengths"
        parts.append(table(title, [_mix_row(mix) for mix in plan.mixes]))
    elif fitting:
        parts.append(table("All devices together", [_rate_row(step) for step in fitting]))
    parts += [Text(f"does not fit: {sentence}", style="bold red") for sentence in plan.refusals]
    return [*parts, *(Text(f"assumed: {line}") for line in plan.assumptions)]


def _step_row(step: StepPlan) -> Row:
    bound = step.bound
    return {
        "topology": step.topology,
        "rows of": str(step.length),
        "tokens": f"{step.tokens:,}",
        "HBM": f"{step.needed / GIB:.2f} of {step.limit / GIB:.2f} GiB ({step.needed / step.limit:.0%})",
        "model TFLOP": f"{step.model_flops / 1e12:.2f}",
        "compiled TFLOP": "" if step.flops is None else f"{step.flops / 1e12:.2f}",
        "GB moved": "" if step.bytes is None else f"{step.bytes / 1e9:.1f}",
        "attention": step.kernel,
        "bound": "does not fit" if bound is None else f"{bound.seconds * 1000:.1f} ms by {bound.by}",
    }


def _rate_row(step: StepPlan) -> Row:
    assert step.estimate is not None
    shared = f"{step.copies} x {step.parts}" if step.parts > 1 else str(step.copies)
    row = {"topology": step.topology, "rows of": str(step.length), "copies": shared}
    return {**row, **_rates(step.estimate)}


def _mix_row(mix: MixPlan) -> Row:
    total = sum(mix.steps.values())
    rows = ", ".join(f"{length} ({steps / total:.0%})" for length, steps in mix.steps.items())
    row = {"topology": mix.topology, "rows of (steps)": rows, "slots filled": f"{mix.filled:.1%}"}
    return {**row, **_rates(mix.estimate)}


def _rates(made: Estimate) -> Row:
    energy, dollars = made.wh_per_million_tokens, made.usd_per_million_tokens
    return {
        "documents/s": _interval(made.documents_per_second),
        "tokens/s": _interval(made.tokens_per_second),
        "USD per million tokens": "unknown"
        if dollars is None
        else " … ".join(usd(amount) for amount in dollars),
        "Wh per million tokens": f"{energy.low:.3g} … {energy.high:.3g}",
    }


def _interval(value: Interval) -> str:
    return f"{_rounded(value.low):,} … {_rounded(value.high):,}"


def _rounded(value: float) -> int:
    """Three digits that count: more would say more than is known."""
    return int(float(f"{value:.3g}"))
