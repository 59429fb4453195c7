"""What `make` gives to the processes that it starts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_python_keeps_what_it_has_compiled_in_all_that_make_starts() -> None:
    """Else a run of the tests, and a run of documents too, costs twice the CPU before it gets to work."""
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "SEEN": "yes", "MAKEFLAGS": ""}
    shown = subprocess.run(
        ["make", "--eval", "shown: ; @env", "shown"],
        cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=True, timeout=60,
    ).stdout.splitlines()  # fmt: skip
    assert "SEEN=yes" in shown
    assert [line for line in shown if line.startswith("PYTHONDONTWRITEBYTECODE")] == []
