"""What a run's embedders did with their devices: left by each process, summed when the run is settled."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from schemas.errors import StoreError
from schemas.ids import canonical_json
from schemas.run import DeviceUse
from transforms.layout import run_path
from transforms.store import Store

if TYPE_CHECKING:
    from transforms.embed.embeddings import EmbedStats

_FOLDER = "devices"
_LOG = logging.getLogger(__name__)


def device_use(stats: EmbedStats) -> DeviceUse:
    """An embedder's counters as what it did with the devices."""
    return DeviceUse(
        texts=stats.texts,
        tokens=stats.tokens,
        slots=stats.slots,
        steps=stats.steps,
        device_seconds=stats.device_seconds,
        idle_seconds=stats.idle_seconds,
        warm_up_seconds=stats.warm_up_seconds,
        programs=stats.compilations,
        late_programs=stats.late_compilations,
        steady_programs=stats.steady_compilations,
    )


def leave_use(store: Store, run_id: str, uses: Mapping[str, DeviceUse]) -> None:
    """Leaves what a process's embedders did, by route, beside the run's other files.

    It is for people and decides nothing: a store that takes no file is a warning.
    """
    if not uses:
        return
    data = canonical_json({route: asdict(use) for route, use in uses.items()})
    path = run_path(run_id, f"{_FOLDER}/{secrets.token_hex(8)}.json")
    try:
        store.create(path, data)
    except (OSError, StoreError) as error:
        _LOG.warning("%s: %s; the report says nothing of this process's devices", path, error)


def collect_use(store: Store, run_id: str) -> dict[str, DeviceUse]:
    """What all processes of a run left, summed by route."""
    found: dict[str, DeviceUse] = {}
    for path in store.list(run_path(run_id, _FOLDER)):
        for route, use in json.loads(store.read(path)).items():
            found[route] = found.get(route, DeviceUse()).plus(DeviceUse(**use))
    return found
