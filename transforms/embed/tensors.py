"""A safetensors file: what is in it, whether it fits the model, its values. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors then reads
import numpy as np
from safetensors import SafetensorError, safe_open

from schemas.errors import ModelError

READABLE_DTYPES = ("F32", "F16", "BF16")
MAX_REPORTED = 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape and safetensors dtype of one tensor, from the file's header."""

    shape: tuple[int, ...]
    dtype: str


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, shapes and dtypes of the tensors of a file, without reading their values.

    Raises:
        ModelError: the file can't be opened, its header is truncated or damaged, or the sizes in
            the header don't add up to the size of the file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  no mapping
            return {n: TensorInfo(tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path}: not a whole safetensors file ({error}). "
            "Copy the file again from where it came from and compare its size and digest."
        ) from error


def check_tensors(
    path: Path, header: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Finds every expected tensor in the header, with the right shape; `path` is for the message.

    Raises:
        ModelError: lists each tensor that is missing, has another shape or an unreadable dtype.
    """
    problems = []
    for name, shape in expected.items():
        info = header.get(name)
        if info is None:
            problems.append(f"tensor {name} is missing; expected shape {list(shape)}")
        elif info.shape != shape:
            problems.append(f"tensor {name} has shape {list(info.shape)}; expected {list(shape)}")
        elif info.dtype not in READABLE_DTYPES:
            problems.append(f"tensor {name} has dtype {info.dtype}; readable: {', '.join(READABLE_DTYPES)}")
    if problems:
        more = [f"and {len(problems) - MAX_REPORTED} more"] if len(problems) > MAX_REPORTED else []
        listed = "\n".join(f"  {line}" for line in problems[:MAX_REPORTED] + more)
        raise ModelError(
            f"{path}: the weights don't fit config.json beside them\n{listed}\n"
            "Take config.json and model.safetensors from the same revision of the model."
        )


def read_tensors(path: Path, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The named tensors as float32 arrays, one after the other.

    Raises:
        ModelError: a value is NaN or infinite; says in which tensor and where.
    """
    with safe_open(path, framework="numpy") as file:
        for name in names:
            yield name, _finite(path, name, np.asarray(file.get_tensor(name), np.float32))


def _finite(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    # The sum of squares is finite only if every value is, and costs no array of flags; a float64
    # accumulator can't overflow from finite float32 values.
    if np.isfinite(np.einsum("i,i->", values.ravel(), values.ravel(), dtype=np.float64)):
        return values
    bad = int(np.count_nonzero(~np.isfinite(values)))
    first = [int(i) for i in np.argwhere(~np.isfinite(values))[0]]
    raise ModelError(
        f"{path}: tensor {name} has {bad} values that are NaN or infinite, the first at {first}. "
        "Every vector would be unusable; take an undamaged copy of the weights."
    )
