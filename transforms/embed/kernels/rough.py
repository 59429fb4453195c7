"""Functions that are exact enough for results in bfloat16, whose rounding is off by up to 2**-8 of a number.

They cost a third of their like in `emit`: GELU looks its pieces up in vector registers, and two to a power
leaves the exponent to the CPU.
"""

from __future__ import annotations

from functools import cache
from math import erfc, sqrt
from typing import Any

import numpy as np
from llvmlite import ir

from transforms.embed.kernels.emit import (
    BF16,
    EVERY_LANE,
    FLOATS,
    I32,
    INTS,
    LANES,
    NO_EXCEPTIONS,
    Emit,
    constant,
)

PIECES = 2 * LANES  # what one instruction looks up
REACH = 4.6
"""From here on GELU is 0 or its argument; it is off by 1.4e-5 at most, and by 1e-4 of a small number."""
_PITCH = REACH / (PIECES - 1)
_FLOOR = 12582912.0  # 1.5 * 2**23: adding it leaves the rounded integer in the low bits
_LEAST_MAGNITUDE = 0b1010  # vrangeps: the smaller magnitude, without its sign
_FRACTION = 0b1001  # vreduceps: what is above the next smaller integer, no exceptions
# 2**f on [0, 1), the least of the largest relative error: 7.5e-5.
_EXP2 = (0.9999252187, 0.69583353764, 0.22606716374, 0.0780245168)


@cache
def gelu_pieces() -> np.ndarray:
    """`[3, PIECES]`: parabolas for t * Phi(-t), t >= 0, each around a multiple of the pitch.

    The first goes through the origin, so that small numbers keep their relative accuracy; the last is 0.
    """
    found = np.zeros((3, PIECES))
    for piece in range(PIECES - 1):
        middle = piece * _PITCH
        low, high = max(0.0, middle - _PITCH / 2), middle + _PITCH / 2
        nodes = (low + high) / 2 + (high - low) / 2 * np.cos((np.arange(32) + 0.5) * np.pi / 32)
        exact = np.array([t * erfc(t / sqrt(2)) / 2 for t in nodes])
        powers = np.stack([nodes**power for power in range(3)], axis=1)
        first = 1 if piece == 0 else 0
        scale = 1 / nodes if piece == 0 else np.ones(32)
        found[first:, piece] = np.linalg.lstsq(powers[:, first:] * scale[:, None], exact * scale, rcond=None)[
            0
        ]
    return found


def gelu(emit: Emit, values: Any) -> Any:
    """`x * Phi(x)` of 16 floats; NaN stays NaN."""
    size = emit.intrinsic(
        "llvm.x86.avx512.mask.range.ps.512",
        FLOATS,
        [
            values,
            constant(REACH),
            ir.Constant(I32, _LEAST_MAGNITUDE),
            constant(0.0),
            EVERY_LANE,
            NO_EXCEPTIONS,
        ],
    )
    piece = emit.bitcast(emit.fused(size, constant(1 / _PITCH), constant(_FLOOR)), INTS)
    flat, slope, bend = (_looked_up(emit, table, piece) for table in gelu_pieces())
    below = emit.fused(emit.fused(bend, size, slope), size, flat)
    return emit.fsub(emit.larger(constant(0.0), values), below)


def _looked_up(emit: Emit, table: np.ndarray, index: Any) -> Any:
    """The table's number at the low five bits of each lane."""
    halves = [ir.Constant(FLOATS, [float(np.float32(each)) for each in half]) for half in np.split(table, 2)]
    return emit.intrinsic("llvm.x86.avx512.vpermi2var.ps.512", FLOATS, [halves[0], index, halves[1]])


def exp2(emit: Emit, values: Any) -> Any:
    """Two to the power of 16 floats, off by 7.5e-5 of it at most; 0 from -150 down."""
    rest = emit.intrinsic(
        "llvm.x86.avx512.mask.reduce.ps.512",
        FLOATS,
        [values, ir.Constant(I32, _FRACTION), constant(0.0), EVERY_LANE, NO_EXCEPTIONS],
    )
    power = constant(_EXP2[-1])
    for coefficient in _EXP2[-2::-1]:
        power = emit.fused(power, rest, constant(coefficient))
    return emit.intrinsic(
        "llvm.x86.avx512.mask.scalef.ps.512",
        FLOATS,
        [power, values, constant(0.0), EVERY_LANE, NO_EXCEPTIONS],
    )


def put_pair(emit: Emit, values: list[Any], pointer: Any) -> None:
    """Stores twice 16 floats as bfloat16."""
    low, high = values
    name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
    rounded = emit.intrinsic(name, ir.VectorType(BF16, 2 * LANES), [high, low])
    emit.store(rounded, pointer, align=2)


def reciprocal(emit: Emit, values: Any) -> Any:
    """One over 16 floats, off by 2**-14 of it at most."""
    name = "llvm.x86.avx512.rcp14.ps.512"
    return emit.intrinsic(name, FLOATS, [values, constant(0.0), EVERY_LANE])
