"""How a platform computes what is the same on all of them. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DATA_AXIS, MODEL_AXIS = "data", "model"
"""Axes of the mesh: rows of a step are spread over the first, a layer's matrices over the second."""

Kernel = Literal["blocks", "head_by_head", "mosaic", "cudnn"]
"""How attention is computed, see `attention.attend`. Exact all of them, the same up to rounding."""

ACCELERATOR_SLOTS = 1 << 16
"""Tokens of an accelerator's full step: products of so many rows reach the peak of every chip."""

_CUDNN_WIDEST = 128
_AMPERE = 8.0  # first NVIDIA compute capability that cuDNN's fused attention runs on
_LANES = 128  # of a TPU's vector registers


@dataclass(frozen=True, slots=True)
class Execution:
    """The choices that a compiled step depends on besides the model and its shape.

    `token_tile` is how many tokens the dense part of a layer works on at a time (0: all), `parts` how
    many devices share one copy of the model. `interpret` runs a TPU's kernels without a TPU, slowly.
    """

    token_tile: int = 0
    kernel: Kernel = "blocks"
    parts: int = 1
    interpret: bool = False


PLAIN = Execution()


def choose_kernel(platform: str, dtype: str, head_width: int, capability: float | None = None) -> Kernel:
    """The fastest exact attention of a platform (`cpu`, `gpu` or `cuda`, `tpu`).

    Args:
        platform: as JAX names it.
        dtype: of the matrix products; the accelerators' kernels are for bfloat16, because they round
            float32 products.
        head_width: components of a head.
        capability: the compute capability of an NVIDIA GPU; None: unknown.
    """
    if platform == "cpu":
        return "head_by_head"
    if dtype != "bfloat16":
        return "blocks"
    if platform == "tpu":
        return "mosaic" if head_width % _LANES == 0 or _LANES % head_width == 0 else "blocks"
    # https://docs.nvidia.com/deeplearning/cudnn/: scaled dot product attention, its limits for bfloat16.
    takes = capability is not None and capability >= _AMPERE
    return "cudnn" if takes and head_width % 8 == 0 and head_width <= _CUDNN_WIDEST else "blocks"
