"""Doing the same for many objects of a store: at once where each takes a round trip over a network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from transforms.store import Store, is_remote

AT_ONCE = 32
"""Half of the connections that a process has to Cloud Storage."""

T = TypeVar("T")
S = TypeVar("S")


def side_by_side(
    store: Store, work: Callable[[S], T], items: Iterable[S], at_once: int = AT_ONCE
) -> Iterator[T]:
    """`work` of each item, in order. Of local files one by one; else so many, and no more are in memory."""
    if not is_remote(store.root):
        yield from map(work, items)
        return
    left = iter(items)
    with ThreadPoolExecutor(at_once, thread_name_prefix="store") as pool:
        while piece := list(islice(left, at_once)):
            yield from pool.map(work, piece)


def in_order(pool: Executor, work: Callable[[S], T], items: Iterable[S], ahead: int) -> Iterator[T]:
    """`work` of each item by a pool, in order; at most `ahead` are begun and not yet taken.

    A slow one holds up nobody until so many behind it are done. Items are taken one by one as there is room
    for them, so there may be more of them than memory holds.
    """
    begun: deque[Future[T]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) >= ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()
