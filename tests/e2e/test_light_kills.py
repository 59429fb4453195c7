"""kill -9 of many small runs, from plan to settlement without Beam: `make kills` does a thousand."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.peers.mock_vendor import MockVendor
from tests.support.killing import check_finished, make_job
from tests.support.light import run_light

JOBS = int(os.environ.get("SWITCHGEAR_KILL_JOBS", "20"))


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(JOBS))
def test_a_job_killed_again_and_again_ends_as_if_it_had_not_been(
    tmp_path: Path, mock_vendor: MockVendor, seed: int
) -> None:
    kills = random.Random(seed).choice([1, 1, 1, 1, 1, 2, 2, 2, 3, 9])
    job = make_job(
        tmp_path,
        mock_vendor,
        seed,
        run=run_light,
        size=160,
        batch_rows=40,
        latency_ms=(5, 40),
        longest_life_s=0.25,
    )
    while job.kills < kills and job.run_and_kill():
        pass
    check_finished(job, job.finish())
