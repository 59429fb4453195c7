"""`make simulate-scale`: how far a hosted run scales, from 1 to 2,000 workers, and what stops it first.

A discrete-event simulation, not a measurement: it answers in virtual time what no machine at hand could run.
Workers call, seal segments of their ledgers, commit batches, and draw leave to spend from the budget record
or its parts by the code that runs do it with; a bucket, a provider and a budget are shared by all; machines
are taken away. Every figure that goes in is printed with its source. Not in it: planning and settling (`make
bench-plan`, `make bench-resume`), reading the input, a bucket's limit of reads, and starting machines.

Standard output is the same whatever `--jobs` says; what is through is told on standard error meanwhile.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace

from infra.bench.scale.inputs import Costs, described
from infra.bench.scale.pacing import Paced, pace
from infra.bench.scale.simulated_run import Outcome, simulate

NEAR_LINEAR = 0.9  # of as many times what one worker does
MANY = (100, 200, 500, 1000, 2000)
FEW = (1, 10, 20, 50, 100, 200)
ALL = (1, 10, 20, 50, 100, 200, 300, 400, 500, 700, 1000, 2000)
_PACED_S = 60.0
_PACED_RPS = 10_000.0


@dataclass(frozen=True, slots=True)
class Case:
    """What is simulated, and for how many workers."""

    title: str
    costs: Costs
    counts: tuple[int, ...]


def cases(base: Costs) -> tuple[Case, ...]:
    """All cases. What is not said is as printed at the top."""
    used = replace(base, bucket_writes=1e9)
    return (
        Case("A  a new bucket, the cap in parts", base, ALL),
        Case("B  a bucket that takes all writes, no budget", replace(used, cap=float("inf")), (1, *MANY[:4])),
        Case("C  such a bucket, the whole cap in one record", replace(used, parts=1), (1, 20, 50, *MANY)),
        Case("D  such a bucket, the cap in parts", used, (1, 20, 50, *MANY)),
        Case(
            "E  D, unused leave given back every 16 batches",
            replace(used, batches_at_once=16),
            (1, *MANY[:4]),
        ),
        Case("F  D, the cap used up after nine tenths of the hour", replace(used, cap=0.9), (1, *MANY[:4])),
        Case("G  D, operations of the store take 0.25 s", replace(used, write_s=0.25), (1, *MANY[:4])),
        Case("H  A, answers in 50 ms: a worker's core is its limit", replace(base, latency_s=0.05), FEW),
        Case(
            "I  A, a provider that allows 10,000 calls a second",
            replace(base, provider_rps=1e4),
            (*FEW, 500, 2000),
        ),
        Case(
            "J  D, each machine taken away once in 10 hours",
            replace(used, preempted_per_hour=0.1),
            (1, *MANY[:4]),
        ),
        Case(
            "K  D, each machine taken away once an hour",
            replace(used, preempted_per_hour=1.0),
            (1, *MANY[:4]),
        ),
        Case("L  A, segments of 512 ended calls", replace(base, segment_rows=512), (1, *MANY)),
    )


@dataclass(frozen=True, slots=True)
class Scaled:
    """How far a case goes."""

    near_linear_to: int
    held_back_by: str
    beyond: int | None  # the first number of workers that is no longer near linear


def scaled(found: Sequence[Outcome]) -> Scaled:
    """How many workers do nine tenths of so many times one, as all fewer do, and what holds back more.

    That is what took more of their time than of one worker's, by most.
    """
    one = found[0]
    so_far = one.workers
    for outcome in found:
        if outcome.of_linear < NEAR_LINEAR * one.of_linear:
            return Scaled(so_far, outcome.more_than(one), outcome.workers)
        so_far = outcome.workers
    return Scaled(so_far, found[-1].more_than(one), None)


def table(case: Case, found: Sequence[Outcome]) -> Iterator[str]:
    """Lines of a case: how many rows a second, how near to linear, and what time was lost to."""
    yield f"\n{case.title}"
    yield f"{'workers':>9}{'records':>9}{'rows/s':>10}{'of linear':>11}{'paid again':>12}   time lost to"
    for outcome in found:
        yield (
            f"{outcome.workers:>9,}{outcome.parts:>9}{outcome.rows_per_s:>10,.0f}{outcome.of_linear:>11.2f}"
            f"{outcome.paid_again / max(1, outcome.rows):>12.4%}   {outcome.held_back_by}"
        )


def summary(found: Sequence[tuple[Case, Sequence[Outcome]]]) -> Iterator[str]:
    """A line for each case."""
    yield "\nHow far each goes (near linear: at least nine tenths of so many times one worker)"
    head = f"{'case':<54}{'near linear to':>16}{'most':>7}{'rows/s':>10}{'of linear':>11}"
    yield f"{head}   held back first by"
    for case, outcomes in found:
        ends, last = scaled(outcomes), outcomes[-1]
        first = f"{ends.held_back_by} (at {ends.beyond:,})" if ends.beyond else f"- ({ends.held_back_by})"
        yield (
            f"{case.title:<54}{ends.near_linear_to:>16,}{last.workers:>7,}{last.rows_per_s:>10,.0f}"
            f"{last.of_linear:>11.2f}   {first}"
        )


def paced_table(found: Sequence[Paced]) -> Iterator[str]:
    """Lines of what workers get that find a provider's limit each by itself."""
    yield f"\nM  a provider of {_PACED_RPS:,.0f} calls a second that doesn't say so: each worker paces itself"
    yield f"   ({_PACED_S:.0f} s, call by call; a limit that the workload states is divided among them)"
    yield f"{'workers':>9}{'of the limit':>14}{'429s a success':>16}{'in the first half':>21}"
    for each in found:
        yield (
            f"{each.workers:>9,}{each.share:>14.1%}{each.refused_per_success:>16.2f}"
            f"{each.refused_per_success_at_first:>21.2f}"
        )


def run(chosen: Sequence[Case], paced: Sequence[int], seconds: float, seed: int, jobs: int) -> Iterator[str]:
    """Simulate, in so many processes, telling on standard error of each that has ended; then the tables."""
    base = Costs()
    with ProcessPoolExecutor(jobs) as pool:
        pacing = {
            count: pool.submit(pace, count, _PACED_RPS, base.latency_s, base.in_flight, _PACED_S, seed)
            for count in sorted(paced, reverse=True)
        }
        pairs = [(case, count) for case in chosen for count in case.counts]
        pairs.sort(key=lambda pair: -pair[1] / pair[0].costs.row_s)  # the longest first: none is waited for
        runs = {
            (case.title, count): pool.submit(simulate, count, case.costs, seconds, seed)
            for case, count in pairs
        }
        _tell(runs)
        found = [(case, [runs[case.title, count].result() for count in case.counts]) for case in chosen]
        told = [pacing[count].result() for count in paced]
    for case, outcomes in found:
        yield from table(case, outcomes)
    if told:
        yield from paced_table(told)
    yield from summary(found)


def _tell(runs: dict[tuple[str, int], Future[Outcome]]) -> None:
    names = {future: name for name, future in runs.items()}
    for number, future in enumerate(as_completed(names), 1):
        title, count = names[future]
        found = future.result()
        line = f"{found.of_linear:.2f} of linear; time lost to: {found.held_back_by}"
        print(f"[{number}/{len(names)}] {title}; workers: {count:,}; {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Simulate all cases and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="of virtual time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--cases", default="", help="letters, such as AD; all if none is given")
    options = parser.parse_args()
    base, began = Costs(), time.monotonic()
    print(f"{options.seconds:,.0f} s of virtual time. Given, unless a case says otherwise:")
    print("\n".join(described(base)), flush=True)
    letters = options.cases.upper()
    chosen = [case for case in cases(base) if not letters or case.title[0] in letters]
    paced = [50, 200, 500, 2000] if not letters or "M" in letters else []
    for line in run(chosen, paced, options.seconds, options.seed, options.jobs):
        print(line, flush=True)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(each.ru_utime + each.ru_stime for each in used)
    took = f"{time.monotonic() - began:.0f} s, {cpu_s:.0f} CPU seconds, {options.jobs} processes"
    print(f"\n{took}", file=sys.stderr)


if __name__ == "__main__":
    main()
