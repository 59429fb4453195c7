from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import BatchClaimedError, StoreError
from transforms.claim import BatchClaims

ONE, OTHER = "1" * 32, "2" * 32


@pytest.fixture
def claims(tmp_path: Path) -> Iterator[BatchClaims]:
    made = BatchClaims(str(tmp_path))
    yield made
    made.close()


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[BatchClaims]:
    made = BatchClaims(str(tmp_path))
    yield made
    made.close()


def test_a_batch_is_claimed_by_one_at_a_time_and_others_are_free(
    claims: BatchClaims, stranger: BatchClaims
) -> None:
    claims.take(ONE)
    stranger.take(OTHER)
    with pytest.raises(BatchClaimedError, match=f"batch {ONE} is being worked on"):
        stranger.take(ONE)
    claims.give_back(ONE)
    stranger.take(ONE)
    with pytest.raises(BatchClaimedError):
        claims.take(ONE)


def test_a_process_may_take_again_what_it_has(claims: BatchClaims, stranger: BatchClaims) -> None:
    claims.take(ONE)
    claims.take(ONE)
    claims.give_back(ONE)
    stranger.take(ONE)


def test_giving_back_what_one_does_not_have_takes_nothing_from_who_has_it(
    claims: BatchClaims, stranger: BatchClaims
) -> None:
    claims.take(ONE)
    stranger.give_back(ONE)
    with pytest.raises(BatchClaimedError):
        stranger.take(ONE)


def test_claims_end_when_they_are_closed(tmp_path: Path, stranger: BatchClaims) -> None:
    claims = BatchClaims(str(tmp_path))
    claims.take(ONE)
    claims.close()
    stranger.take(ONE)


def test_claims_end_with_a_killed_process(tmp_path: Path, claims: BatchClaims) -> None:
    code = (
        "import sys\n"
        "from transforms.claim import BatchClaims\n"
        "claims = BatchClaims(sys.argv[1])\n"
        "claims.take(sys.argv[2])\n"
        "print('taken', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), ONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"taken\n"
        with pytest.raises(BatchClaimedError):
            claims.take(ONE)
        child.send_signal(signal.SIGKILL)
        child.wait()
    claims.take(ONE)


def test_an_output_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere/\.claims can't be made"):
        BatchClaims(str(tmp_path / "nowhere"))
