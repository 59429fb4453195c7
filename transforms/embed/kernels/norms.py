"""LayerNorm of rows on vector units, for the kernels in bfloat16: measured first, given a little later.

Between the two lies what a row waits for (its sums across lanes, a root, a division), so that another row's
half can fill the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from transforms.embed.kernels import rough
from transforms.embed.kernels.emit import BF16, F32, LANES, Emit, constant, i64
from transforms.embed.kernels.tiles import SIDE

_WRITTEN_OUT = 512
_VECTORS = 4  # at a time; a row has a multiple of 64 columns


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm over rows of `size`: its parameters, and where results go.

    `exact` are rows in float32, `rounded` squares in bfloat16; both may be those of any token.
    """

    size: int
    epsilon: float
    scale: Any
    shift: Any
    exact: Any
    rounded: Any


def measure(emit: Emit, norm: Norm, value_of: Callable[[Any], Any], measured: Any) -> None:
    """Keeps what a row's values, 16 from a column on, are to be multiplied with, and what is added.

    Sums are of what is left without the row's first value: else the square of a mean far from 0 would
    swallow the variance.
    """
    origin = emit.splat(emit.extract_element(value_of(i64(0)), ir.Constant(ir.IntType(32), 0)))

    def step(column: Any, sums: list[Any]) -> list[Any]:
        made = []
        for number in range(_VECTORS):
            place = emit.add(column, i64(LANES * number))
            centred = emit.fsub(value_of(place), origin)
            made += [
                emit.fadd(sums[2 * number], centred),
                emit.fused(centred, centred, sums[2 * number + 1]),
            ]
        return made

    sums = _columns(emit, norm.size, step, [constant(0.0)] * (2 * _VECTORS))
    means = []
    for kind in range(2):
        own = sums[kind::2]
        whole = emit.fadd(emit.fadd(own[0], own[1]), emit.fadd(own[2], own[3]))
        means.append(emit.fmul(emit.total(whole), ir.Constant(F32, 1.0 / norm.size)))
    variance = emit.fsub(means[1], emit.fmul(means[0], means[0]))
    variance = emit.fadd(variance, ir.Constant(F32, norm.epsilon))
    factor = emit.unit_root(variance)
    mean = emit.fadd(emit.extract_element(origin, ir.Constant(ir.IntType(32), 0)), means[0])
    emit.store(factor, measured, align=4)
    emit.store(emit.fneg(emit.fmul(mean, factor)), emit.at(measured, F32, 1), align=4)


def give(emit: Emit, norm: Norm, value_of: Callable[[Any], Any], measured: Any, row: Any) -> None:
    """The normed row, in float32 and rounded. Its values are made again: the cache is slower to write."""
    factor, added = (emit.number(measured, F32, i64(each)) for each in range(2))
    exact = emit.at(norm.exact, F32, emit.mul(row, i64(norm.size)))
    inside = emit.and_(row, i64(SIDE - 1))
    first = emit.add(emit.mul(emit.sub(row, inside), i64(norm.size)), emit.mul(inside, i64(SIDE)))
    rounded = emit.at(norm.rounded, BF16, first)

    def step(column: Any, _: list[Any]) -> None:
        for pair in range(0, _VECTORS, 2):
            made = []
            for number in (pair, pair + 1):
                place = emit.add(column, i64(LANES * number))
                value = emit.fused(value_of(place), factor, added)
                value = emit.fused(
                    value, emit.vector(norm.scale, F32, place), emit.vector(norm.shift, F32, place)
                )
                emit.put(value, exact, F32, place)
                made.append(value)
            place = emit.mul(emit.add(column, i64(LANES * pair)), i64(SIDE))
            rough.put_pair(emit, made, emit.at(rounded, BF16, place))

    _columns(emit, norm.size, step, [])


def _columns(emit: Emit, size: int, step: Callable[[Any, list[Any]], Any], state: list[Any]) -> list[Any]:
    """A loop over a row, written out where it is short: what the CPU can't foresee ends what it overlaps."""
    if size > _WRITTEN_OUT:
        return emit.loop(0, size, _VECTORS * LANES, step, state)
    for column in range(0, size, _VECTORS * LANES):
        state = step(i64(column), state)
    return state
