"""Play seeds by hand: `python -m tests.simulator.play SEED [MUTANT]` prints one seed's trace,
`python -m tests.simulator.play FIRST-LAST` plays a range and prints what failed and how long it took.
`--objects` before it puts ledgers and records on object storage.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from contextlib import nullcontext

from tests.simulator.shape import draw_on_object_storage
from tests.simulator.simulate import Ended, simulate


def main(arguments: list[str]) -> int:
    logging.disable(logging.CRITICAL)
    objects = arguments[0] == "--objects"
    seeds, *rest = arguments[objects:]
    defect = nullcontext()
    if rest:
        from tests.simulator.mutants import MUTANTS

        defect = MUTANTS[rest[0]].planted()
    with defect:
        return _play_range(seeds, objects) if "-" in seeds else _play_one(int(seeds), objects)


def _played(seed: int, objects: bool) -> Ended:
    return simulate(seed, draw_on_object_storage(seed) if objects else None)


def _play_one(seed: int, objects: bool) -> int:
    ended = _played(seed, objects)
    print(ended.story)
    print(f"seed {seed}: {ended.violation or 'no violation'}")
    return int(ended.violation is not None)


def _play_range(seeds: str, objects: bool) -> int:
    first, last = (int(text) for text in seeds.split("-"))
    broken: dict[str, list[int]] = {}
    seen: Counter[str] = Counter()
    began = time.process_time()
    for seed in range(first, last + 1):
        ended = _played(seed, objects)
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
