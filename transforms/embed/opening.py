"""Opens an embedder: checks the model, finds the devices, settles the compute dtype, places the weights."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from schemas.backends import EmbedderBackend
from schemas.ids import canonical_json, sha256_hex
from transforms.cache import cache_folder
from transforms.embed.device import (
    Devices,
    find_devices,
    has_fast_bfloat16,
    keep_programs,
)
from transforms.embed.embedder import Embedder
from transforms.embed.families import Architecture
from transforms.embed.model_files import ModelDescription, dense_tensors, describe_model, file_sha256
from transforms.embed.ownership import may_use_accelerators, own_accelerators
from transforms.embed.packing import ShapeSet, plan_steps
from transforms.embed.program import Head
from transforms.embed.runner import StepRunner, kernels_used
from transforms.embed.shapes import (
    ACCELERATOR_COMPILATION,
    COMPILATION,
    StepCost,
    StepSize,
    attention_cost,
    shapes_for,
    shapes_unseen,
)
from transforms.embed.space import VectorSpace
from transforms.embed.tokenization import TextTokenizer

ComputeDtype = Literal["float32", "bfloat16"]
LEAST_COSINE = 0.9999
"""`compute_dtype = "auto"` takes bfloat16 only if each probe's vector stays this close to float32's."""
PROBES = (
    "a",
    "no",
    "embedding",
    "What does it cost?",
    "Paid for once, within budget, traceable to its source.",
    "def main(argv: list[str]) -> int:\n    return run(argv)",
    "SELECT route, count(*) FROM results GROUP BY route;",
    "Größe, naïve, Ελληνικά, русский, العربية, עברית",
    "日本語の文章 と 中文句子",
    "😀 🚀 — “quotes” … ½ €100",
    "2026-11-22T09:21:00Z 192.0.2.1 0xdeadbeef 3.14159",
    "word " * 40,
    "The quick brown fox jumps over the lazy dog. " * 6,
    "Returns a table with one row for each document; raises an error when a column is missing. " * 5,
    "x = [1, 2, 3]; y = {'key': None}; assert x != y\n" * 6,
    "!?.,;:-" * 12,
)
_LOG = logging.getLogger(__name__)


def load_embedder(backend: EmbedderBackend, base_dir: Path, cache_dir: Path | None) -> Embedder:
    """A new embedder for the backend.

    Raises:
        ModelError: the model can't be used; nothing has reached a device.
        ConfigurationError: another process owns the devices, or there are too few for `tensor_parallel`.
    """
    model = describe_model(backend, base_dir)
    cache = cache_dir or cache_folder()
    keep_programs(cache)
    if may_use_accelerators():  # before JAX looks for devices: looking takes them
        own_accelerators(cache_folder())
    devices = find_devices(backend.tensor_parallel)
    size = StepSize(backend.step_tokens or devices.step_slots, devices.copies, devices.fractions)
    tokenizer, queries = (
        text_tokenizer(model, prompt, backend) for prompt in (model.prompt, model.query_prompt)
    )
    weights_sha256 = model.weights_sha256()
    params = read_parameters(model)
    activations = tuple(module.activation for module, _ in model.dense)
    head = Head(model.pooling, model.normalize, model.dim, activations)

    def runner_for(dtype: ComputeDtype) -> StepRunner:
        return StepRunner(devices, model.architecture, params, head, dtype)

    if backend.compute_dtype == "auto":
        verdict = _verdict_file(cache, _subject(model, weights_sha256, devices))
        started = time.perf_counter()
        dtype, runner = _settle_dtype(has_fast_bfloat16(devices), runner_for, tokenizer, size, verdict)
        runner.begin(time.perf_counter() - started)
    else:
        dtype = backend.compute_dtype
        runner = runner_for(dtype)
    space = VectorSpace(
        model=model.name,
        weights_sha256=weights_sha256,
        tokenizer_sha256=file_sha256(model.tokenizer),
        settings_sha256=model.settings_sha256(),
        pooling=model.pooling,
        normalize=model.normalize,
        max_length=model.max_length,
        dim=model.dim,
        compute_dtype=dtype,
        dtype=backend.output_dtype,
        long_documents=backend.long_documents,
        chunk_overlap=backend.chunk_overlap,
        cut_from=model.whole_dim if model.dim < model.whole_dim else 0,
    )
    if devices.platform == "cpu" and not runner.text_by_text:
        size = replace(size, fractions=())  # XLA takes seconds for each program
    cost = StepCost(0 if runner.text_by_text else _attention_cost(model.architecture, params))
    unseen = shapes_unseen(model.max_length, size, cost)
    compilation = COMPILATION if devices.platform == "cpu" else ACCELERATOR_COMPILATION

    def choose(seen: Mapping[int, float], is_whole_run: bool) -> ShapeSet:
        own = replace(cost, compilation=compilation) if is_whole_run else cost
        return shapes_for(seen, model.max_length, size, own)

    return Embedder(space, tokenizer, queries, runner, unseen, choose)


def _attention_cost(architecture: Architecture, params: Any) -> float:
    weights = sum(part["weight"].size for part in params["layers"][0].values() if "weight" in part)
    return attention_cost(architecture.heads, architecture.head_dim, weights)


def text_tokenizer(model: ModelDescription, prompt: str, backend: EmbedderBackend) -> TextTokenizer:
    """The model's tokenizer behind a prompt, cutting long texts as the backend says."""
    overlap = backend.chunk_overlap if backend.long_documents == "chunk" else None
    return TextTokenizer(model.tokenizer, model.max_length, prompt, model.lowercase, overlap)


def read_parameters(model: ModelDescription) -> dict[str, Any]:
    """The model's parameters as its encoder and head take them, in float32."""
    tensors = model.weights.read(model.expected_tensors())
    params = model.layout.arrange(model.architecture, tensors, model.tensor_prefix)
    params["dense"] = []
    for module, weights in model.dense:
        own = weights.read(dense_tensors(module))
        layer = {"weight": np.ascontiguousarray(own["linear.weight"].T)}
        params["dense"].append({**layer, "bias": own["linear.bias"]} if module.bias else layer)
    return params


def _settle_dtype(
    fast_bfloat16: bool,
    runner_for: Callable[[ComputeDtype], StepRunner],
    tokenizer: TextTokenizer,
    size: StepSize,
    verdict: Path,
) -> tuple[ComputeDtype, StepRunner]:
    """bfloat16 where it is fast and accurate for this model, as measured on the probes; else float32."""
    if not fast_bfloat16:
        return "float32", runner_for("float32")
    cosine = _read_verdict(verdict)
    if cosine is None:
        exact, fast = runner_for("float32"), runner_for("bfloat16")
        cosine = least_cosine(exact, fast, tokenizer, size)
        _write_verdict(verdict, cosine)
        runners: dict[ComputeDtype, StepRunner] = {"float32": exact, "bfloat16": fast}
    else:
        runners = {}
    dtype: ComputeDtype = "bfloat16" if cosine >= LEAST_COSINE else "float32"
    _LOG.info("compute_dtype auto: %s (least cosine of bfloat16 to float32: %.6f)", dtype, cosine)
    return dtype, runners.get(dtype) or runner_for(dtype)


def least_cosine(exact: StepRunner, fast: StepRunner, tokenizer: TextTokenizer, size: StepSize) -> float:
    """The least cosine between the two runners' vectors of any probe; NaN counts as -1."""
    tokens = tokenizer.encode(PROBES)
    # One shape for all probes: one program to compile for each dtype.
    shapes = shapes_unseen(int(tokens.lengths.max()), size, StepCost(attention=1))
    steps = plan_steps(tokens.lengths, ShapeSet(shapes.full[-1:]))
    lefts = np.concatenate([step.vectors for step in exact.run(tokens, steps)])
    rights = np.concatenate([step.vectors for step in fast.run(tokens, steps)])
    norms = np.linalg.norm(lefts, axis=1) * np.linalg.norm(rights, axis=1)
    cosines = np.einsum("nd,nd->n", lefts, rights) / np.maximum(norms, np.finfo(np.float32).tiny)
    return float(np.nan_to_num(cosines, nan=-1.0).min())


def _subject(model: ModelDescription, weights_sha256: str, devices: Devices) -> list[str]:
    """What a verdict holds for: model, kind of device, and which of the CPU's own kernels compute it."""
    kernels = [str(kernels_used(devices, model.architecture, dtype)) for dtype in ("float32", "bfloat16")]
    return [weights_sha256, model.settings_sha256(), model.pooling, devices.kind, *kernels]


def _verdict_file(cache: Path, subject: Sequence[str]) -> Path:
    parts = canonical_json([*subject, jax.__version__, PROBES])
    return cache / "bfloat16" / f"{sha256_hex(parts)[:32]}.json"


def _read_verdict(path: Path) -> float | None:
    try:
        cosine = json.loads(path.read_text(encoding="utf-8"))["least_cosine"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(cosine) if isinstance(cosine, float) else None


def _write_verdict(path: Path, cosine: float) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps({"least_cosine": cosine}), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        _LOG.warning("%s: %s; the accuracy of bfloat16 is measured again at the next start", path, error)
