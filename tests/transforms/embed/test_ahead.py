"""Compiling for TPUs that are not here, with the TPU's own compiler (`make tpu` puts it in place)."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from schemas.errors import ConfigurationError
from tests.transforms.embed.test_device_plan import EIGHT_BILLION
from tests.transforms.embed.tiny_model import REAL_MODEL, backend, write_json
from transforms.embed.chips import GIB, read_topology
from transforms.embed.device_plan import Question, plan_devices
from transforms.embed.libtpu import TPU_ENVIRONMENT, Compile, compile_in_a_process, find_libtpu

pytestmark = [pytest.mark.slow, pytest.mark.peer]
large = pytest.mark.skipif(
    "SWITCHGEAR_LARGE_PLANS" not in os.environ, reason="half a CPU minute each: make plans"
)
V5E = Question((read_topology("v5e:2x2"),), (), 100.0, "given", date(2026, 11, 22))

KERNELS = """
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from transforms.embed.mosaic import mosaic_attention, takes_heads
from transforms.embed.sight import Heads, Sight
device = topologies.get_topology_desc(topology_name="v5e:2x2", platform="tpu").devices[0]
mesh = Mesh(np.array([device]), ("data",))
def given(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))
for heads, shared, width, length, sight, biased in [
    (12, 12, 32, 512, Sight(), False),
    (12, 12, 64, 384, Sight(), True),
    (12, 12, 64, 8192, Sight(window=64), False),
    (32, 8, 128, 512, Sight(causal=True), False),
]:
    mixed = given((2, length, (heads + 2 * shared) * width), jnp.bfloat16)
    def attend(mixed, segments, bias):
        places = (heads, 0), (shared, heads), (shared, heads + shared)
        parts = [Heads(mixed, count, width, first) for count, first in places]
        assert takes_heads(*parts)
        return mosaic_attention(*parts, segments, sight, bias if biased else None)
    spread = jax.shard_map(attend, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    bias = given((heads, length, length), jnp.float32)
    compiled = jax.jit(spread).lower(mixed, given((2, length), jnp.int32), bias).compile()
    assert "tpu_custom_call" in compiled.as_text()
    # Scores in the chip's main memory would be at least this large.
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * heads * length * length * 2
    print(heads, width, length)
"""


@pytest.fixture(scope="module")
def library() -> Path:
    try:
        return find_libtpu()
    except ConfigurationError:
        pytest.skip("libtpu is not installed: make tpu")


@pytest.fixture(scope="module")
def compiler(library: Path) -> Compile:
    return compile_in_a_process(library, lambda _: None)


def test_minilm_compiles_for_v5e_and_the_compiler_counts_the_operations_that_we_count(compiler: Compile):
    made = plan_devices("emb", backend(REAL_MODEL, compute_dtype="auto"), Path("/"), V5E, compiler)
    (step,) = made.steps
    assert (step.kernel, step.tokens, step.copies, step.refusal) == ("mosaic", 65536, 4, "")
    by_hand = 65536 * 6 * (2 * (4 * 384**2 + 2 * 384 * 1536) + 4 * 384 * 256)
    assert step.model_flops == by_hand
    assert step.flops == pytest.approx(by_hand, rel=0.02)
    # At least the weights, the answer, and what each layer must write and read once in bfloat16.
    assert step.bytes is not None
    assert step.bytes > 6 * 65536 * 2 * (3 * 384 + 384 + 384 + 1536)
    # Plain attention would need 256 rows x 12 heads x 256 x 256 scores of float32 alone: 0.75 GiB.
    assert 0.1 * GIB < step.needed < 0.6 * GIB
    assert step.bound is not None
    assert 0.5 < step.bound.memory_seconds / 0.0134 < 1.5


@large
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "copies"), [("v6e:2x2", 4), ("tpu7x:2x2x1", 8)])
def test_minilm_compiles_for_the_newer_chips_too(compiler: Compile, name: str, copies: int):
    topology = read_topology(name)
    question = replace(V5E, topologies=(topology,))
    made = plan_devices("emb", backend(REAL_MODEL, compute_dtype="auto"), Path("/"), question, compiler)
    (step,) = made.steps
    assert (step.kernel, step.tokens, step.copies, step.refusal) == ("mosaic", 65536, copies, "")
    assert step.flops == pytest.approx(step.model_flops, rel=0.05)
    assert 0.1 * GIB < step.needed < 1.5 * GIB
    assert 0.9 * topology.chip.device_memory < step.limit <= topology.chip.device_memory
    assert step.estimate is not None
    assert 0 < step.estimate.documents_per_second.low < step.estimate.documents_per_second.high


@large
@pytest.mark.parametrize(("parts", "tokens"), [(2, 16384), (8, 65536)])
@pytest.mark.timeout(1200)
def test_what_a_refusal_proposes_does_fit(compiler: Compile, tmp_path: Path, parts: int, tokens: int):
    write_json(tmp_path / "config.json", EIGHT_BILLION)
    question = replace(V5E, topologies=(read_topology("v5e:2x4"),))
    chosen = backend(
        tmp_path,
        **{"pooling": "lasttoken", "max_length": 512, "compute_dtype": "bfloat16"},
        tensor_parallel=parts,
        step_tokens=tokens,
    )
    (step,) = plan_devices("emb", chosen, tmp_path, question, compiler).steps
    assert (step.refusal, step.parts, step.copies) == ("", parts, 8 // parts)
    assert step.flops == pytest.approx(step.model_flops, rel=0.05)


def test_the_kernel_compiles_for_the_heads_of_every_family(library: Path):
    done = subprocess.run(
        [sys.executable, "-c", KERNELS],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=Path(__file__).parents[3],
        env={**os.environ, **TPU_ENVIRONMENT, "TPU_LIBRARY_PATH": str(library)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["12 32 512", "12 64 384", "12 64 8192", "32 128 512"]


def test_the_compilers_environment_stays_in_its_process(compiler: Compile):
    before = dict(os.environ)
    question = replace(V5E, topologies=(read_topology("v5e:9x9"),))
    with pytest.raises(ConfigurationError, match=r"the compiler died: .*v5e:9x9"):
        plan_devices("emb", backend(REAL_MODEL), Path("/"), question, compiler)
    assert dict(os.environ) == before
