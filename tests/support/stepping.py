"""A store that stops before or after each of its operations: to crash there, or to let others go first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import IO, Any

from transforms.store import LocalStore

MUTATIONS = frozenset({"create", "swap", "stage", "finish", "publish", "delete", "prune"})


class CrashError(BaseException):
    """The process dies here; nothing catches it."""


class SteppedStore:
    """A local store that calls `gate(operation, path)` before each step, and `passed` after it."""

    def __init__(
        self,
        root: str,
        gate: Callable[[str, str], None] = lambda *_: None,
        passed: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self.root = root
        self._inner = LocalStore(root)
        self._gate, self._passed = gate, passed

    def read(self, path: str) -> bytes:
        return self._step("read", path, lambda: self._inner.read(path))

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        return self._step("read_versioned", path, lambda: self._inner.read_versioned(path))

    def exists(self, path: str) -> bool:
        return self._step("exists", path, lambda: self._inner.exists(path))

    def create(self, path: str, data: bytes) -> bool:
        return self._step("create", path, lambda: self._inner.create(path, data))

    def swap(self, path: str, data: bytes, generation: str) -> str:
        return self._step("swap", path, lambda: self._inner.swap(path, data, generation))

    def stage(self, path: str) -> IO[bytes]:
        return self._step("stage", path, lambda: self._inner.stage(path))

    def finish(self, stream: IO[bytes]) -> None:
        self._step("finish", str(stream.name), lambda: self._inner.finish(stream))

    def publish(self, staged: str, final: str) -> None:
        self._step("publish", final, lambda: self._inner.publish(staged, final))

    def open(self, path: str) -> IO[bytes]:
        return self._step("open", path, lambda: self._inner.open(path))

    def list(self, prefix: str) -> Iterator[str]:
        return iter(self._step("list", prefix, lambda: [*self._inner.list(prefix)]))

    def delete(self, path: str) -> None:
        self._step("delete", path, lambda: self._inner.delete(path))

    def prune(self, prefix: str) -> None:
        self._step("prune", prefix, lambda: self._inner.prune(prefix))

    def _step(self, operation: str, path: str, act: Callable[[], Any]) -> Any:
        self._gate(operation, path)
        result = act()
        self._passed(operation, path)
        return result


class Countdown:
    """Crashes at the n-th mutation (from 0) that it sees; `seen` counts them."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def __call__(self, operation: str, path: str) -> None:
        if operation not in MUTATIONS:
            return
        if self.seen == self.at:
            raise CrashError(f"{operation} {path}")
        self.seen += 1


def interleave(
    root: str,
    actors: Sequence[Callable[[SteppedStore], object]],
    random: Random,
    watch: Callable[[], None],
) -> list[object]:
    """Run actors on one store, one operation at a time in an order of `random`; `watch` runs between.

    The results of the actors; what one raises is raised here.
    """
    turns = [threading.Semaphore(0) for _ in actors]
    back = threading.Semaphore(0)
    results: list[object] = [None] * len(actors)
    errors: list[BaseException] = []
    alive = set(range(len(actors)))

    def run(number: int) -> None:
        def gate(_operation: str, _path: str) -> None:
            back.release()
            turns[number].acquire()

        turns[number].acquire()
        try:
            results[number] = actors[number](SteppedStore(root, gate))
        except BaseException as error:
            errors.append(error)
        alive.discard(number)
        back.release()

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(len(actors))]
    for thread in threads:
        thread.start()
    while alive:
        turns[random.choice(sorted(alive))].release()
        back.acquire()
        watch()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
