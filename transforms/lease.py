"""Leases: an object that says that its holder lives, renewed while it does, taken over when it does not.

A lease is created only if there is none, and renewed by compare-and-swap, so a holder that was taken over
learns of it by its next renewal. Whoever finds a lease watches it: if it has not changed for LEASE_S by the
watcher's own clock, its holder is dead (clocks of two machines are never compared). A holder that runs on
this machine and is gone is known to be dead at once.

A holder that stood still for longer than LEASE_S may have been taken over and not know yet: what a lease
guards must be safe by itself, as create-only names are. A lease only keeps two from working in vain.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.errors import PreconditionFailedError, StoreError
from schemas.ids import canonical_json
from transforms.store import Store

LEASE_S = 15.0
RENEW_EVERY_S = 4.0
"""Cloud Storage takes about one write a second of one name; a second missed renewal is still in time."""

_LOOK_EVERY_S = 0.5
_VERSION = "lease/1"


class LeaseHeldError(StoreError):
    """Another holder lives. `holder` is what its lease says of it."""

    def __init__(self, message: str, holder: dict[str, Any]) -> None:
        super().__init__(message)
        self.holder = holder


@dataclass(frozen=True, slots=True)
class Times:
    """How a lease ages, in seconds; the clock, and how to wait on it."""

    lease_s: float = LEASE_S
    renew_every_s: float = RENEW_EVERY_S
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(slots=True)
class Lease:
    """A lease that this process holds; made by `take`. A thread renews it until it is closed."""

    store: Store
    path: str
    token: str
    times: Times
    _generation: str = ""
    _beat: int = 0
    _confirmed: float = 0.0
    _refused: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def is_lost(self) -> bool:
        """Whether another may hold it by now."""
        return self._refused or self.times.monotonic() - self._confirmed > self.times.lease_s

    def renew(self) -> None:
        """Say that the holder lives. What keeps it from that is no error yet: the lease ages."""
        asked = self.times.monotonic()
        try:
            self._generation = self.store.swap(self.path, self._content(), self._generation)
            self._confirmed = asked
        except PreconditionFailedError:
            self._refused = True
        except (StoreError, OSError):
            return

    def close(self) -> None:
        """End it: others may have it at once."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if not self._refused:
            end(self.store, self.path, self._generation)

    def begin(self) -> Lease:
        """Have it renewed from now on."""
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._stop.wait(self.times.renew_every_s) and not self._refused:
            self.renew()

    def _content(self) -> bytes:
        self._beat += 1
        return canonical_json({"version": _VERSION, "token": self.token, "beat": self._beat, **here()})

    def hold(self, generation: str | None) -> bool:
        """Create it (None), or take it over at a generation; whether that worked."""
        asked = self.times.monotonic()
        content = self._content()
        if generation is None:
            if not self.store.create(self.path, content):
                return False
            found, self._generation = self.store.read_versioned(self.path)
            if found != content:
                return False
        else:
            try:
                self._generation = self.store.swap(self.path, content, generation)
            except PreconditionFailedError:
                return False
        self._confirmed = asked
        return True


def take(store: Store, path: str, times: Times | None = None) -> Lease:
    """A lease, held from now on; waits up to LEASE_S for one whose holder may be dead.

    Raises:
        LeaseHeldError: its holder lives.
        StoreError: the store can't be used.
    """
    lease = Lease(store, path, secrets.token_hex(8), times or Times())
    while not lease.hold(None):
        try:
            holder, generation = _read(store, path)
        except FileNotFoundError:
            continue
        if not is_dead(store, path, holder, generation, lease.times) or not lease.hold(generation):
            raise LeaseHeldError(f"{store.root}/{path} is held by {describe(holder)}", holder)
        break
    return lease.begin()


def has_ended(store: Store, path: str, times: Times | None = None) -> bool:
    """Whether a lease's holder is dead or has let go; a dead one's lease is ended, so it can't come back."""
    while True:
        try:
            holder, generation = _read(store, path)
        except FileNotFoundError:
            return True
        if not holder.get("token"):
            return True
        if not is_dead(store, path, holder, generation, times or Times()):
            return False
        if end(store, path, generation):
            return True  # else it has moved on: its holder lives, or another was faster to end it


def sweep(store: Store, folder: str, times: Times | None = None) -> int:
    """End the leases in a folder whose holders are dead; how many that were.

    Those that may be alive are watched at the same time: it takes LEASE_S if one of them is dead, less if
    all live, and nothing where all have let go.
    """
    times = times or Times()
    swept, watched = 0, {}
    for path in list(store.list(folder)):
        with suppress(FileNotFoundError):
            holder, generation = _read(store, path)
            if not holder.get("token") or is_gone_here(holder):
                swept += end(store, path, generation)
            else:
                watched[path] = generation
    until = times.monotonic() + times.lease_s
    while watched and times.monotonic() < until:
        times.sleep(_LOOK_EVERY_S)
        watched = {path: seen for path, seen in watched.items() if _stands_at(store, path, seen)}
    return swept + sum(end(store, path, generation) for path, generation in watched.items())


def _stands_at(store: Store, path: str, generation: str) -> bool:
    try:
        return _read(store, path)[1] == generation
    except FileNotFoundError:
        return False


def end(store: Store, path: str, generation: str) -> bool:
    """End a lease at a generation; False if it has moved on: its holder lives, or others were faster."""
    try:
        store.swap(
            path, canonical_json({"version": _VERSION, "token": "", "by": secrets.token_hex(8)}), generation
        )
        store.delete(path)
    except PreconditionFailedError:
        return False
    except (StoreError, OSError):
        return True  # who can't say so ages
    return True


def is_dead(store: Store, path: str, holder: dict[str, Any], generation: str, times: Times) -> bool:
    """Whether a holder is dead: gone from this machine, or silent for as long as a lease lasts."""
    if not holder.get("token") or is_gone_here(holder):
        return True
    until = times.monotonic() + times.lease_s
    while times.monotonic() < until:
        times.sleep(_LOOK_EVERY_S)
        try:
            found, now = _read(store, path)
        except FileNotFoundError:
            return True
        if now != generation:
            return not found.get("token")
    return True


def look(store: Store, path: str) -> dict[str, Any] | None:
    """What a lease says of its holder; None if there is none, or its holder is gone from this machine."""
    try:
        holder, _ = _read(store, path)
    except FileNotFoundError:
        return None
    return None if not holder.get("token") or is_gone_here(holder) else holder


def _read(store: Store, path: str) -> tuple[dict[str, Any], str]:
    data, generation = store.read_versioned(path)
    try:
        holder = json.loads(data)
    except ValueError:
        holder = {}
    return (holder if isinstance(holder, dict) else {}), generation


def here() -> dict[str, Any]:
    """What tells this process from all others: machine, namespace of process ids, process and its start."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _link("/proc/self/ns/pid"),
        "pid": pid,
        "started": _started(pid),
    }


def is_gone_here(holder: dict[str, Any]) -> bool:
    """Whether a holder was a process of this machine and namespace, and is no longer there."""
    me = here()
    if not me["boot"] or not me["namespace"]:
        return False
    if (holder.get("boot"), holder.get("namespace")) != (me["boot"], me["namespace"]):
        return False
    return _started(int(holder.get("pid") or 0)) != holder.get("started")


def describe(holder: dict[str, Any]) -> str:
    """A holder for people."""
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"


def _started(pid: int) -> str:
    """When a process started, in ticks since the machine did; empty if it is gone or a zombie."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if len(fields) < 20 or fields[0] in "ZX" else fields[19]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
