"""`python -m tests.support.tied PROGRAM ...`: a program that ends when standard input is closed."""

from __future__ import annotations

import subprocess
import sys

if __name__ == "__main__":
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    try:
        sys.stdin.read()
    finally:
        process.terminate()
        sys.exit(process.wait())
