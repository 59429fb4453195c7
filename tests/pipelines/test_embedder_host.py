"""Several worker processes of a machine, one process that embeds for them, and its death."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.backends import EmbedderBackend
from schemas.batches import BatchReport
from tests.support.documents import rows, write
from tests.support.records import run_context
from tests.support.runs import START, Place
from tests.support.workloads import EMBEDDER
from tests.transforms.embed.tiny_model import write_tiny_model
from transforms.cache import CACHE_VARIABLE
from transforms.embed.embedder import COMPANY_TOLERANCE, open_embedder
from transforms.embed.shared_place import HostPlace, start_host
from transforms.output import open_output
from transforms.plan import plan_run
from transforms.settle import settle_run

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = 60


def events_until(worker: subprocess.Popen[str], kind: str | None) -> list[dict[str, Any]]:
    """What a worker says up to the first event of a kind, or to its end."""
    assert worker.stdout is not None
    found = []
    for line in worker.stdout:
        found.append(json.loads(line))
        if found[-1]["event"] == kind:
            break
    return found


def loaded_libraries(worker: subprocess.Popen[str]) -> str:
    return Path(f"/proc/{worker.pid}/maps").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_share_one_embedder_and_outlive_its_kill_without_losing_or_doubling_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    model = write_tiny_model(tmp_path / "model")
    backend = {**EMBEDDER, "model_path": str(model), "compute_dtype": "float32"}
    place = Place(
        tmp_path,
        {
            "backends__emb": backend,
            "routes": [{"name": "vec", "backends": ["emb"]}],
            "limits__batch_rows": 5,
        },
    )
    texts = [" ".join(f"{word * number:b}" for word in range(1, 8)) for number in range(DOCUMENTS)]
    write(place.folder / "in" / "a.parquet", rows(range(DOCUMENTS), text=texts))
    loaded = place.loaded
    context = run_context(
        loaded.output_uri, run_id="shared", workload_sha256=loaded.workload.digest(), processes=2
    )
    with open_output(loaded, rehearsal=False):
        planned = plan_run(loaded, context)
    (tmp_path / "run.json").write_text(json.dumps(asdict(context)))

    hosts = HostPlace.under(tmp_path / "cache")
    hosts.lock.parent.mkdir(parents=True)
    start_host(hosts)
    first, _ = hosts.read()
    os.kill(first, signal.SIGSTOP)  # it takes connections and answers none, until it is killed
    workers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "pipelines.enrich", f"--workload={loaded.path}"),
                *(f"--run={tmp_path / 'run.json'}", f"--plan={planned.plan_uri}"),
                *(f"--group={group}", "--groups=2"),
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for group in range(2)
    ]
    try:
        for worker in workers:
            assert events_until(worker, "progress")
        os.kill(first, signal.SIGKILL)
        said = [events_until(worker, "batch") for worker in workers]
        for worker in workers:
            assert "jaxlib" not in loaded_libraries(worker)  # the model is in the host alone
        second, _ = hosts.read()
        assert second not in (0, first)
        said = [before + events_until(worker, None) for before, worker in zip(said, workers, strict=True)]
        assert [worker.wait(60) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    reports = [BatchReport.from_dict(e["report"]) for own in said for e in own if e["event"] == "batch"]
    assert sorted(r.batch_id for r in reports) == sorted(ref.batch_id for ref in planned.refs)
    assert {(report.state, report.error) for report in reports} == {("committed", "")}

    made = place.rows("results/route=vec")
    assert [row["document_id"] for row in made] == [str(number) for number in range(DOCUMENTS)]
    used = loaded.workload.backends["emb"]
    assert isinstance(used, EmbedderBackend)
    own = open_embedder(used, base_dir=loaded.base_dir).embed(texts).vectors
    found = np.array([row["embedding"] for row in made])
    np.testing.assert_allclose(found, own, atol=COMPANY_TOLERANCE["float32"])

    manifest = settle_run(loaded, context, replace(planned), [], START)
    use = manifest.devices["vec"]
    assert (manifest.state, use.texts) == ("complete", DOCUMENTS)
    assert use.tokens == sum(row["token_count"] for row in made)
    assert use.device_seconds == pytest.approx(sum(row["cost"]["device_seconds"] for row in made))
    assert use.programs >= 1
