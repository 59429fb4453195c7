"""`make bench-workers`: what each further process of `switchgear run --workers N` adds, on the hosted path.

With N workers there are N times the documents and N times the calls in flight, so each process has the same
to do; linear is N times the rows a second of one. The provider has the last core at hand to itself, the run
(launcher, its Prefect server and the workers) has the others. Numbers of workers take turns, round by round,
so that whatever else the machine does meets all of them.

Rows a second while all workers call are what counts, on a machine that is otherwise quiet; exit code 1 says
that their median is less than 0.9 of linear. On a busy one look at the CPU of a row (of the workers, their
start included; constant is linear) and at the cores that were missed: threads that were ready to run while
others had the cores.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from statistics import median

from infra.bench.scale.running import Ran, Size, clear, run_size

_LEAST = 0.9
_WORKER = "pipelines.enrich"


def main() -> None:
    """Run every number of workers in every round, and print."""
    cores = sorted(os.sched_getaffinity(0))
    most = max(1, len(cores) - 1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--workers", default=",".join(map(str, range(1, most + 1))), help="numbers of workers"
    )
    parser.add_argument("--rows", type=int, default=80_000, help="documents for each worker")
    parser.add_argument("--in-flight", type=int, default=256, help="calls at a time of each worker")
    parser.add_argument("--latency", type=float, default=50.0, help="milliseconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one run")
    options = parser.parse_args()
    counts = sorted(int(number) for number in options.workers.split(","))
    own, rest = (cores[-1:], cores[:-1]) if len(cores) > 1 else (cores, cores)
    os.sched_setaffinity(0, rest)  # what is started from here on inherits it
    print(
        f"provider on core {own[0]}, the run on {', '.join(map(str, rest))}; {options.latency:g} ms latency"
    )
    runs: list[Ran] = []
    for number in range(options.rounds):
        for count in counts[number % len(counts) :] + counts[: number % len(counts)]:
            size = Size(count * options.rows, count, count * options.in_flight, latency_ms=options.latency)
            runs.append(run_size(size, f"workers-{count}", options.limit, provider_cores=own))
            print(f"  round {number + 1}, load {os.getloadavg()[0]:.1f}: {line(runs[-1])}", flush=True)
            clear(f"workers-{count}")
    print("\n".join(table(runs, counts)))
    short = [count for count in counts if median(shares(runs, count)) < _LEAST]
    if short:
        raise SystemExit(f"less than {_LEAST} of linear with {', '.join(map(str, short))} workers")


def line(ran: Ran) -> str:
    """A run on a line."""
    return (
        f"{ran.size.workers} workers {rate(ran):,.0f} rows/s, "
        f"{cpu_us(ran):,.0f} + {rest_us(ran):,.0f} µs of CPU a row, "
        f"{_cores(ran):.2f} cores busy, {_missed(ran):.2f} missed; {ran.measured.wall_s:.0f} s in all"
    )


def table(runs: Sequence[Ran], counts: Sequence[int]) -> Iterator[str]:
    """A line for each number of workers: medians, and ranges over the rounds."""
    yield f"{'workers':>8}{'rows/s':>9}{'of linear':>11}{'range':>14}{'CPU µs/row':>12}{'range':>12}" + (
        f"{'others':>8}{'cores each':>12}{'missed each':>13}{'of linear by CPU':>18}"
    )
    alone = median(cpu_us(ran) for ran in runs if ran.size.workers == counts[0])
    for count in counts:
        mine = [ran for ran in runs if ran.size.workers == count]
        of_linear, cpu = shares(runs, count), [cpu_us(ran) for ran in mine]
        yield (
            f"{count:>8}{median(map(rate, mine)):>9,.0f}{median(of_linear):>11.2f}"
            f"{f'{min(of_linear):.2f}-{max(of_linear):.2f}':>14}{median(cpu):>12.0f}"
            f"{f'{min(cpu):.0f}-{max(cpu):.0f}':>12}{median(map(rest_us, mine)):>8.0f}"
            f"{median(map(_cores, mine)) / count:>12.2f}"
            f"{median(map(_missed, mine)) / count:>13.2f}{alone / median(cpu):>18.2f}"
        )


def shares(runs: Sequence[Ran], count: int) -> list[float]:
    """Rows a second of so many workers as a part of linear, round by round.

    Linear is that of the fewest workers in the same round, a worker.
    """
    fewest = min(ran.size.workers for ran in runs)
    base = [rate(ran) / fewest for ran in runs if ran.size.workers == fewest]
    mine = [rate(ran) / count for ran in runs if ran.size.workers == count]
    return [found / alone for found, alone in zip(mine, base, strict=True)]


def rate(ran: Ran) -> float:
    """Rows a second from the first request to the last answer."""
    return ran.size.documents / ran.calling_s


def cpu_us(ran: Ran) -> float:
    """Microseconds of CPU a row that the worker processes took, from their start to their end."""
    return 1e6 * ran.measured.cpu_of.get(_WORKER, 0.0) / ran.size.documents


def rest_us(ran: Ran) -> float:
    """The same of all others: launcher, Prefect's server, readers of Parquet files."""
    return 1e6 * ran.measured.cpu_s / ran.size.documents - cpu_us(ran)


def _cores(ran: Ran) -> float:
    return ran.measured.cores(ran.provider["first_at"], ran.provider["last_at"])


def _missed(ran: Ran) -> float:
    return ran.measured.cores_missed(ran.provider["first_at"], ran.provider["last_at"])


if __name__ == "__main__":
    main()
