"""The model families that can be run, and what reads each of them. Imports no JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from schemas.errors import ModelError
from transforms.embed import bert_layout, rotary_layout
from transforms.embed.bert_layout import BertArchitecture
from transforms.embed.rotary_layout import RotaryArchitecture

Architecture = BertArchitecture | RotaryArchitecture
SUPPORTED_FAMILIES = {
    "bert": "BERT (MiniLM, BGE, E5, GTE and other models of BertModel)",
    "roberta": "RoBERTa (all-distilroberta and others)",
    "xlm-roberta": "XLM-R (multilingual E5, BGE-M3's dense vectors)",
    "mpnet": "MPNet (all-mpnet)",
    "modernbert": "ModernBERT (GTE and Nomic on ModernBERT)",
    "qwen3": "Qwen3 (Qwen3-Embedding)",
}


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's files become parameters; see the functions of the same names."""

    read_architecture: Callable[[Mapping[str, Any], Path], Any]
    find_prefix: Callable[[Mapping[str, Any]], str]
    expected_tensors: Callable[[Any, str], dict[str, tuple[int, ...]]]
    arrange: Callable[[Any, Mapping[str, np.ndarray], str], dict[str, Any]]


def _family(layout: ModuleType) -> Family:
    return Family(layout.read_architecture, layout.find_prefix, layout.expected_tensors, layout.arrange)


def family_of(config: Mapping[str, Any], path: Path) -> Family:
    """The family that a config.json names.

    Raises:
        ModelError: it is not supported; lists those that are.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in SUPPORTED_FAMILIES:
        raise ModelError(
            f"{path}: model_type = {kind!r} is not supported; supported: "
            + ", ".join(f"{key!r}: {what}" for key, what in SUPPORTED_FAMILIES.items())
            + ". Choose a model of a supported family."
        )
    return _family(rotary_layout if kind in ("modernbert", "qwen3") else bert_layout)


def architecture_settings(architecture: Architecture) -> dict[str, Any]:
    """What the digest of a model's settings covers: the fields without a default, and others that differ.

    So a field that is added with a default changes no digest of a model that doesn't use it.
    """
    return {
        field.name: getattr(architecture, field.name)
        for field in fields(architecture)
        if field.default is MISSING or getattr(architecture, field.name) != field.default
    }
