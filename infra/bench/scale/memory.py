"""How much memory this process has taken at its peak, since it was last forgotten."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa


def forget_peak() -> int:
    """Forget the peak so far; the resident bytes now."""
    pa.default_memory_pool().release_unused()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak()


def peak() -> int:
    """The most resident bytes since the peak was forgotten."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
