"""A workload in batch mode over a few documents, and an emulated provider that it is sent to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from schemas.run import Manifest
from tests.peers.batch_emulator import BatchEmulator
from tests.support import documents, workloads
from tests.support.drive import drive
from tests.transforms.batchmode.crashes import step
from transforms.call.ledger import RecordedCall, fold, scan
from transforms.verify import verify_output

CANARY = "sk-canary-7d20c1e9b4"
MODELS = {
    "openai": "gpt-4.1-mini",
    "anthropic": "claude-haiku-4-5",
    "gemini": "gemini-2.5-flash-lite",
    "vertex": "gemini-2.5-flash-lite",
}
FULL = {
    "openai": Decimal("0.000072"),
    "anthropic": Decimal("0.0002"),
    "gemini": Decimal("0.000018"),
    "vertex": Decimal("0.000018"),
}
"""List price of an answer of 100 tokens in and 20 out: 0.40 and 1.60, 1 and 5, 0.10 and 0.40 USD per
million."""
VERTEX = {
    "provider": "gemini",
    "platform": "vertex",
    "project": "p",
    "location": "europe-west1",
    "batch_bucket": "gs://bucket/team",
}
NO_ACCOUNT = {"type": "authorized_user", "client_id": "x", "client_secret": "x", "refresh_token": "x"}


@pytest.fixture(params=["openai", "anthropic", "gemini"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def emulator() -> Iterator[BatchEmulator]:
    started = BatchEmulator.start()
    yield started
    started.stop()


@dataclass
class Job:
    """A workload whose route `ask` goes to the emulator in batch mode; a run is whole, without Prefect.

    What these tests are about happens before and after the pipeline: those that set `beam` see that nothing
    of it depends on who works on the batches.
    """

    folder: Path
    emulator: BatchEmulator
    provider: str
    workload: Path
    beam: bool = False

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def batches(self) -> list[Any]:
        return self.emulator.of(self.provider)

    def run(self, *, rehearsal: bool = False) -> Manifest:
        if self.provider == "vertex":  # whose bucket is a folder
            return drive(self.workload, beam=self.beam, collect=step("collect"), submit=step("submit"))
        return drive(self.workload, beam=self.beam, rehearsal=rehearsal)

    def configure(self, **changes: Any) -> None:
        """Write the workload's file anew."""
        backend = {
            "provider": self.provider,
            "model": MODELS[self.provider],
            "base_url": self.emulator.base_url(self.provider),
            "mode": "batch",
        }
        if self.provider == "vertex":
            backend |= VERTEX
        own = changes.pop("backend", {})
        workloads.write_workload(
            self.folder,
            **{
                "backends": {"mini": {**backend, **own}},
                "prompts__topic": {"template": "{{ text }}"},
                **changes,
            },
        )

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The rows of `results` or `failures` as they stand."""
        folder = self.output / kind
        if not folder.exists():
            return []
        return ds.dataset(folder, format="parquet", partitioning="hive").to_table().to_pylist()

    def accounted(self) -> Counter[str]:
        """How often each document stands in results and failures together."""
        return Counter(row["document_id"] for kind in ("results", "failures") for row in self.rows(kind))

    def calls(self) -> list[RecordedCall]:
        """Every call that the ledgers hold."""
        found: list[RecordedCall] = []
        for path in sorted((self.output / "ledger").glob("*/calls.ledger")):
            found += fold(scan(path.read_bytes())[0], path.parent.name).calls.values()
        return found

    def cost(self) -> Decimal:
        """The sum of the cost columns."""
        rows = self.rows("results") + self.rows("failures")
        return sum((row["cost"]["amount"] for row in rows), Decimal(0))

    def records(self) -> dict[str, int]:
        """How many records of jobs there are, by name without number."""
        names = (path.stem.partition("-")[0] for path in (self.output / "provider_batches/jobs").glob("*/*"))
        return dict(Counter(names))


@pytest.fixture
def job(
    tmp_path: Path, emulator: BatchEmulator, provider: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Job]:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", CANARY)
    monkeypatch.setenv("GEMINI_API_KEY", CANARY)
    (tmp_path / "account.json").write_text(json.dumps(NO_ACCOUNT))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    emulator.objects = tmp_path / "bucket"
    ids = [f"d{n}" for n in range(6)]
    table = documents.rows(ids, text=[f"text {n}" for n in ids], kind=["a", "b"] * 3)
    documents.write(tmp_path / "in/a.parquet", table, row_group=3)
    made = Job(tmp_path, emulator, provider, tmp_path / "w.toml")
    made.configure()
    yield made
    if made.output.exists():  # whatever a test does, what it leaves must add up
        proof = verify_output(str(made.output))
        assert proof.state != "contradicted", proof.findings
