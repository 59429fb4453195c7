"""`make bench-scale`: wall, CPU, memory and store operations of a run at growing numbers of documents.

The documents are written under build/, a row group at a time, and deleted again with what a run made of
them, which is 2.5 kB a document: 25 GB for 10 million. The provider is a process of its own on loopback, so
nothing is paid. Exit code 1 says that the driver's memory has grown by more than a quarter from 100,000
documents on, or that a batch took more than three writes a route.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise

from infra.bench.scale.running import Ran, Size, clear, run_size

_FLAT_FROM = 100_000
_MOST_GROWTH = 1.25
_MOST_WRITES = 3.0

Figure = Callable[[Ran], float]
SLOPES: dict[str, Figure] = {
    "wall": lambda ran: ran.measured.wall_s,
    "CPU": lambda ran: ran.measured.cpu_s,
    "driver's memory": lambda ran: ran.measured.first_mib,
    "memory of all": lambda ran: ran.measured.peak_mib,
    "store writes": lambda ran: ran.batch_writes + ran.segments + ran.other_writes,
    "other operations": lambda ran: ran.other_operations,
}


def line(ran: Ran) -> str:
    """A run on a line."""
    took = ran.measured
    return (
        f"{ran.size.documents:>12,}{took.wall_s:>9.1f}{ran.size.documents / took.wall_s:>9,.0f}"
        f"{took.cpu_s:>10.1f}{1e6 * took.cpu_s / ran.size.documents:>9,.0f}{took.first_mib:>8,.0f}"
        f"{took.peak_mib:>8,.0f}{took.private_mib:>9,.0f}{writes_per_batch(ran):>9.2f}"
        f"{ran.segments:>10,}{ran.other_writes:>8,}{ran.other_operations:>10,}"
    )


HEAD = (
    f"{'documents':>12}{'wall s':>9}{'rows/s':>9}{'CPU s':>10}{'µs/row':>9}{'driver':>8}{'all':>8}"
    f"{'private':>9}{'writes':>9}{'segments':>10}{'others':>8}{'no write':>10}"
)
LEGEND = (
    "driver, all, private: peak MiB of the launcher, of all processes, and of those without mapped files.\n"
    "writes: store writes a batch and route; segments: of the ledger (in a folder it is a file, no object);\n"
    "others: writes of the run itself; no write: reads, looks, listings, deletions."
)


def writes_per_batch(ran: Ran) -> float:
    """Store writes for each batch and route."""
    routes = len(ran.manifest.results_by_route) or 1
    return ran.batch_writes / (ran.manifest.batches * routes)


def slopes(runs: Sequence[Ran]) -> Iterator[str]:
    """How each figure grows from size to size: the exponent of the number of documents; 0 is flat."""
    steps = list(pairwise(runs))
    names = [f"{few.size.documents:,}-{many.size.documents:,}" for few, many in steps]
    yield f"{'slope (1: linear, 0: flat)':>26}" + "".join(f"{name:>24}" for name in names)
    for name, figure in SLOPES.items():
        found = [slope(a.size.documents, figure(a), b.size.documents, figure(b)) for a, b in steps]
        yield f"{name:>26}" + "".join(f"{value:>24.2f}" for value in found)


def slope(few: int, at_few: float, many: int, at_many: float) -> float:
    """The exponent with which a figure grows; not a number where it is zero."""
    if at_few <= 0 or at_many <= 0 or few == many:
        return math.nan
    return math.log(at_many / at_few) / math.log(many / few)


def broken(runs: Sequence[Ran]) -> Iterator[str]:
    """What these runs show that must not be."""
    large = [ran for ran in runs if ran.size.documents >= _FLAT_FROM]
    if len(large) > 1:
        growth = large[-1].measured.first_mib / large[0].measured.first_mib
        sizes = f"from {large[0].size.documents:,} to {large[-1].size.documents:,} documents"
        said = f"driver's memory {sizes}: {growth:.2f} times"
        print(f"{said} (to be at most {_MOST_GROWTH})")
        if growth > _MOST_GROWTH:
            yield said
    for ran in runs:
        if writes_per_batch(ran) > _MOST_WRITES:
            yield f"{ran.size.documents:,} documents: {writes_per_batch(ran):.2f} writes a batch and route"


def main() -> None:
    """Run every size and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="10000,100000,1000000,10000000", help="numbers of documents")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-rows", type=int, default=4096)
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds for one size")
    parser.add_argument(
        "--store",
        choices=("folder", "strict", "go"),
        default="folder",
        help="where the output goes: a folder, or a stand-in for Cloud Storage",
    )
    options = parser.parse_args()
    print(f"{options.workers} workers, batches of {options.batch_rows:,}, load {os.getloadavg()[0]:.1f}")
    print(f"{LEGEND}\n{HEAD}", flush=True)
    runs = []
    with ExitStack() as open_while:
        for documents in sorted(int(number) for number in options.sizes.split(",")):
            output = _output(options.store, open_while)
            size = Size(documents, options.workers, batch_rows=options.batch_rows)
            runs.append(run_size(size, str(documents), options.limit, output=output))
            print(line(runs[-1]), flush=True)
            clear(str(documents))
    print("\n".join(slopes(runs)))
    found = list(broken(runs))
    if found:
        raise SystemExit("; ".join(found))


def _output(kind: str, open_while: ExitStack) -> str:
    """Where the output of a run goes."""
    if kind == "folder":
        return "output"
    from tests.peers.cloud_storage import started

    place = open_while.enter_context(started(kind))
    os.environ["STORAGE_EMULATOR_HOST"] = place.url
    return f"{place.bucket()}/output"


if __name__ == "__main__":
    main()
