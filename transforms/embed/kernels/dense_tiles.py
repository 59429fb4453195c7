"""Dense layers in bfloat16: while tiles multiply, vector units finish what was multiplied before.

Bias and activation of one square of 32 by 32 are computed during the next one's product, and norms of
one block of tokens during the next block's, so that neither waits for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from transforms.embed.kernels import rough
from transforms.embed.kernels.emit import BF16, F32, LANES, Emit, constant, i64
from transforms.embed.kernels.handler import Buffers
from transforms.embed.kernels.norms import Norm, give, measure
from transforms.embed.kernels.tiles import SIDE, Beside, Cut, Sums, multiply_panel, scratch

_SQUARE = SIDE * SIDE
_Body = Callable[[Any, Any, list[Any]], list[Any]]


def room(cut: Cut) -> int:
    """Floats of scratch memory of a layer with a norm: a block's sums, or those of two in turns."""
    return (2 if cut.parts == 1 else 1) * cut.block(True) * cut.outputs


@dataclass(frozen=True, slots=True)
class Product:
    """The loops of a layer, cut in pieces; with a norm the last output is the room."""

    emit: Emit
    cut: Cut
    buffers: Buffers
    norm: bool
    between: Any  # room for the sums of a block's early parts

    def blocks(self, body: Callable[[tuple[Any, Any], list[Any]], list[Any]], state: list[Any]) -> list[Any]:
        """`body` for the first and the last token of each block."""
        emit, tokens, size = self.emit, self.buffers.leading, self.cut.block(self.norm)

        def block(start: Any, state: list[Any]) -> list[Any]:
            stop = emit.add(start, i64(size))
            return body((start, emit.select(emit.icmp_signed("<", stop, tokens), stop, tokens)), state)

        return emit.loop(0, tokens, size, block, state)

    def squares(self, span: tuple[Any, Any], group: Any, body: _Body, state: list[Any]) -> list[Any]:
        """`body` for row and column of each square of a group: a panel stays for all tokens of the block."""

        def panel(column: Any, state: list[Any]) -> list[Any]:
            return self.emit.loop(*span, SIDE, lambda row, state: body(row, column, state), state)

        return self.emit.loop(group, self.emit.add(group, i64(self.cut.group)), SIDE, panel, state)

    def multiply(
        self, place: tuple[Any, Any, Any, Any], begun: Sums | None, ends: Sums, beside: Beside
    ) -> None:
        """The product of a square's tokens, by row, column, group and part."""
        emit, cut = self.emit, self.cut
        row, column, group, part = place
        stays = cut.parts > 1 or not self.norm  # the panel, for the tokens that follow
        first = emit.add(emit.mul(row, i64(cut.inputs)), emit.mul(part, i64(cut.depth * SIDE)))
        panel = emit.add(emit.mul(group, i64(cut.inputs)), emit.mul(part, i64(cut.depth * cut.group)))
        panel = emit.add(panel, emit.mul(emit.sub(column, group), i64(cut.depth)))
        operands = emit.at(self.buffers.inputs[0], BF16, first), emit.at(self.buffers.inputs[1], BF16, panel)
        if stays:
            beside = self._fetching(row, operands[1], beside)
        multiply_panel(emit, cut, operands, begun, ends, beside, stays)

    def _fetching(self, row: Any, panel: Any, beside: Beside) -> Beside:
        """The next panel into the second-level cache besides, a part of it with each of a block's rows.

        The CPU itself fetches no further than to the end of a page of 4 kB.
        """
        emit, cut = self.emit, self.cut
        rows, line = cut.block(self.norm) // SIDE, 2 * LANES
        each = -(-cut.depth * SIDE // line // (rows * cut.turns))
        own = emit.and_(emit.lshr(row, i64(5)), i64(rows - 1))
        first = emit.add(emit.mul(own, i64(cut.turns * each * line)), i64(cut.depth * SIDE))

        def with_fetches(turn: Any) -> list[Callable[[], None]]:
            start = emit.at(panel, BF16, emit.add(first, emit.mul(turn, i64(each * line))))
            places = [emit.at(start, BF16, at) for at in range(0, each * line, line)]
            return [*beside(turn), *(partial(emit.fetch, place, level=2) for place in places)]

        return with_fetches

    def early_sums(self, span: tuple[Any, Any]) -> Callable[[Any], Sums]:
        """Where the sums of all parts but the last lie, by row: in the first-level cache."""
        emit = self.emit

        def of_row(row: Any) -> Sums:
            return Sums(emit.at(self.between, F32, emit.mul(emit.sub(row, span[0]), i64(SIDE))), SIDE)

        return of_row

    def early_parts(self, span: tuple[Any, Any], group: Any, sums: Callable[[Any], Sums]) -> None:
        """All parts but the last of a group, which then is 32 columns."""
        emit, cut = self.emit, self.cut

        def of_part(part: Any, first: bool) -> None:
            def one(row: Any, column: Any, _: list[Any]) -> list[Any]:
                own = sums(row)
                self.multiply((row, column, group, part), None if first else own, own, lambda _: [])
                return []

            self.squares(span, group, one, [])

        if cut.parts > 1:
            of_part(i64(0), True)
            emit.loop(1, cut.parts - 1, 1, lambda part, _: of_part(part, False))

    def last_part(
        self, place: tuple[Any, Any, Any], early: Callable[[Any], Sums], ends: Sums, beside: Beside
    ) -> None:
        """The last part of a square, by row, column and group, or the only one."""
        begun = early(place[0]) if self.cut.parts > 1 else None
        self.multiply((*place, i64(self.cut.parts - 1)), begun, ends, beside)


def write_product(emit: Emit, cut: Cut, then: str, epsilon: float, buffers: Buffers) -> None:
    """The whole layer; see `panels.write_dense`."""
    norm = then == "norm"
    between = scratch(emit, cut.block(norm) * SIDE if cut.parts > 1 else LANES)
    own = Product(emit, cut, buffers, norm, between)
    if norm:
        _with_norms(own, epsilon)
    else:
        _with_activation(own, then)


def _with_activation(own: Product, then: str) -> None:
    """Squares go through a little room, two taking turns."""
    emit, cut = own.emit, own.cut
    between = scratch(emit, 2 * _SQUARE)
    rows = SIDE // cut.turns

    def half(parity: Any) -> Any:
        return emit.at(between, F32, emit.mul(parity, i64(_SQUARE)))

    def of_block(span: tuple[Any, Any], state: list[Any]) -> list[Any]:
        early = own.early_sums(span)

        def of_group(group: Any, state: list[Any]) -> list[Any]:
            def one(row: Any, column: Any, state: list[Any]) -> list[Any]:
                parity = emit.sub(i64(1), state[2])

                def beside(turn: Any) -> list[Callable[[], None]]:
                    first = emit.mul(turn, i64(rows))
                    return [partial(finish, state, emit.add(first, i64(r))) for r in range(rows)]

                own.last_part((row, column, group), early, Sums(half(parity), SIDE), beside)
                return [row, column, parity]

            own.early_parts(span, group, early)
            return own.squares(span, group, one, state)

        return emit.loop(0, cut.outputs, cut.group, of_group, state)

    def finish(state: list[Any], row: Any) -> None:
        _finish_row(own, then, half(state[2]), (state[0], state[1]), row)

    # The first square "finishes" what nobody multiplied, where its own numbers will be.
    state = own.blocks(of_block, [i64(0), i64(0), i64(0)])
    emit.loop(0, SIDE, 1, lambda row, _: finish(state, row))


def _finish_row(own: Product, then: str, sums: Any, square: tuple[Any, Any], row: Any) -> None:
    """Bias and activation of a row of a square, rounded.

    Without an activation a column of squares lies in one piece, `[outputs / 32, tokens, 32]`, as attention
    reads it; with one a row of squares does, as the next product reads it.
    """
    emit = own.emit
    values = []
    for at in range(0, SIDE, LANES):
        value = emit.vector(sums, F32, emit.add(emit.mul(row, i64(SIDE)), i64(at)))
        value = emit.fadd(value, emit.vector(own.buffers.inputs[2], F32, emit.add(square[1], i64(at))))
        if then == "gelu":
            value = rough.gelu(emit, value)
        elif then == "relu":
            value = emit.larger(constant(0.0), value)
        values.append(value)
    apart = (i64(own.cut.outputs), i64(SIDE)) if then else (i64(SIDE), own.buffers.leading)
    place = emit.add(emit.mul(square[0], apart[0]), emit.mul(square[1], apart[1]))
    place = emit.add(place, emit.mul(row, i64(SIDE)))
    rough.put_pair(emit, values, emit.at(own.buffers.outputs[0], BF16, place))


def _with_norms(own: Product, epsilon: float) -> None:
    """Blocks go through the room, and their norms are computed during the next block's product.

    Where the inputs have several parts, at once: their sums fill the first-level cache, and rows that pass
    through it would drive them out.
    """
    blocks = _NormedBlocks(own, epsilon, scratch(own.emit, 2 * own.cut.block(True)))
    zero = i64(0)
    waiting = own.blocks(blocks.block, [own.buffers.outputs[-1], zero, zero, zero])
    blocks.rest(waiting, zero)


@dataclass(frozen=True, slots=True)
class _NormedBlocks:
    """Bias, residual and norm; what waits for them: sums, the first row, how many, whose turn it was."""

    own: Product
    epsilon: float
    measured: Any

    def block(self, span: tuple[Any, Any], waiting: list[Any]) -> list[Any]:
        """A block's product and the norms of the one before; gives what then waits."""
        emit, cut = self.own.emit, self.own.cut
        turn = emit.sub(i64(1), waiting[3]) if cut.parts == 1 else i64(0)
        sums = emit.at(self.own.buffers.outputs[-1], F32, emit.mul(turn, i64(cut.block(True) * cut.outputs)))
        early = self.own.early_sums(span)

        def of_group(group: Any, counted: list[Any]) -> list[Any]:
            def one(row: Any, column: Any, counted: list[Any]) -> list[Any]:
                def beside(turn: Any) -> list[Callable[[], None]]:
                    return self.halves(waiting, emit.add(counted[0], turn)) if cut.parts == 1 else []

                place = emit.add(emit.mul(emit.sub(row, span[0]), i64(cut.outputs)), column)
                ends = Sums(emit.at(sums, F32, place), cut.outputs)
                self.own.last_part((row, column, group), early, ends, beside)
                return [emit.add(counted[0], i64(cut.turns))]

            self.own.early_parts(span, group, early)
            return self.own.squares(span, group, one, counted)

        done = emit.loop(0, cut.outputs, cut.group, of_group, [i64(0)])[0]
        made = [sums, span[0], emit.sub(span[1], span[0]), turn]
        if cut.parts == 1:
            self.rest(waiting, done)
            return made
        self.rest(made, i64(0))
        return [sums, span[0], i64(0), turn]

    def rest(self, waiting: list[Any], done: Any) -> None:
        """The rows that are still waiting."""
        emit = self.own.emit

        def one(index: Any, _: list[Any]) -> None:
            for half in self.halves(waiting, index):
                half()

        emit.loop(done, emit.add(waiting[2], i64(1)), 1, one)

    def halves(self, waiting: list[Any], index: Any) -> list[Callable[[], None]]:
        """A row is measured, and the one before it given; `waiting`: their sums, the first row, how many."""
        emit, size = self.own.emit, self.own.cut.outputs
        bias, residual, scale, shift = self.own.buffers.inputs[2:6]
        norm = Norm(size, self.epsilon, scale, shift, *self.own.buffers.outputs[:2])

        def row(index: Any) -> tuple[Callable[[Any], Any], Any]:
            sums = emit.at(waiting[0], F32, emit.mul(index, i64(size)))
            added = emit.at(residual, F32, emit.mul(emit.add(waiting[1], index), i64(size)))

            def value_of(column: Any) -> Any:
                value = emit.fadd(emit.vector(sums, F32, column), emit.vector(bias, F32, column))
                return emit.fadd(value, emit.vector(added, F32, column))

            return value_of, emit.at(self.measured, F32, emit.mul(index, i64(2)))

        def measured() -> None:
            with emit.if_then(emit.icmp_signed("<", index, waiting[2])):
                measure(emit, norm, *row(index))

        def given() -> None:
            before = emit.sub(index, i64(1))
            with emit.if_then(emit.icmp_unsigned("<", before, waiting[2])):
                give(emit, norm, *row(before), emit.add(waiting[1], before))

        return [given, measured]
