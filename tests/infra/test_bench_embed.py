"""The race of embedders: what it says without a GPU, and its model of random weights."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.transforms.embed.tiny_model import backend, tiny_config, write_tiny_model
from transforms.embed.model_files import describe_model

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "infra" / "bench" / "embed"


@pytest.mark.skipif("Path('/dev/nvidia0').exists()", reason="there is a GPU here")
def test_without_a_gpu_the_race_on_one_ends_with_a_plain_sentence():
    done = subprocess.run(
        [sys.executable, str(BENCH / "race.py"), "--device", "gpu"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("bench-embed: no NVIDIA GPU is here (there is no /dev/nvidia0)")
    assert "--device cpu runs the same code here" in done.stderr


def test_the_model_of_random_weights_is_one_that_the_embedder_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(BENCH))
    from large_model import CONFIG, make_large_model

    small = {**CONFIG, **tiny_config()}
    tokenizer_from = write_tiny_model(tmp_path / "tokenizer")
    folder = make_large_model(tmp_path / "large", tokenizer_from, small)
    model = describe_model(backend(folder), tmp_path)
    assert (model.family, model.pooling, model.normalize, model.dim) == ("bert", "cls", True, 32)
    assert set(small) == set(CONFIG)
    before = (folder / "model.safetensors").read_bytes()
    assert make_large_model(tmp_path / "large", tokenizer_from, small) == folder
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("race")


def test_on_a_gpu_every_engine_has_the_same_card_and_leaves_memory_to_the_others(race: ModuleType):
    own = race.environment_of("switchgear-bfloat16", "gpu", {"CUDA_VISIBLE_DEVICES": "3,5"})
    assert (own["CUDA_VISIBLE_DEVICES"], own["XLA_PYTHON_CLIENT_PREALLOCATE"]) == ("3", "false")
    assert own["JAX_PLATFORMS"] == "cuda"
    peer = race.environment_of("st-torch-bfloat16", "gpu", {})
    assert (peer["CUDA_VISIBLE_DEVICES"], peer["PYTHONPATH"]) == ("0", "")
    assert race.environment_of("st-torch-bfloat16", "cpu", {}).keys() == {"PYTHONPATH", "JAX_PLATFORMS"}


def test_utilisation_counts_what_the_model_needs_for_its_texts_and_no_padding(
    race: ModuleType, tmp_path: Path
):
    folder = write_tiny_model(tmp_path / "model")
    # Two layers of 32 and 64: twice the weights of a layer a token, and two products of attention.
    by_hand = sum(2 * n * (2 * (4 * 32 * 32 + 2 * 32 * 64) + 4 * n * 32) for n in (3, 70))
    assert race.model_flops(folder, np.array([3.0, 70.0])) == by_hand


def test_texts_of_the_race_are_skewed_or_all_of_one_length(race: ModuleType):
    skewed = [len(text.split()) for text in race.documents(300)]
    assert (min(skewed), max(skewed) > 300, 40 < float(np.median(skewed)) < 50) == (3, True, True)
    assert {len(text.split()) for text in race.documents(20, length_of_all=512)} == {512}


def engine(model: Path, cache: Path, device: str) -> subprocess.Popen[str]:
    """Our own engine's process, as the race starts it."""
    arguments = ["switchgear-float32", str(model), str(cache), "64", "1", device]
    return subprocess.Popen(
        [sys.executable, str(BENCH / "engine.py"), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )


def test_our_engine_answers_with_vectors_and_what_they_took(tmp_path: Path):
    model = write_tiny_model(tmp_path / "model")
    (tmp_path / "texts.json").write_text(json.dumps(["a b", "c"]), encoding="utf-8")
    job = json.dumps([str(tmp_path / "texts.json"), str(tmp_path / "v.npy")])
    out, log = engine(model, tmp_path / "cache", "cpu").communicate(job + "\n", timeout=120)
    ready, answer = map(json.loads, out.splitlines())
    assert ready == {"ready": "switchgear-float32", "how": ""}, log
    assert answer.keys() == {"seconds", "cpu_seconds", "peak_mb"}
    np.testing.assert_allclose(np.linalg.norm(np.load(tmp_path / "v.npy"), axis=1), [1, 1], atol=1e-6)


def test_our_engine_refuses_a_cpu_where_a_gpu_was_asked_for(tmp_path: Path):
    model = write_tiny_model(tmp_path / "model")
    out, log = engine(model, tmp_path / "cache", "gpu").communicate("", timeout=120)
    assert out == ""
    assert log.splitlines()[-1] == "asked for gpu, and JAX found cpu"
