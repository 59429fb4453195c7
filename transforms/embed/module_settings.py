"""What sentence-transformers' own module files say about a model: pooling, normalising, length, prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from schemas.errors import ModelError

Pooling = Literal["mean", "cls"]
POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls"}
# Flags of 1_Pooling/config.json before sentence-transformers 6 named the mode in one key.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_CHAIN = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, slots=True)
class ModuleSettings:
    """How the model's authors run it; what a workload does not say is taken from here.

    Without modules.json they are what sentence-transformers does then: mean, not normalised.
    `pooling` is the mode's name as found, also where it is not supported: a workload may override it.
    `max_length` None: the files don't say.
    """

    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ""


def read_json(path: Path) -> Any:
    """The JSON of a model file; ModelError when it can't be read or parsed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{path}: {error.strerror or error}. The model's folder needs this file; copy it again."
        ) from error
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error}). Copy the file again.") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a model file; ModelError when it holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds {type(value).__name__}; expected a JSON object")
    return value


def read_module_settings(folder: Path) -> ModuleSettings:
    """The settings in a model's folder, as sentence-transformers would honour them.

    Raises:
        ModelError: the folder lists modules that we don't run (Dense, LSTM, ...), or in another order.
    """
    transformer = _optional(folder / "sentence_bert_config.json")
    prompts = _optional(folder / "config_sentence_transformers.json")
    chosen = prompts.get("default_prompt_name")
    prompt = (prompts.get("prompts") or {}).get(chosen, "") if chosen else ""
    pooling, normalize = _modules(folder)
    return ModuleSettings(
        pooling=pooling,
        normalize=normalize,
        max_length=_length(transformer.get("max_seq_length"), folder),
        lowercase=bool(transformer.get("do_lower_case", False)),
        prompt=str(prompt or ""),
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _length(value: object, folder: Path) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 2):
        return value
    path = folder / "sentence_bert_config.json"
    raise ModelError(f"{path}: max_seq_length = {value!r}; expected a whole number of at least 2")


def _modules(folder: Path) -> tuple[str, bool]:
    path = folder / "modules.json"
    if not path.exists():
        return "mean", False
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise ModelError(f"{path}: expected a list of modules")
    names = tuple(str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules)
    if names not in (_CHAIN[:1], _CHAIN[:2], _CHAIN):
        raise ModelError(
            f"{path}: modules {' → '.join(names)} are not supported; supported: "
            f"{' → '.join(_CHAIN)}, the last ones optional. Choose a model without further modules."
        )
    pooling = _pooling(folder / str(modules[1].get("path", "")) / "config.json") if len(names) > 1 else "mean"
    return pooling, len(names) == len(_CHAIN)


def _pooling(path: Path) -> str:
    config = read_object(path)
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        return mode if isinstance(mode, str) else "+".join(str(part) for part in mode)
    return "+".join(name for flag, name in _FLAGS.items() if config.get(flag)) or "mean"
