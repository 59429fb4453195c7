"""Which form an output's ledgers have, and reading them whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from schemas.errors import LedgerError, StoreError
from transforms.call.ledger import Frame, fold, scan
from transforms.call.ledger_file import Disk, LocalLedgers, ledger_path, read_durably
from transforms.call.ledger_totals import LedgerTotals
from transforms.call.segments import SegmentLedgers, read_segments
from transforms.side_by_side import side_by_side
from transforms.store import Store, is_remote, open_store

_READERS = 16  # a ledger may have tens of megabytes; most that are asked for have none


def open_ledgers(store: Store) -> LocalLedgers | SegmentLedgers:
    """The ledgers of an output, to be written."""
    return SegmentLedgers(store) if is_remote(store.root) else LocalLedgers(store.root)


def read_ledger(store: Store, batch_id: str, read: Callable[[Path], bytes] = Path.read_bytes) -> bytes | None:
    """A batch's ledger as it stands; None if it has none. Nothing is locked or written.

    Raises:
        LedgerError: it can't be read.
    """
    try:
        if is_remote(store.root):
            return b"".join(read_segments(store, batch_id)) or None
        return read(ledger_path(store.root, batch_id))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(
            f"the ledger of batch {batch_id} in {store.root} can't be read ({error.strerror}): mend the disk"
        ) from None
    except StoreError as error:
        raise LedgerError(f"the ledger of batch {batch_id} can't be read ({error})") from None


def read_spent(
    output: str,
    batch_ids: Iterable[str],
    attempts: Mapping[str, int] | None = None,
    disk: Disk | None = None,
) -> LedgerTotals:
    """What the ledgers of these batches add up to; a batch without a ledger adds nothing.

    `attempts` gives the attempt that is due per batch: calls of earlier attempts are left out, because
    their commit records have them. What is counted is durable.

    Raises:
        LedgerError: a ledger can't be read or is another version's.
    """
    totals = LedgerTotals()
    for batch_id, frames in _read_all(open_store(output), batch_ids, disk):
        due = (attempts or {}).get(batch_id, 1)
        for call in fold(frames, batch_id).calls.values():
            if call.attempt >= due:
                totals.add(call)
    return totals


def _read_all(store: Store, batch_ids: Iterable[str], disk: Disk | None) -> Iterator[tuple[str, list[Frame]]]:
    def durably(path: Path) -> bytes:
        return read_durably(path, disk)

    def read(batch_id: str) -> tuple[str, list[Frame]]:
        return batch_id, scan(read_ledger(store, batch_id, durably) or b"")[0]

    return side_by_side(store, read, batch_ids, _READERS)
