"""Batches and attempts as arrays: sorted, compared, found."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from transforms.attempt_keys import (
    Keys,
    ascending,
    chained,
    key_of,
    keys_of,
    keys_without,
    newest_of,
    places_of,
    unpacked_keys,
    with_keys,
)
from transforms.batch_ids import name_of, packed_ids, written_ids

BATCHES = st.sampled_from(["00" * 16, "00" * 15 + "01", "ab" * 15 + "00", "ff" * 16])
NAMES = st.lists(st.tuples(BATCHES, st.integers(1, 4)), max_size=12)
Name = tuple[str, int]


def names(keys: Keys) -> list[Name]:
    batches, attempts = unpacked_keys(keys)
    return list(zip(map(name_of, batches), map(int, attempts), strict=True))


@given(NAMES, NAMES)
def test_keys_are_sets_of_attempts_in_order(some: list[Name], others: list[Name]) -> None:
    known = ascending([key_of(some), key_of(others)])
    assert names(known) == sorted({*some, *others})
    mine = ascending([key_of(some)])
    assert names(with_keys(mine, key_of(others))) == names(known)
    assert names(keys_without(key_of(others), mine)) == [name for name in others if name not in some]


@given(NAMES)
def test_newest_attempts_and_chains_are_told_from_first_and_only_ones(some: list[Name]) -> None:
    keys = ascending([key_of(some)])
    attempts = {batch: sorted({a for b, a in some if b == batch}) for batch, _ in some}
    assert names(newest_of(keys)) == sorted((batch, found[-1]) for batch, found in attempts.items())
    assert names(chained(keys)) == sorted(
        (b, a) for b, found in attempts.items() if found != [1] for a in found
    )


def test_many_keys_are_found_at_their_places() -> None:
    ids = np.sort(np.frombuffer(np.random.default_rng(0).bytes(16 * 70_000), "S16"))
    places = places_of(ids[::-1], ids)
    assert np.array_equal(places, np.arange(70_000)[::-1])
    assert list(places_of(packed_ids(["00" * 16]), ids)) == [-1]
    assert list(places_of(ids[:2], ids[:0])) == [-1, -1]


@given(st.lists(BATCHES, max_size=5))
def test_ids_are_written_and_read_again(batches: list[str]) -> None:
    written = written_ids(packed_ids(batches))
    assert written.to_pylist() == batches
    table = pa.table({"batch_id": written, "attempt": pa.array([1] * len(batches), pa.int32())})
    assert names(keys_of(table)) == [(batch, 1) for batch in batches]
