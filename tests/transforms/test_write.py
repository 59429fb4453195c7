from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.arrow import FAILURES_SCHEMA
from schemas.batches import PartRef
from schemas.failures import FailureClass
from schemas.ids import sha256_hex
from schemas.outcomes import Outcome
from tests.support.batches import part_writer, work_batch
from tests.support.records import REF, answered, assignment, failed, run_context
from tests.support.workloads import EMBEDDER, TOPIC_SCHEMA, workload
from transforms.commit_file import unpacked
from transforms.store import LocalStore
from transforms.work import WorkBatch
from transforms.write import VectorType

ASK = {"name": "ask", "backends": ["mini"], "prompt": "topic"}
VECTORS = VectorType(3, pa.float32(), "space/1:abc")
Write = Callable[..., tuple[PartRef, ...]]
PACKED: dict[str, bytes] = {}  # failures, by digest


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "out"))


@pytest.fixture
def write(store: LocalStore) -> Write:
    def write(batch: WorkBatch, vector: VectorType = VECTORS, **changes: Any) -> tuple[PartRef, ...]:
        writer = part_writer(workload(**changes), run_context(store.root), store, vec=vector)
        written = writer.write(batch, "00ff")
        PACKED[sha256_hex(written.failures)] = written.failures
        return written.parts

    return write


def table(store: LocalStore, part: PartRef) -> pa.Table:
    if part.kind == "failures":
        return unpacked(PACKED[part.sha256])
    return pq.read_table(store.local_path(part.staged))


def test_results_become_a_file_and_failures_travel_with_the_record(store: LocalStore, write: Write) -> None:
    outcomes = [answered(100), failed(101, FailureClass.NULL_TEXT), answered(102)]
    results, failures = write(work_batch(REF, outcomes))
    assert table(store, results).column("document_id").to_pylist() == ["doc-100", "doc-102"]
    assert table(store, failures).column("document_id").to_pylist() == ["doc-101"]
    assert (results.kind, results.route, results.rows) == ("results", "ask", 2)
    assert (failures.kind, failures.route, failures.rows) == ("failures", "", 1)
    assert (failures.is_file, failures.bytes) == (False, len(PACKED[failures.sha256]))
    assert list(store.list("")) == [results.staged]


def test_a_part_describes_its_bytes(store: LocalStore, write: Write) -> None:
    (part,) = write(work_batch(REF, [answered(100)]))
    data = store.read(part.staged)
    assert (len(data), sha256_hex(data)) == (part.bytes, part.sha256)
    assert part.staged == f"_staging/{REF.batch_id}.0001.00ff/ask.parquet"
    assert part.final == f"results/route=ask/{REF.batch_id}.0001.parquet"
    assert list(store.list("results")) == []


def test_a_result_row_has_exactly_these_values(store: LocalStore, write: Write) -> None:
    batch = work_batch(REF, [answered(102)])
    (part,) = write(batch, output__columns=["kind", "size"])
    assert table(store, part).to_pylist() == [
        {
            "document_id": "doc-102",
            "kind": "note",
            "size": 2,
            "answer": "answer to 102",
            "gen_ai": {
                "operation": {"name": "chat"},
                "provider": {"name": "openai"},
                "request": {"model": "gpt-5-mini"},
                "response": {"model": "gpt-5-mini-2026", "id": "resp-102", "finish_reasons": ["stop"]},
                "usage": {
                    "input_tokens": 100,
                    "output_tokens": 10,
                    "cache_read": {"input_tokens": 20},
                    "cache_creation": {"input_tokens": 0},
                },
            },
            "cost": {
                "amount": Decimal("0.01").quantize(Decimal(1).scaleb(-12)),
                "list_amount": Decimal("0.01").quantize(Decimal(1).scaleb(-12)),
                "currency": "USD",
                "basis": "tokens",
                "price_source": "book 1",
                "price_as_of": "2026-11-22",
                "certainty": "exact",
                "device_seconds": None,
                "energy_wh_low": None,
                "energy_wh_high": None,
                "calls": 1,
                "replayed_calls": 0,
                "ambiguous_calls": 0,
                "ambiguous_amount": Decimal(0).quantize(Decimal(1).scaleb(-12)),
            },
            "lineage": {
                "run_id": "20261122T090000000Z-000001",
                "batch_id": REF.batch_id,
                "attempt": 1,
                "workload_sha256": "w" * 64,
                "code_version": run_context("").code_version,
                "source": {"uri": "/in/a.parquet", "generation": "sha256:00", "row_group": 0, "row": 102},
                "document_sha256": f"{2:064x}",
                "prompt_sha256": "p" * 64,
                "request_sha256": "r" * 64,
                "route": "ask",
                "rule": "TRUE",
                "chain_tried": ["mini"],
                "policy": "passed",
                "shared_from": None,
                "latency_ms": 12.5,
                "answered_at": datetime(2026, 11, 22, 9, 0, 1, 500_000, UTC),
            },
        }
    ]


def test_a_failure_row_keeps_reason_answer_and_cost(store: LocalStore, write: Write) -> None:
    refused = answered(101, failure=FailureClass.REFUSED, message="I can't", answer="No.", amount="0.02")
    (part,) = write(work_batch(REF, [refused]))
    assert table(store, part).schema.equals(FAILURES_SCHEMA, check_metadata=False)
    (row,) = table(store, part).to_pylist()
    head = {k: row[k] for k in ("document_id", "error_class", "message", "retryable", "answer")}
    assert head == {
        "document_id": "doc-101",
        "error_class": "refused",
        "message": "I can't",
        "retryable": False,
        "answer": "No.",
    }
    assert row["cost"]["amount"] == Decimal("0.02")
    assert row["gen_ai"]["usage"]["output_tokens"] == 10


def test_a_retryable_failure_says_so(store: LocalStore, write: Write) -> None:
    (part,) = write(work_batch(REF, [failed(100, FailureClass.TIMEOUT)]))
    assert table(store, part).column("retryable").to_pylist() == [True]


def test_a_document_without_id_and_route_is_a_failure_row(store: LocalStore, write: Write) -> None:
    nowhere = replace(assignment(101, "", ()), rule="", document_id=None)
    (part,) = write(work_batch(REF, [Outcome(nowhere, FailureClass.NULL_ID, "no id")]))
    (row,) = table(store, part).to_pylist()
    assert (row["document_id"], row["lineage"]["route"], row["lineage"]["policy"]) == (None, None, None)
    assert row["lineage"]["source"]["row"] == 101
    assert (row["cost"]["amount"], row["cost"]["basis"]) == (Decimal(0), "none")


def test_the_policy_column_names_the_rule_that_rejected(store: LocalStore, write: Write) -> None:
    rejected = failed(100, FailureClass.POLICY_REJECTED, message="policy rule 'secret': no secrets")
    (part,) = write(work_batch(REF, [rejected]))
    assert table(store, part).to_pylist()[0]["lineage"]["policy"] == "policy rule 'secret': no secrets"


def test_copied_columns_keep_their_values_and_types(store: LocalStore, write: Write) -> None:
    batch = work_batch(REF, [answered(103), answered(100)])
    (part,) = write(batch, output__columns=["size", "text"])
    written = table(store, part)
    assert written.select(["document_id", "size", "text"]).to_pylist() == [
        {"document_id": "doc-103", "size": 3, "text": "text of doc-103"},
        {"document_id": "doc-100", "size": 0, "text": "text of doc-100"},
    ]
    assert written.schema.field("size").type == pa.int64()


def test_a_structured_answer_becomes_a_typed_column(store: LocalStore, write: Write) -> None:
    batch = work_batch(REF, [answered(100, output={"topic": "data", "score": 3, "more": 1})])
    (part,) = write(batch, prompts__topic__json_schema=TOPIC_SCHEMA)
    column = table(store, part).column("output")
    assert column.type == pa.struct([("topic", pa.string()), ("score", pa.int64())])
    assert column.to_pylist() == [{"topic": "data", "score": 3}]


@pytest.mark.parametrize(
    "output",
    [{"topic": "t", "score": 2**63}, {"topic": "\ud800", "score": 1}, {"topic": "t", "score": "many"}],
)
def test_an_answer_that_the_typed_column_can_not_hold_is_a_paid_failure(
    store: LocalStore, write: Write, output: dict[str, Any]
) -> None:
    batch = work_batch(REF, [answered(100, output=output), answered(101, output={"topic": "t", "score": 1})])
    results, failures = write(batch, prompts__topic__json_schema=TOPIC_SCHEMA)
    assert table(store, results).column("document_id").to_pylist() == ["doc-101"]
    (row,) = table(store, failures).to_pylist()
    assert (row["error_class"], row["answer"]) == ("schema_mismatch", "answer to 100")
    assert row["cost"]["amount"] == Decimal("0.01")
    assert [o.failure for o in batch.outcomes] == [FailureClass.SCHEMA_MISMATCH, None]


def test_lone_surrogates_of_a_provider_are_escaped_everywhere(store: LocalStore, write: Write) -> None:
    odd = answered(
        100, answer="a\ud800", response_id="\udfff", response_model="m\ud800", finish_reasons=("st\ud800p",)
    )
    bad = replace(odd, assignment=assignment(101), failure=FailureClass.REFUSED, message="no\ud800")
    results, failures = write(work_batch(REF, [odd, bad]))
    assert table(store, results).column("answer").to_pylist() == ["a\\ud800"]
    (row,) = table(store, failures).to_pylist()
    assert row["message"] == "no\\ud800"
    assert row["gen_ai"]["response"] == {
        "model": "m\\ud800",
        "id": "\\udfff",
        "finish_reasons": ["st\\ud800p"],
    }


def embedded(row: int, index: int) -> Outcome:
    return answered(row, "vec", vector_index=index, token_count=index + 2, truncated=False, answer=None)


EMBED = {
    "backends__emb": EMBEDDER,
    "routes": [ASK, {"name": "vec", "backends": ["emb"]}],
    "match": "all",
}


@pytest.mark.parametrize(("element", "dtype"), [(pa.float32(), np.float32), (pa.float16(), np.float16)])
def test_vectors_stand_beside_their_documents(
    store: LocalStore, write: Write, element: pa.DataType, dtype: type
) -> None:
    vectors = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]], dtype)
    batch = work_batch(REF, [embedded(102, 2), embedded(100, 0)], vectors={"vec": vectors})
    (part,) = write(batch, VectorType(3, element, "space/1:abc"), **EMBED)
    written = table(store, part)
    assert written.select(["document_id", "embedding", "token_count"]).to_pylist() == [
        {"document_id": "doc-102", "embedding": [6, 7, 8], "token_count": 4},
        {"document_id": "doc-100", "embedding": [0, 1, 2], "token_count": 2},
    ]
    assert written.schema.field("embedding").type.value_type == element
    assert written.column("vector_space").to_pylist() == ["space/1:abc"] * 2
    assert written.schema.metadata[b"switchgear.vector_space"] == b"space/1:abc"


def test_one_document_on_two_routes_is_a_row_in_each(store: LocalStore, write: Write) -> None:
    vectors = np.zeros((1, 3), np.float32)
    batch = work_batch(REF, [answered(100), embedded(100, 0)], vectors={"vec": vectors})
    chat, vec = write(batch, **EMBED)
    assert (chat.route, vec.route) == ("ask", "vec")
    assert {table(store, p).column("document_id")[0].as_py() for p in (chat, vec)} == {"doc-100"}


def test_carried_failures_stand_before_the_new_ones(store: LocalStore, write: Write) -> None:
    (earlier,) = write(work_batch(REF, [failed(100, FailureClass.NULL_TEXT)]))
    carried = table(store, earlier)
    again = work_batch(replace(REF, attempt=2), [failed(101, FailureClass.TIMEOUT)], carried=carried)
    (part,) = write(again)
    rows = table(store, part).to_pylist()
    assert [(r["document_id"], r["lineage"]["attempt"]) for r in rows] == [("doc-100", 1), ("doc-101", 2)]
    assert part.rows == 2


def test_a_batch_without_rows_to_write_has_no_parts(store: LocalStore, write: Write) -> None:
    assert write(work_batch(REF, [])) == ()
    assert list(store.list("")) == []


def test_the_footer_says_which_run_wrote_the_part_and_whether_it_was_rehearsed(
    store: LocalStore, write: Write
) -> None:
    (part,) = write(work_batch(REF, [answered(100)]))
    metadata = pq.read_schema(store.local_path(part.staged)).metadata
    assert metadata[b"switchgear.run_id"] == b"20261122T090000000Z-000001"
    assert metadata[b"switchgear.rehearsal"] == b"false"
    assert metadata[b"switchgear.schema"] == b"results.chat/1"


@pytest.mark.parametrize(
    ("name", "codec"), [("zstd", "ZSTD"), ("snappy", "SNAPPY"), ("none", "UNCOMPRESSED")]
)
def test_the_compression_is_the_one_asked_for(store: LocalStore, write: Write, name: str, codec: str) -> None:
    (part,) = write(work_batch(REF, [answered(100)]), output__compression=name)
    metadata = pq.read_metadata(store.local_path(part.staged))
    assert metadata.row_group(0).column(0).compression == codec


def test_numbers_that_never_repeat_get_no_dictionary_and_words_that_do_get_one(
    store: LocalStore, write: Write
) -> None:
    """A dictionary of vectors makes a part half as large again, and takes longer than all the rest of it."""
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    batch = work_batch(REF, [embedded(100, 0), embedded(101, 1)], vectors={"vec": vectors})
    (part,) = write(batch, **EMBED)
    row_group = pq.read_metadata(store.local_path(part.staged)).row_group(0)
    columns = {(column := row_group.column(n)).path_in_schema: column for n in range(row_group.num_columns)}
    without = {name for name, column in columns.items() if not column.has_dictionary_page}
    assert without == {
        "embedding.list.element",
        *(f"cost.{name}" for name in ("device_seconds", "energy_wh_low", "energy_wh_high")),
        "lineage.latency_ms",
        "truncated",  # a bit each
    }


def test_parts_of_several_batches_read_as_one_table(store: LocalStore, write: Write) -> None:
    """One batch knows no latency, another no usage: their files must still have one schema."""
    sparse = answered(100, latency_ms=None, answered_at=None, finish_reasons=(), response_id=None)
    files = []
    for number, outcome in enumerate([answered(100), sparse]):
        (part,) = write(work_batch(replace(REF, batch_id=f"{number:032x}"), [outcome]))
        store.publish(part.staged, part.final)
        files.append(str(store.local_path(part.final)))
    query = "SELECT count(*), sum(cost.amount), sum(gen_ai.usage.input_tokens) FROM "
    expected = [(2, Decimal("0.02"), 200)]
    glob = f"{store.root}/results/*/*.parquet"
    assert duckdb.sql(f"{query} read_parquet('{glob}', hive_partitioning=true)").fetchall() == expected
    assert pl.scan_parquet(files).sql(f"{query} self").collect().rows() == expected
    assert pq.read_table(f"{store.root}/results").column("route").to_pylist() == ["ask", "ask"]
