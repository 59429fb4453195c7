"""Proof of what `failures/` shows against the commit records, for `switchgear ledger verify`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa

from schemas.errors import StoreError
from transforms.attempt_keys import unpacked_keys
from transforms.batch_ids import name_of
from transforms.failure_files import FailureFile, path_of, read_failure_files, rows_by_batch
from transforms.failures import failures_left
from transforms.layout import FAILURES, commit_path
from transforms.store import Store
from transforms.verify_ledger import Note

_DAMAGED = "is not what was written: delete it, and the next run makes it anew from the commit records"
_NOT_SHOWN = "were committed and are not shown yet: the next run does it"
_REPLACED = "a later attempt has replaced failures in it; the next run takes them away"
_STRANGE = "no commit record names it"
_TWICE = "shows failures that another file shows too; the next run takes them away"


def check_failure_files(
    store: Store, commits: Mapping[str, Sequence[int]], left: Collection[str], note: Note
) -> None:
    """Hold every row that is shown against its record, and find those that are not shown.

    `commits` are the attempts that have a record, by batch; `left` are the batches with failures. Whatever
    is shown wrongly is made from the records anew by the next run: a contradiction are rows of no record, or
    other rows than a record has.
    """
    files, damaged = read_failure_files(store)
    for path in damaged:
        note("unfinished", path, _DAMAGED)
    ours = {file.path for file in files} | set(damaged)
    for path in store.list(FAILURES):
        if path not in ours:
            note("contradiction", path, _STRANGE)
    shown: set[str] = set()
    for file in files:
        if _is_whole(store, file):
            _check_file(store, file, commits, shown, note)
        else:
            note("unfinished", file.path, _DAMAGED)
    for batch_id in sorted(set(left) - shown):
        note("unfinished", FAILURES, f"failures of batch {batch_id} {_NOT_SHOWN}")


def _is_whole(store: Store, file: FailureFile) -> bool:
    return file.is_of_one or file.path == path_of(store.read(file.path))


def _check_file(
    store: Store, file: FailureFile, commits: Mapping[str, Sequence[int]], shown: set[str], note: Note
) -> None:
    attempts = zip(*unpacked_keys(file.attempts), strict=True)
    names = [(name_of(batch), int(attempt)) for batch, attempt in attempts]
    rows = rows_by_batch(store, file)
    for batch_id, attempt in names:
        _, table = next(rows, ("", pa.table({})))
        if attempt not in commits.get(batch_id, ()):
            note("contradiction", file.path, f"{_STRANGE}: batch {batch_id}, attempt {attempt}")
        elif attempt != commits[batch_id][-1]:
            note("unfinished", file.path, f"{_REPLACED}: batch {batch_id}, attempt {attempt}")
        elif batch_id in shown:
            note("unfinished", file.path, f"{_TWICE}: batch {batch_id}")
        else:
            shown.add(batch_id)
            _compare(store, file, (batch_id, attempt), table, note)
    if next(rows, None) is not None:
        note("contradiction", file.path, "has rows of batches that it does not name")


def _compare(store: Store, file: FailureFile, name: tuple[str, int], shown: pa.Table, note: Note) -> None:
    try:
        is_same = failures_left(store, *name).equals(shown)
    except StoreError:
        return  # said of the record itself
    if not is_same:
        note("contradiction", file.path, f"says something else than {commit_path(*name)}")
