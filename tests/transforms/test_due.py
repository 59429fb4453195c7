"""What is due, over columns: the same as looking at each batch by itself."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.batches import BatchRef, CommitRecord
from schemas.failures import FailureClass
from tests.support.records import commit_record
from transforms.batch_refs import BatchRefs
from transforms.committed import Committed
from transforms.due import RETRYABLE_CLASSES, beginning_with, beyond_caps, find_due_batches

REFS = [BatchRef(f"{n:x}" * 32, f"/{n % 2}", "g", 0, 100 * n, 100) for n in range(6)]
CLASSES = ["timeout", "refused", "null_text", "awaiting_batch", "budget_exhausted"]
STANDINGS = st.fixed_dictionaries(
    {
        "attempt": st.integers(1, 3),
        "failures_by_class": st.dictionaries(st.sampled_from(CLASSES), st.integers(1, 9), max_size=3),
        "duplicates": st.lists(st.integers(0, 99), max_size=3, unique=True).map(sorted),
    }
)


def record(ref: BatchRef, standing: dict) -> CommitRecord:
    by_class = standing["failures_by_class"]
    return commit_record(
        batch_id=ref.batch_id,
        attempt=standing["attempt"],
        ref=replace(ref, duplicate_rows=tuple(standing["duplicates"])),
        failures=sum(by_class.values()),
        failures_by_class=by_class,
        refused={},
    )


def expected(
    ref: BatchRef, standing: dict | None, waiting: set[str], classes: list[str]
) -> tuple[BatchRef, int] | None:
    if standing is None:
        return ref, ref.row_count
    by_class = standing["failures_by_class"]
    again = sum(count for name, count in by_class.items() if name in RETRYABLE_CLASSES or name in classes)
    if not again or (ref.batch_id in waiting and again == by_class.get("awaiting_batch", 0)):
        return None
    attempt = standing["attempt"]
    further = {
        "attempt": attempt + 1,
        "previous_attempt": attempt,
        "retry_classes": tuple(sorted(set(classes))),
    }
    return replace(ref, duplicate_rows=tuple(standing["duplicates"]), **further), again


@given(
    st.dictionaries(st.integers(0, 5), STANDINGS),
    st.sets(st.integers(0, 5)),
    st.lists(st.sampled_from(["refused", "null_text"]), max_size=3),
)
def test_what_is_due_of_all_batches_is_what_is_due_of_each(
    standings: dict[int, dict], waits: set[int], classes: list[str]
) -> None:
    committed = Committed.of(record(REFS[n], standing) for n, standing in standings.items())
    waiting = {REFS[n].batch_id for n in waits}
    due = find_due_batches(BatchRefs.of(REFS), committed, waiting, classes)
    found = list(zip(due.refs, due.rows.tolist(), strict=True))
    each = [expected(ref, standings.get(n), waiting, classes) for n, ref in enumerate(REFS)]
    assert found == [one for one in each if one is not None]
    assert due.numbers.tolist() == [n for n, one in enumerate(each) if one is not None]
    kept = due.where(due.rows > 1)
    assert list(zip(kept.refs, kept.rows.tolist(), strict=True)) == [one for one in found if one[1] > 1]


LEFT = {"amount": Decimal("0.5"), "route:a": Decimal(3)}


@pytest.mark.parametrize(
    ("by_class", "refused", "left", "is_beyond"),
    [
        ({"budget_exhausted": 2}, {"amount": "0.6"}, LEFT, True),
        ({"budget_exhausted": 2}, {"amount": "0.5"}, LEFT, False),  # the least of them still goes
        ({"budget_exhausted": 2}, {"amount": "0.6", "route:a": "3"}, LEFT, False),
        ({"budget_exhausted": 2}, {"amount": "0.6", "gone": "9"}, LEFT, False),  # a cap that was taken away
        ({"budget_exhausted": 2}, {}, LEFT, False),
        ({"budget_exhausted": 2, "timeout": 1}, {"amount": "0.6"}, LEFT, False),
        ({"budget_exhausted": 2, "refused": 1}, {"amount": "0.6"}, LEFT, True),  # which is no matter of caps
        ({"budget_exhausted": 2}, {"amount": "0.6"}, {}, False),
    ],
)
def test_what_caps_refused_is_left_alone_while_they_would_refuse_all_of_it_again(
    by_class: dict[str, int], refused: dict[str, str], left: dict[str, Decimal], is_beyond: bool
) -> None:
    standing = record(REFS[1], {"attempt": 1, "failures_by_class": by_class, "duplicates": []})
    committed = Committed.of([replace(standing, refused=refused)])
    due = find_due_batches(BatchRefs.of(REFS[:3]), committed)
    assert beyond_caps(due, committed, left).tolist() == [False, is_beyond, False]


def test_caps_refuse_nothing_of_an_output_that_is_new() -> None:
    committed = Committed.of([])
    due = find_due_batches(BatchRefs.of(REFS), committed)
    assert not beyond_caps(due, committed, LEFT).any()


IDS = st.binary(min_size=16, max_size=16) | st.builds(
    lambda a, b: bytes([a] * 8 + [b] * 8), *[st.sampled_from([0, 0x0F, 0xF0, 0xFF])] * 2
)


@given(st.lists(IDS, max_size=10), st.text("0123456789abcdef", max_size=4), st.text("0fxA ü", max_size=33))
def test_batches_are_found_by_the_beginning_of_their_ids(ids: list[bytes], one: str, other: str) -> None:
    names = [found.hex() for found in ids]
    refs = BatchRefs.of(BatchRef(name, "", "", 0, 0, 1) for name in names)
    beginnings = [one, other, *(name[:n] for name, n in product(names[:2], (1, 7, 32)))]
    for beginning, mask in zip(beginnings, beginning_with(refs, beginnings), strict=True):
        assert mask.tolist() == [name.startswith(beginning) for name in names]


def test_failure_classes_of_the_tests_are_those_that_there_are() -> None:
    assert {FailureClass(name).value in RETRYABLE_CLASSES for name in CLASSES} == {True, False}
    assert np.isin(["timeout", "budget_exhausted"], sorted(RETRYABLE_CLASSES)).all()
