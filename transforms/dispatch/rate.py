"""How many calls may be sent per second: a fixed share of a quota, or a rate learned from refusals.

`TokenBucket` keeps to a known quota. `AdaptiveRate` discovers an unknown one: there is no limit
until the first refusal (429); then

* the rate falls to slightly below the accepted rate, once per event, as TCP Westwood sets its
  window from the measured bandwidth. Between two moments at which a quota was used up, exactly the
  quota was accepted, whatever its burst: that is the measure.
* it rises again along CUBIC's curve (RFC 9438), as in the adaptive retry mode of the AWS SDKs:
  slowly around the level that was refused, then ever faster.
* refusals that persist although the rate fell may have another cause (a pool shared with others):
  the rate returns to its former level, and that share of refusals is expected from then on. This is
  an `Experiment`: if refusals increase, the rate was to blame after all, and the next try waits.

Pure: every method takes the time, in seconds of any monotonic clock.
"""

import collections
import dataclasses
import math

_LOWEST = 0.2
"""The lowest rate, in calls per second."""


class TokenBucket:
    """A quota of ``per_s``, spent evenly: at most ``burst_s`` of it at once.

    Args:
      per_s: The amount that comes in each second.
      burst_s: How much may be saved up, in seconds' worth.
      now: The time at the start; the bucket begins full.
    """

    def __init__(self, per_s: float, burst_s: float, now: float) -> None:
        self._per_s = per_s
        self._most = max(1.0, per_s * burst_s)
        self._level = self._most
        self._at = now

    def wait_s(self, now: float) -> float:
        """Seconds until more may be spent; 0 for now."""
        self._fill(now)
        return 0.0 if self._level > 0 else (1e-6 - self._level) / self._per_s

    def spend(self, amount: float, now: float) -> None:
        """Spends an amount, even beyond the balance: later calls wait. Negative is a refund."""
        self._fill(now)
        self._level = min(self._most, self._level - amount)

    def _fill(self, now: float) -> None:
        self._level = min(self._most, self._level + (now - self._at) * self._per_s)
        self._at = now


_BETA = 0.97
_SCALE = 0.2
"""CUBIC's C, in 1/s^4 per fourth root of the level. In CUBIC it is a constant, so that flows that
share a quota converge to equal shares; rising a little with the level, it doubles every level in 5
to 15 s. A level below 10/s rises more slowly: some calls must show how many are refused."""
_SLOW = 1e4
_SLOWEST = 200.0
"""`_SLOW` times the slowest rise: a process that found a quota used up by others gets its share."""


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """A rate that rises from a little below a level, slowly around it, then ever faster.

    Attributes:
      level: Calls per second accepted at the last measurement; infinite for no limit.
      rises_from: When the rise begins.
      slope: CUBIC's C.
      plateau_s: Seconds until the level is reached.
    """

    level: float = math.inf
    rises_from: float = 0.0
    slope: float = 0.0
    plateau_s: float = 0.0

    @classmethod
    def of(cls, level: float, rises_from: float) -> "Curve":
        """The curve of a level."""
        level = max(_LOWEST, level)
        slope = _SCALE * min(level**0.25, max(level**4, _SLOWEST) / _SLOW)
        return cls(level, rises_from, slope, ((1 - _BETA) * level / slope) ** (1 / 3))

    @property
    def unlimited(self) -> bool:
        """Whether there is no limit."""
        return math.isinf(self.level)

    def rate(self, now: float) -> float:
        """Calls per second."""
        if self.unlimited:
            return math.inf
        t = max(0.0, now - self.rises_from) - self.plateau_s
        return max(_LOWEST, self.level + self.slope * t**3)


_TOLERATED = 0.02
"""Up to this share, refusals are not an event: learning that a quota has grown takes a few."""
_SIGMAS = 4.0
"""Standard deviations by which refusals must exceed the expected number to count as more."""
_UNSURE = 1.5
"""The expected share was measured on some hundred calls."""
_EXPECT_CALLS = 300
_LEARNT_AT_MOST = 0.03
"""The largest share of refusals learned without an experiment. Otherwise processes that share a
quota would teach each other to expect ever more."""


class ChanceRefusals:
    """The share of calls that are refused whatever the rate."""

    def __init__(self) -> None:
        self.expected = 0.0
        self._observed = 0.0

    @property
    def assumed(self) -> bool:
        """Whether it expects more than may be learned from calls: an experiment is running."""
        return self.expected > _LEARNT_AT_MOST

    def learn(self, refused: bool) -> None:
        """Learns from a call that no fall has followed: the rate did not cause its refusal."""
        self._observed += (refused - self._observed) / _EXPECT_CALLS
        fewer = min(self.expected, 1.5 * self._observed + 0.01)
        self.expected = max(fewer, min(self._observed, _LEARNT_AT_MOST))

    def assume(self, share: float) -> None:
        """Expects a share, for an experiment."""
        self.expected = self._observed = share

    def reject(self) -> None:
        """Expects none any more: the experiment has failed."""
        self.expected = 0.0

    def tolerated(self, calls: int) -> float:
        """How many of these calls may be refused without the rate falling."""
        expected = _UNSURE * self.expected * calls
        return max(_TOLERATED * calls, expected + _SIGMAS * math.sqrt(expected))


_IN_VAIN = 4
"""Consecutive falls, each below an accepted rate, that suggest another cause than the rate."""
_NEAR = 1.5
_MANY = 0.08
_RESUME = 4.0
_EXPECTED_AT_MOST = 0.4
_DOUBT_S = 60.0
"""Seconds from a failed experiment to the next; doubles with each failure."""


class Experiment:
    """Whether the rate causes the refusals that persist although it falls.

    Args:
      now: The time at the start.
    """

    def __init__(self, now: float) -> None:
        self._in_vain: list[tuple[int, int]] = []
        self._resume_at = math.inf
        self._believe_from = now
        self._doubt_s = _DOUBT_S

    def forget(self) -> None:
        """Notes that there is no limit any more: earlier falls say nothing about the next."""
        self._in_vain = []
        self._resume_at = math.inf

    def failed(self, now: float) -> None:
        """Notes that more calls were refused than assumed: no new experiment for a while."""
        self._believe_from = now + self._doubt_s
        self._doubt_s *= 2

    def fell(
        self, accepted: float, sent: int, refused: int, curve: Curve, now: float
    ) -> tuple[float, float | None]:
        """Notes that the rate has to fall.

        Args:
          accepted: The calls per second to fall to.
          sent: Calls since the last fall.
          refused: How many of them were refused.
          curve: The rate so far.
          now: The time.

        Returns:
          The level to fall to, and None; or, when falls have not helped, the rate before the
          first of them and the share of refusals to assume.
        """
        rate = curve.rate(now)
        if rate > _NEAR * curve.level or refused < _MANY * sent:
            self._in_vain = []
            self._resume_at = rate
            return accepted, None
        self._in_vain.append((sent, refused))
        if now < self._believe_from or len(self._in_vain) < _IN_VAIN:
            return accepted, None
        all_sent, all_refused = (sum(counts) for counts in zip(*self._in_vain, strict=True))
        self._in_vain = []
        level = min(self._resume_at, _RESUME * accepted)
        return level, min(_EXPECTED_AT_MOST, all_refused / all_sent)


_MEASURE_S = 0.5
_MEASURE_CALLS = 25
_RECENT_S = 1.0
_CHANCE = 2
"""Refusals beyond the tolerated ones that may be chance."""
_FALL = 0.7
"""The deepest fall below the accepted share: the calls accepted since the last fall are an exact
measure for one process, but too low for one whose share has since grown."""
_FORGOTTEN_AFTER_S = 10.0


class Sample:
    """One sent call, and whether it was refused."""

    __slots__ = ("at", "recent", "refused")

    def __init__(self, at: float) -> None:
        self.at = at
        self.recent = True
        self.refused = False


class AdaptiveRate:
    """The rate that a backend accepts, learned from the calls it refuses.

    Args:
      now: The time at the start.
    """

    def __init__(self, now: float) -> None:
        self._curve = Curve(rises_from=now)
        self._chance = ChanceRefusals()
        self._experiment = Experiment(now)
        self._began = now
        """When `_sent` and `_refused` started counting."""
        self._sent = self._refused = 0
        self._recent: collections.deque[Sample] = collections.deque()
        self._recent_refused = 0
        self._allowance = 1.0
        self._filled_at = now
        self._bound_at = now

    @property
    def expected_refusals(self) -> float:
        """The share of calls that are expected to be refused whatever the rate."""
        return self._chance.expected

    def rate(self, now: float) -> float:
        """Calls per second that may be sent; infinite until the first refusal."""
        return self._curve.rate(now)

    def wait_s(self, now: float) -> float:
        """Seconds until a call may be sent; 0 for now."""
        if self._curve.unlimited:
            return 0.0
        rate = self._curve.rate(now)
        elapsed, self._filled_at = now - self._filled_at, now
        self._allowance = min(self._allowance + elapsed * rate, max(1.0, 0.02 * rate))
        if self._allowance >= 1.0:
            return 0.0
        self._bound_at = now
        return (1.0 - self._allowance) / rate + 1e-6

    def sent(self, now: float) -> Sample:
        """Notes a call; pass the sample to `refused` if the call is refused."""
        self._allowance -= 1.0
        self._sent += 1
        sample = Sample(now)
        self._recent.append(sample)
        while self._recent[0].at < now - _RECENT_S and len(self._recent) > 2 * _MEASURE_CALLS:
            old = self._recent.popleft()
            old.recent = False
            self._recent_refused -= old.refused
            self._chance.learn(old.refused)
        if now > max(self._bound_at, self._curve.rises_from) + _FORGOTTEN_AFTER_S:
            self._curve = Curve(rises_from=self._curve.rises_from)  # the next refusal measures anew
            self._experiment.forget()
        return sample

    def refused(self, sample: Sample, now: float, gate_s: float) -> None:
        """Notes a refusal.

        Args:
          sample: From `sent`.
          now: The time.
          gate_s: How long nothing is sent because of the server's Retry-After.
        """
        if sample.recent:
            sample.refused = True
            self._recent_refused += 1
        if sample.at < self._began:
            return  # sent before the rate fell: the same event
        self._refused += 1
        limited = not self._curve.unlimited
        if self._sent < _MEASURE_CALLS or (limited and now < self._began + _MEASURE_S):
            return
        if gate_s or self._recent_refused > _CHANCE + self._chance.tolerated(len(self._recent)):
            self._fall(now, gate_s)

    def _fall(self, now: float, gate_s: float) -> None:
        level = self._accepted(now)
        if self._chance.assumed:
            self._chance.reject()
            self._experiment.failed(now)
        if not gate_s:  # a server that sends Retry-After limits the rate
            level, share = self._experiment.fell(level, self._sent, self._refused, self._curve, now)
            if share is not None:
                self._chance.assume(share)
        self._curve = Curve.of(level, now + gate_s)
        self._began = now
        self._sent = self._refused = 0
        for sample in self._recent:
            sample.recent = False
        self._recent.clear()
        self._recent_refused = 0
        self._allowance = max(0.0, min(self._allowance, 1.0))
        self._filled_at = now

    def _accepted(self, now: float) -> float:
        """Calls per second that were not refused: recently, and since the rate last fell."""
        sent = len(self._recent)
        accepted = sent - self._recent_refused
        recent_s = now - self._recent[0].at
        if self._curve.unlimited:
            return accepted / max(_RECENT_S, recent_s)
        recent_s = max(_MEASURE_S, recent_s)
        since = (self._sent - self._refused) / (now - self._began)
        least = _FALL * accepted / sent * min(self.rate(now), sent / recent_s)
        return max(least, min(since, accepted / recent_s))
