"""Products in bfloat16 on the CPU's tile registers (AMX), accumulated in float32.

Two by two tiles at a time: 32 tokens by 32 columns. A tile of weights holds 32 rows of 16 columns, two
rows interleaved, as `tdpbf16ps` takes them (Intel 64 and IA-32 Architectures SDM, volume 2). Numbers in
bfloat16 lie in squares of 32 tokens by 32 columns, 2 kB each, so that every tile is read in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import ml_dtypes
import numpy as np
from llvmlite import ir

from transforms.embed.kernels.emit import BF16, F32, I8, I64, POINTER, Emit, i64

SIDE = 32
"""Tokens and columns of a square, and rows of weights that one instruction takes."""
TILE = 512  # numbers
_DEEPEST = 512
"""Inputs of a part: 32 tokens of it, and a panel of weights as deep, share the first-level cache."""
_BLOCK = 512  # tokens
_KEPT = 256 * 1536  # numbers of tokens that the second-level cache keeps
_VOID = ir.VoidType()


@dataclass(frozen=True, slots=True)
class Cut:
    """How a product of `inputs` by `outputs` is cut.

    Parts of the inputs are added up one after the other, over a group of columns. A panel is 32 columns of a
    part; the weights lie in the order in which panels are read.
    """

    inputs: int
    outputs: int

    @property
    def depth(self) -> int:
        """Inputs of a part."""
        return SIDE * _divisor(self.inputs // SIDE, _DEEPEST // SIDE)

    @property
    def parts(self) -> int:
        """Parts of the inputs."""
        return self.inputs // self.depth

    @property
    def group(self) -> int:
        """Columns that all parts are added up for before the next ones."""
        return self.outputs if self.parts == 1 else SIDE

    def block(self, norm: bool) -> int:
        """Tokens, a power of two, that share a panel while it is in the first-level cache.

        With several parts they are few enough for the second-level cache to keep them for all columns.
        With one part and a norm 32 tokens stay in the first-level cache instead, for all panels.
        """
        if self.parts == 1:
            return SIDE if norm else _BLOCK
        return max(SIDE, min(_BLOCK // 2, 1 << (_KEPT // self.inputs).bit_length() - 1))

    @property
    def turns(self) -> int:
        """Into how many turns of a loop a panel's steps, and 32 rows of other work, are cut."""
        return gcd(self.depth // SIDE, SIDE)


def _divisor(number: int, most: int) -> int:
    return max(each for each in range(1, most + 1) if number % each == 0)


def pack_tiles(weight: np.ndarray) -> np.ndarray:
    """`[inputs, outputs]` weights, rounded to bfloat16, in the order in which the kernel loads tiles."""
    inputs, outputs = weight.shape
    cut = Cut(inputs, outputs)
    tiled = weight.astype(ml_dtypes.bfloat16).reshape(
        cut.parts, cut.depth // SIDE, 16, 2, outputs // cut.group, cut.group // SIDE, 2, 16
    )
    # group, part, panel, step, tile, pair of rows, column, row of the pair
    return np.ascontiguousarray(tiled.transpose(4, 0, 5, 1, 6, 2, 7, 3)).reshape(inputs, outputs)


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
    emit.intrinsic(name, _VOID, arguments)


def tile(number: int) -> ir.Constant:
    """A tile register."""
    return ir.Constant(I8, number)


def load(emit: Emit, number: int, pointer: Any, stride: int) -> None:
    """Loads a tile from rows that are `stride` bytes apart."""
    call(emit, "llvm.x86.tileloadd64", tile(number), pointer, i64(stride))


def load_once(emit: Emit, number: int, pointer: Any, stride: int) -> None:
    """As `load`, of what is not read again soon: it drives nothing else out of the first-level cache."""
    call(emit, "llvm.x86.tileloaddt164", tile(number), pointer, i64(stride))


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
        room.type = POINTER  # llvmlite still gives it its element's
    return room


@dataclass(frozen=True, slots=True)
class Sums:
    """Where the sums of a square lie, in float32, with how many numbers between rows."""

    pointer: Any
    stride: int


Beside = Callable[[Any], Sequence[Callable[[], None]]]
"""What vector units do while tiles are multiplied: for a turn, small pieces of work that need no order."""


def multiply_panel(
    emit: Emit,
    cut: Cut,
    operands: tuple[Any, Any],
    begun: Sums | None,
    ends: Sums,
    beside: Beside,
    panel_stays: bool,
) -> None:
    """32 tokens of a part by a panel, added to what is begun, with other work woven in.

    Either the panel stays in the first-level cache for further tokens, or the tokens for further panels.
    The CPU looks a few hundred instructions ahead, so work that is to overlap must stand near.
    """
    tokens, panel = operands
    steps = cut.depth // SIDE // cut.turns
    for number in range(4):
        if begun is None:
            clear(emit, number)
        else:
            load(emit, number, _quarter(emit, begun, number), 4 * begun.stride)

    def turn(index: Any, _: list[Any]) -> None:
        pieces = beside(index)
        for step in range(steps):
            place = emit.mul(emit.add(emit.mul(index, i64(steps)), i64(step)), i64(2 * TILE))
            for half in range(2):
                start = emit.add(place, i64(half * TILE))
                loads = (load_once, load) if panel_stays else (load, load_once)
                loads[0](emit, 4 + half, emit.at(tokens, BF16, start), 64)
                loads[1](emit, 6 + half, emit.at(panel, BF16, start), 64)
            for number in range(4):
                multiply(emit, number, 4 + number // 2, 6 + number % 2)
            for piece in pieces[step * len(pieces) // steps : (step + 1) * len(pieces) // steps]:
                piece()

    emit.loop(0, cut.turns, 1, turn)
    for number in range(4):
        store(emit, number, _quarter(emit, ends, number), 4 * ends.stride)


def _quarter(emit: Emit, sums: Sums, number: int) -> Any:
    return emit.at(sums.pointer, F32, number // 2 * 16 * sums.stride + number % 2 * 16)
