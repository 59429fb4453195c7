"""What attention over texts is in both precisions: its sizes, and rows turned to columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from transforms.embed.kernels.emit import I32, LANES, Emit
from transforms.embed.kernels.handler import PREFIX

KEYS = 32  # at a time
LOG2_E = 1.4426950408889634


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
        return f"{PREFIX}_attend_{dtype}_{self.count}x{self.width}_{self.longest}"

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
