"""The fault storm: `python -m tests.e2e.storm --rows 50000`. Exits 1 if something does not add up.

The rehearsal's server, which billed without our ledger having a say in it, stands outside the run as if it
were a provider: the run is a real one, with keys, prices and a cap.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pyarrow.dataset as ds

from schemas.rehearsal import Faults, Rehearsal
from schemas.run import Manifest
from tests.support import documents, workloads
from tests.support.drive import drive
from transforms.rehearsal.server import RehearsalServer
from transforms.verify import Verification, verify_output

FAULTS = {
    "rate_limited": 0.05,
    "server_error": 0.02,
    "overloaded": 0.01,
    "connection_reset": 0.01,
    "hang": 0.01,
    "truncated_body": 0.01,
    "invalid_json": 0.02,
    "refusal": 0.01,
}
TIMEOUT_S = 2.0
MOST_RUNS = 6


@dataclass(frozen=True, slots=True)
class Storm:
    """What a storm left: the provider's journal against what the output says of itself."""

    manifest: Manifest
    verification: Verification
    rows: int
    answered_rows: int
    distinct_documents: int
    billed: int
    billed_most: int
    runs: int
    seconds: float
    cap: Decimal

    def problems(self) -> list[str]:
        """Every sentence that should not be true; none if all is accounted for."""
        wrong = []
        if self.manifest.state != "complete":
            wrong.append(f"not complete after {self.runs} runs: {self.manifest.reason}")
        if (
            self.distinct_documents != self.rows
            or self.manifest.results + self.manifest.failures != self.rows
        ):
            wrong.append(f"{self.distinct_documents} of {self.rows} documents are accounted for")
        ambiguous = len(self.verification.of("ambiguous"))
        if ambiguous != self.verification.ledger.ambiguous and ambiguous < 1000:
            wrong.append(
                f"{ambiguous} ambiguous calls are named, the ledger has {self.verification.ledger.ambiguous}"
            )
        paid, known = self.billed, self.verification.ledger.answered
        if not known <= paid <= known + self.verification.ledger.ambiguous:
            wrong.append(
                f"{paid} answers were billed; {known} are in the ledger and "
                f"{self.verification.ledger.ambiguous} more may have been"
            )
        if self.manifest.results < 0.9 * self.rows and self.manifest.state == "complete":
            wrong.append(f"only {self.manifest.results} of {self.rows} documents have a result")
        if self.verification.state != "proven":
            wrong.append(f"the ledger is {self.verification.state}: {self.verification.findings[:3]}")
        spent = Decimal(self.manifest.list_amount) + self.verification.ledger.ambiguous_amount
        if spent > self.cap:
            wrong.append(f"{spent} was spent, the cap is {self.cap}")
        return wrong

    def line(self) -> str:
        """The figures as JSON."""
        ledger = self.verification.ledger
        return json.dumps(
            {
                "rows": self.rows,
                "runs": self.runs,
                "seconds": round(self.seconds, 1),
                "results": self.manifest.results,
                "failures": {g.error_class: g.count for g in self.manifest.failure_groups},
                "calls": ledger.calls,
                "billed by the provider": self.billed,
                "answered in the ledger": ledger.answered,
                "ambiguous": ledger.ambiguous,
                "most billed for one request": self.billed_most,
                "amount": self.manifest.amount,
                "cap": str(self.cap),
                "ledger": self.verification.state,
            }
        )


def storm(folder: Path, rows: int, *, cap: str = "1000", in_flight: int = 256, seed: int = 0) -> Storm:
    """Send `rows` documents through a storm, running again until nothing is left to try."""
    started = time.monotonic()
    ids = [f"doc-{n}" for n in range(rows)]
    table = documents.rows(ids, text=[f"Document {n} of the storm." for n in range(rows)])
    documents.write(folder / "in" / "a.parquet", table, row_group=10_000)
    settings = Rehearsal(seed=seed, latency_ms=(1.0, 20.0), faults=Faults(**FAULTS))
    with RehearsalServer(settings, by_digest=True) as server:
        workload = workloads.write_workload(
            folder,
            backends__mini={
                **workloads.HOSTED,
                "base_url": server.base_url("openai"),
                "max_in_flight": in_flight,
            },
            prompts__topic={
                "template": "{{ text }}",
                "json_schema": {**workloads.TOPIC_SCHEMA, "additionalProperties": False},
            },
            limits={"batch_rows": 2000, "max_in_flight": in_flight, "request_timeout_s": TIMEOUT_S},
            budget={"amount": cap},
        )
        runs = 0
        while True:
            runs += 1
            manifest = drive(workload)
            if manifest.state == "complete" or manifest.reason_class == "budget" or runs == MOST_RUNS:
                break
        journal = server.journal
        found = [row for kind in ("results", "failures") for row in _rows(folder / "out" / kind)]
        return Storm(
            manifest=manifest,
            verification=verify_output(str(folder / "out")),
            rows=rows,
            answered_rows=sum(answered for _, answered in found),
            distinct_documents=len(Counter(name for name, _ in found)),
            billed=journal.billed,
            billed_most=max(journal.billed_by_digest.values(), default=0),
            runs=runs,
            seconds=time.monotonic() - started,
            cap=Decimal(cap),
        )


def _rows(folder: Path) -> list[tuple[str, bool]]:
    if not folder.exists():
        return []
    table = ds.dataset(folder, format="parquet").to_table(columns=["document_id", "answer"])
    return [(row["document_id"], row["answer"] is not None) for row in table.to_pylist()]


def main() -> int:
    """Storm and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0, help="of the faults: which call meets which")
    arguments = parser.parse_args()
    os.environ.setdefault("OPENAI_API_KEY", "sk-storm-not-a-key")
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        done = storm(Path(folder), arguments.rows, seed=arguments.seed)
    print(done.line())
    for problem in done.problems():
        print(f"WRONG: {problem}")
    return 1 if done.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
