"""Products in bfloat16 on the CPU's tile registers (AMX), accumulated in float32.

Two by two tiles at a time: 32 tokens by 32 columns. A tile of weights holds 32 rows of 16 columns, two
rows interleaved, as `tdpbf16ps` takes them (Intel 64 and IA-32 Architectures SDM, volume 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from llvmlite import ir

from transforms.embed.kernels.emit import BF16, F32, I8, I64, LANES, Emit, i64

ROWS = 32
WIDTH = 32
DEPTH = 32  # rows of weights that one instruction takes
_TILE_BYTES = 1024
_VOID = ir.VoidType()


def pack_tiles(weight: np.ndarray) -> np.ndarray:
    """`[inputs, outputs]` weights, rounded to bfloat16, in the order in which the kernel loads tiles."""
    inputs, outputs = weight.shape
    tiled = weight.astype(ml_dtypes.bfloat16).reshape(inputs // DEPTH, DEPTH // 2, 2, outputs // WIDTH, 2, 16)
    # column block, depth, tile, pair of rows, column, row of the pair
    return np.ascontiguousarray(tiled.transpose(3, 0, 4, 1, 5, 2)).reshape(inputs, outputs)


def configure(emit: Emit) -> None:
    """All eight tiles: 16 rows of 64 bytes."""
    # palette 1; bytes 16 to 31: bytes of a row, 16 bits each; 48 to 55: rows
    layout = bytes([1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8)
    kind = ir.ArrayType(I8, 64)
    shape = ir.GlobalVariable(emit.module, kind, "tile_shapes")
    shape.initializer = ir.Constant(kind, bytearray(layout))
    shape.global_constant = True
    shape.linkage = "internal"
    call(emit, "llvm.x86.ldtilecfg", shape)


def release(emit: Emit) -> None:
    """Tiles are given back: threads that hold them are dearer to switch."""
    call(emit, "llvm.x86.tilerelease")


def call(emit: Emit, name: str, *arguments: Any) -> None:
    """An intrinsic that gives nothing."""
    function = emit.module.globals.get(name)
    if function is None:
        function = ir.Function(emit.module, ir.FunctionType(_VOID, [a.type for a in arguments]), name)
    emit.call(function, arguments)


def tile(number: int) -> ir.Constant:
    """A tile register."""
    return ir.Constant(I8, number)


def load(emit: Emit, number: int, pointer: Any, stride: int) -> None:
    """Loads a tile from rows that are `stride` bytes apart."""
    call(emit, "llvm.x86.tileloadd64", tile(number), pointer, i64(stride))


def store(emit: Emit, number: int, pointer: Any, stride: int) -> None:
    """Stores a tile into rows that are `stride` bytes apart."""
    call(emit, "llvm.x86.tilestored64", tile(number), pointer, i64(stride))


def clear(emit: Emit, number: int) -> None:
    """Zeros."""
    call(emit, "llvm.x86.tilezero", tile(number))


def multiply(emit: Emit, total: int, left: int, right: int) -> None:
    """Adds a product of two tiles to a third."""
    call(emit, "llvm.x86.tdpbf16ps", tile(total), tile(left), tile(right))


def scratch(emit: Emit, count: int, kind: Any = F32) -> Any:
    """Room on the stack, in the function's first block, aligned to a cache line."""
    with emit.goto_entry_block():
        room = emit.alloca(kind, size=ir.Constant(I64, count))
        room.align = 64
    return room


def product(
    emit: Emit,
    sizes: tuple[int, int],
    operands: tuple[Any, ...],
    span: tuple[Any, Any],
    finish: Callable[[Any, Any, Any], None],
) -> None:
    """`tokens @ weights` for a span of tokens; `finish` gets 16 numbers at a row and a column."""
    inputs, outputs = sizes
    tokens, weights = operands
    room = scratch(emit, ROWS * WIDTH)

    def panel(column: Any) -> None:
        own = emit.at(weights, BF16, emit.mul(column, i64(inputs)))
        emit.loop(span[0], span[1], ROWS, lambda row, _: rows(own, column, row))

    def rows(own: Any, column: Any, row: Any) -> None:
        first = emit.at(tokens, BF16, emit.mul(row, i64(inputs)))
        for number in range(4):
            clear(emit, number)

        def step(index: Any, _: list[Any]) -> None:
            for half in range(2):
                start = emit.add(index, i64(half * 16 * inputs))
                load(emit, 4 + half, emit.at(first, BF16, start), 2 * inputs)
                start = emit.add(emit.mul(index, i64(WIDTH)), i64(half * _TILE_BYTES // 2))
                load(emit, 6 + half, emit.at(own, BF16, start), 64)
            for number in range(4):
                multiply(emit, number, 4 + number // 2, 6 + number % 2)

        emit.loop(0, inputs, DEPTH, step)
        for number in range(4):
            start = number // 2 * 16 * WIDTH + number % 2 * 16
            store(emit, number, emit.at(room, F32, start), 4 * WIDTH)

        def put(r: Any, _: list[Any]) -> None:
            for half in range(2):
                values = emit.vector(room, F32, emit.add(emit.mul(r, i64(WIDTH)), i64(LANES * half)))
                finish(values, emit.add(row, r), emit.add(column, i64(LANES * half)))

        emit.loop(0, ROWS, 1, put)

    emit.loop(0, outputs, WIDTH, lambda column, _: panel(column))
