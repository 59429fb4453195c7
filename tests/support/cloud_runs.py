"""Runs over Cloud Storage for tests: the same documents there and here, and what comes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support import documents, workloads
from transforms.store import open_store


def place(address: str, folder: Path, count: int, *, repeated: int = 0, row_group: int = 40) -> None:
    """Documents in two files under `address`/in, the last `repeated` of them with the text of the first."""
    ids = [f"doc-{n}" for n in range(count)]
    texts = [f"document {n} of many: {'word ' * (n % 30)}" for n in range(count - repeated)]
    texts += texts[:1] * repeated
    half = count // 2
    for name, part in (("a", slice(0, half)), ("b", slice(half, None))):
        table = documents.rows(ids[part], text=texts[part])
        path = documents.write(folder / "made" / f"{name}.parquet", table, row_group=row_group)
        store = open_store(address)
        store.create(f"in/{name}.parquet", path.read_bytes())


def workload(address: str, folder: Path, **changes: Any) -> Path:
    """A workload whose input and output are under an address."""
    folder.mkdir(parents=True, exist_ok=True)
    values: Mapping[str, Any] = {
        "input__uri": f"{address}/in",
        "output__uri": f"{address}/out",
        "output__columns": ["kind"],
        "budget": {"amount": "100"},
        **changes,
    }
    return workloads.write_workload(folder, **values)


def rows(address: str, kind: str = "results") -> list[dict[str, Any]]:
    """Every row of an output, whole, sorted by document."""
    store = open_store(f"{address}/out")
    tables = []
    for path in store.list(kind):
        with store.open(path) as stream:
            tables.append(pq.read_table(stream))
    found = pa.concat_tables(tables).to_pylist() if tables else []
    return sorted(found, key=lambda row: str(row["document_id"]))


def comparable(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what differs from run to run: instants, ids of responses, names of files and batches."""
    kept = []
    for row in found:
        cost, lineage = row["cost"], row["lineage"]
        kept.append(
            {
                "document_id": row["document_id"],
                "kind": row["kind"],
                "answer": row["answer"],
                "usage": row["gen_ai"]["usage"],
                "model": row["gen_ai"]["response"]["model"],
                "cost": {
                    name: cost[name] for name in ("amount", "list_amount", "currency", "certainty", "calls")
                },
                "source": (Path(lineage["source"]["uri"]).name, lineage["source"]["row_group"]),
                "row": lineage["source"]["row"],
                "attempt": lineage["attempt"],
                "route": lineage["route"],
            }
        )
    return kept
