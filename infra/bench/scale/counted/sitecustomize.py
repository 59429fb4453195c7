"""Counts what a process asks of its output's store, for benchmarks; the product has no part in it.

Python imports this by itself where its folder is on PYTHONPATH. With SWITCHGEAR_BENCH_STORE set to a folder,
the process leaves there, when it ends, how often it called which operation of `transforms.store.Store` on
which of the output's folders, as JSON. Local ledgers, locks and the local budget record pass the store by; in
a bucket all of them go through it.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

_OPERATIONS = ("read", "read_versioned", "exists", "create", "swap", "stage", "finish", "publish", "open")
_OPERATIONS += ("list", "folders", "delete", "read_range", "info")


class _Inside(threading.local):
    """Whether a thread is inside an operation: one that is made of others counts once."""

    operation = False


_INSIDE = _Inside()


def _counted(name: str, operation: Callable[..., Any], counts: Counter[str]) -> Callable[..., Any]:
    @functools.wraps(operation)
    def wrapper(store: Any, path: Any, *rest: Any, **named: Any) -> Any:
        if _INSIDE.operation:
            return operation(store, path, *rest, **named)
        if name != "finish":  # of what was staged
            # What is published counts where it comes to stand.
            folder = (str(rest[0]) if name == "publish" else path).split("/")[0]
            counts[f"{name} {folder}"] += 1
        _INSIDE.operation = True
        try:
            return operation(store, path, *rest, **named)
        finally:
            _INSIDE.operation = False

    return wrapper


def _count_into(folder: str) -> None:
    from transforms import store

    counts: Counter[str] = Counter()
    seen: set[type] = set()
    opened = store.open_store

    def open_store(root: str) -> Any:
        found = opened(root)
        kind = type(found)
        if kind not in seen:
            seen.add(kind)
            for name in _OPERATIONS:
                if hasattr(kind, name):
                    setattr(kind, name, _counted(name, getattr(kind, name), counts))
        return found

    store.open_store = open_store
    process = os.getpid()

    def leave() -> None:
        if os.getpid() == process and counts:
            Path(folder, f"{process}.json").write_text(json.dumps(counts), encoding="utf-8")

    atexit.register(leave)


if os.environ.get("SWITCHGEAR_BENCH_STORE"):
    _count_into(os.environ["SWITCHGEAR_BENCH_STORE"])
