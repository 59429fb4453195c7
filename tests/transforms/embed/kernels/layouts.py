"""How the kernels in bfloat16 lay numbers out, and back."""

import numpy as np


def in_squares(values: np.ndarray) -> np.ndarray:
    """Squares of 32 tokens by 32 columns, a token's squares side by side; the same shape."""
    tokens, dim = values.shape
    return np.ascontiguousarray(values.reshape(tokens // 32, 32, dim // 32, 32).swapaxes(1, 2)).reshape(
        tokens, dim
    )


def from_squares(values: np.ndarray) -> np.ndarray:
    tokens, dim = values.shape
    return values.reshape(tokens // 32, dim // 32, 32, 32).swapaxes(1, 2).reshape(tokens, dim)


def in_columns(values: np.ndarray) -> np.ndarray:
    """32 columns of all tokens, one after the other; the same shape."""
    tokens, dim = values.shape
    return np.ascontiguousarray(values.reshape(tokens, dim // 32, 32).swapaxes(0, 1)).reshape(tokens, dim)


def from_columns(values: np.ndarray) -> np.ndarray:
    tokens, dim = values.shape
    return values.reshape(dim // 32, tokens, 32).swapaxes(0, 1).reshape(tokens, dim)
