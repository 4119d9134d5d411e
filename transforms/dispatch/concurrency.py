"""How many calls may be in flight: as many as the backend still turns into throughput.

The measure is throughput, not latency: under more concurrent calls a GPU server answers each one
more slowly and yet more of them per second, and latencies of language models have heavy tails.

1. *Climb*: the limit doubles each round while throughput follows. A round lasts until enough calls
   have ended to tell growth from noise; a round in which the limit did not bind is ignored.
2. *Hold*: where throughput stopped following, the limit stays at the calls it needed (Little's
   law: in flight = throughput x latency), plus headroom that keeps the backend's queue from
   running dry. A larger limit is tried again from time to time.
3. *Back off*: when many calls are refused or time out, the limit falls to a fraction, once per
   event: calls sent before the cut say nothing about the new limit. It then rises in steps to
   its former value.

If a backend reports how many calls it can use, no climb is needed: its number is the limit from
the start. Refusals still count: after a back-off or an outage the limit climbs back to it.

Sources: slow start and multiplicative decrease of TCP (RFC 5681); probing for the bandwidth-delay
product as in BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 2016),
by throughput alone; application-limited rounds are ignored as in RFC 7661.

Pure: every method takes the time, in seconds of any monotonic clock.
"""

_START = 32
_DOUBLE = 2.0
_PROBE = 1.5
"""How far a probe goes beyond a limit that held."""
_RECOVER = 1.25
"""How far a round climbs back towards the limit before a back-off."""
_BACK_OFF = 0.7
"""CUBIC's decrease (RFC 9438)."""
_HEADROOM = 1.3
_HOLD_S = 15.0
"""Seconds after which a limit that held is probed again."""
_HOLD_CUT_S = 5.0
"""Seconds after which a limit reached by a back-off is probed again."""
_FOLLOWS = 0.25
"""The share of a step that must arrive as throughput for the climb to go on."""
_NOISE = {_DOUBLE: 10.0, _PROBE: 16.0}
"""Calls of a round: (noise / (step - 1)) ** 2, enough to tell `_FOLLOWS` of a step from chance when
service times vary as much as a language model's (standard deviation about equal to the mean). A
probe needs more certainty than a climb: it is repeated for as long as the run lasts."""
_SHORTEST_ROUND_S = 0.2
_BOUND_SHARE = 0.9
"""The limit must bind for this share of a round."""
_CONGESTED = 0.15
_CONGESTED_OVER = 64
"""Back off when this share of recent replies was refused; a backend that fails one call in twenty,
whatever its load, is not congested."""
_ENOUGH = 48
"""About how many recent replies that share is taken over."""


class AdaptiveConcurrency:
    """The limit of calls in flight, learned from how they end.

    Args:
      ceiling: The highest limit.
      now: The time at the start.
    """

    def __init__(self, ceiling: int, now: float) -> None:
        self._ceiling = float(ceiling)
        self._limit = float(min(_START, ceiling))
        self._step = _DOUBLE
        self._before: float | None = None
        """The throughput at the limit from which the current step was taken."""
        self._stood = self._limit
        """That limit."""
        self._recover_to = 0.0
        self._told = False
        """Whether the limit is the number that the backend reported."""
        self._cut_short = False
        """Whether the limit is still below the backend's number since the last back-off."""
        self._headroom = _HEADROOM
        self._latency_s = 0.0
        self._binding, self._binding_since = False, now
        self._hold_until = self._cut_at = now
        self._judging_from = now
        """Calls that end earlier are ignored: refusals end first, and would dominate."""
        self._seen = self._refused = 0.0
        self._begin_round(now)

    @property
    def limit(self) -> int:
        """Calls that may be in flight."""
        return max(1, int(self._limit))

    def follow(self, wanted: int) -> None:
        """Adopts the limit that the backend reports.

        Args:
          wanted: How many calls it says it can use; 0 while unknown.
        """
        limit = min(float(wanted), self._ceiling)
        self._told = wanted > 0 and not (self._cut_short and self._limit < limit)
        if self._told:
            self._limit = limit
            self._before = None
            self._cut_short = False

    def binds(self, binding: bool, now: float) -> None:
        """Notes that from now on the limit does, or does not, keep requests waiting."""
        if binding == self._binding:
            return
        if self._binding:
            self._bound_s += now - self._binding_since
        self._binding, self._binding_since = binding, now

    def ended(self, sent_at: float, now: float, *, refused: bool) -> None:
        """Notes a call's end.

        Args:
          sent_at: When it was sent.
          now: The time.
          refused: Whether the backend was overloaded (503) or did not answer in time.
        """
        if sent_at >= self._cut_at and now >= self._judging_from:
            self._seen += 1.0 - self._seen / _CONGESTED_OVER
            self._refused += float(refused) - self._refused / _CONGESTED_OVER
            if refused and self._seen > _ENOUGH and self._refused > _CONGESTED * self._seen:
                self._back_off(now)
                return
        if refused or now < self._counting_from:
            return
        self._ended += 1
        self._latencies_s += now - sent_at
        round_s = now - self._counting_from
        if self._ended >= self._round_calls() and round_s >= _SHORTEST_ROUND_S:
            self._end_round(now, round_s)

    def restart(self, now: float) -> None:
        """Restarts after an outage: at half the limit, then climbs back to it."""
        self._recover_to = max(self._recover_to, self._limit)
        self._limit = max(1.0, self._limit / 2)
        self._cut(now)

    def _round_calls(self) -> float:
        least = (_NOISE[self._step] / (self._step - 1)) ** 2 if self._before is not None else 0.0
        return max(min(least, 16 * self._limit), self._limit)

    def _end_round(self, now: float, round_s: float) -> None:
        self._latency_s = self._latencies_s / self._ended
        bound_s = self._bound_s + (now - self._binding_since if self._binding else 0.0)
        if bound_s < _BOUND_SHARE * (now - self._round_began):
            self._begin_round(now)  # too few requests to tell
            return
        throughput = self._ended / round_s
        if self._told:
            pass  # nothing to find out
        elif self._limit < self._recover_to:
            self._limit = min(self._limit * _RECOVER, self._recover_to, self._ceiling)
            self._before = None
        elif self._before is None:
            self._step_up(throughput, now)
        else:
            ratio = throughput / self._before
            if ratio >= 1 + _FOLLOWS * (self._step - 1):
                self._headroom = 1.0 if self._step == _PROBE else self._headroom
                self._step = _DOUBLE
                self._step_up(throughput, now)
            else:
                self._hold(ratio, now)
        self._begin_round(now)

    def _step_up(self, throughput: float, now: float) -> None:
        if now < self._hold_until or self._limit >= self._ceiling:
            return
        self._before, self._stood = throughput, self._limit
        self._limit = min(self._limit * self._step, self._ceiling)
        self._judging_from = now + self._latency_s

    def _hold(self, ratio: float, now: float) -> None:
        if self._step == _DOUBLE:  # a climb ends: the calls it needed, plus headroom
            taken = self._stood * max(ratio, 1.0) * self._headroom
            self._limit = min(taken, self._limit)
        else:  # a probe ends: the limit that held has its headroom already
            self._limit = self._stood
        self._step = _PROBE
        self._before = None
        self._hold_until = now + _HOLD_S

    def _back_off(self, now: float) -> None:
        self._recover_to = self._limit if self._before is None else self._stood
        self._limit = max(1.0, min(self._limit * _BACK_OFF, self._recover_to))
        self._cut(now)

    def _cut(self, now: float) -> None:
        self._step, self._before = _PROBE, None
        self._told, self._cut_short = False, True
        self._hold_until = now + _HOLD_CUT_S
        self._cut_at = now
        self._judging_from = now + self._latency_s
        self._seen = self._refused = 0.0
        self._begin_round(now)

    def _begin_round(self, now: float) -> None:
        """Starts counting once most calls sent under the former limit have ended."""
        self._round_began = now
        self._counting_from = now + self._latency_s / 2
        self._ended = 0
        self._latencies_s = 0.0
        self._bound_s = 0.0
        self._binding_since = now
