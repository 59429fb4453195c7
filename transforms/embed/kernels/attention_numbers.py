"""Attention in float32: a few queries of a text at a time, on vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from transforms.embed.kernels.attention_parts import KEYS, LOG2_E, Heads, transposed
from transforms.embed.kernels.emit import F32, I32, LANES, Emit, constant, i64
from transforms.embed.kernels.handler import Buffers

_COUNT = 8  # queries at a time
_LEAST = -3e38  # below every score


@dataclass(frozen=True, slots=True)
class _Text:
    """One text and head: where they begin in query, key, value and output; parts of the scratch."""

    tokens: Any
    padded: Any  # tokens, rounded up to whole blocks of keys
    query: Any
    key: Any
    value: Any
    output: Any
    turned: Any
    scores: Any


def _row_of(emit: Emit, heads: Heads, text: _Text, index: Any, stride: int = 3) -> Any:
    """Where a token's row begins; the last token's for those behind it."""
    last = emit.sub(text.tokens, i64(1))
    index = emit.select(emit.icmp_signed("<", index, last), index, last)
    return emit.mul(index, i64(stride * heads.dim))


def room(heads: Heads) -> int:
    """Floats of scratch memory: keys and scores of one head."""
    return heads.keys * (heads.width + _COUNT)


def clear_token(emit: Emit, heads: Heads, buffers: Buffers, token: Any) -> None:
    """Zeros for an empty slot."""
    own = emit.at(buffers.outputs[0], F32, emit.mul(token, i64(heads.dim)))
    emit.loop(0, heads.dim, LANES, lambda at, _: emit.put(constant(0.0), own, F32, at))


def attend_head(emit: Emit, heads: Heads, buffers: Buffers, span: tuple[Any, Any], head: Any) -> None:
    """One text's tokens, by first and last, to each other, for one head."""
    start, stop = span
    column = emit.mul(head, i64(heads.width))
    first = emit.add(emit.mul(start, i64(3 * heads.dim)), column)
    query, key, value = (
        emit.at(buffers.inputs[0], F32, emit.add(first, i64(part * heads.dim))) for part in range(3)
    )
    tokens = emit.sub(stop, start)
    padded = emit.and_(emit.add(tokens, i64(KEYS - 1)), i64(-KEYS))
    output = emit.at(buffers.outputs[0], F32, emit.add(emit.mul(start, i64(heads.dim)), column))
    turned, scores = (emit.at(buffers.outputs[1], F32, at) for at in (0, heads.keys * heads.width))
    text = _Text(tokens, padded, query, key, value, output, turned, scores)
    emit.loop(0, padded, LANES, lambda at, _: _turn_keys(emit, heads, text, at))
    emit.loop(0, tokens, _COUNT, lambda at, _: _attend(emit, heads, text, at))


def _turn_keys(emit: Emit, heads: Heads, text: _Text, at: Any) -> None:
    """16 keys into 16 columns of `[width, keys]`."""
    for part in range(0, heads.width, LANES):
        rows = []
        for key in range(LANES):
            start = _row_of(emit, heads, text, emit.add(at, i64(key)))
            rows.append(emit.vector(text.key, F32, emit.add(start, i64(part))))
        for lane, column in enumerate(transposed(emit, rows)):
            emit.put(column, text.turned, F32, emit.add(at, i64((part + lane) * heads.keys)))


def _attend(emit: Emit, heads: Heads, text: _Text, at: Any) -> None:
    """A block of queries from `at` on; behind the last query the last one again."""
    starts = [_row_of(emit, heads, text, emit.add(at, i64(r))) for r in range(_COUNT)]
    queries = [emit.at(text.query, F32, start) for start in starts]
    least, zeros = [constant(_LEAST)] * _COUNT, [constant(0.0)] * _COUNT
    largest = emit.loop(
        0, text.padded, KEYS, lambda key, so_far: _score(emit, heads, text, queries, key, so_far), least
    )
    peaks = [emit.splat(emit.largest(each)) for each in largest]
    sums = emit.loop(
        0, text.padded, LANES, lambda key, so_far: _weigh(emit, heads, text, peaks, key, so_far), zeros
    )
    for first in range(0, heads.width, 2 * LANES):  # as many columns as there are registers for
        _mix(emit, heads, text, at, range(first, min(first + 2 * LANES, heads.width), LANES), sums)


def _score(
    emit: Emit, heads: Heads, text: _Text, queries: list[Any], start: Any, largest: list[Any]
) -> list[Any]:
    """Scores of a block of keys, kept; gives the largest so far."""

    def step(depth: Any, sums: list[Any]) -> list[Any]:
        line = emit.at(text.turned, F32, emit.add(emit.mul(depth, i64(heads.keys)), start))
        pair = [emit.vector(line, F32, LANES * half) for half in range(2)]
        products = [(emit.number(query, F32, depth), key) for query in queries for key in pair]
        return [emit.fused(*two, total) for two, total in zip(products, sums, strict=True)]

    sums = emit.loop(0, heads.width, 1, step, [constant(0.0)] * (2 * _COUNT))
    made = []
    for r in range(_COUNT):
        own = []
        for half in range(2):
            first = emit.add(start, i64(LANES * half))
            own.append(sums[2 * r + half])
            emit.put(own[half], text.scores, F32, emit.add(first, i64(r * heads.keys)))
        made.append(emit.larger(largest[r], emit.larger(*own)))
    return made


def _weigh(emit: Emit, heads: Heads, text: _Text, peaks: list[Any], start: Any, sums: list[Any]) -> list[Any]:
    """The softmax's weights of 16 keys in place of their scores; gives their sums so far."""
    made = []
    for r in range(_COUNT):
        place = emit.add(start, i64(r * heads.keys))
        weight = _weights_of(emit, text, start, emit.vector(text.scores, F32, place), peaks[r])
        emit.put(weight, text.scores, F32, place)
        made.append(emit.fadd(sums[r], weight))
    return made


def _mix(emit: Emit, heads: Heads, text: _Text, at: Any, columns: range, sums: list[Any]) -> None:
    """Some columns of the values, mixed by the weights and divided by their sums."""

    def add(key: Any, mixed: list[Any]) -> list[Any]:
        line = emit.at(text.value, F32, emit.mul(key, i64(3 * heads.dim)))
        own = [emit.vector(line, F32, column) for column in columns]
        numbers = [emit.number(text.scores, F32, emit.add(key, i64(r * heads.keys))) for r in range(_COUNT)]
        products = [(number, value) for number in numbers for value in own]
        return [emit.fused(*two, total) for two, total in zip(products, mixed, strict=True)]

    mixed = emit.loop(0, text.tokens, 1, add, [constant(0.0)] * (len(columns) * _COUNT))
    for r in range(_COUNT):
        total = emit.splat(emit.total(sums[r]))
        start = _row_of(emit, heads, text, emit.add(at, i64(r)), 1)
        for number, column in enumerate(columns):
            values = emit.fdiv(mixed[r * len(columns) + number], total)
            emit.put(values, text.output, F32, emit.add(start, i64(column)))


def _weights_of(emit: Emit, text: _Text, start: Any, scores: Any, peak: Any) -> Any:
    """`exp(scores - peak)` for 16 keys from `start` on, 0 where there is no key.

    Behind a text's last key stands that key again, so scores need no mask before: their largest is right.
    """
    weights = emit.exp2(emit.fmul(emit.fsub(scores, peak), constant(LOG2_E)))
    first = emit.splat(emit.trunc(start, I32))
    lanes = ir.Constant(ir.VectorType(I32, LANES), list(range(LANES)))
    tokens = emit.splat(emit.trunc(text.tokens, I32))
    return emit.select(emit.icmp_signed("<", emit.add(first, lanes), tokens), weights, constant(0.0))
