from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import (
    batch_id,
    canonical_json,
    key_sum,
    new_run_id,
    row_key,
    sha256_hex,
    stable_fraction,
)

PLACE = ("/data/a.parquet", "sha256:00ff", 2, 4096, 1000)
PAIRS = st.tuples(st.integers(0, 2**40), st.sampled_from(["", "a", "b", "route_1"]))


def test_the_batch_id_is_frozen() -> None:
    """If this fails, nothing that users have committed is found again: bump BATCH_ID_VERSION and say so."""
    assert batch_id(*PLACE) == "b90342c8d3b7f934046ef77407ba7705"


@pytest.mark.parametrize("position", range(5))
def test_every_part_of_its_place_changes_a_batch_id(position: int) -> None:
    other = ("/data/b.parquet", "sha256:00fe", 3, 4097, 1001)
    changed = [*PLACE]
    changed[position] = other[position]
    assert batch_id(*changed) != batch_id(*PLACE)  # type: ignore[arg-type]


def test_neighbouring_parts_do_not_run_into_each_other() -> None:
    assert batch_id("/a", "b", 1, 11, 1) != batch_id("/a", "b", 11, 1, 1)
    assert row_key(11, "1") != row_key(1, "11")


def test_a_file_name_that_is_no_utf8_has_an_id() -> None:
    assert len(batch_id("/data/\udcff.parquet", "g", 0, 0, 1)) == 32


@given(st.lists(PAIRS, max_size=30), st.randoms())
def test_the_key_sum_does_not_depend_on_the_order(pairs: list[tuple[int, str]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert key_sum(row_key(*p) for p in pairs) == key_sum(row_key(*p) for p in shuffled)


@given(st.lists(PAIRS, min_size=1, max_size=30, unique=True), st.data())
def test_a_lost_a_doubled_and_an_exchanged_row_change_the_key_sum(
    pairs: list[tuple[int, str]], data: st.DataObject
) -> None:
    whole = key_sum(row_key(*p) for p in pairs)
    victim = data.draw(st.integers(0, len(pairs) - 1))
    lost = pairs[:victim] + pairs[victim + 1 :]
    stranger = data.draw(PAIRS.filter(lambda p: p not in pairs))
    for other in (lost, [*pairs, pairs[victim]], [*lost, stranger]):
        assert key_sum(row_key(*p) for p in other) != whole


def test_key_sums_stay_below_128_bits() -> None:
    assert key_sum([2**128 - 1, 5]) == 4


def test_canonical_json_has_one_form_for_equal_values() -> None:
    assert canonical_json({"b": [1, None], "a": "ä"}) == '{"a":"ä","b":[1,null]}'.encode()
    assert canonical_json({"b": 1, "a": 2}) == canonical_json({"a": 2, "b": 1})


def test_sha256_is_the_standard_one() -> None:
    assert sha256_hex(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_run_ids_sort_by_time_and_differ_within_an_instant() -> None:
    start = datetime(2026, 11, 22, 9, 15, 0, 123_999, UTC)
    ids = [new_run_id(start + timedelta(milliseconds=i)) for i in range(5)]
    assert ids == sorted(ids)
    assert ids[0].startswith("20261122T091500123Z-")
    assert new_run_id(start) != new_run_id(start)


@given(st.text(), st.text())
def test_a_stable_fraction_is_below_one_and_the_same_again(document_id: str, salt: str) -> None:
    fraction = stable_fraction(document_id, salt)
    assert 0.0 <= fraction < 1.0
    assert stable_fraction(document_id, salt) == fraction


def test_the_stable_fraction_is_frozen() -> None:
    """If this fails, canaries of running workloads change sides."""
    assert stable_fraction("doc-1", "ask") == pytest.approx(0.018608171046411673, abs=1e-15)


def test_stable_fractions_of_two_routes_are_independent() -> None:
    both = sum(
        stable_fraction(f"d{i}", "a") < 0.5 and stable_fraction(f"d{i}", "b") < 0.5 for i in range(4000)
    )
    assert 900 < both < 1100
