"""kill -9 at random instants of real runs, against a vendor that others wrote and its own journal.

Five runs of the whole Beam pipeline are killed five times each. See `test_light_kills` for many more
and smaller ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.mock_vendor import MockVendor
from tests.support.drive import drive
from tests.support.killing import check_finished, make_job

BEAM_JOBS, BEAM_KILLS = 5, 5


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(BEAM_JOBS))
def test_a_killed_run_never_pays_twice_for_an_answered_document(
    tmp_path: Path, mock_vendor: MockVendor, seed: int
) -> None:
    job = make_job(tmp_path, mock_vendor, seed, run=drive, size=900, batch_rows=90)
    log = job.workload.parent / "stderr.log"
    while job.kills < BEAM_KILLS:
        assert job.run_and_kill(), f"a run ended before it was killed: {log.read_text()[-2000:]}"
    check_finished(job, job.finish())
