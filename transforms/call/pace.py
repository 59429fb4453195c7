"""How fast a lane may call: finds the rate that its provider allows, and stays just below it. No I/O.

Until the first 429 a lane is only opened gradually: so many calls in flight, and one more for every
answer. From then on its calls are paced. Once per congestion event (a 429 to a call that was sent after
the last cut) the rate is cut to CUT of what was let through; it grows back to the last good rate and
then probes beyond it, a little at first, and faster the longer it stays calm.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

START_WINDOW = 32
"""Calls in flight before the first answer; doubles with every round trip."""

CUT = 0.94
_GOOD = 0.99  # of what was let through: where growing back ends and probing begins
_BUCKET_S = 0.05
_MEASURED_S = 1.0
_SHORTLY_S = 0.25
_KEPT_S = 20.0
_FEWEST = 16  # calls that a measurement rests on; at low rates it looks further back for them
_FEWEST_PASSED = 8  # calls let through without which nothing is known to flow
_STEP_S = 0.25
_CALM_S = 0.5
_CALM_CALLS = 40  # sent before probing, so that even a slow lane is refused one call in so many at most
_FIRST_STEP = 0.03
_BOLD_STEP = 0.12  # far below what was good a minute ago
_LARGEST_STEP = 0.25
_REMEMBERED_S = 60.0
_SLACK_S = 0.005  # calls that were due while the event loop was busy; longer pauses are not caught up
_PRESUMED_NOISE = 0.06
_SUSPECT_CUTS = 4
_LEAST_NOISE, _MOST_NOISE = 0.02, 0.15  # shares of refused calls that can be noise
_NOISE_FEWEST = 4
_NOISE_WINDOW = 200
_NOISE_ALLOWANCE = 6
_CUTS_IN_VAIN = 2
_FIRST_PROBE_S = 0.5  # between probes of a provider that lets nothing through ...
_SLOWER_PROBE = 0.1  # ... and this part of the silence more


@dataclass(slots=True)
class _Moment:
    """Calls sent in one _BUCKET_S, and how many of them are known to have been refused."""

    start: float
    sent: int = 0
    refused: int = 0


class Pacer:
    """The rate of one lane. Instants are seconds on a clock that never goes back.

    `wait` says when the next call may be sent; each call is reported with `sent`, and its end with
    `succeeded` or `limited`, or with neither when it says nothing about the rate.
    """

    def __init__(self) -> None:
        self.rate: float | None = None  # calls a second; None until the provider has said no
        self._window = START_WINDOW
        self._serial = 0
        self._next_at = -math.inf
        self._cut_at = self._stepped_at = -math.inf
        self._cut_serial = 0
        self._in_vain = 0  # cuts in a row after which most calls were refused all the same
        self._silenced = False  # the last cut was made because nothing is let through any more
        self._good = 0.0
        self._high, self._high_at = 0.0, -math.inf  # the best good rate of the last _REMEMBERED_S
        self._refused = 0  # of the calls sent since the last cut
        self._began_at = self._passed_at = -math.inf
        self._moments: deque[_Moment] = deque()
        self._noise = _Noise()

    def wait(self, now: float, in_flight: int) -> float:
        """Seconds until the next call may be sent; 0: now; infinity: not before another one ends."""
        if self.rate is None:
            return 0.0 if in_flight < self._window else math.inf
        self._grow(now)
        return max(0.0, self._next_at - now)

    def sent(self, now: float) -> int:
        """A call goes out; gives its serial number, counted from 1."""
        moments = self._moments
        if not moments or now - moments[-1].start >= _BUCKET_S:
            moments.append(_Moment(now))
            while moments[0].start < now - _KEPT_S:
                moments.popleft()
        moments[-1].sent += 1
        if not self._serial:
            self._began_at = now
        self._serial += 1
        if self.rate is not None:
            self._next_at = max(self._next_at, now - _SLACK_S) + 1.0 / self.rate
        return self._serial

    def succeeded(self, serial: int, now: float) -> None:
        """A call was let through, whatever came of it."""
        self._window += 1
        self._passed_at = now
        if self._silenced and serial > self._cut_serial and self.rate is not None:
            self._silenced = False
            self.rate = max(self.rate, self._good / 2)

    def limited(self, serial: int, sent_at: float, now: float) -> None:
        """A call was refused with 429."""
        for moment in reversed(self._moments):
            if moment.start <= sent_at:
                moment.refused += 1
                break
        since_cut = serial - self._cut_serial
        if since_cut <= 0:
            return
        self._refused += 1
        if not self._noise.explains_one_more(self._serial):
            self._cut(sent_at, since_cut, now)

    def flows(self, now: float) -> bool:
        """Whether most calls are being let through, so that a 429 need not stop them.

        Of the last second, or of longer at low rates: a lane that was slowed down must not be stopped
        by every single 429, or it would stay slow for ever.
        """
        passed = refused = 0
        for moment in reversed(self._moments):
            if moment.start < now - _MEASURED_S and passed + refused >= _FEWEST:
                break
            passed += moment.sent - moment.refused
            refused += moment.refused
        patience = max(_MEASURED_S, _FEWEST_PASSED / self.rate if self.rate else 0.0)
        return passed >= _FEWEST_PASSED and refused <= passed and self._passed_at >= now - patience

    def _cut(self, sent_at: float, since_cut: int, now: float) -> None:
        before, good = self.rate, self._good
        self._in_vain = self._in_vain + 1 if 2 * self._refused >= since_cut else 0
        self._silenced = self._in_vain >= _CUTS_IN_VAIN
        is_silenced = self._silenced and before is not None
        # Once nothing is let through any more, what was let through before says nothing.
        rate = (before or 0.0) / 2 if is_silenced else CUT * self._measure(sent_at, now)
        silence = now - max(self._passed_at, self._began_at)
        self.rate = max(rate, 1.0 / (_FIRST_PROBE_S + _SLOWER_PROBE * silence))
        # Of what was let through just now, or at the cut before: then it had not begun to probe.
        is_below = before is None or before < max(self._good, good)
        if self._silenced:
            self._noise.forget()
        elif self._noise.suspect(before, is_below, since_cut, self._refused):
            self.rate = self._noise.start(self._serial)
        self._cut_at = self._stepped_at = now
        self._cut_serial = self._serial
        self._refused = 0
        if self.rate is not None:
            self._next_at = now + 1.0 / self.rate

    def _measure(self, until: float, now: float) -> float:
        """Calls a second that were let through before an instant; notes them as the good rate.

        Of the last second, or of longer at low rates; of less when many were refused: then the limit
        has just fallen, and what was let through before says nothing.
        """
        passed = refused = 0
        span = 0.0
        for moment in reversed(self._moments):
            if moment.start > until:
                continue
            passed += moment.sent - moment.refused
            refused += moment.refused
            span = until - moment.start
            has_fallen = passed + refused >= _FEWEST and refused > 0.3 * passed
            if span >= (_SHORTLY_S if has_fallen else _MEASURED_S) and passed + refused >= _FEWEST:
                break
        rate = passed / max(span, _SHORTLY_S)
        self._good = _GOOD * rate if span >= _SHORTLY_S else CUT * rate
        if self._good > self._high or now > self._high_at + _REMEMBERED_S:
            self._high, self._high_at = self._good, now
        return rate

    def _grow(self, now: float) -> None:
        rate = self.rate
        assert rate is not None
        while now - self._stepped_at >= _STEP_S:
            self._stepped_at += _STEP_S
            if rate < self._good and not self._silenced:
                rate += (self._good - rate) * 0.3
            calm = self._stepped_at - self._cut_at - _CALM_S
            if calm > 0 and self._serial - self._cut_serial >= _CALM_CALLS:
                bold = rate < 0.8 * self._high
                step, largest = (_BOLD_STEP, 2 * _LARGEST_STEP) if bold else (_FIRST_STEP, _LARGEST_STEP)
                rate *= 1 + min(largest, step * 2**calm)
        self.rate = rate


class _Noise:
    """429s that don't depend on the rate: when cuts have no effect, they cost only speed.

    Noise is suspected when a lane is refused a call now and then although it was cut below what had
    been good. After _SUSPECT_CUTS such cuts in a row the rate of before the first is restored, and
    up to twice the share of refused calls that was seen is put up with.
    """

    def __init__(self) -> None:
        self._share = _PRESUMED_NOISE
        self._is_presumed = True
        self._cuts = self._sent = self._refused = 0
        self._rate: float | None = None  # before the first suspect cut
        self._from = 0
        self._seen = 0.0

    def explains_one_more(self, serial: int) -> bool:
        """Whether another refused call is no news."""
        if not self._share:
            return False
        self._seen += 1
        sent = serial - self._from
        if self._seen > _NOISE_ALLOWANCE + 2 * self._share * sent or (
            self._is_presumed and sent > _NOISE_WINDOW
        ):
            self._share = 0.0
            self._is_presumed = False
            return False
        if sent > _NOISE_WINDOW:
            self._from += sent // 2
            self._seen /= 2
        return True

    def suspect(self, rate: float | None, is_below: bool, sent: int, refused: int) -> bool:
        """Takes note of a cut; whether it is time to take the 429s for noise."""
        if sent < _NOISE_FEWEST:
            return False
        if not is_below:
            self.forget()
            return False
        if not self._cuts:
            self._rate, self._sent, self._refused = rate, 0, 0
        self._cuts += 1
        self._sent += sent
        self._refused += refused
        if self._refused > 2 + _MOST_NOISE * self._sent:
            self.forget()
        return self._cuts >= _SUSPECT_CUTS and self._refused >= _LEAST_NOISE * self._sent

    def forget(self) -> None:
        """The suspicion was wrong."""
        self._cuts = 0

    def start(self, serial: int) -> float | None:
        """Puts up with the noise from now on; gives the rate that was cut without need."""
        self._share = self._refused / self._sent
        self._from, self._seen, self._cuts = serial, 0.0, 0
        return self._rate
