"""Attention of each text of a step to itself, text by text and head by head, whatever its length.

Texts lie one behind the other, so a text costs its own length squared and nothing for its neighbours.
A head's keys are turned once, so that scores come 16 at a time; scores of a few queries and all keys
are all that is ever kept.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from transforms.embed.kernels import attention_numbers, attention_tiles, tiles
from transforms.embed.kernels.attention_parts import Heads
from transforms.embed.kernels.emit import I32, Emit, i64
from transforms.embed.kernels.handler import Buffers, write_handler


def room(heads: Heads) -> int:
    """Floats of scratch memory."""
    return (attention_tiles if heads.bfloat16 else attention_numbers).room(heads)


def write_attention(heads: Heads) -> ir.Module:
    """The kernel.

    Inputs: query, key and value, the query scaled: `[tokens, 3 * dim]` side by side in float32, and
    `[3 * dim / 32, tokens, 32]` in bfloat16; segments and positions, `[tokens]` int32, a text being a run of
    positions 0, 1, ... and segment 0 an empty slot. Outputs: `[tokens, dim]`, in bfloat16 in squares, zeros
    for empty slots; scratch `[room]` float32.
    """
    kind = attention_tiles if heads.bfloat16 else attention_numbers

    def body(emit: Emit, buffers: Buffers) -> None:
        _, segments, positions = buffers.inputs
        if heads.bfloat16:
            tiles.configure(emit)

        def token(index: Any, _: list[Any]) -> None:
            position, segment = (emit.load(emit.at(of, I32, index), typ=I32) for of in (positions, segments))
            zero = ir.Constant(I32, 0)
            with emit.if_then(emit.icmp_signed("==", segment, zero)):
                kind.clear_token(emit, heads, buffers, index)
            first = emit.icmp_signed("==", position, zero)
            with emit.if_then(emit.and_(first, emit.icmp_signed("!=", segment, zero))):
                span = index, _end_of_text(emit, positions, index, buffers.leading)
                emit.loop(
                    0, heads.count, 1, lambda head, _: kind.attend_head(emit, heads, buffers, span, head)
                )

        emit.loop(0, buffers.leading, 1, token)
        if heads.bfloat16:
            tiles.release(emit)

    return write_handler(heads.name, 3, 2, body)


def _end_of_text(emit: Emit, positions: Any, start: Any, tokens: Any) -> Any:
    def goes_on(index: Any) -> Any:
        position = emit.load(emit.at(positions, I32, index), typ=I32)
        return emit.icmp_signed("!=", position, ir.Constant(I32, 0))

    return emit.while_below(emit.add(start, i64(1)), tokens, goes_on)
