"""How often Python searches for garbage while a worker is at work."""

from __future__ import annotations

import gc

COLLECT_AFTER = 50_000
"""New objects after which the youngest are searched for garbage; Python's own measure is 700 (3.11).

With that the search takes a fifth of a hosted run's CPU: the rows of the batches under way, and the half
million objects that imports leave, are gone through again and again, and hardly any are in a cycle.
"""
_BEFORE = gc.get_threshold()


def collect_seldom(wanted: bool) -> None:
    """Searches seldom, and not what has been imported until now; or again as before."""
    if wanted == (gc.get_threshold()[0] == COLLECT_AFTER):
        return
    if wanted:
        gc.freeze()
        gc.set_threshold(COLLECT_AFTER, *_BEFORE[1:])
    else:
        gc.set_threshold(*_BEFORE)
        gc.unfreeze()
