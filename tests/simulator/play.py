"""Play seeds by hand: `python -m tests.simulator.play SEED [MUTANT]` prints one seed's trace,
`python -m tests.simulator.play FIRST-LAST` plays a range and prints what failed and how long it took.
`--objects` before it puts ledgers and records on object storage, `--parts` caps in several parts besides, and
with `--sleepers` workers stand still until they are taken over.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from contextlib import nullcontext

from tests.simulator.shape import draw_at
from tests.simulator.simulate import Ended, simulate


def main(arguments: list[str]) -> int:
    logging.disable(logging.CRITICAL)
    where = arguments.pop(0) if arguments[0].startswith("--") else ""
    seeds, *rest = arguments
    defect = nullcontext()
    if rest:
        from tests.simulator.mutants import MUTANTS

        defect = MUTANTS[rest[0]].planted()
    with defect:
        return _play_range(seeds, where) if "-" in seeds else _play_one(int(seeds), where)


def _played(seed: int, where: str) -> Ended:
    return simulate(seed, draw_at(where, seed))


def _play_one(seed: int, where: str) -> int:
    ended = _played(seed, where)
    print(ended.story)
    print(f"seed {seed}: {ended.violation or 'no violation'}")
    return int(ended.violation is not None)


def _play_range(seeds: str, where: str) -> int:
    first, last = (int(text) for text in seeds.split("-"))
    broken: dict[str, list[int]] = {}
    seen: Counter[str] = Counter()
    began = time.process_time()
    for seed in range(first, last + 1):
        ended = _played(seed, where)
        seen.update(ended.world.seen)
        if ended.violation is not None:
            broken.setdefault(str(ended.violation), []).append(seed)
    each = (time.process_time() - began) / (last + 1 - first) * 1000
    for violation, found in broken.items():
        print(f"{violation}: seeds {found[:10]}{' ...' if len(found) > 10 else ''}")
    print(f"{last + 1 - first} seeds, {each:.1f} ms each; {sum(map(len, broken.values()))} failed")
    print(", ".join(f"{name} {count}" for name, count in seen.most_common()))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
