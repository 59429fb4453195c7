"""Eight devices, in a process that is made to have them: each with the model, or several with one copy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import ConfigurationError, ModelError
from tests.transforms.embed.tiny_model import backend
from transforms.embed.device import find_devices
from transforms.embed.embedder import COMPANY_TOLERANCE, open_embedder
from transforms.embed.families import SUPPORTED_FAMILIES
from transforms.embed.model_files import describe_model

FAMILIES = Path(__file__).parent / "reference" / "families"
TEXTS = [
    "a",
    "the quick brown fox",
    "z" * 60,
    "",
    *(f"text {i} " * (i % 9 + 1) for i in range(60)),
    "w " * 300,
]

PROGRAM = """
import json, sys
from pathlib import Path
import jax, numpy as np
from schemas.backends import EmbedderBackend
from transforms.embed.embedder import open_embedder
from transforms.embed.device import find_devices
texts, jobs = json.loads(sys.argv[2]), json.loads(sys.argv[3])
for folder, parts, max_length in jobs:
    backend = EmbedderBackend(
        provider="jax",
        model_path=folder,
        compute_dtype="float32",
        tensor_parallel=parts,
        max_length=max_length,
    )
    embedder = open_embedder(backend, base_dir=Path("/"), cache_dir=Path(sys.argv[1]))
    made = embedder.embed(texts)
    program = next(iter(embedder._runner._compiled.values())).result()
    params, packed = program.input_shardings[0]
    layers = embedder._runner._params["layers"]
    leaves = jax.tree.leaves(layers)
    own = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
    print(json.dumps({
        "devices": find_devices(parts).count,
        "vectors": made.vectors.tolist(),
        "seconds": made.device_seconds.sum(),
        "measured": embedder.stats().device_seconds,
        "input": len(packed.device_set),
        "replicated": params["words"].is_fully_replicated,
        "split": not packed.is_fully_replicated,
        "layers": len(layers),
        "all_reduce": program.as_text().count(" all-reduce("),
        "all_gather": program.as_text().count(" all-gather("),
        "others": [c for c in ("all-to-all(", "collective-permute(") if c in program.as_text()],
        "share": own / sum(leaf.size for leaf in leaves),
    }))
"""


def on_eight_devices(cache: Path, texts: list[str], jobs: list[tuple[Path, int, int | None]]) -> list[dict]:
    done = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM, str(cache), json.dumps(texts)),
            json.dumps([(str(folder), parts, longest) for folder, parts, longest in jobs]),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_eight_devices_give_the_vectors_of_one_and_talk_to_each_other_about_nothing(
    tiny_folder: Path, cache_dir: Path, tmp_path: Path
):
    (found,) = on_eight_devices(tmp_path, TEXTS, [(tiny_folder, 1, None)])
    assert found["devices"] == found["input"] == 8
    assert found["replicated"]
    assert found["split"]
    assert (found["all_reduce"], found["all_gather"], found["others"]) == (0, 0, [])
    assert abs(found["seconds"] - found["measured"]) < 1e-9
    alone = open_embedder(backend(tiny_folder), base_dir=tiny_folder, cache_dir=cache_dir).embed(TEXTS)
    np.testing.assert_allclose(found["vectors"], alone.vectors, atol=COMPANY_TOLERANCE["float32"])


@pytest.mark.slow
def test_devices_that_share_a_model_give_the_vectors_of_one_with_two_sums_a_layer(
    cache_dir: Path, tmp_path: Path
):
    parts = {"qwen3": 2}  # it has two key heads, the others four
    jobs = [(FAMILIES / family, parts.get(family, 4), 64) for family in sorted(SUPPORTED_FAMILIES)]
    for (folder, shared, longest), found in zip(jobs, on_eight_devices(tmp_path, TEXTS, jobs), strict=True):
        chosen = backend(folder, max_length=longest)
        alone = open_embedder(chosen, base_dir=folder, cache_dir=cache_dir).embed(TEXTS)
        np.testing.assert_allclose(found["vectors"], alone.vectors, atol=COMPANY_TOLERANCE["float32"])
        assert found["all_reduce"] == 2 * found["layers"], folder
        assert (found["all_gather"], found["others"]) == (1, []), folder  # the embeddings of the tokens
        assert 1 / shared <= found["share"] < 1.2 / shared, folder
        assert found["devices"] == found["input"] == 8


@pytest.mark.parametrize(
    ("family", "parts", "message"),
    [
        ("bert", 3, "num_attention_heads = 4, hidden_size = 32, which 3 devices"),
        ("qwen3", 4, "num_key_value_heads = 2, which 4 devices can't share evenly; possible: 1, 2$"),
    ],
)
def test_a_model_whose_heads_do_not_divide_is_refused_before_anything_runs_with_what_would_be_possible(
    family: str, parts: int, message: str
):
    with pytest.raises(ModelError, match=message):
        describe_model(backend(FAMILIES / family, tensor_parallel=parts), FAMILIES)


def test_more_devices_for_a_model_than_the_host_has_are_refused(cache_dir: Path):
    chosen = backend(FAMILIES / "bert", tensor_parallel=2)
    assert find_devices().count == 1
    with pytest.raises(ConfigurationError, match=r"tensor_parallel = 2: this host has 1 device \(cpu\)"):
        open_embedder(chosen, base_dir=FAMILIES, cache_dir=cache_dir)
