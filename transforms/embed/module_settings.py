"""What sentence-transformers' own module files say about a model: pooling, normalising, length, prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from schemas.backends import Pooling
from schemas.errors import ModelError
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
_IDLE = "Dropout"  # does nothing but in training
_QUERY, _DOCUMENT = "query", ("document", "passage", "corpus")
# The transformer's settings, under the names that sentence-transformers looks for, in its order.
_TRANSFORMER = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_VECTOR, _STATES = "sentence_embedding", "token_embeddings"
LONGEST = 8192
"""Tokens at most where neither the workload nor the model's files say; also the workload's own limit."""


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
    `transformer` is the folder of the transformer itself, with its configuration, tokenizer and weights.
    `pooling` is the mode's name as found, also where it is not supported: a workload may override it.
    `max_length` None: the files don't say. `prompts` are all that the files name, `default_prompt` that of
    texts of no kind.
    """

    transformer: Path
    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    lowercase: bool = False
    default_prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    pools_prompt: bool = True
    dense: tuple[DenseModule, ...] = ()

    @property
    def document_prompt(self) -> str:
        """What stands before a document: the prompt `document`, `passage` or `corpus`, else the default."""
        named = (self.prompts[name] for name in _DOCUMENT if name in self.prompts)
        return next(named, self.default_prompt)

    @property
    def query_prompt(self) -> str:
        """What stands before a query: the prompt `query`, else the default."""
        return self.prompts.get(_QUERY, self.default_prompt)


def read_json(path: Path) -> Any:
    """The JSON of a model file; ModelError when it can't be read or parsed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{path}: {error.strerror or error}. The model's folder needs this file; copy it again."
        ) from error
    except (ValueError, RecursionError) as error:
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
        ModelError: the folder lists modules that we don't run (LSTM, ...), or in another order, or one of
            them works on something else than usual.
    """
    modules = _modules(folder)
    (transformer,) = modules["Transformer"]
    settings = _transformer_settings(transformer)
    prompts, default = _prompts(folder / "config_sentence_transformers.json")
    pooling = read_object(modules["Pooling"][0] / "config.json") if "Pooling" in modules else {}
    for path in modules.get("Normalize", ()):
        _check_names(Configuration(_optional(path / "config.json"), path / "config.json"))
    return ModuleSettings(
        transformer=transformer,
        pooling=_pooling(pooling),
        normalize="Normalize" in modules,
        max_length=_length(settings) or _tokenizers_length(transformer),
        lowercase=bool(settings.values.get("do_lower_case", False)),
        default_prompt=default,
        prompts=prompts,
        pools_prompt=bool(pooling.get("include_prompt", True)),
        dense=tuple(_dense(path) for path in modules.get("Dense", ())),
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _transformer_settings(folder: Path) -> Configuration:
    """The transformer's own settings, if any; refused where they ask for something else than its states."""
    path = next(
        (folder / name for name in _TRANSFORMER if (folder / name).exists()), folder / _TRANSFORMER[0]
    )
    settings = Configuration(_optional(path), path)
    for key, only in (("transformer_task", "feature-extraction"), ("module_output_name", _STATES)):
        settings.require(settings.values.get(key) in (None, only), key, only)
    settings.off("processing_kwargs")
    return settings


def _length(settings: Configuration) -> int | None:
    value = settings.values.get("max_seq_length")
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 2):
        return value
    raise ModelError(f"{settings.path}: max_seq_length = {value!r}; expected a whole number of at least 2")


def _tokenizers_length(folder: Path) -> int | None:
    """What the tokenizer's settings say, where sentence-transformers (6.2) keeps the length.

    Numbers that nobody can mean, such as 1e30, stand there for no limit.
    """
    value = _optional(folder / "tokenizer_config.json").get("model_max_length")
    if isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= LONGEST:
        return value
    return None


def _prompts(path: Path) -> tuple[dict[str, str], str]:
    """The prompts by their names, and the default one."""
    texts = _optional(path)
    found, default = texts.get("prompts") or {}, texts.get("default_prompt_name")
    if not isinstance(found, dict):
        raise ModelError(f"{path}: prompts = {found!r}; expected names with their prompts")
    prompts = {str(name): str(prompt or "") for name, prompt in found.items()}
    if default not in (None, _QUERY, _DOCUMENT[0], *prompts):  # those two there are always
        known = ", ".join(map(repr, prompts)) or "none"
        raise ModelError(f"{path}: default_prompt_name = {default!r}, but the prompts are {known}")
    return prompts, prompts.get(str(default), "")


def _modules(folder: Path) -> dict[str, list[Path]]:
    """Kind of module → folders of the modules of that kind, in order."""
    path = folder / "modules.json"
    if not path.exists():
        return {"Transformer": [folder]}
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise ModelError(f"{path}: expected a list of modules")
    kinds = ((str(module.get("type", "")).rsplit(".", 1)[-1], module) for module in modules)
    used = [(name, module) for name, module in kinds if name != _IDLE]
    names = [name for name, _ in used]
    if not _CHAIN.fullmatch(" ".join(names)):
        raise ModelError(
            f"{path}: modules {' → '.join(names)} are not supported; supported: "
            "Transformer → Pooling → Normalize, the last ones optional, and Dense modules after the Pooling. "
            "Choose a model without further modules."
        )
    found: dict[str, list[Path]] = {}
    for name, module in used:
        own = str(module.get("path", ""))
        if Path(own).name != own:  # a folder beside modules.json, never one elsewhere
            raise ModelError(f"{path}: {own!r} is no name of a folder beside it")
        found.setdefault(name, []).append(folder / own)
    return found


def _pooling(config: Mapping[str, Any]) -> str:
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        return "+".join(map(str, mode)) if isinstance(mode, list) else str(mode)
    return "+".join(name for flag, name in _FLAGS.items() if config.get(flag)) or "mean"


def _dense(folder: Path) -> DenseModule:
    path = folder / "config.json"
    config = Configuration(read_object(path), path)
    config.off("use_residual")
    _check_names(config)
    # Tanh is what sentence-transformers takes where the file says nothing.
    name = str(config.values.get("activation_function", "Tanh") or "Identity").rsplit(".", 1)[-1]
    config.require(name in DENSE_ACTIVATIONS, "activation_function", ", ".join(DENSE_ACTIVATIONS))
    return DenseModule(
        folder=folder,
        inputs=config.number("in_features"),
        outputs=config.number("out_features"),
        bias=config.flag("bias", True),
        activation=DENSE_ACTIVATIONS[name],
    )


def _check_names(config: Configuration) -> None:
    """Refuses a module behind the pooling that takes or gives something else than the text's vector."""
    for key in ("module_input_name", "module_output_name"):
        config.require(config.values.get(key) in (None, _VECTOR), key, _VECTOR)
