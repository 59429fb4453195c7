"""Whether there is a Flink for tests."""

from __future__ import annotations

import shutil

from infra.flink.cluster import DISTRIBUTION


def missing() -> str | None:
    """Why no run on Flink can be tried, with the command that provides it; None if it can."""
    if shutil.which("java") is None:
        return "java is missing: install a Java 17 runtime, then `make flink`"
    if not (DISTRIBUTION.parent / "job-server.jar").is_file() or not (DISTRIBUTION / "lib").is_dir():
        return "Flink is missing: make flink"
    return None
