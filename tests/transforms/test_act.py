from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from schemas.errors import OutputError, ReconcileError
from schemas.failures import FailureClass
from schemas.ids import sha256_hex
from schemas.outcomes import Outcome
from tests.support.batches import table_for
from tests.support.fakes import FakeEmbedder, FakeOpeners, answer_plainly
from tests.support.records import AMBIGUOUS, REF, assignment, run_context
from tests.support.workloads import EMBEDDER, TOPIC_SCHEMA, workload
from transforms.act import embed_batches, finish_calls, prepare_calls
from transforms.call.request import CallBatchResult
from transforms.prompt import compile_prompt
from transforms.work import WorkBatch
from transforms.worker import Worker, WorkerConfig

ASK = {"name": "ask", "backends": ["mini"], "prompt": "topic"}
VEC = {"name": "vec", "backends": ["emb"]}
EMBED: dict[str, Any] = {"backends__emb": EMBEDDER, "routes": [ASK, VEC], "match": "all"}


@pytest.fixture
def openers() -> FakeOpeners:
    return FakeOpeners()


def worker(folder: Path, openers: FakeOpeners | None = None, **changes: Any) -> Worker:
    schema = table_for(REF).schema.serialize().to_pybytes()
    config = WorkerConfig(workload(**changes), str(folder), run_context(folder), schema)
    return Worker(config, openers or FakeOpeners())


def batch(todo: Sequence[tuple[int, str]], table: pa.Table | None = None, **changes: Any) -> WorkBatch:
    """A batch with (position, route) pairs to do."""
    table = table or table_for(REF)
    texts = table.column("text").to_pylist()
    return WorkBatch(
        ref=REF,
        table=table,
        digests=[sha256_hex(t.encode()) for t in texts],
        rows_skipped=0,
        todo=[(p, assignment(REF.first_row + p, route)) for p, route in todo],
        outcomes=[],
        **changes,
    )


def with_column(name: str, values: pa.Array) -> pa.Table:
    return table_for(REF).append_column(name, values)


# ---- hosted routes

HOSTED_VECTORS: dict[str, Any] = {
    "backends": {
        "far": {
            "provider": "openai",
            "model": "text-embedding-3-small",
            "operation": "embeddings",
            "dimensions": 2,
        }
    },
    "routes": [{"name": "far", "backends": ["far"]}],
}


def test_a_document_for_a_hosted_embedder_is_sent_as_it_is(tmp_path: Path) -> None:
    work = batch([(0, "far"), (2, "far")])
    asked = prepare_calls(worker(tmp_path, **HOSTED_VECTORS), work)
    assert asked is not None
    assert [(r.prompt, r.system, r.json_schema) for r in asked.requests] == [
        ("text of doc-100", "", None),
        ("text of doc-102", "", None),
    ]
    assert asked.requests[0].document_sha256 == sha256_hex(b"text of doc-100")
    assert work.todo == []


def test_hosted_vectors_are_put_in_the_place_that_their_rows_name(tmp_path: Path) -> None:
    work = batch([(0, "far"), (1, "far"), (2, "far")])
    asked = prepare_calls(worker(tmp_path, **HOSTED_VECTORS), work)
    assert asked is not None
    outcomes = [
        Outcome(assignment=r.assignment, vector=np.asarray(v, "<f4").tobytes() if v else None)
        for r, v in zip(asked.requests, ([1.0, 2.0], None, [3.0, 4.0]), strict=True)
    ]
    finish_calls(work, asked, CallBatchResult(outcomes, []))
    assert [o.vector_index for o in work.outcomes] == [0, None, 1]
    assert [o.vector for o in work.outcomes] == [None] * 3
    assert work.vectors["far"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_an_output_with_vectors_of_another_space_refuses_before_anything_is_asked(tmp_path: Path) -> None:
    assert prepare_calls(worker(tmp_path, **HOSTED_VECTORS), batch([(0, "far")])) is not None
    other = {
        **HOSTED_VECTORS,
        "backends": {"far": {**HOSTED_VECTORS["backends"]["far"], "model": "text-embedding-3-large"}},
    }
    with pytest.raises(OutputError, match="text-embedding-3-small, 2 dimensions"):
        prepare_calls(worker(tmp_path, **other), batch([(0, "far")]))


@pytest.mark.parametrize(
    ("positions", "shared"), [([0], None), ([0, 1], len("About: "))], ids=["alone", "together"]
)
def test_documents_share_the_head_of_their_template_with_others_of_their_batch(
    tmp_path: Path, positions: list[int], shared: int | None
) -> None:
    asked = prepare_calls(worker(tmp_path), batch([(p, "ask") for p in positions]))
    assert asked is not None
    assert [request.shared for request in asked.requests] == [shared] * len(positions)


@pytest.mark.parametrize(
    ("prompt", "repair"),
    [
        ({"json_schema": TOPIC_SCHEMA}, True),
        ({"json_schema": TOPIC_SCHEMA, "repair": False}, False),
        ({}, False),
    ],
)
def test_answers_are_repaired_where_there_is_a_schema_and_nobody_minds(
    tmp_path: Path, prompt: dict[str, Any], repair: bool
) -> None:
    changes = {"prompts__topic": {"template": "{{ text }}", **prompt}}
    asked = prepare_calls(worker(tmp_path, **changes), batch([(0, "ask")]))
    assert asked is not None
    assert asked.requests[0].repair is repair


def test_every_hosted_document_becomes_one_request(tmp_path: Path) -> None:
    asked = prepare_calls(
        worker(tmp_path, prompts__topic__system="Be brief.", prompts__topic__json_schema=TOPIC_SCHEMA),
        batch([(0, "ask"), (2, "ask")]),
    )
    assert asked is not None
    assert (asked.batch_id, asked.attempt) == (REF.batch_id, 1)
    first, second = asked.requests
    assert first.assignment == assignment(100)
    assert (first.prompt, first.system, first.json_schema) == (
        "About: text of doc-100",
        "Be brief.",
        TOPIC_SCHEMA,
    )
    assert first.document_sha256 == sha256_hex(b"text of doc-100")
    assert len(first.prompt_sha256) == 64
    assert second.prompt == "About: text of doc-102"


def test_a_batch_with_nothing_to_send_asks_nothing(tmp_path: Path) -> None:
    assert prepare_calls(worker(tmp_path), batch([])) is None
    kept = batch([(0, "vec")])
    assert prepare_calls(worker(tmp_path, **EMBED), kept) is None
    assert len(kept.todo) == 1


def test_a_document_on_two_routes_is_asked_by_two_prompts(tmp_path: Path) -> None:
    routes = [ASK, {**ASK, "name": "again", "prompt": "other"}]
    changes: dict[str, Any] = {"routes": routes, "prompts__other": {"template": "Again: {{ size }}"}}
    asked = prepare_calls(worker(tmp_path, **changes), batch([(1, "ask"), (1, "again")]))
    assert asked is not None
    assert [(r.assignment.route, r.prompt) for r in asked.requests] == [
        ("ask", "About: text of doc-101"),
        ("again", "Again: 1"),
    ]


def test_a_template_that_fails_on_a_row_is_that_rows_failure(tmp_path: Path) -> None:
    work = batch([(0, "ask"), (1, "ask")])
    asked = prepare_calls(worker(tmp_path, prompts__topic__template="{{ 1 // size }}"), work)
    assert asked is not None
    assert [r.assignment.row for r in asked.requests] == [101]
    (outcome,) = work.outcomes
    assert (outcome.assignment.row, outcome.failure) == (100, FailureClass.PROMPT_ERROR)
    assert outcome.message == "the template of prompt 'topic' failed (ZeroDivisionError)"


def test_a_batch_whose_prompts_all_fail_asks_nothing(tmp_path: Path) -> None:
    work = batch([(0, "ask")])
    assert prepare_calls(worker(tmp_path, prompts__topic__template="{{ kind.none.x }}"), work) is None
    assert [o.failure for o in work.outcomes] == [FailureClass.PROMPT_ERROR]


def test_a_prompt_without_columns_is_asked_of_every_document(tmp_path: Path) -> None:
    asked = prepare_calls(worker(tmp_path, prompts__topic__template="Hello"), batch([(0, "ask"), (1, "ask")]))
    assert asked is not None
    assert [r.prompt for r in asked.requests] == ["Hello", "Hello"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (pa.array([1_795_340_842_997_949_123] * 4, pa.timestamp("ns")), "2026-11-22 09:47:22.997949"),
        (pa.array([0] * 4, pa.timestamp("ns", "UTC")), "1970-01-01 00:00:00+00:00"),
        (pa.array([20_000] * 4, pa.date32()), "2024-10-04"),
        (pa.array([["a", None]] * 4), "['a', None]"),
        (pa.array([{"x": 1}] * 4), "{'x': 1}"),
        (pa.array([b"\xff"] * 4), "b'\\xff'"),
    ],
)
def test_columns_of_other_types_can_be_shown(tmp_path: Path, values: pa.Array, shown: str) -> None:
    asked = prepare_calls(
        worker(tmp_path, prompts__topic__template="{{ x }}"), batch([(0, "ask")], with_column("x", values))
    )
    assert asked is not None
    assert asked.requests[0].prompt == shown


FAR = pa.array([0, 10**15, 0, 0], pa.timestamp("s"))


def test_a_value_that_can_not_be_shown_is_that_rows_failure(tmp_path: Path) -> None:
    """The year 31,690,708, which Parquet can hold and Python can't."""
    work = batch([(0, "ask"), (1, "ask"), (2, "ask")], with_column("x", FAR))
    asked = prepare_calls(worker(tmp_path, prompts__topic__template="{{ x }}"), work)
    assert asked is not None
    assert [r.assignment.row for r in asked.requests] == [100, 102]
    assert [(o.assignment.row, o.failure) for o in work.outcomes] == [(101, FailureClass.PROMPT_ERROR)]


def test_a_value_that_the_prompt_does_not_ask_for_does_no_harm(tmp_path: Path) -> None:
    asked = prepare_calls(worker(tmp_path), batch([(1, "ask")], with_column("x", FAR)))
    assert asked is not None
    assert len(asked.requests) == 1


def test_outcomes_and_ambiguous_calls_are_taken_over(tmp_path: Path) -> None:
    work = batch([(0, "ask")])
    asked = prepare_calls(worker(tmp_path), work)
    assert asked is not None
    outcomes = [answer_plainly(r) for r in asked.requests]
    finish_calls(work, asked, CallBatchResult(outcomes, [AMBIGUOUS]))
    assert (work.outcomes, work.ambiguous) == (outcomes, [AMBIGUOUS])


def test_an_outcome_of_another_row_is_a_defect(tmp_path: Path) -> None:
    work = batch([(0, "ask")])
    asked = prepare_calls(worker(tmp_path), work)
    assert asked is not None
    stranger = replace(answer_plainly(asked.requests[0]), assignment=assignment(103))
    with pytest.raises(ReconcileError, match="the outcome of row 103 came back for row 100"):
        finish_calls(work, asked, CallBatchResult([stranger], []))
    assert work.outcomes == []


def test_too_few_outcomes_are_a_defect(tmp_path: Path) -> None:
    work = batch([(0, "ask"), (1, "ask")])
    asked = prepare_calls(worker(tmp_path), work)
    assert asked is not None
    with pytest.raises(ReconcileError, match="2 requests, 1 outcomes came back"):
        finish_calls(work, asked, CallBatchResult([answer_plainly(asked.requests[0])], []))


# ---- embed routes


def test_texts_of_several_batches_are_embedded_together(tmp_path: Path, openers: FakeOpeners) -> None:
    batches = [batch([(0, "vec"), (2, "vec")]), batch([]), batch([(1, "vec")])]
    embed_batches(worker(tmp_path, openers, **EMBED), batches)
    assert openers.fake_embedder.groups == [[["text of doc-100", "text of doc-102"], ["text of doc-101"]]]
    assert [[o.assignment.row for o in b.outcomes] for b in batches] == [[100, 102], [], [101]]
    assert batches[0].vectors["vec"].shape == (2, 4)
    assert "vec" not in batches[1].vectors
    assert all(b.todo == [] for b in batches)


def test_an_embedding_says_how_it_was_made(tmp_path: Path, openers: FakeOpeners) -> None:
    work = batch([(0, "vec")])
    started = datetime.now(UTC)
    embed_batches(worker(tmp_path, openers, **EMBED), [work])
    (outcome,) = work.outcomes
    assert outcome.is_result
    assert (outcome.operation, outcome.backend, outcome.provider) == ("embeddings", "emb", "jax")
    assert (outcome.vector_index, outcome.token_count, outcome.truncated) == (0, 3, False)
    assert outcome.usage.input_tokens == 3
    assert (outcome.charge.amount, outcome.charge.certainty, outcome.charge.device_seconds) == (
        None,
        "unknown",
        0.5,
    )
    assert outcome.answered_at is not None
    assert started <= datetime.fromisoformat(outcome.answered_at) <= datetime.now(UTC)


def test_a_text_that_the_embedder_could_not_use_is_that_rows_failure(
    tmp_path: Path, openers: FakeOpeners
) -> None:
    table = table_for(REF).set_column(1, "text", pa.array(["x", "!bad", "y", "z"], pa.large_string()))
    work = batch([(0, "vec"), (1, "vec"), (2, "vec")], table)
    embed_batches(worker(tmp_path, openers, **EMBED), [work])
    assert [(o.assignment.row, o.failure, o.message) for o in work.outcomes] == [
        (100, None, ""),
        (101, FailureClass.EMBED_ERROR, "no tokens"),
        (102, None, ""),
    ]


def test_the_cost_of_an_embedding_is_its_share_of_the_devices_time(tmp_path: Path) -> None:
    changes = {**EMBED, "backends__emb": {**EMBEDDER, "price_per_device_hour": "7.2"}}
    work = batch([(0, "vec")])
    embed_batches(worker(tmp_path, **changes), [work])
    assert str(work.outcomes[0].charge.amount) == "0.001000000000"


def test_an_embedding_on_a_device_of_the_price_book_costs_its_list_price(tmp_path: Path) -> None:
    openers = FakeOpeners(fake_embedder=FakeEmbedder(device_kind="TPU v5 lite"))
    work = batch([(0, "vec")])
    embed_batches(worker(tmp_path, openers, **EMBED), [work])
    charge = work.outcomes[0].charge
    assert (str(charge.amount), charge.price_source) == ("0.000166666667", "list price of TPU v5e")
    assert charge.energy_wh_high == pytest.approx(155 * 0.5 / 3600)


def test_no_texts_open_no_embedder(tmp_path: Path, openers: FakeOpeners) -> None:
    embed_batches(worker(tmp_path, openers, **EMBED), [batch([])])
    assert openers.opened == []


def test_half_precision_vectors_stay_half_precision(tmp_path: Path) -> None:
    openers = FakeOpeners(fake_embedder=FakeEmbedder(dtype=np.float16))
    work = batch([(0, "vec")])
    embed_batches(worker(tmp_path, openers, **EMBED), [work])
    assert work.vectors["vec"].dtype == np.float16


def test_a_prompt_knows_what_it_asks_for() -> None:
    prompt = workload(prompts__topic__template="{{ a }}{% for b in c %}{{ b }}{% endfor %}").prompts["topic"]
    assert compile_prompt("topic", prompt).variables == {"a", "c"}
