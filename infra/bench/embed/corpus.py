"""The race's texts: Python's own reference manual, cut into documents of skewed lengths."""

import random
from pydoc_data.topics import topics

MEDIAN_WORDS, SPREAD, LEAST, MOST = 45, 1.0, 3, 420


def documents(count: int, seed: int = 20261122, length_of_all: int | None = None) -> list[str]:
    """Documents of log-normal lengths in words, many short ones and few long ones; or all of one length."""
    rng = random.Random(seed)  # noqa: S311  no secret
    words = " ".join(topics[name] for name in sorted(topics)).split()
    found = []
    for _ in range(count):
        skewed = min(MOST, max(LEAST, int(rng.lognormvariate(0, SPREAD) * MEDIAN_WORDS)))
        length = length_of_all or skewed
        start = rng.randrange(len(words) - length)
        found.append(" ".join(words[start : start + length]))
    return found
