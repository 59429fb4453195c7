"""`python -m tests.support.tied PROGRAM ...`: a program that ends when standard input is closed."""

from __future__ import annotations

import signal
import subprocess
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the program ends with this one
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    try:
        sys.stdin.read()
    finally:
        process.terminate()
        sys.exit(process.wait())
