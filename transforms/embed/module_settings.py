"""What sentence-transformers' own module files say about a model: pooling, normalising, length, prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from schemas.errors import ModelError
from schemas.workload import Pooling
from transforms.embed.configuration import Configuration

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
DENSE_ACTIVATIONS = {"Tanh": "tanh", "Identity": "", "ReLU": "relu", "GELU": "gelu", "Sigmoid": "sigmoid"}
# Flags of 1_Pooling/config.json before sentence-transformers 6 named the mode in one key.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_CHAIN = re.compile(r"Transformer( Pooling( Dense)*( Normalize)?)?")
_QUERY = "query"


@dataclass(frozen=True, slots=True)
class DenseModule:
    """A linear layer behind the pooling, as sentence-transformers' Dense; `activation` may be empty."""

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True, slots=True)
class ModuleSettings:
    """How the model's authors run it; what a workload does not say is taken from here.

    Without modules.json they are what sentence-transformers does then: mean, not normalised.
    `pooling` is the mode's name as found, also where it is not supported: a workload may override it.
    `max_length` None: the files don't say. `prompt` is the one that stands before every text, and
    `prompts` all that the files name.
    """

    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    pools_prompt: bool = True
    dense: tuple[DenseModule, ...] = ()

    @property
    def query_prompt(self) -> str:
        """What stands before a query: the prompt called `query`, else that of every text."""
        return self.prompts.get(_QUERY, self.prompt)


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
        ModelError: the folder lists modules that we don't run (LSTM, ...), or in another order.
    """
    transformer = _optional(folder / "sentence_bert_config.json")
    texts = _optional(folder / "config_sentence_transformers.json")
    prompts = {str(name): str(prompt or "") for name, prompt in (texts.get("prompts") or {}).items()}
    modules = _modules(folder)
    pooling = read_object(modules["Pooling"][0] / "config.json") if "Pooling" in modules else {}
    return ModuleSettings(
        pooling=_pooling(pooling),
        normalize="Normalize" in modules,
        max_length=_length(transformer.get("max_seq_length"), folder),
        lowercase=bool(transformer.get("do_lower_case", False)),
        prompt=prompts.get(str(texts.get("default_prompt_name")), ""),
        prompts=prompts,
        pools_prompt=bool(pooling.get("include_prompt", True)),
        dense=tuple(_dense(path) for path in modules.get("Dense", ())),
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _length(value: object, folder: Path) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 2):
        return value
    path = folder / "sentence_bert_config.json"
    raise ModelError(f"{path}: max_seq_length = {value!r}; expected a whole number of at least 2")


def _modules(folder: Path) -> dict[str, list[Path]]:
    """Kind of module → folders of the modules of that kind, in order."""
    path = folder / "modules.json"
    if not path.exists():
        return {"Transformer": [folder]}
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise ModelError(f"{path}: expected a list of modules")
    names = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if not _CHAIN.fullmatch(" ".join(names)):
        raise ModelError(
            f"{path}: modules {' → '.join(names)} are not supported; supported: "
            "Transformer → Pooling → Normalize, the last ones optional, and Dense modules after the Pooling. "
            "Choose a model without further modules."
        )
    found: dict[str, list[Path]] = {}
    for name, module in zip(names, modules, strict=True):
        own = str(module.get("path", ""))
        if Path(own).name != own:  # a folder beside modules.json, never one elsewhere
            raise ModelError(f"{path}: {own!r} is no name of a folder beside it")
        found.setdefault(name, []).append(folder / own)
    return found


def _pooling(config: Mapping[str, Any]) -> str:
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        return mode if isinstance(mode, str) else "+".join(str(part) for part in mode)
    return "+".join(name for flag, name in _FLAGS.items() if config.get(flag)) or "mean"


def _dense(folder: Path) -> DenseModule:
    path = folder / "config.json"
    config = Configuration(read_object(path), path)
    config.off("use_residual")
    name = str(config.values.get("activation_function") or "Identity").rsplit(".", 1)[-1]
    config.require(name in DENSE_ACTIVATIONS, "activation_function", ", ".join(DENSE_ACTIVATIONS))
    return DenseModule(
        folder=folder,
        inputs=config.number("in_features"),
        outputs=config.number("out_features"),
        bias=config.flag("bias", True),
        activation=DENSE_ACTIVATIONS[name],
    )
