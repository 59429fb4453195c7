"""Dense layers: `activation(x @ w + b)`, and `norm(residual + x @ w + b)`, over packed weights.

A block of tokens stays in the core's second-level cache while the weights pass by, panel after panel.
What is done to a product (bias, activation, rounding, residual and norm) is done while its numbers are
in registers or in the first-level cache, so nothing but the results goes to memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from transforms.embed.kernels import dense_tiles, tiles
from transforms.embed.kernels.emit import F32, LANES, Emit, constant, i64
from transforms.embed.kernels.handler import PREFIX, Buffers, write_handler
from transforms.embed.kernels.tiles import Cut

BLOCK = 256  # tokens
WIDTH = 64
"""Columns of a panel in float32: 6 tokens by 64 columns are 24 of the 32 registers, and the fastest of the
shapes that fit (ADR 014)."""
_ROWS, _STEPS, _AHEAD = 6, 4, 16  # tokens; rows of a panel in a turn of the loop, and fetched ahead


@dataclass(frozen=True, slots=True)
class Layer:
    """A dense layer's kernel: sizes, dtype and what follows the product."""

    inputs: int
    outputs: int
    bfloat16: bool
    then: str  # "", "gelu", "relu" or "norm"
    epsilon: float = 0.0

    @property
    def name(self) -> str:
        """The target's name; equal kernels have equal names."""
        dtype = "bf16" if self.bfloat16 else "f32"
        epsilon = f"_{self.epsilon:g}" if self.then == "norm" else ""
        return f"{PREFIX}_dense_{dtype}_{self.inputs}x{self.outputs}_{self.then or 'plain'}{epsilon}"

    @property
    def room(self) -> int:
        """Floats of scratch memory, the last output; 0: there is none."""
        norm = self.bfloat16 and self.then == "norm"
        return dense_tiles.room(Cut(self.inputs, self.outputs)) if norm else 0


def pack_panels(weight: np.ndarray, bfloat16: bool) -> np.ndarray:
    """`[inputs, outputs]` weights as the kernel reads them, the same numbers in another order."""
    inputs, outputs = weight.shape
    if bfloat16:
        return tiles.pack_tiles(weight)
    panels = weight.reshape(inputs, outputs // WIDTH, WIDTH).transpose(1, 0, 2)
    return np.ascontiguousarray(panels).reshape(inputs, outputs)


def write_dense(layer: Layer) -> ir.Module:
    """The kernel.

    Inputs: tokens `[tokens, inputs]`, packed weights, bias; with "norm" also residual, scale and shift
    `[tokens, outputs]` and `[outputs]`. Outputs: `[tokens, outputs]` in the dtype; with "norm" float32,
    and with bfloat16 that once more in bfloat16, and scratch `[room]` float32. The number of tokens is a
    multiple of 32. Numbers in bfloat16 lie in squares, `[tokens / 32, columns / 32, 32, 32]`, but for
    outputs without activation and norm: `[outputs / 32, tokens, 32]`, as attention takes them.
    """
    norm = layer.then == "norm"
    outputs = 3 if norm and layer.bfloat16 else 1

    def body(emit: Emit, buffers: Buffers) -> None:
        if layer.bfloat16:
            tiles.configure(emit)
            dense_tiles.write_product(
                emit, Cut(layer.inputs, layer.outputs), layer.then, layer.epsilon, buffers
            )
            tiles.release(emit)
        else:
            emit.loop(0, buffers.leading, BLOCK, lambda start, _: block(emit, buffers, start))

    def block(emit: Emit, buffers: Buffers, start: Any) -> None:
        stop = emit.add(start, i64(BLOCK))
        stop = emit.select(emit.icmp_signed("<", stop, buffers.leading), stop, buffers.leading)
        made = _finisher(emit, layer, buffers)
        _product(emit, (layer.inputs, layer.outputs), buffers.inputs[:2], (start, stop), made)
        if norm:
            emit.loop(start, stop, 1, lambda row, _: _norm_row(emit, layer, buffers, row))

    return write_handler(layer.name, 6 if norm else 3, outputs, body)


def _finisher(emit: Emit, layer: Layer, buffers: Buffers) -> Callable[[Any, Any, Any], None]:
    """What takes 16 numbers of the product in float32, at a row and a column."""
    bias, target = buffers.inputs[2], buffers.outputs[0]

    def finish(values: Any, row: Any, column: Any) -> None:
        place = emit.add(emit.mul(row, i64(layer.outputs)), column)
        values = emit.fadd(values, emit.vector(bias, F32, column))
        if layer.then == "gelu":
            values = emit.gelu(values)
        elif layer.then == "relu":
            values = emit.larger(values, constant(0.0))
        elif layer.then == "norm":
            values = emit.fadd(values, emit.vector(buffers.inputs[3], F32, place))
        emit.put(values, target, F32, place)

    return finish


def _product(
    emit: Emit,
    sizes: tuple[int, int],
    operands: tuple[Any, ...],
    span: tuple[Any, Any],
    finish: Callable[[Any, Any, Any], None],
) -> None:
    inputs, outputs = sizes
    vectors = WIDTH // LANES
    tokens, weights = operands
    last = emit.sub(span[1], i64(_ROWS))

    def panel(column: Any) -> None:
        own = emit.at(weights, F32, emit.mul(column, i64(inputs)))
        emit.loop(span[0], span[1], _ROWS, lambda row, _: rows(own, column, row))

    def rows(own: Any, column: Any, row: Any) -> None:
        row = emit.select(emit.icmp_signed("<", row, last), row, last)  # the last rows again, if too few
        first = emit.at(tokens, F32, emit.mul(row, i64(inputs)))

        def step(index: Any, sums: list[Any]) -> list[Any]:
            for offset in range(_STEPS):
                depth = emit.add(index, i64(offset))
                line = emit.at(own, F32, emit.mul(depth, i64(WIDTH)))
                emit.fetch(emit.at(line, F32, _AHEAD * WIDTH))
                weight = [emit.vector(line, F32, LANES * v) for v in range(vectors)]
                made = []
                for r in range(_ROWS):
                    value = emit.number(first, F32, emit.add(depth, i64(r * inputs)))
                    made += [emit.fused(value, weight[v], sums[r * vectors + v]) for v in range(vectors)]
                sums = made
            return sums

        sums = emit.loop(0, inputs, _STEPS, step, [constant(0.0)] * (_ROWS * vectors))
        for r in range(_ROWS):
            for v in range(vectors):
                finish(sums[r * vectors + v], emit.add(row, i64(r)), emit.add(column, i64(LANES * v)))

    emit.loop(0, outputs, WIDTH, lambda column, _: panel(column))


def _norm_row(emit: Emit, layer: Layer, buffers: Buffers, row: Any) -> None:
    """LayerNorm in float32 of a row that holds residual and product, in place."""
    size = layer.outputs
    own = emit.at(buffers.outputs[0], F32, emit.mul(row, i64(size)))
    scale, shift = buffers.inputs[4:6]

    def reduced(of: Callable[[Any], Any]) -> Any:
        step = LANES * (2 if size % (2 * LANES) == 0 else 1)

        def add(index: Any, sums: list[Any]) -> list[Any]:
            parts = [emit.vector(own, F32, emit.add(index, i64(LANES * i))) for i in range(len(sums))]
            return [emit.fadd(total, of(part)) for total, part in zip(sums, parts, strict=True)]

        sums = emit.loop(0, size, step, add, [constant(0.0)] * (step // LANES))
        whole = sums[0] if len(sums) == 1 else emit.fadd(*sums)
        return emit.fmul(emit.total(whole), ir.Constant(F32, 1.0 / size))

    mean = emit.splat(reduced(lambda part: part))

    def squared(part: Any) -> Any:
        centred = emit.fsub(part, mean)
        return emit.fmul(centred, centred)

    variance = emit.fadd(reduced(squared), ir.Constant(F32, layer.epsilon))
    factor = emit.splat(emit.unit_root(variance))

    def put(column: Any, _: list[Any]) -> None:
        centred = emit.fsub(emit.vector(own, F32, column), mean)
        scaled = emit.fmul(emit.fmul(centred, factor), emit.vector(scale, F32, column))
        values = emit.fadd(scaled, emit.vector(shift, F32, column))
        emit.put(values, own, F32, column)

    emit.loop(0, size, LANES, put)
