"""Forty planted strings through success, failure and a crash, by the real command on a real server.

Keys and texts of documents may be in no log, exception, artifact, record, parameter or graph; the texts are
in the input and in answers alone, and nothing is unpickled that lay in storage.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from schemas.rehearsal import Faults, Rehearsal
from tests.support import documents, workloads
from tests.support.layers import job_graph, layers
from transforms.rehearsal.server import RehearsalServer

REPOSITORY = Path(__file__).parents[2]
KEY = "sk-canary-7f3b1c9d5e2a"
TEXTS = tuple(f"canary-{number:02d}-{number * 7919 % 99991:05d}" for number in range(39))
CANARY = re.compile("|".join((KEY, *TEXTS)).encode())
FAULTS = Faults(
    rate_limited=0.1, server_error=0.1, connection_reset=0.1, hang=0.05, truncated_body=0.1, max_tokens=0.1,
    invalid_json=0.1, refusal=0.1,
)  # fmt: skip
WATCH = """
import os, sys
def watch(event, arguments):
    if event == "pickle.find_class":
        frame, names = sys._getframe(1), []
        while frame is not None:
            names.append(frame.f_globals.get("__name__", "?"))
            frame = frame.f_back
        with open(os.environ["SWITCHGEAR_TEST_UNPICKLED"], "a") as told:
            told.write(" ".join(names) + "\\n")
sys.addaudithook(watch)
"""


def found_in(data: bytes) -> set[bytes]:
    """The canaries in bytes: as they are, or packed in them as engines pack their pickles."""
    return {match for layer in layers(data) for match in CANARY.findall(layer)}


def command(
    folder: Path, *arguments: str, module: str = "flows.cli", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """The real command in a home of its own, which says everything that it can."""
    watch = folder / "watch"
    watch.mkdir(exist_ok=True)
    (watch / "sitecustomize.py").write_text(WATCH)
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PYTHONPATH": f"{watch}:{REPOSITORY}",
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "home" / "cache"),
            "PREFECT_HOME": str(folder / "home" / "prefect"),
            "PREFECT_LOGGING_LEVEL": "DEBUG",
            "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
            "SWITCHGEAR_TEST_UNPICKLED": str(folder / "unpickled"),
            "OPENAI_API_KEY": KEY,
            **environment,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
        check=False,
    )


def write_job(folder: Path, base_url: str) -> Path:
    ids = [f"doc-{number}" for number in range(len(TEXTS))]
    table = documents.rows(ids, text=[f"{text} is what it says" for text in TEXTS])
    documents.write(folder / "in" / "a.parquet", table)
    return workloads.write_workload(
        folder,
        backends__mini={**workloads.HOSTED, "base_url": base_url},
        prompts__topic={
            "template": "{{ text }}",
            "json_schema": {**workloads.TOPIC_SCHEMA, "additionalProperties": False},
        },
        limits={"batch_rows": 10, "max_calls": 2, "request_timeout_s": 0.5, "document_deadline_s": 20},
        policy={"reject": [{"name": "small", "when": "size = 3", "reason": "it stays here"}]},
        budget={"amount": "5"},
    )


def told_rows(folder: Path) -> bytes:
    """All rows, decoded, but for the answers: what is packed in Parquet does not hide."""
    rows: list[dict[str, Any]] = []
    for kind in ("results", "failures"):
        rows += ds.dataset(folder / "out" / kind, format="parquet").to_table().to_pylist()
    assert len(rows) == len(TEXTS)
    return json.dumps([{**row, "answer": None, "output": None} for row in rows], default=str).encode()


def may_hold_answers(place: str) -> bool:
    """Where answers are kept, which may repeat what a document says."""
    return place.startswith(("out/ledger/", "out/results/", "out/failures/"))


def unpickled_by_others(folder: Path) -> list[str]:
    """Who unpickled anything but the engine's own job: the modules on the stack, innermost first."""
    told = (folder / "unpickled").read_text().splitlines()
    assert len(told) > 100, "the hook hears of every unpickling, in every process"
    return [line for line in told if not any(name.startswith("apache_beam.") for name in line.split())]


@pytest.mark.slow
def test_forty_planted_strings_are_nowhere_and_nothing_is_unpickled_from_storage(tmp_path: Path) -> None:
    with RehearsalServer(Rehearsal(seed=2, latency_ms=(0.0, 1.0), faults=FAULTS)) as server:
        workload, output = write_job(tmp_path, server.base_url("openai")), str(tmp_path / "out")
        first = command(tmp_path, "run", str(workload))
        again = command(tmp_path, str(workload), module="tests.support.drive", OPENAI_API_KEY=f"{KEY}\tx")
        shown = command(tmp_path, "failures", output)
    assert first.returncode in (0, 3), first.stderr[-3000:]
    assert b"can't carry" in again.stderr, "a worker that dies of its key says so without it"
    assert shown.returncode == 0, shown.stderr[-3000:]
    places = {"rows": told_rows(tmp_path)}
    classes = set(re.findall(rb'"error_class": "(\w+)"', places["rows"]))
    assert classes >= {b"refused", b"truncated", b"policy_rejected"}, classes
    for number, process in enumerate((first, again, shown)):
        places[f"output of command {number}"] = process.stdout + process.stderr
    for number, piece in enumerate(job_graph(workload, tmp_path / "out")):
        places[f"job graph {number}"] = piece
    for folder in ("out", "home"):
        files = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
        places |= {str(path.relative_to(tmp_path)): path.read_bytes() for path in files}
    assert b"DEBUG" in places["output of command 0"]
    assert any(place.startswith("home/prefect/") for place in places), "Prefect's database is among them"
    found = {place: found_in(data) for place, data in places.items()}
    assert [place for place, canaries in found.items() if KEY.encode() in canaries] == []
    assert [place for place, canaries in found.items() if canaries and not may_hold_answers(place)] == []
    assert any(found.values()), "the search finds what answers repeat"
    assert unpickled_by_others(tmp_path) == []
