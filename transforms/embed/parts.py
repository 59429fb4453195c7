"""Into how many parts a model can be divided: whole heads, and equal shares of the rest. Imports no JAX."""

from __future__ import annotations

from schemas.errors import ModelError
from transforms.embed.bert_layout import BertArchitecture
from transforms.embed.families import Architecture

_MOST = 64


def check_parts(arch: Architecture, parts: int) -> None:
    """Refuses to cut a model into parts that its heads don't divide into.

    Raises:
        ModelError: names the number that is no multiple of `parts`, and what would be possible.
    """
    wrong = [f"{name} = {count}" for name, count in _counts(arch).items() if count % parts]
    if wrong:
        possible = ", ".join(map(str, possible_parts(arch)))
        raise ModelError(
            f"tensor_parallel = {parts}: the model has {', '.join(wrong)}, which {parts} devices can't "
            f"share evenly; possible: {possible}"
        )


def possible_parts(arch: Architecture) -> list[int]:
    """The numbers of devices that can share a copy, ascending, from 1."""
    counts = _counts(arch).values()
    return [parts for parts in range(1, _MOST + 1) if not any(count % parts for count in counts)]


def _counts(arch: Architecture) -> dict[str, int]:
    counts = {"num_attention_heads": arch.heads, "intermediate_size": arch.ffn_dim, "hidden_size": arch.dim}
    if not isinstance(arch, BertArchitecture):
        counts["num_key_value_heads"] = arch.kv_heads
    return counts
