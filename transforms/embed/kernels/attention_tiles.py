"""Attention in bfloat16: sixteen queries of a text at a time, on tile registers; softmax in float32."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from transforms.embed.kernels import tiles
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
from transforms.embed.kernels.emit import BF16, F32, I16, I32, LANES, Emit, constant, i64

_COUNT = QUERIES[True]
_SHORTS = ir.VectorType(I16, LANES)


def turn_keys(emit: Emit, heads: Heads, text: Text, at: Any) -> None:
    """16 keys into tiles of 16 pairs of components, `[keys / 16, width / 32, 16 pairs, 16 keys, 2]`."""
    kind = ir.VectorType(I32, LANES)
    for part in range(heads.width // 32):
        rows = []
        for key in range(LANES):
            start = emit.add(row_of(emit, heads, text, emit.add(at, i64(key))), i64(32 * part))
            rows.append(emit.load(emit.at(text.key, BF16, start), typ=kind, align=2))
        first = emit.add(emit.mul(at, i64(heads.width // 2)), i64(part * LANES * LANES))
        for pair, column in enumerate(transposed(emit, rows)):
            emit.store(column, emit.at(text.turned, I32, emit.add(first, i64(pair * LANES))), align=4)


def pack_values(emit: Emit, heads: Heads, text: Text, at: Any) -> None:
    """32 values into tiles of 16 pairs of keys, `[keys / 32, width / 16, 16 pairs, 16 components, 2]`."""
    mixed = ir.Constant(ir.VectorType(I32, 2 * LANES), [i // 2 + LANES * (i % 2) for i in range(2 * LANES)])
    for pair in range(LANES):
        rows = [row_of(emit, heads, text, emit.add(at, i64(2 * pair + odd))) for odd in (0, 1)]
        for part in range(heads.width // LANES):
            own = [
                emit.load(emit.at(text.value, BF16, emit.add(row, i64(LANES * part))), typ=_SHORTS, align=2)
                for row in rows
            ]
            place = emit.add(emit.mul(at, i64(heads.width)), i64(part * 512 + pair * 32))
            packed = emit.shuffle_vector(*own, mixed)
            emit.store(packed, emit.at(text.packed, I16, place), align=2)


def attend(emit: Emit, heads: Heads, text: Text, at: Any) -> None:
    """A block of queries from `at` on; behind the last query the last one again."""
    _load_queries(emit, heads, text, at)
    emit.loop(0, text.padded, KEYS, lambda start, _: _score(emit, heads, text, start))
    totals = tiles.scratch(emit, _COUNT)
    emit.loop(0, _COUNT, 1, lambda row, _: _weigh(emit, heads, text, row, totals))
    _mix(emit, heads, text)

    def put(row: Any, _: list[Any]) -> None:
        start = row_of(emit, heads, text, emit.add(at, row), 1)
        total = emit.number(totals, F32, row)
        for column in range(0, heads.width, LANES):
            place = emit.add(emit.mul(row, i64(heads.width)), i64(column))
            values = emit.fdiv(emit.vector(text.scores, F32, place), total)
            emit.put(values, text.output, BF16, emit.add(start, i64(column)))

    emit.loop(0, _COUNT, 1, put)


def _load_queries(emit: Emit, heads: Heads, text: Text, at: Any) -> None:
    """The queries into tiles 4 and 5, 32 components each."""
    for r in range(_COUNT):
        start = row_of(emit, heads, text, emit.add(at, i64(r)))
        for column in range(0, heads.width, LANES):
            own = emit.load(emit.at(text.query, BF16, emit.add(start, i64(column))), typ=_SHORTS, align=2)
            emit.store(own, emit.at(text.queries, I16, r * heads.width + column), align=2)
    for part in range(heads.width // 32):
        tiles.load(emit, 4 + part, emit.at(text.queries, BF16, 32 * part), 2 * heads.width)


def _score(emit: Emit, heads: Heads, text: Text, start: Any) -> None:
    """The scores of 32 keys."""
    for half in range(2):
        first = emit.add(start, i64(LANES * half))
        tiles.clear(emit, half)
        for part in range(heads.width // 32):
            place = emit.add(emit.mul(first, i64(heads.width // 2)), i64(part * LANES * LANES))
            tiles.load(emit, 6 + half, emit.at(text.turned, I32, place), 64)
            tiles.multiply(emit, half, 4 + part, 6 + half)
        tiles.store(emit, half, emit.at(text.scores, F32, first), 4 * heads.keys)


def _weigh(emit: Emit, heads: Heads, text: Text, row: Any, totals: Any) -> None:
    """The softmax's weights of one query, rounded to bfloat16, and their sum."""
    own = emit.at(text.scores, F32, emit.mul(row, i64(heads.keys)))
    target = emit.at(text.weights, BF16, emit.mul(row, i64(heads.keys)))

    def halves(start: Any) -> list[Any]:
        return [start, emit.add(start, i64(LANES))]

    def compare(start: Any, largest: list[Any]) -> list[Any]:
        made = []
        for place, so_far in zip(halves(start), largest, strict=True):
            made.append(emit.larger(so_far, emit.vector(own, F32, place)))
        return made

    largest = emit.loop(0, text.padded, KEYS, compare, [constant(LEAST)] * 2)
    peak = emit.splat(emit.largest(emit.larger(*largest)))

    def weigh(start: Any, sums: list[Any]) -> list[Any]:
        made = []
        for place, so_far in zip(halves(start), sums, strict=True):
            weight = weights_of(emit, text, place, emit.vector(own, F32, place), peak)
            emit.put(weight, target, BF16, place)
            made.append(emit.fadd(so_far, weight))
        return made

    sums = emit.loop(0, text.padded, KEYS, weigh, [constant(0.0)] * 2)
    emit.store(emit.total(emit.fadd(*sums)), emit.at(totals, F32, row), align=4)


def _mix(emit: Emit, heads: Heads, text: Text) -> None:
    """The values mixed by the weights, where the scores were: `[queries, width]`."""
    parts = heads.width // LANES
    for part in range(parts):
        tiles.clear(emit, part)

    def add(start: Any, _: list[Any]) -> None:
        tiles.load(emit, 4, emit.at(text.weights, BF16, start), 2 * heads.keys)
        for part in range(parts):
            place = emit.add(emit.mul(start, i64(heads.width)), i64(part * 2 * LANES * LANES))
            tiles.load(emit, 5 + part % 2, emit.at(text.packed, I16, place), 64)
            tiles.multiply(emit, part, 4, 5 + part % 2)

    emit.loop(0, text.padded, KEYS, add)
    for part in range(parts):
        tiles.store(emit, part, emit.at(text.scores, F32, part * LANES), 4 * heads.width)
