"""Who is at work in an output: one run at a time, by a file lock or, on object storage, by a lease."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import OutputBusyError, StoreError
from transforms import lease
from transforms.store import Store, is_remote

LOCK = ".run.lock"
REMOTE_LOCK = "run.lock.json"


@contextmanager
def locked(store: Store, times: lease.Times | None = None) -> Iterator[int]:
    """Hold an output for one run; a descriptor that child processes may inherit.

    Of a local folder the lock lasts until the last process that has the descriptor is gone. On object
    storage it is a lease of this process: after a crash elsewhere it is waited out, seconds.

    Raises:
        OutputBusyError: another run is at work in it.
    """
    if is_remote(store.root):
        with _leased(store, times) as descriptor:
            yield descriptor
        return
    descriptor = _lock_folder(Path(store.root))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock_folder(root: Path) -> int:
    descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise _at_work(str(root), "another run") from None
    return descriptor


_HELD: dict[str, lease.Lease] = {}
"""The leases of outputs that this process holds, by address."""


def require_held(store: Store) -> None:
    """Only who holds an output may sweep it.

    Raises:
        StoreError: this process had the output's lease, and could not renew it in time.
    """
    held = _HELD.get(store.root)
    if held is not None and held.is_lost:
        raise StoreError(
            f"{store.root}: this run could not renew its lease for {lease.LEASE_S:g} s, and another may be "
            "at work there by now. Nothing was swept; what is committed stays. Run again"
        )


@contextmanager
def _leased(store: Store, times: lease.Times | None) -> Iterator[int]:
    try:
        held = _HELD[store.root] = lease.take(store, REMOTE_LOCK, times)
    except lease.LeaseHeldError as error:
        raise _at_work(store.root, f"another run ({lease.describe(error.holder)})") from None
    descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)  # workers hold leases of their own
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        del _HELD[store.root]
        held.close()


def _at_work(root: str, who: str) -> OutputBusyError:
    return OutputBusyError(f"{who} is at work on {root}. Wait for it to end; its workers stop with it")


def is_locked(store: Store) -> bool:
    """Whether a run is at work in an output; of a lease of another machine, whether it was at last sight.

    A shared lock is tried for an instant, so that many may look at a time.
    """
    if is_remote(store.root):
        return lease.look(store, REMOTE_LOCK) is not None
    try:
        descriptor = os.open(Path(store.root, LOCK), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
