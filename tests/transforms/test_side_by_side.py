"""The same for many objects: in order, at once only over a network, and never too many."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from transforms.side_by_side import side_by_side
from transforms.store import LocalStore

REMOTE: Any = SimpleNamespace(root="gs://bucket/out")


def test_over_a_network_so_many_are_under_way_at_once_and_come_in_order() -> None:
    meeting = threading.Barrier(8, timeout=60)  # passed only if eight are at it together

    def work(number: int) -> int:
        meeting.wait()
        return number * number

    assert list(side_by_side(REMOTE, work, range(32), 8)) == [n * n for n in range(32)]


def test_no_more_is_begun_than_may_be_in_memory() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        return number

    found = side_by_side(REMOTE, work, range(100), 4)
    assert [next(found) for _ in range(4)] == [0, 1, 2, 3]
    assert sorted(begun) == [0, 1, 2, 3]
    assert next(found) == 4
    assert len(begun) <= 8


def test_local_files_are_taken_one_by_one_in_the_callers_thread(tmp_path: Path) -> None:
    threads = set(side_by_side(LocalStore(str(tmp_path)), lambda _: threading.get_ident(), range(10)))
    assert threads == {threading.get_ident()}


def test_what_goes_wrong_with_one_is_raised() -> None:
    def work(number: int) -> int:
        if number == 5:
            raise FileNotFoundError("5")
        return number

    with pytest.raises(FileNotFoundError, match="5"):
        list(side_by_side(REMOTE, work, range(10), 2))
