"""The encoder through the kernels, against the encoder in plain JAX; and what doesn't fit."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.transforms.embed.kernels.machines import needs_kernels
from transforms.embed import bert
from transforms.embed.bert_layout import BertArchitecture, arrange, expected_tensors
from transforms.embed.kernels.calls import SWITCH, encode, fits, pack_parameters

ARCH = BertArchitecture(
    vocab_size=50,
    dim=128,
    layers=2,
    heads=4,
    ffn_dim=256,
    positions=128,
    token_types=2,
    epsilon=1e-12,
    activation="gelu",
)


def parameters(arch: BertArchitecture) -> dict[str, object]:
    rng = np.random.default_rng(3)
    tensors = {
        name: rng.normal(float(name.endswith("LayerNorm.weight")), 0.1, shape).astype(np.float32)
        for name, shape in expected_tensors(arch, "").items()
    }
    return arrange(arch, tensors, "")


@needs_kernels
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize(("bfloat16", "tolerance"), [(False, 1e-5), (True, 0.06)])
def test_the_kernels_compute_what_plain_jax_computes(bfloat16: bool, tolerance: float, activation: str):
    arch = dataclasses.replace(ARCH, activation=activation)
    params = parameters(arch)
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, 50, (2, 128)).astype(np.int32)
    segments, positions = np.zeros((2, 2, 128), np.int32)
    for row, lengths in enumerate(([128], [5, 60, 41])):
        start = 0
        for number, length in enumerate(lengths, start=1):
            segments[row, start : start + length] = number
            positions[row, start : start + length] = np.arange(length)
            start += length
    exact = bert.encode(arch, params, tokens, positions, segments)
    packed = jax.tree.map(jax.numpy.asarray, pack_parameters(params, bfloat16))
    run = jax.jit(lambda *step: encode(arch, packed, *step))
    made = np.asarray(run(tokens, positions, segments))
    filled = segments > 0
    np.testing.assert_allclose(made[filled], np.asarray(exact)[filled], atol=tolerance)
    assert np.isfinite(made).all()


@needs_kernels
def test_what_fits_is_known_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch):
    changes = [
        {"dim": 96},
        {"ffn_dim": 96},
        {"heads": 16},
        {"activation": "gelu_new"},
        {"relative_buckets": 32},
    ]
    assert fits(ARCH, False)
    assert fits(ARCH, True)
    assert [fits(dataclasses.replace(ARCH, **change), False) for change in changes] == [False] * 5
    assert fits(dataclasses.replace(ARCH, heads=8), False)  # 16 wide: in float32 only
    assert not fits(dataclasses.replace(ARCH, heads=8), True)
    monkeypatch.setenv(SWITCH, "0")
    assert not fits(ARCH, False)


def test_a_cpu_without_the_instructions_runs_plain_jax():
    assert not fits(ARCH, False, flags=frozenset({"avx2"}))
    assert not fits(ARCH, True, flags=frozenset({"avx512f", "avx512bw", "avx512_bf16"}))


def test_a_step_that_is_no_whole_number_of_tiles_is_refused_before_it_is_computed():
    slots = np.zeros((1, 72), np.int32)
    with pytest.raises(ValueError, match="1 x 72 tokens; the kernels take whole multiples of 64"):
        encode(ARCH, pack_parameters(parameters(ARCH), False), slots, slots, slots)
