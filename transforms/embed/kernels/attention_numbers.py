"""Attention in float32: a few queries of a text at a time, on vectors."""

from __future__ import annotations

from typing import Any

from transforms.embed.kernels.attention_parts import (
    KEYS,
    LEAST,
    QUERIES,
    Heads,
    Text,
    row_of,
    transposed,
    weights_of,
)
from transforms.embed.kernels.emit import F32, LANES, Emit, constant, i64

_COUNT = QUERIES[False]


def turn_keys(emit: Emit, heads: Heads, text: Text, at: Any) -> None:
    """16 keys into 16 columns of `[width, keys]`."""
    for part in range(0, heads.width, LANES):
        rows = []
        for key in range(LANES):
            start = row_of(emit, heads, text, emit.add(at, i64(key)))
            rows.append(emit.vector(text.key, F32, emit.add(start, i64(part))))
        for lane, column in enumerate(transposed(emit, rows)):
            emit.put(column, text.turned, F32, emit.add(at, i64((part + lane) * heads.keys)))


def attend(emit: Emit, heads: Heads, text: Text, at: Any) -> None:
    """A block of queries from `at` on; behind the last query the last one again."""
    starts = [row_of(emit, heads, text, emit.add(at, i64(r))) for r in range(_COUNT)]
    queries = [emit.at(text.query, F32, start) for start in starts]
    least, zeros = [constant(LEAST)] * _COUNT, [constant(0.0)] * _COUNT
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
    emit: Emit, heads: Heads, text: Text, queries: list[Any], start: Any, largest: list[Any]
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


def _weigh(emit: Emit, heads: Heads, text: Text, peaks: list[Any], start: Any, sums: list[Any]) -> list[Any]:
    """The softmax's weights of 16 keys in place of their scores; gives their sums so far."""
    made = []
    for r in range(_COUNT):
        place = emit.add(start, i64(r * heads.keys))
        weight = weights_of(emit, text, start, emit.vector(text.scores, F32, place), peaks[r])
        emit.put(weight, text.scores, F32, place)
        made.append(emit.fadd(sums[r], weight))
    return made


def _mix(emit: Emit, heads: Heads, text: Text, at: Any, columns: range, sums: list[Any]) -> None:
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
        start = row_of(emit, heads, text, emit.add(at, i64(r)), 1)
        for number, column in enumerate(columns):
            values = emit.fdiv(mixed[r * len(columns) + number], total)
            emit.put(values, text.output, F32, emit.add(start, i64(column)))
