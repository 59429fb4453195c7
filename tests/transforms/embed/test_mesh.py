"""Data-parallel over eight devices, in a process that is made to have them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.transforms.embed.tiny_model import backend
from transforms.embed.embedder import COMPANY_TOLERANCE, open_embedder

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
import jax
from schemas.workload import EmbedderBackend
from transforms.embed.embedder import open_embedder
from transforms.embed.device import find_devices
texts = json.loads(sys.argv[3])
backend = EmbedderBackend(provider="jax", model_path=sys.argv[1], compute_dtype="float32")
embedder = open_embedder(backend, base_dir=Path("/"), cache_dir=Path(sys.argv[2]))
made = embedder.embed(texts)
program = next(iter(embedder._runner._compiled.values())).result()
print(json.dumps({
    "devices": find_devices().count,
    "vectors": made.vectors.tolist(),
    "seconds": made.device_seconds.sum(),
    "measured": embedder.stats().device_seconds,
    "input": len(program.input_shardings[0][1].device_set),
    "replicated": program.input_shardings[0][0]["words"].is_fully_replicated,
    "split": not program.input_shardings[0][1].is_fully_replicated,
    "collectives": [c for c in ("all-reduce", "all-gather", "all-to-all") if c in program.as_text()],
}))
"""


def test_eight_devices_give_the_vectors_of_one_and_talk_to_each_other_about_nothing(
    tiny_folder: Path, cache_dir: Path, tmp_path: Path
):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_folder), str(tmp_path), json.dumps(TEXTS)],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == found["input"] == 8
    assert found["replicated"]
    assert found["split"]
    assert found["collectives"] == []
    assert abs(found["seconds"] - found["measured"]) < 1e-9
    alone = open_embedder(backend(tiny_folder), base_dir=tiny_folder, cache_dir=cache_dir).embed(TEXTS)
    np.testing.assert_allclose(found["vectors"], alone.vectors, atol=COMPANY_TOLERANCE["float32"])
