"""Runs planned steps on the devices: parameters in place, programs compiled once, steps in flight."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transforms.embed.bert_layout import BertArchitecture
from transforms.embed.clock import Spent, clock_of
from transforms.embed.device import Devices
from transforms.embed.embeddings import EmbedStats
from transforms.embed.execution import DATA_AXIS
from transforms.embed.families import Architecture
from transforms.embed.kept_programs import seal_programs
from transforms.embed.packing import Shape, Step, steps_apart
from transforms.embed.program import Head, spread, step_program
from transforms.embed.sharding import arranged_for, parameter_specs, shardings
from transforms.embed.tokenization import TokenizedTexts

MATRICES = ("qkv", "out", "up", "down")
STEADY_STEPS = 64
"""From so many steps on, a shape that was not seen before is worth a warning: shapes are few."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step's vectors and time: piece `pieces[i]` of the texts has `vectors[i]`."""

    pieces: np.ndarray
    vectors: np.ndarray  # [texts, dim] float32
    device_seconds: float


class StepRunner:
    """A model on the devices, in one compute dtype. `run` may be called from several threads.

    `text_by_text` says that attention costs each text its own length squared, whatever its row.

    Steps go through one pool of threads, so that several steps are in flight and the threads that
    call share the devices fairly. Compilation is not device time.
    """

    def __init__(
        self,
        devices: Devices,
        arch: Architecture,
        params: Any,
        head: Head,
        dtype: str,
    ) -> None:
        self.dim = head.dim
        self.device_kind = devices.kind
        self._mesh = devices.mesh
        placed, own = _placed(devices, arch, params, dtype)
        self.text_by_text = bool(own)
        self._specs = parameter_specs(placed, devices.parts)
        self._params = jax.device_put(placed, shardings(self._mesh, self._specs))
        self._sharding = NamedSharding(self._mesh, P(None, DATA_AXIS))
        self._program = step_program(arch, head, devices.execution(dtype, arch.head_dim), **own)
        lanes = devices.steps_in_flight if devices.platform == "cpu" else 1
        self._clock = clock_of(devices.count, lanes)
        self._spent = Spent()
        self._pool = ThreadPoolExecutor(devices.steps_in_flight, thread_name_prefix="switchgear-embed")
        self._lock = threading.Lock()
        self._compiled: dict[Shape, Future[Callable[..., jax.Array]]] = {}
        # Programs must reach all devices of a mesh in one order, whichever thread brings them.
        self._enqueue = threading.Lock() if devices.count > 1 or devices.platform != "cpu" else None
        self._steps = self._slots = self._texts = 0
        self._compile_seconds = 0.0
        self._late = self._steady = 0
        self._warm_up_seconds = 0.0

    def run(
        self, tokens: TokenizedTexts, steps: Sequence[Step], on_texts: Callable[[int], None] | None = None
    ) -> list[StepResult]:
        """Every step's vectors and device seconds, in the order of `steps`.

        `on_texts` is told how many texts each step has begun; what it raises ends the run.
        """
        self.warm_up({step.shape for step in steps})
        running = [self._pool.submit(self._run_step, tokens, step, on_texts) for step in steps]
        try:
            return [step.result() for step in running]
        finally:
            for step in running:
                step.cancel()

    def stats(self) -> EmbedStats:
        """A snapshot of the counters; of tokens it knows nothing."""
        with self._lock:
            return EmbedStats(
                texts=self._texts,
                slots=self._slots,
                steps=self._steps,
                compilations=len(self._compiled),
                compile_seconds=self._compile_seconds,
                device_seconds=self._spent.busy,
                late_compilations=self._late,
                warm_up_seconds=self._warm_up_seconds,
                idle_seconds=self._spent.idle,
                steady_compilations=self._steady,
            )

    def begin(self, seconds: float) -> None:
        """Forgets the steps so far, if any, as no text's: trying it out took so many seconds of warm-up."""
        with self._lock:
            if self._steps:
                self._warm_up_seconds = seconds
            self._steps = self._slots = self._texts = self._late = 0
            self._spent = Spent()

    def warm_up(self, shapes: Iterable[Shape]) -> None:
        """Compiles what is missing, several at a time, each once however many threads ask."""
        wanted = set(shapes)
        with self._lock:
            missing = sorted(wanted - self._compiled.keys())
            if missing and self._steps:
                self._late += len(missing)
            if missing and self._steps >= STEADY_STEPS:
                self._steady += len(missing)
                _LOG.warning("compiling for %s after %d steps, in steady state", missing, self._steps)
            for shape in missing:
                self._compiled[shape] = self._pool.submit(self._compile, shape)
            programs = [self._compiled[shape] for shape in wanted]
        started = time.perf_counter()
        for program in programs:
            program.result()
        if missing:
            with self._lock:
                self._warm_up_seconds += time.perf_counter() - started
            kept = jax.config.jax_compilation_cache_dir
            if kept:
                seal_programs(Path(kept))

    def _compile(self, shape: Shape) -> Callable[..., jax.Array]:
        started = time.perf_counter()
        packed = jax.ShapeDtypeStruct((3, shape.rows, shape.length), jnp.int32, sharding=self._sharding)
        mapped = spread(self._program, self._mesh, self._specs, shape.texts)
        compiled = jax.jit(mapped).lower(self._params, packed).compile()
        with self._lock:
            self._compile_seconds += time.perf_counter() - started
        return compiled

    def _run_step(
        self, tokens: TokenizedTexts, step: Step, on_texts: Callable[[int], None] | None
    ) -> StepResult:
        texts, packed = step.texts(), pack(tokens, step)
        program = self._compiled[step.shape].result()
        mark = self._clock.start()
        try:
            vectors = self._vectors(program, packed, step)
            again = self._told_apart(program, tokens, step, vectors)
        finally:
            spent = self._clock.stop(mark)
            with self._lock:
                self._spent = self._spent.plus(spent)
        begun = tokens.texts_begun(texts)
        with self._lock:
            self._steps += 1
            self._texts += begun
            self._slots += step.shape.slots * (1 + again)
        if on_texts is not None:
            on_texts(begun)
        return StepResult(texts, vectors, spent.busy)

    def _vectors(self, program: Callable[..., jax.Array], packed: np.ndarray, step: Step) -> np.ndarray:
        """The vectors of `step.texts()`."""
        answer = np.asarray(self._dispatch(program, packed))
        return np.concatenate([answer[row, : len(texts)] for row, texts in enumerate(step.rows)])

    def _told_apart(
        self, program: Callable[..., jax.Array], tokens: TokenizedTexts, step: Step, vectors: np.ndarray
    ) -> int:
        """Makes again, one in a row, what came out as no number among others; gives the number of steps."""
        broken = ~np.isfinite(vectors).all(axis=1)
        if self.text_by_text or not broken.any():
            return 0
        again = steps_apart(step, broken)
        places = {text: place for place, text in enumerate(step.texts().tolist())}
        for part in again:
            own = [places[text] for text in part.texts().tolist()]
            vectors[own] = self._vectors(program, pack(tokens, part), part)
        return len(again)

    def _dispatch(self, program: Callable[..., jax.Array], packed: np.ndarray) -> jax.Array:
        if self._enqueue is None:
            return program(self._params, jax.device_put(packed, self._sharding))
        with self._enqueue:
            return program(self._params, jax.device_put(packed, self._sharding))


def pack(tokens: TokenizedTexts, step: Step) -> np.ndarray:
    """A step's input, `[3, rows, length]` int32: token ids, positions, segments (0: empty slot)."""
    packed = np.zeros((3, step.shape.rows, step.shape.length), np.int32)
    for row, texts in enumerate(step.rows):
        start = 0
        for segment, text in enumerate(texts, start=1):
            ids = tokens.ids[tokens.offsets[text] : tokens.offsets[text + 1]]
            end = start + len(ids)
            packed[0, row, start:end] = ids
            packed[1, row, start:end] = np.arange(len(ids))
            packed[2, row, start:end] = segment
            start = end
    return packed


def kernels_used(devices: Devices, arch: Architecture, dtype: str) -> int:
    """The version of the CPU's own kernels where they compute this; 0: they don't."""
    if devices.platform != "cpu" or devices.parts != 1 or not isinstance(arch, BertArchitecture):
        return 0
    from transforms.embed.kernels import VERSION, calls  # LLVM, which other devices have no use for

    return VERSION if calls.fits(arch, dtype == "bfloat16") else 0


def _placed(devices: Devices, arch: Architecture, params: Any, dtype: str) -> tuple[Any, dict[str, Any]]:
    """The parameters as they are computed with, and what the CPU's own kernels do of a step, if any."""
    if kernels_used(devices, arch, dtype):
        from transforms.embed.kernels import calls

        own = {"encode": calls.encode, "sum_texts": calls.sum_texts}
        return calls.pack_parameters(params, dtype == "bfloat16"), own
    return arranged_for(arch, in_dtype(params, jnp.dtype(dtype)), devices.parts), {}


def in_dtype(params: Any, dtype: Any) -> Any:
    """The parameters with the encoder's matrices in `dtype`, all else in float32."""
    layers = [
        {
            name: {**part, "weight": part["weight"].astype(dtype)} if name in MATRICES else part
            for name, part in layer.items()
        }
        for layer in params["layers"]
    ]
    return {**params, "layers": layers}
