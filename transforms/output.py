"""The output folder: whose it is, who is at work in it, and what stands where."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import OutputError
from schemas.ids import canonical_json
from schemas.load import LoadedWorkload
from schemas.run import Manifest
from transforms.layout import run_path
from transforms.store import Store, is_remote, open_store

MARKER = "switchgear.json"
MARKER_VERSION = "output/1"
LOCK = ".run.lock"


@dataclass(frozen=True, slots=True)
class Output:
    """An output folder that is ours to work in; the lock is held while it is open.

    `fileno` may be handed to child processes: the lock then lasts until the last of them has gone.
    """

    store: Store
    rehearsal: bool
    lock_descriptor: int

    def fileno(self) -> int:
        """The descriptor that holds the lock."""
        return self.lock_descriptor


@contextmanager
def open_output(loaded: LoadedWorkload, *, rehearsal: bool) -> Iterator[Output]:
    """Take an output folder for one run: create or check its marker, and lock it.

    Raises:
        OutputError: it holds another workload's results, something that is not ours, a
            rehearsal's results for a real run (or the reverse), or another run is at work in it.
    """
    if is_remote(loaded.output_uri):
        raise OutputError(f"output {loaded.output_uri}: only local folders are taken yet; give a path")
    root = Path(loaded.output_uri)
    store = open_store(loaded.output_uri)
    try:
        if root.exists() and not root.is_dir():
            raise OutputError(f"output {root} is a file; give a folder")
        _refuse_foreign_folder(root)
        root.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(root)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"output {root} can't be used ({reason}); give a folder that can be written"
        ) from None
    try:
        _check_marker(store, loaded, rehearsal)
        yield Output(store, rehearsal, descriptor)
    finally:
        os.close(descriptor)


def _refuse_foreign_folder(root: Path) -> None:
    if not root.exists() or (root / MARKER).exists():
        return
    strangers = sorted(
        name for name in os.listdir(root) if name != LOCK and not name.startswith(f".{MARKER}.")
    )
    if strangers:
        raise OutputError(
            f"output {root} is not empty and is no Switchgear output (found {strangers[0]!r}). "
            "Give an empty or new folder, so that nothing of yours is touched"
        )


def _lock(root: Path) -> int:
    descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OutputError(
            f"another run is at work on {root}. Wait for it to end; its workers stop with it"
        ) from None
    return descriptor


def _check_marker(store: Store, loaded: LoadedWorkload, rehearsal: bool) -> None:
    marker = {
        "version": MARKER_VERSION,
        "workload": loaded.workload.name,
        "workload_sha256": loaded.workload.digest(),
        "rehearsal": rehearsal,
    }
    if store.create(MARKER, canonical_json(marker)):
        return
    found = _parsed(store)
    if found.get("version") != MARKER_VERSION:
        raise OutputError(
            f"output {store.root} was written by another version of Switchgear "
            f"({found.get('version')!r}, this one writes {MARKER_VERSION!r}); use a new folder"
        )
    if found["workload_sha256"] != marker["workload_sha256"]:
        raise OutputError(
            f"output {store.root} holds the results of another workload: {found['workload']!r}, version "
            f"{str(found['workload_sha256'])[:12]}; this is {marker['workload']!r}, version "
            f"{loaded.workload.digest()[:12]}. Results of two versions don't mix: give a new output folder, "
            "or go back to that version (budget, limits and prices may change freely)"
        )
    if found["rehearsal"] != rehearsal:
        kind, other = ("rehearsed", "real") if found["rehearsal"] else ("real", "rehearsed")
        raise OutputError(
            f"output {store.root} holds {kind} results; {other} ones don't mix with them. "
            "Give a new output folder"
        )


def _parsed(store: Store) -> dict[str, object]:
    try:
        return dict(json.loads(store.read(MARKER)))
    except (ValueError, TypeError):
        raise OutputError(
            f"output {store.root}: its {MARKER} is not what Switchgear wrote. Give a new output folder"
        ) from None


def read_marker(output: str) -> dict[str, object]:
    """The marker of an output folder.

    Raises:
        OutputError: there is no output there.
    """
    try:
        return _parsed(open_store(output))
    except (FileNotFoundError, NotADirectoryError):
        raise OutputError(
            f"{output} is no Switchgear output (no {MARKER}). Give the folder that `switchgear run` wrote to"
        ) from None


def read_manifest(output: str, run_id: str | None = None) -> Manifest | None:
    """The manifest of a run, by default of the newest that has one; None if there is none."""
    store = open_store(output)
    if run_id is None:
        found = [p for p in store.list("runs") if p.endswith("/manifest.json")]
        if not found:
            return None
        path = max(found)
    else:
        path = run_path(run_id, "manifest.json")
        if not store.exists(path):
            return None
    return Manifest.from_dict(json.loads(store.read(path)))
