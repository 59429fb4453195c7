"""Batches and attempts as arrays that are sorted and compared fast: 16 bytes a batch, 20 an attempt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.batch_ids import ID_BYTES, Ids, ids_in, packed_ids

Keys = npt.NDArray[np.bytes_]
"""Batch and attempt in one: the id's 16 bytes and four of the attempt, so that both are compared at once."""

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_KEY = np.dtype([("id", f"S{ID_BYTES}"), ("attempt", ">u4")])
_AT_ONCE = 1 << 16
"""Of many keys, those that are looked up at a time: what that takes besides its result stays small."""


def keys_of(table: pa.Table) -> Keys:
    """The attempts of a table with the columns `batch_id`, binary or hexadecimal, and `attempt`."""
    return keys_from(ids_in(table.column("batch_id")), table.column("attempt").to_numpy())


def key_of(names: Sequence[tuple[str, int]]) -> Keys:
    """The keys of some batches and attempts, in their order."""
    return keys_from(packed_ids([batch for batch, _ in names]), [attempt for _, attempt in names])


def keys_from(ids: Ids, attempts: npt.ArrayLike) -> Keys:
    """The keys of some batches, each with its attempt, in their order."""
    keys = np.empty(len(ids), _KEY)
    keys["id"], keys["attempt"] = ids, attempts
    return keys.view(f"S{_KEY.itemsize}")


def no_keys() -> Keys:
    """None."""
    return key_of(())


def unpacked_keys(keys: Keys) -> tuple[Ids, npt.NDArray[np.int32]]:
    """The batches and attempts of keys."""
    fields = np.ascontiguousarray(keys).view(_KEY)
    return fields["id"].copy(), fields["attempt"].astype(np.int32)


def ascending(several: Iterable[Keys]) -> Keys:
    """All of some keys, ascending, each once."""
    keys = np.concatenate([no_keys(), *several])
    keys.sort()
    return _where(keys, _differs_from_next(keys))


def newest_of(keys: Keys) -> Keys:
    """Of sorted keys the newest attempt of each batch."""
    return _where(keys, _differs_from_next(keys.view(_KEY)["id"]))


def chained(keys: Keys) -> Keys:
    """Of sorted keys all but those that are the first and only attempt of their batch."""
    fields = keys.view(_KEY)
    is_last = _differs_from_next(fields["id"])
    is_only = is_last.copy()
    is_only[1:] &= is_last[:-1]
    return keys[~is_only | (fields["attempt"] != 1)]


def _differs_from_next(values: npt.NDArray[np.bytes_]) -> Mask:
    differs = np.ones(len(values), bool)
    differs[:-1] = values[:-1] != values[1:]
    return differs


def _where(keys: Keys, mask: Mask) -> Keys:
    """Those for which `mask` is true; no copy where that is so of all."""
    return keys if mask.all() else keys[mask]


def places_of(keys: npt.NDArray[np.generic], known: npt.NDArray[np.generic]) -> Rows:
    """Where each of some keys stands among others, which are sorted; -1 where it doesn't."""
    places = np.full(len(keys), -1, np.int64)
    for first in range(0, len(keys) if len(known) else 0, _AT_ONCE):
        part = keys[first : first + _AT_ONCE]
        found = np.searchsorted(known, part)
        found[found == len(known)] = 0
        places[first : first + _AT_ONCE] = np.where(known[found] == part, found, -1)
    return places


class ByBatch:
    """A value of each of some batches, looked up by batch."""

    def __init__(self, batches: pa.ChunkedArray, values: pa.ChunkedArray) -> None:
        """Of two columns; where a batch stands more than once, its first value counts."""
        ids = ids_in(batches)
        order = np.argsort(ids, kind="stable")
        self._ids = ids[order]
        self._values = values.unify_dictionaries().combine_chunks().take(pa.array(order))

    def of(self, ids: Ids) -> pa.Array:
        """The value of each of many batches, in their order; null for those without one."""
        places = places_of(ids, self._ids)
        return self._values.take(pa.array(places, pa.int64(), mask=places < 0))


def keys_without(keys: Keys, known: Keys) -> Keys:
    """Those of some keys that are not among others, which are sorted; in their order."""
    is_new = np.ones(len(keys), bool)
    for first in range(0, len(keys), _AT_ONCE):
        is_new[first : first + _AT_ONCE] = places_of(keys[first : first + _AT_ONCE], known) < 0
    return _where(keys, is_new)


def with_keys(known: Keys, others: Keys) -> Keys:
    """Sorted keys and others, each once, ascending; costs little where there are few others."""
    new = ascending([keys_without(others, known)])
    return np.insert(known, np.searchsorted(known, new), new) if len(new) else known
