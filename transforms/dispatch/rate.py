"""How many calls may be sent per second: a fixed share of a quota, and one learnt from refusals.

`TokenBucket` keeps to a known quota. `AdaptiveRate` finds one that nobody told: there is no limit
until the first refusal (429); then

* the rate falls to a little under what was really accepted, once per event, as TCP Westwood sets
  its window from the measured bandwidth. Between two moments at which a quota was used up, exactly
  the quota was accepted, whatever its burst: that is the measure.
* it rises again along CUBIC's curve (RFC 9438), as the AWS SDKs' adaptive retry mode lets a rate
  rise: slowly around the level that was refused, then ever faster.
* refusals that stay although the rate fell may not be its doing (a pool that others share): the
  rate goes back to where it was, and so many are expected from then on. That is an experiment: if
  there are then more, the rate was to blame after all, and it is not tried again for a while.

Pure: every method takes the time, in seconds of any monotonic clock.
"""

import collections
import math

_BETA = 0.97
_SCALE = 0.2
"""CUBIC's C, in 1/s^4 per fourth root of the level. CUBIC's own is a constant, by which flows that
share a quota come to equal shares; a little faster for higher levels, every one doubles in 5 to
15 s. A level below 10/s rises more slowly: it takes some calls to measure what is refused."""
_SLOW = 1e4
_SLOWEST = 200.0
"""`_SLOW` times the slowest rise: a process that found a quota used up by others gets its share."""
_MEASURE_S = 0.5
_MEASURE_CALLS = 25
_RECENT_S = 1.0
_TOLERATED = 0.02
"""This share of refused calls is no event: a few must be risked to learn that a quota has grown."""
_CHANCE = 2
"""Refusals beyond that share which may be chance."""
_SIGMAS = 4.0
"""Standard deviations by which refusals must exceed the expected ones to be more than these."""
_FALL = 0.7
"""The deepest fall below what the refused share says: what was accepted since the last fall is an
exact measure for one process, but too low for one whose share has grown meanwhile."""
_UNSURE = 1.5
"""What is expected was measured on some hundred calls."""
_IN_VAIN = 4
"""Falls in a row, each below a rate that was accepted, which suggest that it is not to blame."""
_NEAR = 1.5
_MANY = 0.08
_RESUME = 4.0
_EXPECT_CALLS = 300
_LOWEST = 0.2
_EXPECTED_AT_MOST = 0.4
_LEARNT_AT_MOST = 0.03
"""So many refusals may come to be expected without an experiment. Processes that share a quota
would teach each other to expect ever more."""
_DOUBT_S = 60.0
"""After an experiment that failed, seconds until the next; they double with each."""
_FORGOTTEN_AFTER_S = 10.0


class TokenBucket:
    """A quota of ``per_s``, spent evenly: at most ``burst_s`` of it at once.

    Args:
      per_s: What comes in each second.
      burst_s: What may be saved up, in seconds of it.
      now: The time at the start; it begins full.
    """

    def __init__(self, per_s: float, burst_s: float, now: float) -> None:
        self._per_s = per_s
        self._most = max(1.0, per_s * burst_s)
        self._level = self._most
        self._at = now

    def wait_s(self, now: float) -> float:
        """Seconds until something may be spent; 0 for now."""
        self._fill(now)
        return 0.0 if self._level > 0 else (1e-6 - self._level) / self._per_s

    def spend(self, amount: float, now: float) -> None:
        """Spends; what was spent too much is waited for afterwards. Negative gives back."""
        self._fill(now)
        self._level = min(self._most, self._level - amount)

    def _fill(self, now: float) -> None:
        self._level = min(self._most, self._level + (now - self._at) * self._per_s)
        self._at = now


class Call:
    """One call that was sent, and whether it was refused."""

    __slots__ = ("at", "recent", "refused")

    def __init__(self, at: float) -> None:
        self.at = at
        self.recent = True
        self.refused = False


class AdaptiveRate:
    """The rate that a backend accepts, learnt from what it refuses.

    Args:
      now: The time at the start.
    """

    def __init__(self, now: float) -> None:
        self._level = math.inf
        """The rate that was accepted when it was measured last."""
        self._rising_from = now
        self._curve = self._plateau_s = 0.0
        self._began = now
        """Since when `_sent` and `_refused` count."""
        self._sent = self._refused = 0
        self._recent: collections.deque[Call] = collections.deque()
        self._recent_refused = 0
        self._allowance = 1.0
        self._filled_at = now
        self._in_vain: list[tuple[int, int]] = []
        self._resume_at = math.inf
        self._expected = self._observed = 0.0
        self._believe_from = now
        self._doubt_s = _DOUBT_S
        self._bound_at = now

    def rate(self, now: float) -> float:
        """Calls per second that may be sent; infinite until the first refusal."""
        if math.isinf(self._level):
            return math.inf
        t = max(0.0, now - self._rising_from) - self._plateau_s
        return max(_LOWEST, self._level + self._curve * t**3)

    def wait_s(self, now: float) -> float:
        """Seconds until a call may be sent; 0 for now."""
        rate = self.rate(now)
        if math.isinf(rate):
            return 0.0
        elapsed, self._filled_at = now - self._filled_at, now
        self._allowance = min(self._allowance + elapsed * rate, max(1.0, 0.02 * rate))
        if self._allowance >= 1.0:
            return 0.0
        self._bound_at = now
        return (1.0 - self._allowance) / rate + 1e-6

    def sent(self, now: float) -> Call:
        """Notes a call; give what it returns to `refused` if it is."""
        self._allowance -= 1.0
        self._sent += 1
        call = Call(now)
        self._recent.append(call)
        while self._recent[0].at < now - _RECENT_S and len(self._recent) > 2 * _MEASURE_CALLS:
            self._settle(self._recent.popleft())
        if now > max(self._bound_at, self._rising_from) + _FORGOTTEN_AFTER_S:
            self._forget()
        return call

    def _settle(self, call: Call) -> None:
        """Learns from a call that no fall has followed: such refusals are not the rate's doing."""
        call.recent = False
        self._recent_refused -= call.refused
        self._observed += (call.refused - self._observed) / _EXPECT_CALLS
        fewer = min(self._expected, 1.5 * self._observed + 0.01)
        self._expected = max(fewer, min(self._observed, _LEARNT_AT_MOST))

    def _forget(self) -> None:
        """It limits nothing: the next refusal shall measure anew."""
        self._level = math.inf
        self._in_vain = []
        self._resume_at = math.inf

    def refused(self, call: Call, now: float, gate_s: float) -> None:
        """Notes a refusal.

        Args:
          call: From `sent`.
          now: The time.
          gate_s: How long nothing is sent because the server asked for it.
        """
        if call.recent:
            call.refused = True
            self._recent_refused += 1
        if call.at < self._began:
            return  # sent before the rate fell: the same event
        self._refused += 1
        known = not math.isinf(self._level)
        if self._sent < _MEASURE_CALLS or (known and now < self._began + _MEASURE_S):
            return
        if gate_s or self._recent_refused > _CHANCE + self._tolerated():
            self._fall(now, gate_s)

    def _tolerated(self) -> float:
        """Recent refusals that do not lower the rate."""
        expected = _UNSURE * self._expected * len(self._recent)
        return max(_TOLERATED * len(self._recent), expected + _SIGMAS * math.sqrt(expected))

    def _fall(self, now: float, gate_s: float) -> None:
        accepted = self._accepted(now)
        if self._expected > _LEARNT_AT_MOST:  # more than that: the experiment has failed
            self._expected = 0.0
            self._believe_from = now + self._doubt_s
            self._doubt_s *= 2
        if not gate_s:
            accepted = self._unless_in_vain(accepted, now)
        self._level = max(_LOWEST, accepted)
        self._curve = _SCALE * min(self._level**0.25, max(self._level**4, _SLOWEST) / _SLOW)
        self._plateau_s = ((1 - _BETA) * self._level / self._curve) ** (1 / 3)
        self._rising_from = now + gate_s
        self._began = now
        self._sent = self._refused = 0
        for call in self._recent:
            call.recent = False
        self._recent.clear()
        self._recent_refused = 0
        self._allowance = max(0.0, min(self._allowance, 1.0))
        self._filled_at = now

    def _accepted(self, now: float) -> float:
        """Calls per second that were not refused: lately, and since the rate last fell."""
        sent = len(self._recent)
        accepted = sent - self._recent_refused
        recent_s = now - self._recent[0].at
        if math.isinf(self._level):
            return accepted / max(_RECENT_S, recent_s)
        recent_s = max(_MEASURE_S, recent_s)
        since = (self._sent - self._refused) / (now - self._began)
        least = _FALL * accepted / sent * min(self.rate(now), sent / recent_s)
        return max(least, min(since, accepted / recent_s))

    def _unless_in_vain(self, accepted: float, now: float) -> float:
        """What was accepted; or the rate of before, if falling again and again has not helped."""
        rate = self.rate(now)
        if rate > _NEAR * self._level or self._refused < _MANY * self._sent:
            self._in_vain = []
            self._resume_at = rate
            return accepted
        self._in_vain.append((self._sent, self._refused))
        if now < self._believe_from or len(self._in_vain) < _IN_VAIN:
            return accepted
        sent, refused = (sum(counts) for counts in zip(*self._in_vain, strict=True))
        self._expected = self._observed = min(_EXPECTED_AT_MOST, refused / sent)
        self._in_vain = []
        return min(self._resume_at, _RESUME * accepted)
