"""Makes one tiny random model of every family, and sentence-transformers' own vectors of it.

In a virtual environment of its own (torch is no dependency of Switchgear):

    pip install sentence-transformers
    python make_families.py

Writes families/<name>/ (the model's folder, weights in float16) and families.npz beside itself. The
vectors are computed in float32 by sentence-transformers and transformers on torch, on the CPU.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
import transformers
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
FAMILIES = HERE / "families"
SEED = 20261122
MAX_LENGTH = 180
TEXTS = [
    "",
    "a",
    "The ledger is written before it is used.",
    "SELECT route, count(*) FROM results;",
    "Größe, naïve, Ελληνικά",
    "one two three four five six seven eight nine ten",
    "batch " * 12,
    "row and row and column " * 8,
    "long documents are cut where the model ends, " * 40,
]
POOLINGS = ("mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")
CORPUS = [*TEXTS, "query: passage: represent this sentence for searching relevant passages"] * 4


def word_piece(specials: list[str], start: str, end: str) -> Tokenizer:
    """Letters and their continuations, as BERT and MPNet have them."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;()*"
    pieces = [*specials, *letters, *(f"##{letter}" for letter in letters), "##ing", "the", "row", "batch"]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return finished(tokenizer, f"{start} $A {end}", [start, end])


def byte_level(specials: list[str], template: str, ends: list[str]) -> Tokenizer:
    """Byte-level BPE, as RoBERTa, ModernBERT and Qwen3 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return finished(tokenizer, template, ends)


def unigram(specials: list[str]) -> Tokenizer:
    """SentencePiece's unigrams with its mark of a word, as XLM-R has them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return finished(tokenizer, "<s> $A </s>", ["<s>", "</s>"])


def finished(tokenizer: Tokenizer, template: str, ends: list[str]) -> Tokenizer:
    """With its special tokens and what stands around a text."""
    ids = {token: tokenizer.token_to_id(token) for token in ends}
    tokenizer.add_special_tokens(list(ids))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=list(ids.items())
    )
    return tokenizer


ROBERTA = ["<s>", "<pad>", "</s>", "<unk>"]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 200,
}


def families() -> dict[str, dict[str, object]]:
    """Name → configuration, tokenizer, and how sentence-transformers is to run it."""
    c = transformers
    return {
        "bert": {
            "config": c.BertConfig(**SMALL),
            "tokenizer": word_piece(["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "[CLS]", "[SEP]"),
            "pooling": "cls",
            "prompts": {"query": "query: ", "document": "passage: "},
        },
        "roberta": {
            "config": c.RobertaConfig(
                **{**SMALL, "max_position_embeddings": 202}, type_vocab_size=1, pad_token_id=1
            ),
            "tokenizer": byte_level(ROBERTA, "<s> $A </s>", ["<s>", "</s>"]),
            "pooling": "mean",
            "dense": [(24, "torch.nn.modules.activation.Tanh"), (20, "torch.nn.modules.linear.Identity")],
        },
        "xlm-roberta": {
            "config": c.XLMRobertaConfig(
                **{**SMALL, "max_position_embeddings": 202}, type_vocab_size=1, pad_token_id=1
            ),
            "tokenizer": unigram(ROBERTA),
            "pooling": "mean",
        },
        "mpnet": {
            "config": c.MPNetConfig(**{**SMALL, "max_position_embeddings": 202}),
            "tokenizer": word_piece(["<s>", "<pad>", "</s>", "[UNK]"], "<s>", "</s>"),
            "pooling": "mean",
        },
        "modernbert": {
            "config": c.ModernBertConfig(
                **{**SMALL, "num_hidden_layers": 4},
                local_attention=16,
                pad_token_id=1,
                bos_token_id=0,
                cls_token_id=0,
                eos_token_id=2,
                sep_token_id=2,
            ),
            "tokenizer": byte_level(ROBERTA, "<s> $A </s>", ["<s>", "</s>"]),
            "pooling": "mean",
        },
        "qwen3": {
            "config": c.Qwen3Config(
                **SMALL,
                num_key_value_heads=2,
                head_dim=12,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                use_cache=False,
                tie_word_embeddings=True,
            ),
            "tokenizer": byte_level(["<|endoftext|>"], "$A <|endoftext|>", ["<|endoftext|>"]),
            "pooling": "lasttoken",
            "shards": 3,
            "prompts": {"query": "Instruct: find it\nQuery:", "document": ""},
        },
    }


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights that make every part of the model matter, rounded to float16."""
    for name, values in model.named_parameters():
        spread = 0.1 if values.ndim == 1 else 1.2 / values.shape[-1] ** 0.5
        random = torch.randn(values.shape, generator=generator) * spread
        is_scale = values.ndim == 1 and name.endswith("weight")
        values.data = (random + (1.0 if is_scale else 0.0)).half().float()


def write_json(path: Path, value: object) -> None:
    """Writes JSON, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def save_weights(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    """One file, or several and their index."""
    tensors = {name: values.half().contiguous() for name, values in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    index = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        own = {name: tensors[name] for name in names[shard::shards]}
        save_file(own, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(own, file))
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def save(name: str, what: dict[str, object]) -> Path:
    """The model's folder, as sentence-transformers saves it."""
    folder = FAMILIES / name
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(SEED)
    tokenizer: Tokenizer = what["tokenizer"]
    tokenizer.save(str(folder / "tokenizer.json"))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=tokenizer.id_to_token(what["config"].pad_token_id or 0),
        model_max_length=MAX_LENGTH,
    )
    config = what["config"]
    config.vocab_size = tokenizer.get_vocab_size()
    config.dtype = torch.float32
    extra = {"add_pooling_layer": False} if name != "modernbert" and name != "qwen3" else {}
    model = transformers.AutoModel.from_config(config, **extra)
    randomise(model, generator)
    config.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    save_weights(folder, model.state_dict(), what.get("shards", 1))
    kinds = ["Transformer", "Pooling"]
    dim = config.hidden_size
    write_json(
        folder / "1_Pooling" / "config.json", {"pooling_mode": what["pooling"], "embedding_dimension": dim}
    )
    for out, activation in what.get("dense", []):
        kinds.append("Dense")
        path = folder / f"{len(kinds) - 1}_Dense"
        settings = {"in_features": dim, "out_features": out, "bias": True, "activation_function": activation}
        write_json(path / "config.json", settings)
        layer = torch.nn.Linear(dim, out)
        randomise(layer, generator)
        save_weights(path, {f"linear.{key}": values for key, values in layer.state_dict().items()}, 1)
        dim = out
    kinds.append("Normalize")
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": MAX_LENGTH, "do_lower_case": False})
    if "prompts" in what:
        prompts = {"prompts": what["prompts"], "default_prompt_name": None, "similarity_fn_name": "cosine"}
        write_json(folder / "config_sentence_transformers.json", prompts)
    return folder


def main() -> None:
    """Writes the folders and the vectors."""
    shutil.rmtree(FAMILIES, ignore_errors=True)
    vectors = {}
    for name, what in families().items():
        folder = save(name, what)
        model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
        model.max_seq_length = MAX_LENGTH
        vectors[name] = model.encode(TEXTS, batch_size=4)
        for prompt in what.get("prompts", {}):
            vectors[f"{name}/{prompt}"] = model.encode(TEXTS, batch_size=4, prompt_name=prompt)
        if name == "bert":
            unscaled = SentenceTransformer(modules=[model[0], model[1]], device="cpu")
            for pooling in POOLINGS:
                model[1].pooling_mode = pooling
                vectors[f"{name}/{pooling}"] = unscaled.encode(TEXTS, batch_size=4)
        for extra in ("tokenizer_config.json", "special_tokens_map.json"):
            (folder / extra).unlink(missing_ok=True)
    np.savez_compressed(HERE / "families.npz", **{k: np.float32(v) for k, v in vectors.items()})
    write_json(HERE / "families.json", {"texts": TEXTS, "max_length": MAX_LENGTH})
    versions = {m.__name__: m.__version__ for m in (sentence_transformers, transformers, torch, np)}
    print(versions)


if __name__ == "__main__":
    main()
