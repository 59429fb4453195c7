"""What the Beam pipeline costs over a bare loop around the embedder: `make bench-embed ARGS=--beam`.

Both have the same documents, embedder, process and cores, and take turns. The bare loop reads the Parquet
file and embeds its texts; the pipeline reads, routes, embeds, writes Parquet, commits and reports.
The ratio of CPU seconds says what is added, that of seconds what isn't hidden behind the devices. Where
other work disturbs both, the pipeline is also run over an embedder that takes no time: what it takes
then is all that it adds.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from corpus import documents

GROUP = 2048
WORKLOAD = """
name = "overhead"
[input]
uri = "input"
id = "id"
text = "text"
[backends.minilm]
provider = "jax"
model_path = "{model}"
compute_dtype = "{precision}"
[[routes]]
name = "embed"
backends = ["minilm"]
[output]
uri = "{output}"
"""


class Instant:
    """An embedder that has its vectors ready; random ones, so that Parquet has as much to do."""

    def __init__(self, embedder: Any) -> None:
        self.space, self.stats, self.device_kind = embedder.space, embedder.stats, embedder.device_kind
        shape = (2 * GROUP, embedder.dim)
        self._vectors = np.random.default_rng(0).normal(size=shape).astype(embedder.dtype)

    def close(self) -> None:
        """Nothing is open."""

    def embed_groups(self, groups: Sequence[Sequence[str]]) -> list[Any]:
        """As many vectors as there are texts."""
        from transforms.embed.embeddings import Embeddings

        made = []
        for count in map(len, groups):
            counts, cut = np.full(count, 100, np.int32), np.zeros(count, bool)
            made.append(Embeddings(self._vectors[:count], counts, cut, np.full(count, 0.01), {}))
        return made


@dataclass(frozen=True)
class Took:
    """Seconds on the clock, of all cores, and those that the device idled."""

    seconds: float
    cpu_seconds: float
    idle_seconds: float


def measured(work: Callable[[], None], idle: Callable[[], float]) -> Took:
    """What a piece of work takes."""
    before, waited, started = os.times(), idle(), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - started, os.times()
    cpu = after.user + after.system - before.user - before.system
    return Took(seconds, cpu, idle() - waited)


def overhead(options: argparse.Namespace) -> None:
    """Measures and prints, a line a round and the medians."""
    os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    with tempfile.TemporaryDirectory() as folder:
        _race(Path(folder), options)


def _race(folder: Path, options: argparse.Namespace) -> None:
    from schemas.backends import EmbedderBackend
    from schemas.load import load_workload
    from transforms.embed.embedder import open_embedder

    texts = documents(options.texts)
    (folder / "input").mkdir()
    source = folder / "input" / "texts.parquet"
    table = pa.table({"id": [f"d{number}" for number in range(len(texts))], "text": texts})
    pq.write_table(table, source, row_group_size=1000)

    def workload(output: str) -> Path:
        path = folder / f"{output}.toml"
        values = {"model": options.model, "precision": options.precision, "output": output}
        path.write_text(WORKLOAD.format(**values), encoding="utf-8")
        return path

    backend = load_workload(workload("first")).workload.backends["minilm"]
    assert isinstance(backend, EmbedderBackend)
    embedder = open_embedder(backend, base_dir=folder)

    def bare() -> None:
        read = pq.read_table(source).column("text").to_pylist()
        for start in range(0, len(read), GROUP):
            embedder.embed(read[start : start + GROUP])

    def idle() -> float:
        return embedder.stats().idle_seconds

    bare()
    run_pipeline(workload("warm"))
    rounds = []
    for number in range(options.rounds):
        contestants = {"bare": bare, "beam": lambda output=f"out{number}": run_pipeline(workload(output))}
        order = sorted(contestants, reverse=bool(number % 2))
        took = {name: measured(contestants[name], idle) for name in order}
        rounds.append(took)
        print(
            f"round {number + 1} (load {os.getloadavg()[0]:.1f}): "
            + "; ".join(_line(n, took[n]) for n in took)
        )
    for what, of in (("seconds", lambda t: t.seconds), ("CPU seconds", lambda t: t.cpu_seconds)):
        ratios = sorted(of(took["beam"]) / of(took["bare"]) - 1 for took in rounds)
        spread = f"{ratios[0]:+.1%} to {ratios[-1]:+.1%}"
        print(f"beam over bare, {what}: {statistics.median(ratios):+.1%} ({spread})")

    alone = measured(lambda: run_pipeline(workload("instant"), Instant(embedder)), idle).cpu_seconds
    least = min(took["bare"].cpu_seconds for took in rounds)
    share = f"{alone / least:.1%} of the least bare loop"
    print(f"beam over an embedder that takes no time: {alone:.2f} CPU s, {share}")


def _line(name: str, took: Took) -> str:
    share = took.idle_seconds / took.seconds
    return f"{name} {took.seconds:.2f} s, {took.cpu_seconds:.2f} CPU s, idle {share:.0%}"


def run_pipeline(path: Path, instead: Any = None) -> None:
    """Everything that a worker process does for a run, in this process; with another embedder if given."""
    from pipelines.enrich import Job, run_job
    from schemas.load import load_workload
    from schemas.run import RunContext
    from transforms.openers import Openers
    from transforms.output import open_output
    from transforms.plan import plan_run
    from transforms.plan_file import read_plan
    from transforms.process_workers import worker_of
    from transforms.store import open_store
    from transforms.worker import WorkerConfig

    class Given(Openers):
        def embedder(self, *_: Any) -> Any:
            return instead

    loaded = load_workload(path)
    run = RunContext(path.stem, loaded.output_uri, loaded.workload.digest(), False, 8)
    with open_output(loaded, rehearsal=False):
        plan = plan_run(loaded, run)
        refs, schema = read_plan(open_store(run.output), plan.plan_uri)
        config = WorkerConfig(loaded.workload, str(loaded.base_dir), run, schema.serialize().to_pybytes())
        worker_of(config, None if instead is None else Given())
        reports: list[object] = []
        run_job(
            Job(config, tuple(refs), 0, ()),
            lambda event: reports.append(event) if event["event"] == "batch" else None,
        )
    assert len(reports) == len(refs), "every batch is committed"
