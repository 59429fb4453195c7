"""Proof of the compacted commit records against the records themselves, for `switchgear ledger verify`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from schemas.arrow import COMMITS_SCHEMA
from schemas.batches import CommitRecord
from transforms.attempt_keys import key_of, keys_of, keys_without, unpacked_keys
from transforms.batch_ids import name_of
from transforms.commit_rows import commit_rows
from transforms.commit_survey import Survey, survey_commits
from transforms.compacted import rows_in
from transforms.layout import COMPACTED, commit_path, read_commit
from transforms.side_by_side import side_by_side
from transforms.store import Store
from transforms.verify_ledger import Note

_ROWS_AT_ONCE = 1000
_UNSEEN = (
    f"is in no file of {COMPACTED}/, and no run that has yet to be accounted for planned it, so that runs "
    f"don't see it: delete {COMPACTED}/, which the next run makes anew"
)


def check_compacted(store: Store, commits: Mapping[str, Sequence[int]], note: Note) -> None:
    """Hold every compacted row against its record, and prove that a run would find all the other records.

    `commits` are the attempts that have a record, by batch.
    """
    survey = survey_commits(store)
    for path in survey.compacted.damaged:
        note(
            "unfinished", path, "is not what was written; the next run makes it anew from the commit records"
        )
    for file in survey.compacted.files:
        for table in rows_in(store, [file.rows], COMMITS_SCHEMA.names):
            for start in range(0, len(table), _ROWS_AT_ONCE):
                _check_rows(store, file.path, table.slice(start, _ROWS_AT_ONCE), note)
    if not survey.must_list:
        _check_found(survey, commits, note)


def _check_rows(store: Store, path: str, rows: pa.Table, note: Note) -> None:
    batches, attempts = unpacked_keys(keys_of(rows))
    names = list(zip(map(name_of, batches), map(int, attempts), strict=True))

    def read(name: tuple[str, int]) -> CommitRecord | None:
        try:
            return read_commit(store, *name)
        except FileNotFoundError:
            return None

    records = list(side_by_side(store, read, names))
    there = commit_rows(record for record in records if record is not None).to_pylist()
    expected = iter(there)
    for name, record, row in zip(names, records, rows.to_pylist(), strict=True):
        if record is None:
            note("contradiction", path, f"has {commit_path(*name)}, which is not there")
        elif next(expected) != row:
            note("contradiction", path, f"says something else than {commit_path(*name)}")


def _check_found(survey: Survey, commits: Mapping[str, Sequence[int]], note: Note) -> None:
    """A record in no file must be among those that the next run asks for."""
    every = key_of([(batch, attempt) for batch, attempts in commits.items() for attempt in attempts])
    lost = keys_without(keys_without(every, survey.known), survey.asked)
    for batch, attempt in zip(*unpacked_keys(lost), strict=True):
        place = commit_path(name_of(batch), int(attempt))
        note("contradiction", place, _UNSEEN)
