"""A model of BGE-large's size with random weights: speed depends on sizes, not on what was learnt."""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from transforms.embed.bert_layout import expected_tensors, read_architecture

LARGE = "large"
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 30522,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def make_large_model(folder: Path, tokenizer_from: Path, config: dict[str, object] | None = None) -> Path:
    """The model's folder, made once; its tokenizer is another BERT model's. 0.7 GB in float16."""
    if (folder / "model.safetensors").exists():
        return folder
    values = CONFIG if config is None else config
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "2_Normalize").mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (tokenizer_from / name).exists():
            shutil.copyfile(tokenizer_from / name, folder / name)
    write(folder / "config.json", values)
    write(folder / "modules.json", MODULES)
    pooling = {"word_embedding_dimension": values["hidden_size"], "pooling_mode_cls_token": True}
    write(folder / "1_Pooling" / "config.json", {**pooling, "pooling_mode_mean_tokens": False})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False})
    rng = np.random.default_rng(0)
    architecture = read_architecture(values, folder / "config.json")
    tensors = {
        name: np.ones(shape, np.float16)
        if name.endswith("LayerNorm.weight")
        else (rng.standard_normal(shape, np.float32) * 0.02).astype(np.float16)
        for name, shape in expected_tensors(architecture, "").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write(path: Path, value: object) -> None:
    """A JSON file."""
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
