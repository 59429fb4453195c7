"""Become another program that dies with the process that started it: `leash.py PARENT_PID COMMAND…`.

Run as a script by a bare interpreter (`python -I -S`), so it imports next to nothing. It exists because
`subprocess.Popen(preexec_fn=…)` runs Python between fork and exec: in a process with threads (Prefect
has many) another thread may hold a lock at the fork, and the child then waits for it for ever. Here the
request to the kernel is made after an ordinary exec, in a process with one thread, and survives the next
exec (prctl(2), PR_SET_PDEATHSIG).

The signal is SIGKILL: a worker whose launcher has died must not go on spending for one more call, and
the ledger is made for being killed. The kernel watches the *thread* that started the child, so whoever
starts one must wait for it in that same thread. Outside Linux there is no such request; the program is
then started without it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PARENT_GONE = 125
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when its parent dies; exit at once if it has died already."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the request was made: nobody would ever send the signal
        os._exit(PARENT_GONE)


def stop_with_parent() -> None:
    """Have SIGTERM sent to this process when its parent dies: time to settle what is in flight."""
    die_with_parent(os.getppid(), signal.SIGTERM)


def leashed(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` so that it dies with the process that calls this."""
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), *command]


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606  (our own interpreter, no shell)
