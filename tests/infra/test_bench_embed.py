"""The race of embedders: what it says without a GPU, and its model of random weights."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.transforms.embed.tiny_model import backend, tiny_config, write_tiny_model
from transforms.embed.model_files import describe_model

BENCH = Path(__file__).parents[2] / "infra" / "bench" / "embed"


@pytest.mark.skipif("Path('/dev/nvidia0').exists()", reason="there is a GPU here")
def test_without_a_gpu_the_race_on_one_ends_with_a_plain_sentence():
    done = subprocess.run(
        [sys.executable, str(BENCH / "race.py"), "--device", "gpu"],
        capture_output=True,
        text=True,
        timeout=60,
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
