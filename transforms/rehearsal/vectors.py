"""Vectors of the embedding model that isn't there: of length one, and the same for the same text."""

from __future__ import annotations

from hashlib import shake_256

import numpy as np

_WORD_BYTES = 4
LARGEST = 16_384


def unit_vector(model: str, text: str, dimensions: int) -> np.ndarray:
    """[dimensions] float32 of length one, drawn from model and text alone.

    Two texts' vectors are as good as orthogonal: nothing is near anything.
    """
    drawn = shake_256(f"{model}\0{text}".encode("utf-8", "surrogatepass")).digest(_WORD_BYTES * dimensions)
    values = np.frombuffer(drawn, "<u4").astype(np.float64) - 2.0**31 + 0.5  # never all zero
    return (values / np.linalg.norm(values)).astype("<f4")
