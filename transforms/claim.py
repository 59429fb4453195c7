"""Claims: which batches this process is at work on, from before they are looked at until they are reported.

The ledger's own lock ends with the calls. Without a claim that lasts until the commit, a second worker on
the same batch could make calls for rows that had failed, while the first was on its way to commit just
that: they would have been paid for, and no commit record would know of them.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from schemas.errors import BatchClaimedError, StoreError
from transforms.locks import lock_byte, unlock_byte
from transforms.store import is_remote

FILE_NAME = ".claims"
_PLACE_BYTES = 7  # 56 bits: two batches of 100,000 share a byte once in ten million outputs


class Claims(Protocol):
    """What a worker process needs of claims."""

    def take(self, batch_id: str) -> None:
        """Claim a batch; BatchClaimedError if another process has it."""

    def give_back(self, batch_id: str) -> None:
        """End a claim; nothing happens if this process has none."""

    def close(self) -> None:
        """End all claims."""


class LedgerClaims:
    """Claims of an output on object storage: they stand in the ledgers, before the first call.

    So a claim costs no write of its own. It is made when a batch's ledger is opened and lasts as long as
    the process's lease (see `transforms.call.segments`); batches without calls need none, because only
    one can commit them.
    """

    def take(self, batch_id: str) -> None:
        """Nothing to do yet."""

    def give_back(self, batch_id: str) -> None:
        """Nothing to do: who comes later finds the batch committed, or this process gone."""

    def close(self) -> None:
        """Nothing to do: the lease ends with the engine."""


def open_claims(output: str) -> Claims:
    """The claims of an output, for this process."""
    return LedgerClaims() if is_remote(output) else BatchClaims(output)


class BatchClaims:
    """The claims of one process. They end with it, however it ends.

    Taking a batch again that this process has is granted: a bundle that failed is run again.

    Raises:
        StoreError: the file of the claims can't be made.
    """

    def __init__(self, output: str) -> None:
        self._path = Path(output, FILE_NAME)
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"{self._path} can't be made ({error.strerror}): mend the disk") from None

    def take(self, batch_id: str) -> None:
        """Claim a batch.

        Raises:
            BatchClaimedError: another process has it.
        """
        if not lock_byte(self._file, _place(batch_id)):
            raise BatchClaimedError(
                f"batch {batch_id} is being worked on by another process: wait for it, or end it, then "
                f"run again"
            )

    def give_back(self, batch_id: str) -> None:
        """End a claim; nothing happens if this process has none."""
        unlock_byte(self._file, _place(batch_id))

    def close(self) -> None:
        """End all claims."""
        os.close(self._file)


def _place(batch_id: str) -> int:
    return int.from_bytes(blake2b(batch_id.encode(), digest_size=_PLACE_BYTES).digest())
