"""Every vector is its own text's, whatever stands around it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from schemas.lengths import TextLengths
from tests.transforms.embed.tiny_model import backend, tiny_tensors, tiny_tokenizer
from transforms.embed.embedder import COMPANY_TOLERANCE, SAMPLE, Embedder, open_embedder
from transforms.embed.packing import Step, plan_steps
from transforms.embed.runner import STEADY_STEPS

TOLERANCE = COMPANY_TOLERANCE["float32"]
POOL = [
    "a",
    "b",
    "",
    "   ",
    "the quick brown fox",
    "z" * 60,
    "z" * 61,
    "w " * 45,
    "w " * 300,
    "漢字" * 20,
    "😀",
    "\x00\x07",
    "مرحبا",
    "\u202eabc",
    "one, two. three!",
    *("abcdefghij"[:n] for n in range(2, 10)),
]
BROKEN = "broken \ud83d"


@pytest.fixture(scope="module")
def alone(tiny: Embedder) -> dict[str, np.ndarray]:
    """Each text's vector when nothing else is embedded with it."""
    return {text: tiny.embed([text]).vectors[0] for text in POOL}


@settings(max_examples=120, deadline=None)
@given(st.lists(st.sampled_from([*POOL, BROKEN]), max_size=60))
def test_every_vector_is_its_own_texts_whatever_is_permuted_doubled_dropped_or_broken(
    tiny: Embedder, alone: dict[str, np.ndarray], texts: list[str]
):
    made = tiny.embed(texts)
    assert sorted(made.errors) == [row for row, text in enumerate(texts) if text == BROKEN]
    for row, text in enumerate(texts):
        expected = np.zeros(tiny.dim) if text == BROKEN else alone[text]
        np.testing.assert_allclose(made.vectors[row], expected, atol=TOLERANCE, err_msg=repr(text))


def test_the_texts_of_the_property_have_vectors_that_can_be_told_apart(alone: dict[str, np.ndarray]):
    same = [{"", "   ", "\x00\x07"}, {"😀", "مرحبا"}, {"\u202eabc", "abc"}]  # equal tokens
    texts = [text for text in POOL if not any(text in group for group in same)]
    vectors = np.array([alone[text] for text in texts])
    distances = np.abs(vectors[:, None] - vectors[None]).max(-1) + np.eye(len(texts))
    assert distances.min() > 100 * TOLERANCE


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*POOL, BROKEN]), max_size=12), max_size=8))
def test_batches_that_share_steps_get_their_own_rows_back_in_order(
    tiny: Embedder, alone: dict[str, np.ndarray], groups: list[list[str]]
):
    made = tiny.embed_groups(groups)
    assert [len(part.vectors) for part in made] == [len(group) for group in groups]
    for part, group in zip(made, groups, strict=True):
        assert sorted(part.errors) == [row for row, text in enumerate(group) if text == BROKEN]
        for row, text in enumerate(group):
            expected = np.zeros(tiny.dim) if text == BROKEN else alone[text]
            np.testing.assert_allclose(part.vectors[row], expected, atol=TOLERANCE)


def test_batches_share_steps_so_that_small_ones_cost_no_step_each(tiny: Embedder):
    before = tiny.stats().steps
    tiny.embed_groups([["a b c"]] * 50)
    assert tiny.stats().steps - before == 1


def test_real_weights_keep_to_the_stated_tolerance_too(minilm: Embedder):
    texts = [text * times for text in POOL if len(text) < 100 for times in (1, 2, 3)]
    order = np.random.default_rng(1).permutation(len(texts))
    together = minilm.embed(texts).vectors
    shuffled = minilm.embed([texts[i] for i in order[:40]]).vectors
    np.testing.assert_allclose(shuffled, together[order[:40]], atol=TOLERANCE)


def test_bfloat16_keeps_to_its_own_wider_tolerance(tiny_folder: Path, cache_dir: Path):
    chosen = backend(tiny_folder, compute_dtype="bfloat16")
    embedder = open_embedder(chosen, base_dir=tiny_folder, cache_dir=cache_dir)
    together = embedder.embed(POOL).vectors
    for row, text in enumerate(POOL):
        apart = embedder.embed([text]).vectors[0]
        np.testing.assert_allclose(apart, together[row], atol=COMPANY_TOLERANCE["bfloat16"])


def test_token_counts_and_truncation_belong_to_their_rows(tiny: Embedder):
    made = tiny.embed(["a", BROKEN, "w " * 300, "", "a b c"])
    assert made.token_counts.tolist() == [3, 0, 100, 2, 5]
    assert made.token_counts.dtype == np.int32
    assert made.truncated.tolist() == [False, False, True, False, False]


def test_device_seconds_are_shared_by_tokens_and_add_up_to_what_was_measured(tiny: Embedder):
    before = tiny.stats().device_seconds
    made = tiny.embed(["a", "a b c d e f g h", BROKEN, "w " * 90])
    measured = tiny.stats().device_seconds - before
    assert made.device_seconds.sum() == pytest.approx(measured, rel=1e-9)
    assert made.device_seconds[2] == 0
    assert (made.device_seconds[[0, 1, 3]] > 0).all()


def test_two_models_at_work_at_the_same_time_are_not_both_charged_for_it(
    tiny: Embedder, tiny_folder: Path, cache_dir: Path
):
    other = open_embedder(
        backend(tiny_folder, pooling="cls", max_length=90), base_dir=tiny_folder, cache_dir=cache_dir
    )
    texts = ["some words to be embedded"] * 400
    for embedder in (tiny, other):  # compiled before the clock is looked at
        embedder.embed(texts)
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(lambda embedder: embedder.embed(texts), [tiny, other] * 4))
    elapsed = time.perf_counter() - started
    charged = sum(float(each.device_seconds.sum()) for each in made)
    assert 0 < charged <= elapsed


def test_texts_of_one_step_pay_in_proportion_to_their_tokens(tiny: Embedder):
    made = tiny.embed(["a", "a b c d"])
    assert made.device_seconds[1] / made.device_seconds[0] == pytest.approx(6 / 3)


def test_compiling_is_counted_and_is_no_device_time(tiny_model: Path, tmp_path: Path):
    embedder = open_embedder(backend(tiny_model), base_dir=tiny_model, cache_dir=tmp_path / "fresh")
    assert embedder.stats().compilations == 0
    embedder.embed(["a"])
    first = embedder.stats()
    assert first.compilations == 1
    assert first.compile_seconds > first.device_seconds > 0
    embedder.embed(["b"] * 100)
    assert (embedder.stats().compilations, embedder.stats().late_compilations) == (1, 0)


def test_compiling_after_the_first_step_is_counted_as_late(tiny_model: Path, tmp_path: Path):
    embedder = open_embedder(backend(tiny_model), base_dir=tiny_model, cache_dir=tmp_path / "late")
    embedder.embed(["a"])
    embedder.embed(["w " * 90])
    assert (embedder.stats().compilations, embedder.stats().late_compilations) == (2, 1)


def test_compiling_in_steady_state_is_warned_of(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    embedder = open_embedder(backend(tiny_model), base_dir=tiny_model, cache_dir=tmp_path / "steady")
    embedder.embed(["a"])
    embedder.embed(["w " * 90])
    assert "steady state" not in caplog.text
    settled = backend(tiny_model, pooling="cls")
    embedder = open_embedder(settled, base_dir=tiny_model, cache_dir=tmp_path / "steady")
    while embedder.stats().steps < STEADY_STEPS:
        embedder.embed(["a"] * (SAMPLE - 1))  # too few to choose the run's shapes by
    embedder.embed(["w " * 90])
    assert f"after {embedder.stats().steps - 1} steps, in steady state" in caplog.text


def test_a_run_that_begins_with_a_sample_compiles_all_its_shapes_before_the_first_step(
    tiny_model: Path, tmp_path: Path
):
    embedder = open_embedder(backend(tiny_model), base_dir=tiny_model, cache_dir=tmp_path / "sampled")
    embedder.embed(["a"] * SAMPLE)
    begun = embedder.stats()
    assert begun.warm_up_seconds > 0
    embedder.embed(["w " * 90])
    embedder.embed(["w " * 40] * 20)
    after = embedder.stats()
    assert (after.compilations, after.late_compilations) == (begun.compilations, 0)
    assert after.warm_up_seconds == begun.warm_up_seconds


def test_an_embedder_that_knows_its_run_s_lengths_compiles_before_the_first_text_and_never_again(
    tiny_model: Path, tmp_path: Path
):
    """Whatever comes first: so every process of a run, and every resume, compiles the same programs."""
    lengths = TextLengths.of({20: 300, 90: 100}, 400, 100_000)
    open_ = partial(open_embedder, backend(tiny_model), base_dir=tiny_model, lengths=lengths)
    used = []
    for first, cache in (["w " * 90] * SAMPLE, "one"), (["a"], "other"):
        embedder = open_(cache_dir=tmp_path / cache)
        opened = embedder.stats()
        assert opened.compilations > 1
        embedder.embed(first)
        embedder.embed(["w " * 40] * (2 * SAMPLE))
        after = embedder.stats()
        assert (after.compilations, after.late_compilations) == (opened.compilations, 0)
        assert after.warm_up_seconds == opened.warm_up_seconds
        used.append(embedder._shapes)
        assert open_(cache_dir=tmp_path / cache) is embedder
    assert used[0] == used[1]


def test_stats_count_texts_tokens_and_slots(tiny: Embedder):
    before = tiny.stats()
    tiny.embed(["a", "a b c"])
    after = tiny.stats()
    assert after.texts - before.texts == 2
    assert after.tokens - before.tokens == 8
    assert after.slots - before.slots == 1024
    assert 0 < after.filled < 1


def test_nothing_to_embed_is_fine(tiny: Embedder):
    made = tiny.embed([])
    assert made.vectors.shape == (0, 32)
    assert tiny.embed_groups([]) == []
    only_errors = tiny.embed([BROKEN])
    assert only_errors.vectors.tolist() == [[0.0] * 32]
    assert list(only_errors.errors) == [0]


def test_many_threads_get_their_own_vectors(tiny: Embedder, alone: dict[str, np.ndarray]):
    failed: list[object] = []
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        start.wait()
        for _ in range(5):
            texts = [POOL[i] for i in rng.integers(0, len(POOL), 30)]
            made = tiny.embed(texts).vectors
            if not np.allclose(made, [alone[text] for text in texts], atol=TOLERANCE):
                failed.append(texts)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_one_process_opens_a_backend_once_whatever_it_costs(
    tiny_folder: Path, cache_dir: Path, tiny: Embedder
):
    found: list[Embedder] = []

    def open_again(price: str) -> None:
        chosen = backend(tiny_folder, price_per_device_hour=price, device_watts=(5.0, 9.0))
        found.append(open_embedder(chosen, base_dir=tiny_folder, cache_dir=cache_dir))

    threads = [threading.Thread(target=open_again, args=(price,)) for price in ("1", "2", "3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(embedder is tiny for embedder in found)


def test_a_model_that_was_replaced_in_its_folder_is_opened_again(tiny_model: Path, cache_dir: Path):
    before = open_embedder(backend(tiny_model), base_dir=tiny_model, cache_dir=cache_dir)
    save_file(tiny_tensors(seed=1), tiny_model / "model.safetensors")
    after = open_embedder(backend(tiny_model), base_dir=tiny_model, cache_dir=cache_dir)
    assert after.space.weights_sha256 != before.space.weights_sha256
    assert np.abs(after.embed(["a text"]).vectors - before.embed(["a text"]).vectors).max() > 0.01


def test_float16_vectors_are_the_float32_ones_rounded(tiny_folder: Path, cache_dir: Path, tiny: Embedder):
    chosen = backend(tiny_folder, output_dtype="float16")
    made = open_embedder(chosen, base_dir=tiny_folder, cache_dir=cache_dir).embed(POOL).vectors
    assert made.dtype == np.float16
    np.testing.assert_array_equal(made, tiny.embed(POOL).vectors.astype(np.float16))


def test_bfloat16_vectors_are_rounded_to_bfloat16_and_stored_as_float16(tiny_folder: Path, cache_dir: Path):
    chosen = backend(tiny_folder, output_dtype="bfloat16")
    made = open_embedder(chosen, base_dir=tiny_folder, cache_dir=cache_dir).embed(POOL).vectors
    assert made.dtype == np.float16
    large = made[np.abs(made) > 1e-3]  # below, float16 is coarser than bfloat16
    np.testing.assert_array_equal(large.astype(ml_dtypes.bfloat16).astype(np.float16), large)


def test_a_vector_too_large_for_its_dtype_is_an_error_of_its_row_and_zeros(tiny_model: Path, cache_dir: Path):

    tensors = tiny_tensors()
    tensors["encoder.layer.1.output.LayerNorm.weight"] *= np.float32(1e6)
    (tiny_model / "model.safetensors").unlink()
    save_file(tensors, tiny_model / "model.safetensors")
    chosen = backend(tiny_model, output_dtype="float16", normalize=False)
    made = open_embedder(chosen, base_dir=tiny_model, cache_dir=cache_dir).embed(["a", "b c"])
    assert sorted(made.errors) == [0, 1]
    assert "not finite" in made.errors[0]
    assert "float16" in made.errors[0]
    assert not made.vectors.any()
    assert (made.device_seconds > 0).all()


def test_a_text_whose_numbers_overflow_fails_alone_and_not_with_those_beside_it(
    tiny_model: Path, cache_dir: Path, tiny: Embedder, alone: dict[str, np.ndarray]
):
    """Nothing times no number is no number: in attention it would spread to every text of the row."""
    tensors = tiny_tensors()
    letter = tiny_tokenizer().token_to_id("q")
    tensors["embeddings.word_embeddings.weight"][letter] = np.finfo(np.float32).max
    (tiny_model / "model.safetensors").unlink()
    save_file(tensors, tiny_model / "model.safetensors")
    embedder = open_embedder(backend(tiny_model), base_dir=tiny_model, cache_dir=cache_dir)
    fine = [text for text in POOL if "q" not in text]
    texts = [part for text in fine for part in (text, "q")]
    made = embedder.embed(texts)
    assert sorted(made.errors) == list(range(1, len(texts), 2))
    assert not made.vectors[1::2].any()
    for row, text in enumerate(fine):
        np.testing.assert_allclose(made.vectors[2 * row], alone[text], atol=TOLERANCE)
    stats = embedder.stats()
    assert (stats.texts, stats.late_compilations) == (len(texts), 0)
    assert made.device_seconds.sum() == pytest.approx(stats.device_seconds, rel=1e-9)


HOSTILE = {
    "a word of 10 MB": "w" * 10_000_000,
    "10 MB without a space": "漢" * 3_400_000,
    "100,000 tokens": "a b " * 50_000,
    "a megabyte of spaces": " " * 1_000_000,
    "combining marks": "a" + "\u0301" * 100_000,
    "control characters": "\x00\x01\x1b[31m\x7f",
    "right to left": "\u202e\u0645\u0631\u062d\u0628\u0627\u202c",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f4\U000e0067\U000e007f",
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "a lone surrogate": "x\udc00",
    "empty": "",
}


def test_hostile_texts_give_a_vector_or_an_error_and_shift_no_row(minilm: Embedder):
    texts = [part for text in HOSTILE.values() for part in (text, "plain words")]
    made = minilm.embed(texts)
    assert list(made.errors) == [2 * list(HOSTILE).index("a lone surrogate")]
    assert np.isfinite(made.vectors).all()
    plain = minilm.embed(["plain words"]).vectors[0]
    for row in range(1, len(texts), 2):
        np.testing.assert_allclose(made.vectors[row], plain, atol=TOLERANCE)
    norms = np.linalg.norm(made.vectors, axis=1)
    assert norms[list(made.errors)].tolist() == [0.0]
    np.testing.assert_allclose(np.delete(norms, list(made.errors)), 1, atol=1e-5)


def test_a_step_that_fails_fails_its_own_call_and_leaves_no_trace_in_the_next(
    tiny: Embedder, alone: dict[str, np.ndarray]
):
    tokens = tiny._tokenizer.encode(POOL)
    (whole,) = plan_steps(tokens.lengths[:3], tiny._shapes)
    missing = Step(whole.shape, ((0, len(POOL)),))
    with pytest.raises(IndexError):
        tiny._runner.run(tokens, [whole, missing, whole])
    made = tiny.embed(POOL)
    assert made.errors == {}
    for row, text in enumerate(POOL):
        np.testing.assert_allclose(made.vectors[row], alone[text], atol=TOLERANCE)
