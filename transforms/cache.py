"""Where this machine keeps what can be had again: compiled programs, models, hints, Prefect's state."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "SWITCHGEAR_CACHE_DIR"


def cache_folder() -> Path:
    """`$SWITCHGEAR_CACHE_DIR`, else `~/.cache/switchgear`."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/switchgear").expanduser()
