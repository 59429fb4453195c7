"""Whole runs against the rehearsal: Gemini, Vertex and hosted embeddings go the way of all rows."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from schemas.errors import OutputError
from tests.support.documents import rows as documents
from tests.support.documents import write
from tests.support.drive import drive
from tests.support.workloads import TOPIC_SCHEMA, write_workload

GEMINI = {"provider": "gemini", "model": "gemini-2.5-flash"}
VERTEX = {"platform": "vertex", "project": "my-project", "location": "europe-west1"}
EMBEDDINGS = {
    "provider": "openai",
    "model": "text-embedding-3-small",
    "operation": "embeddings",
    "dimensions": 64,
}
DOCUMENTS = 40
CALM = {"latency_ms": [0, 0]}


def run(folder: Path, **changes: Any) -> Any:
    write(folder / "in" / "a.parquet", documents([f"doc-{n}" for n in range(DOCUMENTS)]))
    return drive(write_workload(folder, **{"rehearsal": CALM, **changes}), rehearsal=True)


def rows(folder: Path, route: str) -> list[dict[str, Any]]:
    files = sorted((folder / "out" / "results" / f"route={route}").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize(
    ("backend", "provider"),
    [
        (GEMINI, "gcp.gemini"),
        ({**GEMINI, **VERTEX}, "gcp.vertex_ai"),
        ({"provider": "anthropic", "model": "claude-haiku-4-5@20251001", **VERTEX}, "gcp.vertex_ai"),
    ],
)
def test_a_route_of_googles_or_on_its_cloud_answers_every_document(
    tmp_path: Path, backend: dict[str, Any], provider: str
) -> None:
    schema = {**TOPIC_SCHEMA, "additionalProperties": False}
    manifest = run(tmp_path, backends__mini=backend, prompts__topic__json_schema=schema)
    assert (manifest.state, manifest.results) == ("complete", DOCUMENTS)
    found = rows(tmp_path, "ask")
    assert {row["document_id"] for row in found} == {f"doc-{n}" for n in range(DOCUMENTS)}
    assert {row["gen_ai"]["provider"]["name"] for row in found} == {provider}
    assert {row["gen_ai"]["request"]["model"] for row in found} == {backend["model"]}
    assert all(row["output"]["topic"] and row["gen_ai"]["usage"]["output_tokens"] > 0 for row in found)
    assert all(row["cost"]["amount"] == 0 and row["cost"]["list_amount"] > 0 for row in found)
    vertex = "platform" in backend
    assert {row["cost"]["certainty"] for row in found} == {"estimated" if vertex else "exact"}


def test_answers_that_do_not_fit_are_mended_once_and_both_answers_are_shown(tmp_path: Path) -> None:
    faults = {"invalid_json": 0.4, "rate_limited": 0.05, "overloaded": 0.05}
    schema = {**TOPIC_SCHEMA, "additionalProperties": False}
    manifest = run(
        tmp_path,
        backends__mini=GEMINI,
        prompts__topic__json_schema=schema,
        rehearsal={**CALM, "faults": faults},
    )
    assert manifest.results + manifest.failures == DOCUMENTS
    failures = [
        row for f in (tmp_path / "out" / "failures").glob("*") for row in pq.read_table(f).to_pylist()
    ]
    assert {row["error_class"] for row in failures} == {"invalid_json"}
    assert all("the first answer was rejected" in row["message"] for row in failures)
    mended = [row for row in rows(tmp_path, "ask") if row["cost"]["calls"] > 1]
    assert len(mended) > len(failures) > 0
    once = [row for row in rows(tmp_path, "ask") if row["cost"]["calls"] == 1]
    assert once
    most = max(row["cost"]["list_amount"] for row in once)
    twice = [row for row in mended if row["gen_ai"]["usage"]["input_tokens"] > 60]
    assert twice
    assert all(row["cost"]["list_amount"] > most for row in twice)


def test_a_repair_can_be_declined(tmp_path: Path) -> None:
    schema = {**TOPIC_SCHEMA, "additionalProperties": False}
    manifest = run(
        tmp_path,
        backends__mini=GEMINI,
        prompts__topic={"template": "About: {{ text }}", "json_schema": schema, "repair": False},
        rehearsal={**CALM, "faults": {"invalid_json": 1.0}},
    )
    assert (manifest.results, manifest.failures, manifest.calls_by_this_run) == (0, DOCUMENTS, DOCUMENTS)


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_hosted_embeddings_are_rows_with_vectors_in_a_space_of_their_own(
    tmp_path: Path, provider: str
) -> None:
    model = {"openai": "text-embedding-3-small", "gemini": "gemini-embedding-001"}[provider]
    backend = {**EMBEDDINGS, "provider": provider, "model": model}
    manifest = run(tmp_path, backends={"vec": backend}, routes=[{"name": "near", "backends": ["vec"]}])
    assert (manifest.state, manifest.results) == ("complete", DOCUMENTS)
    (file,) = (tmp_path / "out" / "results" / "route=near").glob("*.parquet")
    table = pq.read_table(file)
    space = (table.schema.metadata or {})[b"switchgear.vector_space"]
    assert space.startswith(b"hosted-space/1:")
    assert (table.schema.field("embedding").metadata or {})[b"switchgear.vector_space"] == space
    vectors = np.array(table["embedding"].to_pylist())
    assert vectors.shape == (DOCUMENTS, 64)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert len(np.unique(vectors, axis=0)) == DOCUMENTS
    for row in table.to_pylist():
        assert row["gen_ai"]["operation"]["name"] == "embeddings"
        assert row["token_count"] == row["gen_ai"]["usage"]["input_tokens"] > 0
        assert (row["cost"]["calls"], row["cost"]["certainty"]) == (1, "exact")
    total = sum(row["cost"]["list_amount"] for row in table.to_pylist())
    per_token = {"openai": Decimal("0.00000002"), "gemini": Decimal("0.00000015")}[provider]
    assert total == per_token * sum(row["token_count"] for row in table.to_pylist())


def test_vectors_of_another_model_are_refused_by_an_output_that_has_some(tmp_path: Path) -> None:
    routes = [{"name": "near", "backends": ["vec"]}]
    run(tmp_path, backends={"vec": EMBEDDINGS}, routes=routes)
    other = {**EMBEDDINGS, "model": "text-embedding-3-large"}
    with pytest.raises(OutputError):
        run(tmp_path, backends={"vec": other}, routes=routes)
