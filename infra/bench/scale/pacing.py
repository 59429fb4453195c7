"""Many workers that call one provider at its limit, each paced by itself: what of it they reach together.

Call by call, with the pacer that runs use (`transforms.call.pace`), in virtual time. Nobody tells workers on
different machines what the others send; each learns from the 429s that it gets.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field

from transforms.call.pace import Pacer

_BURST_S = 0.25  # of calls that the provider's token bucket holds
_REFUSED_S = 0.05  # until a refusal is back


@dataclass(frozen=True, slots=True)
class Paced:
    """What the provider saw once the workers had found their pace: in the second half of the time."""

    workers: int
    share: float  # of what it would have let through
    refused_per_success: float
    refused_per_success_at_first: float  # in the first half


@dataclass(slots=True)
class _Caller:
    """A worker that always has more to send."""

    pacer: Pacer = field(default_factory=Pacer)
    in_flight: int = 0
    wakes_at: float = math.inf


class _Limit:
    """A token bucket."""

    def __init__(self, rps: float) -> None:
        self._rps = rps
        self._tokens = rps * _BURST_S
        self._seen_at = 0.0

    def lets_through(self, now: float) -> bool:
        earned = (now - self._seen_at) * self._rps
        self._tokens = min(self._rps * _BURST_S, self._tokens + earned)
        self._seen_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def pace(workers: int, rps: float, latency_s: float, in_flight: int, seconds: float, seed: int = 0) -> Paced:
    """Have so many workers call for so long. The same arguments give the same answer."""
    randomly = random.Random(f"{seed} {workers}")  # noqa: S311 - a simulation, no secret
    limit, callers = _Limit(rps), [_Caller() for _ in range(workers)]
    passed, refused = [0, 0], [0, 0]
    # instant, order, caller, call (0: none, it only wakes), when that was sent, whether it got through
    events: list[tuple[float, int, int, int, float, bool]] = []
    order = 0
    for number in range(workers):
        events.append((randomly.random(), order := order + 1, number, 0, 0.0, True))
    heapq.heapify(events)
    while events[0][0] < seconds:
        now, _, number, call, sent_at, good = heapq.heappop(events)
        caller = callers[number]
        if not call:
            caller.wakes_at = math.inf
        else:
            caller.in_flight -= 1
            half = int(now >= seconds / 2)
            if good:
                passed[half] += 1
                caller.pacer.succeeded(call, now)
            else:
                refused[half] += 1
                caller.pacer.limited(call, sent_at, now)
        wait = 0.0
        while caller.in_flight < in_flight and (wait := caller.pacer.wait(now, caller.in_flight)) <= 0:
            serial, good = caller.pacer.sent(now), limit.lets_through(now)
            took = latency_s * (1 + 0.2 * randomly.random()) if good else _REFUSED_S
            caller.in_flight += 1
            heapq.heappush(events, (now + took, order := order + 1, number, serial, now, good))
        if 0 < wait < math.inf and now + wait < caller.wakes_at:
            caller.wakes_at = now + max(wait, 1e-4)
            heapq.heappush(events, (caller.wakes_at, order := order + 1, number, 0, 0.0, True))
    return Paced(
        workers,
        share=passed[1] / (rps * seconds / 2),
        refused_per_success=refused[1] / max(1, passed[1]),
        refused_per_success_at_first=refused[0] / max(1, passed[0]),
    )
