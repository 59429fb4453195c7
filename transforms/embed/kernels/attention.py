"""Attention of each text of a step to itself, text by text and head by head, whatever its length.

Texts lie one behind the other, so a text costs its own length squared and nothing for its neighbours.
A head's keys are turned once, so that scores come 16 at a time; scores of a few queries and all keys
are all that is ever kept.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from transforms.embed.kernels import attention_numbers, attention_tiles, tiles
from transforms.embed.kernels.attention_parts import KEYS, QUERIES, Heads, Text
from transforms.embed.kernels.emit import BF16, F32, I32, LANES, Emit, constant, i64
from transforms.embed.kernels.handler import Buffers, write_handler


def write_attention(heads: Heads) -> ir.Module:
    """The kernel.

    Inputs: query, key and value side by side, `[tokens, 3 * dim]`, the query scaled; segments and
    positions, `[tokens]` int32, a text being a run of positions 0, 1, ... and segment 0 an empty slot.
    Outputs: `[tokens, dim]`, zeros for empty slots; scratch `[room]` float32.
    """

    def body(emit: Emit, buffers: Buffers) -> None:
        _, segments, positions = buffers.inputs
        if heads.bfloat16:
            tiles.configure(emit)

        def token(index: Any, _: list[Any]) -> None:
            position, segment = (emit.load(emit.at(of, I32, index), typ=I32) for of in (positions, segments))
            zero = ir.Constant(I32, 0)
            with emit.if_then(emit.icmp_signed("==", segment, zero)):
                _clear(emit, heads, buffers, index)
            first = emit.icmp_signed("==", position, zero)
            with emit.if_then(emit.and_(first, emit.icmp_signed("!=", segment, zero))):
                stop = _end_of_text(emit, positions, index, buffers.leading)
                emit.loop(0, heads.count, 1, lambda head, _: _head(emit, heads, buffers, index, stop, head))

        emit.loop(0, buffers.leading, 1, token)
        if heads.bfloat16:
            tiles.release(emit)

    return write_handler(heads.name, 3, 2, body)


def _clear(emit: Emit, heads: Heads, buffers: Buffers, token: Any) -> None:
    element = BF16 if heads.bfloat16 else F32
    own = emit.at(buffers.outputs[0], element, emit.mul(token, i64(heads.dim)))
    emit.loop(0, heads.dim, LANES, lambda at, _: emit.put(constant(0.0), own, element, at))


def _end_of_text(emit: Emit, positions: Any, start: Any, tokens: Any) -> Any:
    def goes_on(index: Any) -> Any:
        position = emit.load(emit.at(positions, I32, index), typ=I32)
        return emit.icmp_signed("!=", position, ir.Constant(I32, 0))

    return emit.while_below(emit.add(start, i64(1)), tokens, goes_on)


def _head(emit: Emit, heads: Heads, buffers: Buffers, start: Any, stop: Any, head: Any) -> None:
    element = BF16 if heads.bfloat16 else F32
    first = emit.add(emit.mul(start, i64(3 * heads.dim)), emit.mul(head, i64(heads.width)))
    query, key, value = (
        emit.at(buffers.inputs[0], element, emit.add(first, i64(part * heads.dim))) for part in range(3)
    )
    place = emit.add(emit.mul(start, i64(heads.dim)), emit.mul(head, i64(heads.width)))
    tokens = emit.sub(stop, start)
    padded = emit.and_(emit.add(tokens, i64(KEYS - 1)), i64(-KEYS))
    sizes = [heads.keys * heads.width] * 2 + [2 * LANES * heads.width]
    sizes.append(heads.keys * QUERIES[heads.bfloat16])
    room = [emit.at(buffers.outputs[1], F32, sum(sizes[:part])) for part in range(5)]
    output = emit.at(buffers.outputs[0], element, place)
    text = Text(tokens, padded, query, key, value, output, *room)
    kind = attention_tiles if heads.bfloat16 else attention_numbers
    emit.loop(0, padded, LANES, lambda at, _: kind.turn_keys(emit, heads, text, at))
    if heads.bfloat16:
        emit.loop(0, padded, KEYS, lambda at, _: attention_tiles.pack_values(emit, heads, text, at))
    step = QUERIES[heads.bfloat16]
    emit.loop(0, tokens, step, lambda at, _: kind.attend(emit, heads, text, at))
