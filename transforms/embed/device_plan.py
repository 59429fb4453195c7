"""Whether a model fits on TPUs that are not at hand, and what they would do: estimates, and why.

The step is compiled ahead of time by the TPU's own compiler (`ahead`), in a process of its own. What it
says of memory decides; rates, price and energy are arithmetic on it (`roofline`) and are estimates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from decimal import Decimal
from math import prod
from pathlib import Path
from typing import Any

from schemas.backends import EmbedderBackend
from schemas.errors import ConfigurationError
from schemas.lengths import TextLengths
from transforms.embed.chips import Topology
from transforms.embed.execution import ACCELERATOR_SLOTS
from transforms.embed.libtpu import Answer, Compile
from transforms.embed.outline import (
    ModelOutline,
    outline_model,
    parameter_bytes,
    parameter_outlines,
    token_flops,
)
from transforms.embed.packing import SLOTS_PER_TEXT, Shape
from transforms.embed.parts import possible_parts
from transforms.embed.plan_advice import Load, refusal
from transforms.embed.plan_basis import assumptions, chip_price, chip_watts
from transforms.embed.plan_mix import MixPlan, pack_sample
from transforms.embed.roofline import (
    Bound,
    Estimate,
    Program,
    bound_of,
    estimate,
    estimate_rate,
    exchanged_bytes,
)
from transforms.embed.shapes import (
    ACCELERATOR_COMPILATION,
    StepCost,
    StepSize,
    attention_cost,
    shapes_for,
    shapes_unseen,
)

_WIDTH = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One shape on one topology.

    `needed` are bytes of a device's memory and `limit` those that it has. Figures of the program are of
    one device; `bound` and `estimate` are None for a step that doesn't fit, `refusal` says why.
    """

    topology: str
    length: int
    tokens: int
    parts: int
    copies: int
    needed: int
    limit: int
    model_flops: float
    flops: float | None = None
    bytes: float | None = None
    exchanged: float = 0.0
    kernel: str = ""
    compile_seconds: float = 0.0
    bound: Bound | None = None
    estimate: Estimate | None = None
    refusal: str = ""

    @property
    def shape(self) -> Shape:
        """Its rows on one copy of the model."""
        return Shape(self.length, self.tokens // self.length, max(1, self.length // SLOTS_PER_TEXT))


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """All steps that were planned for one embedder, and what the figures rest on."""

    backend: str
    model: str
    dtype: str
    weights: int
    document_tokens: float
    document_basis: str
    steps: tuple[StepPlan, ...]
    assumptions: tuple[str, ...]
    mixes: tuple[MixPlan, ...] = ()  # one for each topology, if the texts' lengths are known

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why steps don't fit, and what would; none: everything fits."""
        return tuple(step.refusal for step in self.steps if step.refusal)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON; money as text."""
        return {"kind": "estimate", **_plain(asdict(self)), "fits": not self.refusals}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return format(value, "f") if isinstance(value, Decimal) else value


@dataclass(frozen=True, slots=True)
class Question:
    """What a plan is asked for. No lengths: what a run would choose for `texts`, or the longest without."""

    topologies: tuple[Topology, ...]
    lengths: tuple[int, ...]
    document_tokens: float
    document_basis: str
    day: date
    texts: TextLengths | None = None


def plan_devices(
    name: str, backend: EmbedderBackend, base_dir: Path, question: Question, compile_: Compile
) -> DevicePlan:
    """Compiles and judges one embedder for every topology.

    Raises:
        ModelError: the model's folder can't be read.
        ConfigurationError: a topology has fewer devices than share a copy, or the compiler failed.
    """
    model = outline_model(backend, base_dir)
    dtype = "float32" if backend.compute_dtype == "float32" else "bfloat16"
    weights = _all_weights(model, dtype)
    steps: list[StepPlan] = []
    for topology in question.topologies:
        _check_divides(topology, backend.tensor_parallel)
        shapes = planned_shapes(model, backend, question)
        request = {
            "backend": backend.model_dump(mode="json"),
            "base_dir": str(base_dir.resolve()),
            "topology": topology.name,
            "dtype": dtype,
            "shapes": [[shape.length, shape.rows, shape.texts] for shape in shapes],
        }
        answers = compile_(request)
        steps += [
            _judge(model, backend, topology, shape, dtype, weights, answer, question)
            for shape, answer in zip(shapes, answers, strict=True)
        ]
    return DevicePlan(
        backend=name,
        model=model.name,
        dtype=dtype,
        weights=weights,
        document_tokens=question.document_tokens,
        document_basis=question.document_basis,
        steps=tuple(steps),
        assumptions=tuple(assumptions(question.topologies, backend, question.day)),
        mixes=tuple(
            mix
            for topology in question.topologies
            if (mix := _mix(topology, backend, [s for s in steps if s.topology == topology.name], question))
        ),
    )


def _all_weights(model: ModelOutline, dtype: str) -> int:
    return parameter_bytes(parameter_outlines(model.architecture, model.dense), _WIDTH[dtype])


def planned_shapes(model: ModelOutline, backend: EmbedderBackend, question: Question) -> tuple[Shape, ...]:
    """The full steps of one copy of the model: as a run chooses them, or that hold the lengths asked for."""
    size, lengths = StepSize(backend.step_tokens or ACCELERATOR_SLOTS), question.lengths
    if question.texts is not None and not lengths:
        cost = StepCost(_attention_cost(model), ACCELERATOR_COMPILATION)
        return shapes_for(question.texts.scaled(), model.max_length, size, cost).full
    shapes = shapes_unseen(model.max_length, size, StepCost(attention=1)).full
    longest = shapes[-1].length
    if lengths and max(lengths) > longest:
        raise ConfigurationError(
            f"length {max(lengths)}: the longest text of {model.name} has {model.max_length} tokens"
        )
    wanted = [next(s for s in shapes if s.length >= length) for length in lengths or (longest,)]
    return tuple(dict.fromkeys(wanted))


def _attention_cost(model: ModelOutline) -> float:
    layer = parameter_outlines(model.architecture)["layers"][-1]
    weights = sum(prod(part["weight"].shape) for part in layer.values() if "weight" in part)
    return attention_cost(model.architecture.heads, model.architecture.head_dim, weights)


def _mix(
    topology: Topology, backend: EmbedderBackend, steps: Sequence[StepPlan], question: Question
) -> MixPlan | None:
    """The sampled texts in these steps; None if there are none or a step doesn't fit."""
    seconds = {step.shape: step.bound.seconds for step in steps if step.bound}
    if question.texts is None or question.lengths or len(seconds) < len(steps):
        return None
    packed = pack_sample(question.texts, seconds)
    made = estimate_rate(
        topology.devices // backend.tensor_parallel * packed.tokens_per_second,
        chips=topology.chips,
        document_tokens=question.document_tokens,
        usd_per_chip_hour=chip_price(topology, backend, question.day)[0],
        watts=chip_watts(topology, backend),
    )
    return MixPlan(topology.name, packed.steps, packed.filled, made)


def _check_divides(topology: Topology, parts: int) -> None:
    if topology.devices % parts:
        raise ConfigurationError(
            f"tensor_parallel = {parts}: {topology.name} has {topology.devices} devices, which is no "
            "multiple of it. Choose a divisor, or a larger topology."
        )


def _judge(
    model: ModelOutline,
    backend: EmbedderBackend,
    topology: Topology,
    shape: Shape,
    dtype: str,
    weights: int,
    answer: Answer,
    question: Question,
) -> StepPlan:
    if "error" in answer:
        raise ConfigurationError(f"{topology.name}: the compiler failed: {answer['error']}")
    chip, parts, arch = topology.chip, backend.tensor_parallel, model.architecture
    needed = _needed(answer, weights / parts)
    limit = answer.get("limit", chip.device_memory)
    common: dict[str, Any] = {
        "topology": topology.name,
        "length": shape.length,
        "tokens": shape.slots,
        "parts": parts,
        "copies": topology.devices // parts,
        "needed": needed,
        "limit": limit,
        "model_flops": token_flops(arch, shape.length) * shape.slots / parts,
    }
    compared = _all_weights(model, "float32") if backend.compute_dtype == "auto" else 0
    load = Load(shape, parts, weights, compared, needed, limit)
    refused = refusal(topology.name, load, [n for n in possible_parts(arch) if topology.devices % n == 0])
    if refused:
        return StepPlan(**common, refusal=refused)
    program = Program(
        shape.length,
        shape.slots,
        answer["flops"],
        answer["bytes"],
        exchanged_bytes(arch.layers, arch.dim, shape.slots, parts),
    )
    bound = bound_of(program, chip, dtype)
    return StepPlan(
        **common,
        flops=program.flops,
        bytes=program.bytes,
        exchanged=program.exchanged,
        kernel=answer["kernel"],
        compile_seconds=answer["seconds"],
        bound=bound,
        estimate=estimate(
            bound,
            program,
            copies=common["copies"],
            chips=topology.chips,
            document_tokens=question.document_tokens,
            usd_per_chip_hour=chip_price(topology, backend, question.day)[0],
            watts=chip_watts(topology, backend),
        ),
    )


def _needed(answer: Answer, weights: float) -> int:
    """Bytes of a device: as the compiler says, who may refuse before it has counted the weights."""
    if "flops" in answer:
        return sum(answer[part] for part in ("arguments", "outputs", "temporaries", "code"))
    return int(answer["needed"]) if "needed" in answer else int(answer["temporaries"] + weights)
