from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.arrow import (
    FAILURES_SCHEMA,
    MONEY,
    PLAN_SCHEMA,
    RESERVED_COLUMNS,
    chat_schema,
    embedding_schema,
)
from schemas.outcomes import money

OUTPUT = pa.struct([("topic", pa.string()), ("score", pa.int64())])
CHAT = chat_schema([pa.field("kind", pa.large_string())], OUTPUT)
VECTORS = embedding_schema([], 3, pa.float16(), "space/1:abc")
GREATEST = money("999999999999.999999999999")
SELECT = "SELECT gen_ai.usage.input_tokens, cost.amount, lineage.source.uri FROM "


def empty(kind: pa.DataType) -> Any:
    """A value of a struct type with NULL in every leaf."""
    return {f.name: empty(f.type) for f in kind} if pa.types.is_struct(kind) else None


def row() -> dict[str, Any]:
    value = {f.name: empty(f.type) for f in CHAT}
    value.update(document_id="d1", kind="note", answer="Yes", output={"topic": "t", "score": 3})
    value["gen_ai"]["usage"]["input_tokens"] = 12
    value["gen_ai"]["response"]["finish_reasons"] = ["stop"]
    value["cost"]["amount"] = GREATEST
    value["lineage"]["source"]["uri"] = "/in/a.parquet"
    value["lineage"]["answered_at"] = datetime(2026, 11, 22, 9, tzinfo=UTC)
    return value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist([row()], schema=CHAT), tmp_path / "r.parquet")
    return tmp_path / "r.parquet"


def leaves(schema: pa.Schema | pa.DataType, path: str = "") -> Iterator[tuple[str, pa.Field]]:
    for field in schema:
        name = f"{path}{field.name}"
        if pa.types.is_struct(field.type) and name != "output":
            yield from leaves(field.type, f"{name}.")
        else:
            yield name, field


def test_duckdb_answers_by_nested_names(file: Path) -> None:
    assert duckdb.sql(f"{SELECT} '{file}'").fetchall() == [(12, GREATEST, "/in/a.parquet")]
    assert duckdb.sql(f"SELECT typeof(cost.amount) FROM '{file}'").fetchall() == [("DECIMAL(24,12)",)]


def test_duckdb_adds_money_without_rounding(file: Path) -> None:
    total = duckdb.sql(f"SELECT sum(cost.amount) FROM read_parquet(['{file}', '{file}'])").fetchall()
    assert total == [(2 * GREATEST,)]


def test_polars_answers_by_nested_names(file: Path) -> None:
    frame = pl.read_parquet(file)
    assert frame.sql(SELECT + "self").row(0) == (12, GREATEST, "/in/a.parquet")
    assert frame.schema["cost"].to_schema()["amount"] == pl.Decimal(24, 12)  # type: ignore[attr-defined]
    assert frame["output"].struct.field("score").to_list() == [3]


def test_pyarrow_reads_the_very_schema_back(file: Path) -> None:
    table = pq.read_table(file)
    assert table.schema.equals(CHAT, check_metadata=False)
    assert table.schema.metadata[b"switchgear.schema"] == b"results.chat/1"
    assert table.to_pylist() == [row()]


def test_vectors_keep_their_type_and_their_space(tmp_path: Path) -> None:
    value = {f.name: empty(f.type) for f in VECTORS}
    value.update(document_id="d1", embedding=[0.5, 0.25, 1.0], token_count=3, truncated=False)
    pq.write_table(pa.Table.from_pylist([value], schema=VECTORS), tmp_path / "v.parquet")
    schema = pq.read_schema(tmp_path / "v.parquet")
    assert schema.field("embedding").type.list_size == 3
    assert schema.field("embedding").type.value_type == pa.float16()
    assert schema.metadata[b"switchgear.vector_space"] == b"space/1:abc"
    assert schema.field("embedding").metadata[b"switchgear.vector_space"] == b"space/1:abc"
    assert pl.read_parquet(tmp_path / "v.parquet")["embedding"].to_list() == [[0.5, 0.25, 1.0]]
    assert duckdb.sql(f"SELECT embedding[2] FROM '{tmp_path}/v.parquet'").fetchall() == [(0.25,)]


@pytest.mark.parametrize("schema", [CHAT, VECTORS, FAILURES_SCHEMA, PLAN_SCHEMA])
def test_every_column_of_ours_is_described(schema: pa.Schema) -> None:
    own = {name: f for name, f in leaves(schema) if name != "kind"}
    assert [name for name, f in own.items() if b"description" not in (f.metadata or {})] == []


def test_amounts_are_decimals_everywhere() -> None:
    amounts = [f for name, f in leaves(FAILURES_SCHEMA) if name.endswith("amount")]
    assert len(amounts) == 3
    assert {f.type for f in amounts} == {MONEY}


def test_every_column_that_results_add_is_reserved() -> None:
    added = {*CHAT.names, *VECTORS.names} - {"kind"}
    assert added == RESERVED_COLUMNS


def test_a_route_without_a_json_schema_has_no_output_column() -> None:
    assert "output" not in chat_schema([], None).names
