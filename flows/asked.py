"""The note that a run has asked a person and waits, `runs/<run>/asked.json`, for who looks at the output."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from transforms.layout import run_path
from transforms.store import Store

ASKED_FILE = "asked.json"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run waits for, and until when; instants as ISO 8601."""

    what: str
    at: str
    until: str


def note_question(store: Store, run_id: str, what: str, wait_h: float, now: datetime | None = None) -> None:
    """Note that a run is about to end its process and to wait for an answer."""
    at = now or datetime.now(UTC)
    asked = Asked(what, at.isoformat(), (at + timedelta(hours=wait_h)).isoformat())
    store.create(run_path(run_id, ASKED_FILE), json.dumps(asdict(asked)).encode())


def open_question(store: Store, run_id: str, now: datetime | None = None) -> Asked | None:
    """What the run waits for; None if it has not asked, or has waited as long as it would.

    An answer starts another run, so this is to be asked of the newest one only.
    """
    path = run_path(run_id, ASKED_FILE)
    if not store.exists(path):
        return None
    asked = Asked(**json.loads(store.read(path)))
    return asked if (now or datetime.now(UTC)) < datetime.fromisoformat(asked.until) else None
