"""Attention in bfloat16: sixteen queries of a text at a time, on tile registers; softmax in float32.

The weights are multiplied with the values as soon as they are made, and with ones, which gives their sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from transforms.embed.kernels import rough, tiles
from transforms.embed.kernels.attention_parts import KEYS, LOG2_E, Heads, transposed
from transforms.embed.kernels.emit import BF16, F32, I16, I32, INTS, LANES, POINTER, Emit, constant, i64
from transforms.embed.kernels.handler import Buffers

QUERIES = 16
_SIDE, _TILE = tiles.SIDE, tiles.TILE
_SCORES = QUERIES * LANES  # numbers of a tile in float32
_PAIRS = ir.VectorType(I16, 2 * LANES)
# Tile registers: the queries' are free when they have been scored; 0 to 4 are sums.
_QUERIES, _LEFT, _RIGHT, _ONES = 4, 5, 6, 7
_LEAST = -1e30  # below every score, and finite when multiplied by log2(e)


def room(heads: Heads) -> int:
    """Floats of scratch memory: keys, values, scores and weights of one head."""
    return heads.keys * (heads.width + QUERIES) + (2 + 5) * _SCORES


@dataclass(frozen=True, slots=True)
class _Text:
    """One text and head: its tokens, where its first query, key and value lie, parts of the scratch."""

    start: Any
    tokens: Any
    blocks: Any  # of 32 keys
    head: Any
    parts: tuple[Any, Any, Any]
    turned: Any
    packed: Any
    masks: Any
    mixed: Any
    scores: Any


def clear_token(emit: Emit, heads: Heads, buffers: Buffers, token: Any) -> None:
    """Zeros for an empty slot."""
    own = _output(emit, heads, buffers, token)
    zeros = ir.Constant(_PAIRS, [0] * 2 * LANES)
    for square in range(heads.dim // _SIDE):
        emit.store(zeros, emit.at(own, BF16, square * _SIDE * _SIDE), align=2)


def _output(emit: Emit, heads: Heads, buffers: Buffers, token: Any) -> Any:
    """A token's row in the first of its squares."""
    inside = emit.and_(token, i64(_SIDE - 1))
    place = emit.mul(emit.sub(token, inside), i64(heads.dim))
    return emit.at(buffers.outputs[0], BF16, emit.add(place, emit.mul(inside, i64(_SIDE))))


def attend_head(emit: Emit, heads: Heads, buffers: Buffers, span: tuple[Any, Any], head: Any) -> None:
    """One text's tokens, by first and last, to each other, for one head."""
    start, stop = span
    tokens = emit.sub(stop, start)
    blocks = emit.lshr(emit.add(tokens, i64(KEYS - 1)), i64(5))
    parts = tuple(_column(emit, heads, buffers, start, head, part) for part in range(3))
    sizes = [heads.keys * heads.width // 2] * 2 + [2 * _SCORES, 5 * _SCORES]
    scratch = [emit.at(buffers.outputs[1], F32, sum(sizes[:part])) for part in range(5)]
    text = _Text(start, tokens, blocks, head, (parts[0], parts[1], parts[2]), *scratch)
    emit.loop(0, emit.mul(blocks, i64(2)), 1, lambda at, _: _turn_keys(emit, heads, buffers, text, at))
    emit.loop(0, blocks, 1, lambda at, _: _pack_values(emit, heads, buffers, text, at))
    _make_masks(emit, text)
    tiles.load(emit, _ONES, _tile_of(emit, "ones", 0x3F80), 64)
    emit.loop(0, tokens, QUERIES, lambda at, _: _attend(emit, heads, buffers, text, at))


def _column(emit: Emit, heads: Heads, buffers: Buffers, token: Any, head: Any, part: int) -> Any:
    """A token's 32 first components in query, key or value of a head: columns lie in one piece."""
    column = emit.add(emit.mul(head, i64(heads.width)), i64(part * heads.dim))
    place = emit.add(emit.mul(column, buffers.leading), emit.mul(token, i64(_SIDE)))
    return emit.at(buffers.inputs[0], BF16, place)


def _further(emit: Emit, buffers: Buffers, pointer: Any, columns: int) -> Any:
    return emit.at(pointer, BF16, emit.mul(buffers.leading, i64(columns)))


def _turn_keys(emit: Emit, heads: Heads, buffers: Buffers, text: _Text, at: Any) -> None:
    """16 keys into tiles of 16 pairs of components, `[keys / 16, width / 32, 16 pairs, 16 keys, 2]`.

    Behind the last key that key again: its scores are masked, and what is added to a neighbour's NaN is NaN.
    """
    last = emit.sub(text.tokens, i64(1))
    first = emit.mul(at, i64(LANES))
    indices = []
    for key in range(LANES):
        index = emit.add(first, i64(key))
        index = emit.select(emit.icmp_signed("<", index, last), index, last)
        indices.append(emit.mul(index, i64(_SIDE)))
    for part in range(heads.width // _SIDE):
        own = _further(emit, buffers, text.parts[1], part * _SIDE)
        rows = [emit.load(emit.at(own, BF16, index), typ=INTS, align=2) for index in indices]
        place = emit.add(emit.mul(at, i64(heads.width // _SIDE)), i64(part))
        target = emit.at(text.turned, BF16, emit.mul(place, i64(_TILE)))
        for pair, column in enumerate(transposed(emit, rows)):
            emit.store(column, emit.at(target, I32, pair * LANES), align=4)


def _pack_values(emit: Emit, heads: Heads, buffers: Buffers, text: _Text, at: Any) -> None:
    """32 values into tiles of 16 pairs of keys, `[keys / 32, width / 16, 16 pairs, 16 components, 2]`.

    A pair is a key and the one 16 behind it, as `_weigh` has their weights.
    Behind the last value that value again: its weights are 0, and 0 times a neighbour's NaN is NaN.
    """
    last = emit.sub(text.tokens, i64(1))
    halves = [
        ir.Constant(
            ir.VectorType(I32, 2 * LANES), [half + i // 2 + 2 * LANES * (i % 2) for i in range(2 * LANES)]
        )
        for half in (0, LANES)
    ]
    first = emit.mul(at, i64(KEYS))
    for part in range(heads.width // _SIDE):
        own = _further(emit, buffers, text.parts[2], part * _SIDE)
        target = emit.add(emit.mul(at, i64(heads.width // LANES)), i64(2 * part))
        target = emit.at(text.packed, BF16, emit.mul(target, i64(_TILE)))
        for pair in range(LANES):
            rows = []
            for odd in range(2):
                index = emit.add(first, i64(pair + LANES * odd))
                index = emit.select(emit.icmp_signed("<", index, last), index, last)
                rows.append(emit.load(emit.at(own, BF16, emit.mul(index, i64(_SIDE))), typ=_PAIRS, align=2))
            for half in range(2):
                packed = emit.shuffle_vector(*rows, halves[half])
                emit.store(packed, emit.at(target, BF16, half * _TILE + pair * 2 * LANES), align=2)


def _make_masks(emit: Emit, text: _Text) -> None:
    """What the scores of the last two groups of 16 keys begin with: nearly minus infinity behind the last."""
    lanes = ir.Constant(INTS, list(range(LANES)))
    for group in range(2):
        first = emit.add(emit.mul(emit.sub(text.blocks, i64(1)), i64(KEYS)), i64(group * LANES))
        places = emit.add(emit.splat(emit.trunc(first, I32)), lanes)
        own = emit.icmp_signed("<", places, emit.splat(emit.trunc(text.tokens, I32)))
        values = emit.select(own, constant(0.0), constant(_LEAST))
        for query in range(QUERIES):
            emit.put(values, text.masks, F32, group * _SCORES + query * LANES)


def _attend(emit: Emit, heads: Heads, buffers: Buffers, text: _Text, at: Any) -> None:
    """16 queries from `at` on; those behind the last are computed of what stands there, and dropped."""
    _score_all(emit, heads, buffers, text, at)
    _mix_all(emit, heads, text)
    _give(emit, heads, buffers, text, at)


def _score_all(emit: Emit, heads: Heads, buffers: Buffers, text: _Text, at: Any) -> None:
    """The scores of 16 queries and all keys."""
    for part in range(heads.width // _SIDE):
        own = _further(emit, buffers, text.parts[0], part * _SIDE)
        tiles.load(emit, _QUERIES + part, emit.at(own, BF16, emit.mul(at, i64(_SIDE))), 64)
    emit.loop(0, text.blocks, 1, lambda block, _: _score(emit, heads, text, block))


def _mix_all(emit: Emit, heads: Heads, text: _Text) -> None:
    """The values mixed by the weights, and the weights' sums."""
    parts = heads.width // LANES
    peaks = _peaks(emit, text)
    for number in range(parts + 1):
        tiles.clear(emit, number)

    def mix(block: Any, _: list[Any]) -> None:
        _weigh(emit, text, block, peaks)
        weights = emit.at(text.scores, F32, emit.mul(block, i64(2 * _SCORES)))
        tiles.load(emit, _LEFT, weights, 64)
        for part in range(parts):
            place = emit.mul(emit.add(emit.mul(block, i64(parts)), i64(part)), i64(_TILE))
            tiles.load(emit, _RIGHT, emit.at(text.packed, BF16, place), 64)
            tiles.multiply(emit, part, _LEFT, _RIGHT)
        tiles.multiply(emit, parts, _LEFT, _ONES)

    emit.loop(0, text.blocks, 1, mix)
    for number in range(parts + 1):
        tiles.store(emit, number, emit.at(text.mixed, F32, number * _SCORES), 64)


def _score(emit: Emit, heads: Heads, text: _Text, block: Any) -> None:
    """The scores of 16 queries and 32 keys, `[keys / 16, queries, 16]`."""
    parts = heads.width // _SIDE
    last = emit.icmp_signed("==", block, emit.sub(text.blocks, i64(1)))
    begun = emit.select(last, text.masks, _tile_of(emit, "zeros", 0, 2))
    for half in range(2):
        group = emit.add(emit.mul(block, i64(2)), i64(half))
        tiles.load(emit, half, emit.at(begun, F32, half * _SCORES), 64)
        for part in range(parts):
            place = emit.mul(emit.add(emit.mul(group, i64(parts)), i64(part)), i64(_TILE))
            tiles.load(emit, _RIGHT, emit.at(text.turned, BF16, place), 64)
            tiles.multiply(emit, half, _QUERIES + part, _RIGHT)
        tiles.store(emit, half, emit.at(text.scores, F32, emit.mul(group, i64(_SCORES))), 64)


def _peaks(emit: Emit, text: _Text) -> Any:
    """What is added to each query's scores, in units of log2(e), so that the largest is 0: 16 floats."""

    def compare(group: Any, so_far: list[Any]) -> list[Any]:
        scores = emit.at(text.scores, F32, emit.mul(group, i64(_SCORES)))
        return [
            emit.larger(each, emit.vector(scores, F32, query * LANES)) for query, each in enumerate(so_far)
        ]

    rows = emit.loop(0, emit.mul(text.blocks, i64(2)), 1, compare, [constant(_LEAST)] * QUERIES)
    width = LANES
    while width > 1:  # halves of each row's lanes against each other, two rows into one
        starts = range(0, 2 * LANES, width)
        low, high = (
            ir.Constant(INTS, [start + half + lane for start in starts for lane in range(width // 2)])
            for half in (0, width // 2)
        )
        rows = [
            emit.larger(emit.shuffle_vector(*pair, low), emit.shuffle_vector(*pair, high))
            for pair in zip(rows[::2], rows[1::2], strict=True)
        ]
        width //= 2
    kept = tiles.scratch(emit, QUERIES)
    emit.put(emit.fmul(rows[0], constant(-LOG2_E)), kept, F32, 0)
    return kept


def _weigh(emit: Emit, text: _Text, block: Any, peaks: Any) -> None:
    """The softmax's weights of 32 keys, cut to bfloat16, `[queries, 16, 2]`, where half of their scores was.

    They are cut and not rounded, which takes half the time: their sums are made of what is left, so what is
    lost on the average is no loss.
    """
    upper = ir.Constant(INTS, [-65536] * LANES)
    shift = ir.Constant(INTS, [16] * LANES)
    scores = emit.at(text.scores, F32, emit.mul(block, i64(2 * _SCORES)))
    for query in range(QUERIES):
        peak = emit.number(peaks, F32, i64(query))
        made = []
        for half in range(2):
            score = emit.vector(scores, F32, half * _SCORES + query * LANES)
            made.append(emit.bitcast(rough.exp2(emit, emit.fused(score, constant(LOG2_E), peak)), INTS))
        both = emit.or_(emit.lshr(made[0], shift), emit.and_(made[1], upper))
        emit.store(both, emit.at(scores, F32, query * LANES), align=4)


def _tile_of(emit: Emit, name: str, bits: int, count: int = 1) -> Any:
    """Tiles of one value in memory."""
    kind = ir.ArrayType(I16, count * _TILE)
    found = emit.module.globals.get(name)
    if found is None:
        found = ir.GlobalVariable(emit.module, kind, name)
        found.initializer = ir.Constant(kind, [bits] * count * _TILE)
        found.global_constant = True
        found.linkage = "internal"
        found.align = 64
    return emit.bitcast(found, POINTER)


def _give(emit: Emit, heads: Heads, buffers: Buffers, text: _Text, at: Any) -> None:
    """The mixed values divided by the weights' sums, where the next product reads them."""
    parts = heads.width // LANES
    left = emit.sub(text.tokens, at)
    count = emit.select(emit.icmp_signed("<", left, i64(QUERIES)), left, i64(QUERIES))

    def row(query: Any, _: list[Any]) -> None:
        token = emit.add(emit.add(text.start, at), query)
        square = emit.mul(emit.mul(text.head, i64(heads.width // _SIDE)), i64(_SIDE * _SIDE))
        target = emit.at(_output(emit, heads, buffers, token), BF16, square)
        own = emit.at(text.mixed, F32, emit.mul(query, i64(LANES)))
        factor = rough.reciprocal(emit, emit.vector(own, F32, parts * _SCORES))
        for part in range(0, parts, 2):
            values = [emit.fmul(emit.vector(own, F32, (part + half) * _SCORES), factor) for half in range(2)]
            rough.put_pair(emit, values, emit.at(target, BF16, part // 2 * _SIDE * _SIDE))

    emit.loop(0, count, 1, row)
