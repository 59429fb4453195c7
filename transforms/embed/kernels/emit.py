"""A small vocabulary over LLVM's IR: loops, vectors of 16 floats, exp and GELU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

LANES = 16
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
POINTER = ir.PointerType()
FLOATS = ir.VectorType(F32, LANES)
INTS = ir.VectorType(I32, LANES)


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BF16 = _BFloat()
BFLOATS = ir.VectorType(BF16, LANES)
_LOG2_E = 1.4426950408889634
_LEAST_EXPONENT = -126.0
_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the rounded integer in the low bits
# 2**f on [-0.5, 0.5], least squares of the relative error at Chebyshev nodes; it is 7.7e-8 at most.
_EXP2 = (1.00000007103, 0.69314694916, 0.24022121754, 0.05550742616, 0.00967545975, 0.00132669704)
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: erf with an error of 1.5e-7.
_ERF_P = 0.3275911
_ERF_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
EVERY_LANE = ir.Constant(I16, -1)
NO_EXCEPTIONS = ir.Constant(I32, 4)  # and rounding as the thread has it


def i64(value: int) -> ir.Constant:
    """A constant index."""
    return ir.Constant(I64, value)


class Emit(ir.IRBuilder):
    """LLVM's builder with loops and vectors."""

    def loop(
        self,
        start: Any,
        stop: Any,
        step: int,
        body: Callable[[Any, list[Any]], Sequence[Any] | None],
        carried: Sequence[Any] = (),
    ) -> list[Any]:
        """`for i in range(start, stop, step)`; the body takes and gives the carried values."""
        start, stop = (i64(bound) if isinstance(bound, int) else bound for bound in (start, stop))
        before = self.block
        head, inside, after = (self.append_basic_block(part) for part in ("head", "body", "after"))
        self.branch(head)
        self.position_at_end(head)
        index = self.phi(I64)
        index.add_incoming(start, before)
        values = [self.phi(value.type) for value in carried]
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        self.cbranch(self.icmp_signed("<", index, stop), inside, after)
        self.position_at_end(inside)
        made = body(index, list(values)) or ()
        index.add_incoming(self.add(index, i64(step)), self.block)
        for phi, value in zip(values, made, strict=True):
            phi.add_incoming(value, self.block)
        self.branch(head)
        self.position_at_end(after)
        return values

    def while_below(self, start: Any, stop: Any, goes_on: Callable[[Any], Any]) -> Any:
        """The first index from `start` on that doesn't go on; `stop` if all do."""
        before = self.block
        head, inside, after = (self.append_basic_block(part) for part in ("head", "asked", "after"))
        self.branch(head)
        self.position_at_end(head)
        index = self.phi(I64)
        index.add_incoming(start, before)
        self.cbranch(self.icmp_signed("<", index, stop), inside, after)
        self.position_at_end(inside)
        following = self.add(index, i64(1))
        index.add_incoming(following, self.block)
        self.cbranch(goes_on(index), head, after)
        self.position_at_end(after)
        return index

    def at(self, pointer: Any, element: Any, index: Any) -> Any:
        """The address of an element."""
        index = i64(index) if isinstance(index, int) else index
        return self.gep(pointer, [index], source_etype=element)

    def vector(self, pointer: Any, element: Any, index: Any) -> Any:
        """16 values from an index on, as floats."""
        kind = FLOATS if element is F32 else BFLOATS
        loaded = self.load(self.at(pointer, element, index), typ=kind, align=2)
        return loaded if element is F32 else self.fpext(loaded, FLOATS)

    def put(self, values: Any, pointer: Any, element: Any, index: Any) -> None:
        """Stores 16 floats as values of an element type."""
        values = values if element is F32 else self.fptrunc(values, BFLOATS)
        self.store(values, self.at(pointer, element, index), align=2)

    def number(self, pointer: Any, element: Any, index: Any) -> Any:
        """One value, as a float in each lane."""
        loaded = self.load(self.at(pointer, element, index), typ=element, align=2)
        return self.splat(loaded if element is F32 else self.fpext(loaded, F32))

    def splat(self, value: Any) -> Any:
        """One value in each lane."""
        kind = ir.VectorType(value.type, LANES)
        single = self.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        zeros = ir.Constant(INTS, [0] * LANES)
        return self.shuffle_vector(single, ir.Constant(kind, ir.Undefined), zeros)

    def fused(self, left: Any, right: Any, added: Any) -> Any:
        """`left * right + added`, rounded once."""
        return self.intrinsic("llvm.fma.v16f32", FLOATS, [left, right, added])

    def larger(self, left: Any, right: Any) -> Any:
        """The larger one of each lane."""
        return self.select(self.fcmp_ordered(">", left, right), left, right)

    def fetch(self, pointer: Any, level: int = 1) -> None:
        """Asks for a line of memory that will be read soon, into a level of the cache, at any address."""
        hints = [ir.Constant(I32, hint) for hint in (0, 4 - level, 1)]  # to read; how near; data
        self.intrinsic("llvm.prefetch.p0", ir.VoidType(), [pointer, *hints])

    def total(self, values: Any) -> Any:
        """The sum of the lanes."""
        return self._halved(values, self.fadd)

    def largest(self, values: Any) -> Any:
        """The largest lane."""
        return self._halved(values, self.larger)

    def _halved(self, values: Any, combine: Callable[[Any, Any], Any]) -> Any:
        width = LANES
        while width > 1:
            width //= 2
            lower, upper = (
                ir.Constant(ir.VectorType(I32, width), [base + lane for lane in range(width)])
                for base in (0, width)
            )
            values = combine(
                self.shuffle_vector(values, values, lower), self.shuffle_vector(values, values, upper)
            )
        return self.extract_element(values, ir.Constant(I32, 0))

    def intrinsic(self, name: str, gives: Any, arguments: Sequence[Any]) -> Any:
        module = self.module
        function = module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(gives, [argument.type for argument in arguments])
            function = ir.Function(module, kind, name)
        return self.call(function, arguments)

    def unit_root(self, value: Any) -> Any:
        """One over the square root of a float."""
        root = self.intrinsic("llvm.sqrt.f32", F32, [value])
        return self.fdiv(ir.Constant(F32, 1.0), root)

    def exp2(self, values: Any) -> Any:
        """Two to the power of values of at most 0, within 3e-7 of it; below -126 nearly zero."""
        values = self.larger(values, constant(_LEAST_EXPONENT))
        shifted = self.fadd(values, constant(_ROUND))
        rest = self.fsub(values, self.fsub(shifted, constant(_ROUND)))
        power = constant(_EXP2[-1])
        for coefficient in _EXP2[-2::-1]:
            power = self.fused(power, rest, constant(coefficient))
        exponent = self.shl(self.bitcast(shifted, INTS), ir.Constant(INTS, [23] * LANES))
        return self.bitcast(self.add(self.bitcast(power, INTS), exponent), FLOATS)

    def gelu(self, values: Any) -> Any:
        """`x * Phi(x)`, off by at most 3e-7 * |x|: the formula by 0.75e-7, float32 by the rest."""
        size = self.intrinsic("llvm.fabs.v16f32", FLOATS, [values])
        divisor = self.fused(size, constant(_ERF_P * 0.5**0.5), constant(1.0))
        near = self._reciprocal(divisor)
        tail = constant(_ERF_A[-1] / 2)
        for coefficient in _ERF_A[-2::-1]:
            tail = self.fused(tail, near, constant(coefficient / 2))
        squared = self.fmul(values, values)
        decay = self.exp2(self.fmul(squared, constant(-0.5 * _LOG2_E)))
        tail = self.fmul(self.fmul(tail, near), decay)
        positive = self.larger(values, constant(0.0))
        return self.fused(self.fneg(size), tail, positive)

    def _reciprocal(self, values: Any) -> Any:
        """One over values, refined once from the 14 bits that the CPU gives."""
        name = "llvm.x86.avx512.rcp14.ps.512"
        first = self.intrinsic(name, FLOATS, [values, constant(0.0), EVERY_LANE])
        error = self.fused(self.fneg(values), first, constant(1.0))
        return self.fused(first, error, first)


def constant(value: float) -> ir.Constant:
    """A float in each lane."""
    return ir.Constant(FLOATS, [value] * LANES)
