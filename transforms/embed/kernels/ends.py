"""What comes before the first layer and after the last, for the kernels in bfloat16: rows in, vectors out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from transforms.embed.kernels.emit import F32, I32, LANES, Emit, constant, i64
from transforms.embed.kernels.handler import PREFIX, Buffers, write_handler
from transforms.embed.kernels.norms import Norm, give, measure
from transforms.embed.kernels.tiles import scratch

_AHEAD = 4  # rows of the vocabulary that are fetched before they are needed: they lie anywhere in memory


@dataclass(frozen=True, slots=True)
class Table:
    """The embeddings' kernel: rows of words and of positions, their width, the norm's epsilon."""

    words: int
    positions: int
    dim: int
    epsilon: float

    @property
    def name(self) -> str:
        """The target's name."""
        return f"{PREFIX}_rows_bf16_{self.words}_{self.positions}x{self.dim}_{self.epsilon:g}"


def write_rows(table: Table) -> ir.Module:
    """The kernel.

    Inputs: tokens and positions, `[tokens]` int32; the words' and the positions' embeddings, the norm's
    scale and shift. Outputs: the normed sums, `[tokens, dim]` in float32, and in bfloat16 in squares. A
    number that has no row gets the last one.
    """

    def body(emit: Emit, buffers: Buffers) -> None:
        words, positions, scale, shift = buffers.inputs[2:]
        norm = Norm(table.dim, table.epsilon, scale, shift, *buffers.outputs)
        measured = scratch(emit, 2)
        last = emit.sub(buffers.leading, i64(1))

        def row_of(kind: int, index: Any, count: int, rows: Any) -> Any:
            number = emit.load(emit.at(buffers.inputs[kind], I32, index), typ=I32)
            most = ir.Constant(I32, count - 1)
            number = emit.select(emit.icmp_unsigned("<", number, most), number, most)
            return emit.at(rows, F32, emit.mul(emit.zext(number, ir.IntType(64)), i64(table.dim)))

        def token(index: Any, _: list[Any]) -> None:
            ahead = emit.add(index, i64(_AHEAD))
            ahead = emit.select(emit.icmp_signed("<", ahead, last), ahead, last)
            coming = row_of(0, ahead, table.words, words)
            for line in range(0, table.dim, LANES):
                emit.fetch(emit.at(coming, F32, line))
            word = row_of(0, index, table.words, words)
            position = row_of(1, index, table.positions, positions)

            def value_of(column: Any) -> Any:
                return emit.fadd(emit.vector(word, F32, column), emit.vector(position, F32, column))

            measure(emit, norm, value_of, measured)
            give(emit, norm, value_of, measured, index)

        emit.loop(0, buffers.leading, 1, token)

    return write_handler(table.name, 6, 2, body)


@dataclass(frozen=True, slots=True)
class Texts:
    """The sums' kernel: slots of a row, texts that it can have, components."""

    length: int
    texts: int
    dim: int

    @property
    def name(self) -> str:
        """The target's name."""
        return f"{PREFIX}_sums_f32_{self.length}_{self.texts}x{self.dim}"


def write_sums(texts: Texts) -> ir.Module:
    """The kernel.

    Inputs: segments, `[tokens]` int32, 1, 2, ... for the texts of a row and 0 for empty slots; hidden states,
    `[tokens, dim]` float32. Outputs: each text's sum, `[rows * texts, dim]` float32, first token first.
    """

    def body(emit: Emit, buffers: Buffers) -> None:
        segments, hidden = buffers.inputs
        sums = buffers.outputs[0]
        rows = emit.sdiv(buffers.leading, i64(texts.length))

        def clear(place: Any, _: list[Any]) -> None:
            emit.put(constant(0.0), sums, F32, place)

        emit.loop(0, emit.mul(rows, i64(texts.texts * texts.dim)), LANES, clear)

        def token(index: Any, _: list[Any]) -> None:
            segment = emit.zext(emit.load(emit.at(segments, I32, index), typ=I32), ir.IntType(64))
            own = emit.icmp_unsigned("<", emit.sub(segment, i64(1)), i64(texts.texts))
            with emit.if_then(own):
                row = emit.mul(emit.sdiv(index, i64(texts.length)), i64(texts.texts))
                text = emit.mul(emit.add(row, emit.sub(segment, i64(1))), i64(texts.dim))
                target = emit.at(sums, F32, text)
                source = emit.at(hidden, F32, emit.mul(index, i64(texts.dim)))

                def add(column: Any, _: list[Any]) -> None:
                    total = emit.fadd(emit.vector(target, F32, column), emit.vector(source, F32, column))
                    emit.put(total, target, F32, column)

                emit.loop(0, texts.dim, LANES, add)

        emit.loop(0, buffers.leading, 1, token)

    return write_handler(texts.name, 2, 1, body)
