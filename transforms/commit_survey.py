"""What is committed and in no compacted file: asked for by name, or listed where that is cheaper.

Reads only. See `transforms.compacted` for why the plans of runs that are not covered name every attempt that
can be missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.batches import CommitRecord
from transforms.attempt_keys import Keys, ascending, key_of, keys_of, keys_without, unpacked_keys
from transforms.batch_ids import name_of
from transforms.compacted import Compacted, read_compacted
from transforms.layout import COMMITS, RUNS, parse_name, plan_path, read_commit
from transforms.side_by_side import side_by_side
from transforms.store import Store

PIECE = 10_000
"""Records that are read, kept in memory and compacted at a time."""

NAMES_AT_ONCE = 64
_NAMES_A_PAGE = 1000  # of a listing, which comes page after page
Name = tuple[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What an output's compacted files have, and what may be committed besides.

    `known` are the attempts in files, each once, ascending. `planned` are those that each run which is not
    covered planned and no file has; `asked` are all of them. With `must_list` the plans don't tell all.
    """

    store: Store
    compacted: Compacted
    known: Keys
    planned: Mapping[str, Keys]
    asked: Keys
    must_list: bool

    def found(self) -> Iterator[list[CommitRecord]]:
        """The records that are in no file, `PIECE` at a time."""
        names = self._listed() if self._lists() else _names(self.asked)

        def read(name: Name) -> CommitRecord | None:
            try:
                return read_commit(self.store, *name)
            except FileNotFoundError:
                return None

        records = side_by_side(self.store, read, names, NAMES_AT_ONCE)
        there = (record for record in records if record is not None)
        while piece := list(islice(there, PIECE)):
            yield piece

    def covered_by(self, found: Keys) -> list[str]:
        """The runs that are covered as soon as these attempts, which are sorted, stand in a file too."""
        covered: list[str] = []
        planned_again: list[Keys] = []  # by newer runs
        for run in sorted(self.planned, reverse=True):
            missing = keys_without(self.planned[run], found)
            for keys in planned_again:
                missing = keys_without(missing, keys)
            if len(missing):
                planned_again.append(missing)
            else:
                covered.append(run)
        return covered

    def _lists(self) -> bool:
        return self.must_list or listing_is_cheaper(len(self.asked), len(self.known) + len(self.asked))

    def _listed(self) -> Iterator[Name]:
        """The names of records that no file has."""
        paths = iter(self.store.list(COMMITS))
        while piece := list(islice(paths, PIECE)):
            names = [parse_name(path.rsplit("/", 1)[1]) for path in piece]
            of_records = [(name[0], name[1]) for name in names if name is not None and name[2] == "json"]
            left = keys_without(key_of(of_records), self.known)
            yield from _names(left)


def listing_is_cheaper(asked: int, all_names: int) -> bool:
    """Whether listing all names takes fewer round trips than asking for some of them side by side."""
    return asked / NAMES_AT_ONCE > 1 + all_names / _NAMES_A_PAGE


def survey_commits(store: Store) -> Survey:
    """Read the compacted files and the plans of the runs that they don't cover."""
    compacted = read_compacted(store)
    known = compacted.lookups.keys
    runs = sorted(set(store.folders(RUNS)) - compacted.covers)
    plans = dict(zip(runs, side_by_side(store, lambda run: _planned(store, run, known), runs), strict=True))
    planned = {run: keys for run, keys in plans.items() if isinstance(keys, np.ndarray)}
    unreadable = any(isinstance(keys, str) for keys in plans.values())
    return Survey(
        store=store,
        compacted=compacted,
        known=known,
        planned=planned,
        asked=ascending(planned.values()),
        must_list=not compacted.files or bool(compacted.damaged) or unreadable,
    )


_UNREADABLE = "unreadable"


def _planned(store: Store, run_id: str, known: Keys) -> Keys | str | None:
    """The attempts that a run planned and that are not known; None if it came to no plan."""
    try:
        with store.open(plan_path(run_id)) as stream, pq.ParquetFile(stream) as plan:
            pieces = (_keys_in(plan, group) for group in range(plan.num_row_groups))
            return ascending(keys_without(piece, known) for piece in pieces)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, ValueError):
        return _UNREADABLE


def _keys_in(plan: pq.ParquetFile, group: int) -> Keys:
    return keys_of(plan.read_row_group(group, ["batch_id", "attempt"], use_threads=False))


def _names(keys: Keys) -> Iterator[Name]:
    for start in range(0, len(keys), PIECE):
        batches, attempts = unpacked_keys(keys[start : start + PIECE])
        yield from zip(map(name_of, batches), map(int, attempts), strict=True)
