"""The output folder: whose it is, who is at work in it, and what stands where."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from schemas.errors import OutputError, StoreError, first_line
from schemas.ids import canonical_json
from schemas.load import LoadedWorkload
from schemas.run import Manifest
from transforms.call.segments import CLAIMS
from transforms.layout import run_path
from transforms.output_lock import LOCK, REMOTE_LOCK, locked
from transforms.store import Store, is_remote, open_store

MARKER = "switchgear.json"
MARKER_VERSION = "output/1"


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
            rehearsal's results for a real run (or the reverse).
        OutputBusyError: another run is at work in it.
    """
    store = open_store(loaded.output_uri)
    with ExitStack() as held:
        try:
            if not is_remote(store.root):
                _make_folder(Path(store.root))
            _refuse_foreign_folder(store)
            descriptor = held.enter_context(locked(store))
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"output {store.root} can't be used ({reason}); give a folder that can be written"
            ) from None
        _check_marker(store, loaded, rehearsal)
        if is_remote(store.root):
            _require_rights(store)
        yield Output(store, rehearsal, descriptor)


def _make_folder(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise OutputError(f"output {root} is a file; give a folder")
    root.mkdir(parents=True, exist_ok=True)


def _refuse_foreign_folder(store: Store) -> None:
    root = store.root
    if store.exists(MARKER):
        return
    if is_remote(root):
        strangers = list(islice((path for path in store.list("") if path != REMOTE_LOCK), 1))
    else:
        names = os.listdir(root)
        strangers = sorted(name for name in names if name != LOCK and not name.startswith(f".{MARKER}."))
    if strangers:
        raise OutputError(
            f"output {root} is not empty and is no Switchgear output (found {strangers[0]!r}). "
            "Give an empty or new folder, so that nothing of yours is touched"
        )


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


def _require_rights(store: Store) -> None:
    """Make sure that objects can be created, replaced and deleted, before anything is paid for.

    An account may well have the right to create only, and a bucket may keep what it has.

    Raises:
        OutputError: one of these can't be done.
    """
    path = f"{CLAIMS}/rights-{secrets.token_hex(8)}.json"  # if it is left: as a claim that nobody holds
    try:
        store.create(path, b"{}")
        store.swap(path, b"{ }", store.read_versioned(path)[1])
        store.delete(path)
    except StoreError as error:
        raise OutputError(
            f"output {store.root}: a run must create, replace and delete objects there: {error}"
        ) from None


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
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{output} can't be read ({reason}): see its permissions") from None


def read_manifest(output: str, run_id: str | None = None) -> Manifest | None:
    """The manifest of a run, by default of the newest that has one; None if there is none.

    Raises:
        OutputError: it is damaged, or another version's.
    """
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
    try:
        return Manifest.from_dict(json.loads(store.read(path)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{store.root}/{path} can't be read ({first_line(error)}): it was damaged, or is another "
            "version's. Restore it, or run again: every run writes one of its own"
        ) from None
