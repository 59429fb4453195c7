"""Every model family against sentence-transformers' vectors of a tiny random model; see reference/."""

import json
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import ModelError
from tests.transforms.embed.tiny_model import backend, write_json
from transforms.embed.bert_layout import relative_buckets
from transforms.embed.embedder import Embedder, open_embedder
from transforms.embed.families import SUPPORTED_FAMILIES
from transforms.embed.model_files import describe_model
from transforms.embed.outline import outline_model

REFERENCE = Path(__file__).parent / "reference"
FAMILIES = REFERENCE / "families"
TEXTS: list[str] = json.loads((REFERENCE / "families.json").read_text(encoding="utf-8"))["texts"]
POOLINGS = ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]


def reference(name: str) -> np.ndarray:
    with np.load(REFERENCE / "families.npz", allow_pickle=False) as vectors:
        return vectors[name]


def as_saved(family: str) -> np.ndarray:
    """The vectors of documents, with the prompt that the files have for them."""
    return reference("bert/document" if family == "bert" else family)


def opened(family: str, cache_dir: Path, **settings: object) -> Embedder:
    return open_embedder(backend(FAMILIES / family, **settings), base_dir=FAMILIES, cache_dir=cache_dir)


def model_copy(family: str, to: Path, **changes: object) -> Path:
    """A family's folder with a changed config.json; everything else is linked."""
    to.mkdir()
    for file in (FAMILIES / family).iterdir():
        (to / file.name).symlink_to(file)
    (to / "config.json").unlink()
    config = json.loads((FAMILIES / family / "config.json").read_text(encoding="utf-8"))
    write_json(to / "config.json", {**config, **changes})
    return to


@pytest.mark.parametrize("family", sorted(SUPPORTED_FAMILIES))
def test_every_supported_family_gives_the_vectors_of_sentence_transformers(family: str, cache_dir: Path):
    made = opened(family, cache_dir).embed(TEXTS)
    assert made.errors == {}
    np.testing.assert_allclose(made.vectors, as_saved(family), atol=2e-6)


@pytest.mark.parametrize("family", sorted(SUPPORTED_FAMILIES))
def test_every_family_stays_close_to_it_in_bfloat16(family: str, cache_dir: Path):
    made = opened(family, cache_dir, compute_dtype="bfloat16").embed(TEXTS).vectors
    cosines = (made * as_saved(family)).sum(1)
    assert cosines.min() > 0.999
    assert np.abs(made - as_saved(family)).max() > 1e-5


@pytest.mark.parametrize("family", sorted(SUPPORTED_FAMILIES))
def test_no_family_lets_a_text_see_its_neighbours(family: str, cache_dir: Path):
    embedder = opened(family, cache_dir)
    together = embedder.embed(TEXTS * 3).vectors
    for row in (1, 2, 7, 8):
        alone = embedder.embed([TEXTS[row]]).vectors[0]
        for place in (row, row + len(TEXTS), row + 2 * len(TEXTS)):
            np.testing.assert_allclose(together[place], alone, atol=2e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_gives_what_sentence_transformers_gives(pooling: str, cache_dir: Path):
    made = opened("bert", cache_dir, pooling=pooling, normalize=False, prefix="").embed(TEXTS)
    np.testing.assert_allclose(made.vectors, reference(f"bert/{pooling}"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "prompt"), [("bert", "query"), ("bert", "document"), ("qwen3", "query")])
def test_the_models_own_prompts_are_chosen_by_name(family: str, prompt: str, cache_dir: Path):
    made = opened(family, cache_dir, prompt_name=prompt).embed(TEXTS)
    np.testing.assert_allclose(made.vectors, reference(f"{family}/{prompt}"), atol=2e-6)


def test_a_prefix_of_ones_own_is_the_prompt_it_spells(cache_dir: Path):
    made = opened("bert", cache_dir, prefix="passage: ").embed(TEXTS)
    np.testing.assert_allclose(made.vectors, reference("bert/document"), atol=2e-6)


def test_a_query_takes_the_models_query_prompt_and_documents_the_one_for_documents(cache_dir: Path):
    embedder = opened("bert", cache_dir)
    np.testing.assert_allclose(embedder.embed(TEXTS).vectors, reference("bert/document"), atol=2e-6)
    queries = embedder.for_queries()
    assert queries.space is embedder.space
    np.testing.assert_allclose(queries.embed(TEXTS).vectors, reference("bert/query"), atol=2e-6)


def test_documents_have_no_prompt_where_the_workload_says_so(cache_dir: Path):
    made = opened("bert", cache_dir, prefix="").embed(TEXTS)
    np.testing.assert_allclose(made.vectors, reference("bert"), atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "document", "query"),
    [
        ({"prompts": {"query": "q: ", "passage": "p: "}}, "p: ", "q: "),
        ({"prompts": {"query": "q: ", "corpus": "c: ", "document": "d: "}}, "d: ", "q: "),
        ({"prompts": {"query": "q: "}}, "", "q: "),
        ({"prompts": {"topic": "t: "}, "default_prompt_name": "topic"}, "t: ", "t: "),
        ({"prompts": {"topic": "t: ", "document": None}, "default_prompt_name": "topic"}, "", "t: "),
        ({"default_prompt_name": "query"}, "", ""),
        ({}, "", ""),
    ],
)
def test_prompts_are_those_that_the_files_have_for_documents_and_queries(
    tmp_path: Path, settings: dict[str, object], document: str, query: str
):
    folder = model_copy("mpnet", tmp_path / "m")
    write_json(folder / "config_sentence_transformers.json", settings)
    found = describe_model(backend(folder), tmp_path)
    assert (found.prompt, found.query_prompt) == (document, query)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompts": ["query: "]}, r"prompts = \['query: '\]; expected names"),
        (
            {"prompts": {"a": "x"}, "default_prompt_name": "b"},
            "default_prompt_name = 'b', but the prompts are 'a'",
        ),
        ({"default_prompt_name": ["a"]}, r"default_prompt_name = \['a'\], but the prompts are none"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(tmp_path: Path, settings: dict[str, object], words: str):
    folder = model_copy("mpnet", tmp_path / "m")
    write_json(folder / "config_sentence_transformers.json", settings)
    with pytest.raises(ModelError, match=words) as refused:
        describe_model(backend(folder), tmp_path)
    assert str(folder / "config_sentence_transformers.json") in str(refused.value)


def test_a_query_prefix_of_the_workload_wins_over_the_models(cache_dir: Path):
    queries = opened("bert", cache_dir, query_prefix="passage: ").for_queries()
    np.testing.assert_allclose(queries.embed(TEXTS).vectors, reference("bert/document"), atol=2e-6)


def test_a_query_stays_as_it_is_when_its_prefix_is_empty(cache_dir: Path):
    queries = opened("bert", cache_dir, query_prefix="").for_queries()
    np.testing.assert_allclose(queries.embed(TEXTS).vectors, reference("bert"), atol=2e-6)


def test_the_query_prefix_is_no_part_of_the_documents_space(cache_dir: Path):
    plain = opened("bert", cache_dir).space
    assert opened("bert", cache_dir, query_prefix="q: ").space.fingerprint == plain.fingerprint
    assert opened("bert", cache_dir, prefix="q: ").space.fingerprint != plain.fingerprint


def test_an_unknown_prompt_is_refused_with_those_that_there_are():
    with pytest.raises(ModelError, match=r"prompt_name = 'title'.*'query', 'document'"):
        describe_model(backend(FAMILIES / "bert", prompt_name="title"), FAMILIES)
    with pytest.raises(ModelError, match=r"has the prompts none"):
        describe_model(backend(FAMILIES / "mpnet", prompt_name="query"), FAMILIES)


def test_a_prompt_that_the_pooling_leaves_out_is_refused(tmp_path: Path):
    folder = model_copy("bert", tmp_path / "m")
    (folder / "1_Pooling").unlink()
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False})
    assert describe_model(backend(folder, prefix="", query_prefix=""), tmp_path).prompt == ""
    for settings, prompt in (
        ({}, "passage: "),
        ({"prefix": ""}, "query: "),
        ({"query_prefix": ""}, "passage: "),
    ):
        with pytest.raises(ModelError, match=f"include_prompt = false.*'{prompt}'"):
            describe_model(backend(folder, **settings), tmp_path)


def test_dense_modules_make_the_vectors_as_long_as_they_say(cache_dir: Path):
    assert opened("roberta", cache_dir).dim == 20


def test_a_dense_module_of_another_width_is_refused(tmp_path: Path):
    folder = model_copy("roberta", tmp_path / "m")
    (folder / "3_Dense").unlink()
    write_json(folder / "3_Dense" / "config.json", {"in_features": 99, "out_features": 20})
    with pytest.raises(ModelError, match=r"in_features = 99, but 24 values come in"):
        describe_model(backend(folder), tmp_path)


def test_a_dense_modules_activation_must_be_known(tmp_path: Path):
    folder = model_copy("roberta", tmp_path / "m")
    (folder / "3_Dense").unlink()
    write_json(
        folder / "3_Dense" / "config.json",
        {"in_features": 24, "out_features": 20, "activation_function": "os.system"},
    )
    with pytest.raises(ModelError, match=r"activation_function = 'os.system'.*Tanh"):
        describe_model(backend(folder), tmp_path)


def dense_config(folder: Path, **settings: object) -> None:
    (folder / "3_Dense").unlink()
    weights = FAMILIES / "roberta" / "3_Dense" / "model.safetensors"
    write_json(folder / "3_Dense" / "config.json", {"in_features": 24, "out_features": 20, **settings})
    (folder / "3_Dense" / "model.safetensors").symlink_to(weights)


def test_a_dense_module_that_names_no_activation_has_the_one_that_sentence_transformers_takes(tmp_path: Path):
    folder = model_copy("roberta", tmp_path / "m")
    dense_config(folder)
    assert describe_model(backend(folder), tmp_path).dense[1][0].activation == "tanh"


def test_a_dense_module_of_another_value_than_the_texts_vector_is_refused(tmp_path: Path):
    folder = model_copy("roberta", tmp_path / "m")
    dense_config(folder, module_input_name="token_embeddings")
    with pytest.raises(ModelError, match=r"module_input_name = 'token_embeddings'.*sentence_embedding"):
        describe_model(backend(folder), tmp_path)


def test_a_normalising_of_tokens_is_refused(tmp_path: Path):
    folder = model_copy("mpnet", tmp_path / "m")
    write_json(folder / "2_Normalize" / "config.json", {"module_input_name": "token_embeddings"})
    with pytest.raises(ModelError, match=r"2_Normalize.*module_input_name = 'token_embeddings'"):
        describe_model(backend(folder), tmp_path)


def test_a_dropout_module_does_nothing_here(tmp_path: Path):
    folder = model_copy("roberta", tmp_path / "m")
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules.insert(2, {"type": "sentence_transformers.models.Dropout", "path": "2_Dropout"})
    (folder / "modules.json").unlink()
    write_json(folder / "modules.json", modules)
    assert len(describe_model(backend(folder), tmp_path).dense) == 2


def test_the_transformer_may_be_in_a_folder_of_its_own(tmp_path: Path, cache_dir: Path):
    """As early versions of sentence-transformers saved models."""
    folder = tmp_path / "m"
    model_copy("roberta", folder)
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "sentence_bert_config.json"):
        (folder / name).rename(folder / "0_Transformer" / name)
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").unlink()
    write_json(folder / "modules.json", modules)
    made = open_embedder(backend(folder), base_dir=tmp_path, cache_dir=cache_dir)
    assert made.space.max_length == 180
    np.testing.assert_allclose(made.embed(TEXTS).vectors, reference("roberta"), atol=2e-6)
    assert outline_model(backend(folder), tmp_path).max_length == 180


def test_a_module_outside_of_the_models_folder_is_refused(tmp_path: Path):
    folder = model_copy("roberta", tmp_path / "m")
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules[2]["path"] = "../2_Dense"
    (folder / "modules.json").unlink()
    write_json(folder / "modules.json", modules)
    with pytest.raises(ModelError, match=r"'../2_Dense' is no name of a folder"):
        describe_model(backend(folder), tmp_path)


def test_roberta_has_fewer_places_than_positions():
    assert describe_model(backend(FAMILIES / "roberta", max_length=200), FAMILIES).max_length == 200
    with pytest.raises(ModelError, match="max_length = 201"):
        describe_model(backend(FAMILIES / "roberta", max_length=201), FAMILIES)


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        ("qwen3", {"rope_scaling": {"factor": 4.0}}, "rope_scaling"),
        ("qwen3", {"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("qwen3", {"layer_types": [{}, []]}, "layer_types = [{}, []]"),
        ("qwen3", {"rope_parameters": 3}, "rope_parameters = 3"),
        ("modernbert", {"rope_parameters": [1]}, "rope_parameters = [1]"),
        ("qwen3", {"head_dim": 13}, "head_dim = 13"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types"),
        ("modernbert", {"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_theta": -1}}}, "global_rope_theta"),
        ("mpnet", {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets = 64"),
        ("roberta", {"pad_token_id": 0}, "pad_token_id = 0"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings = 2"),
        ("xlm-roberta", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_a_variant_of_a_family_that_is_not_supported_is_refused(
    tmp_path: Path, family: str, change: dict[str, object], words: str
):
    folder = model_copy(family, tmp_path / "m", **change)
    with pytest.raises(ModelError) as refused:
        describe_model(backend(folder), tmp_path)
    assert words in str(refused.value)
    assert str(folder / "config.json") in str(refused.value)


def test_modernberts_older_configuration_means_the_same(tmp_path: Path, cache_dir: Path):
    older = {"rope_parameters": None, "layer_types": None, "global_attn_every_n_layers": 3}
    folder = model_copy(
        "modernbert", tmp_path / "m", **older, global_rope_theta=160000.0, local_rope_theta=10000.0
    )
    made = open_embedder(backend(folder), base_dir=tmp_path, cache_dir=cache_dir).embed(TEXTS)
    np.testing.assert_allclose(made.vectors, reference("modernbert"), atol=2e-6)


def test_a_model_without_any_length_of_its_own_is_held_to_what_a_workload_may_ask(tmp_path: Path):
    folder = model_copy("qwen3", tmp_path / "m", max_position_embeddings=40960)
    (folder / "sentence_bert_config.json").unlink()
    assert describe_model(backend(folder), tmp_path).max_length == 8192


def test_near_positions_have_buckets_of_their_own_and_far_ones_share_the_last():
    assert relative_buckets(np.array([0, -1, -7, 1, 7])).tolist() == [0, 1, 7, 17, 23]
    assert len(set(relative_buckets(np.arange(-200, -128)).tolist())) == 1
    assert relative_buckets(np.array([-500, 500])).tolist() == [15, 31]
