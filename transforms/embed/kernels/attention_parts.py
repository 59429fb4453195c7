"""What attention over texts is made of: its sizes, where a text's parts lie, masks and weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from transforms.embed.kernels.emit import I32, LANES, Emit, constant, i64

KEYS = 32  # at a time
QUERIES = {False: 8, True: 16}  # at a time, in float32 and in bfloat16
LEAST = -3e38
"""Below every score."""
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention's kernel: heads, their width, and the longest text that it has room for."""

    count: int
    width: int
    longest: int
    bfloat16: bool

    @property
    def name(self) -> str:
        """The target's name."""
        dtype = "bf16" if self.bfloat16 else "f32"
        return f"switchgear_attend_{dtype}_{self.count}x{self.width}_{self.longest}"

    @property
    def dim(self) -> int:
        """Of all heads."""
        return self.count * self.width

    @property
    def keys(self) -> int:
        """Keys that there is room for: whole blocks, and a little more.

        Rows that are a power of two apart would share the same few lines of the first-level cache.
        """
        return -(-self.longest // KEYS) * KEYS + LANES

    @property
    def room(self) -> int:
        """Floats of scratch memory: keys, values, queries, scores and weights of one head."""
        return self.keys * (2 * self.width + 2 * QUERIES[self.bfloat16]) + 2 * LANES * self.width


@dataclass(frozen=True, slots=True)
class Text:
    """One text and head: where they begin in query, key, value and output; parts of the scratch."""

    tokens: Any
    padded: Any  # tokens, rounded up to whole blocks of keys
    query: Any
    key: Any
    value: Any
    output: Any
    turned: Any
    packed: Any
    queries: Any
    scores: Any
    weights: Any


def row_of(emit: Emit, heads: Heads, text: Text, index: Any, stride: int = 3) -> Any:
    """Where a token's row begins; the last token's for those behind it."""
    last = emit.sub(text.tokens, i64(1))
    index = emit.select(emit.icmp_signed("<", index, last), index, last)
    return emit.mul(index, i64(stride * heads.dim))


def transposed(emit: Emit, rows: list[Any]) -> list[Any]:
    """16 vectors of 16 lanes, rows for columns."""
    low, high = (
        ir.Constant(ir.VectorType(I32, LANES), [start + i // 2 + LANES * (i % 2) for i in range(LANES)])
        for start in (0, LANES // 2)
    )
    for _ in range(4):
        pairs = [(rows[i], rows[i + LANES // 2]) for i in range(LANES // 2)]
        rows = [emit.shuffle_vector(*pair, half) for pair in pairs for half in (low, high)]
    return rows


def weights_of(emit: Emit, text: Text, start: Any, scores: Any, peak: Any) -> Any:
    """`exp(scores - peak)` for 16 keys from `start` on, 0 where there is no key.

    Behind a text's last key stands that key again, so scores need no mask before: their largest is right.
    """
    weights = emit.exp2(emit.fmul(emit.fsub(scores, peak), constant(_LOG2_E)))
    first = emit.splat(emit.trunc(start, I32))
    lanes = ir.Constant(ir.VectorType(I32, LANES), list(range(LANES)))
    tokens = emit.splat(emit.trunc(text.tokens, I32))
    return emit.select(emit.icmp_signed("<", emit.add(first, lanes), tokens), weights, constant(0.0))
