"""Progress of a run: a live bar on a terminal, plain lines elsewhere.

`Recent` smooths the counts of the last seconds into a `View`, so that no number jumps with a single
sample; `counts_line` and `pace_line` put it into words. All three are pure: the caller passes the
time.
"""

import collections
import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from transforms.dispatch.limits import DispatchLimits

ReadCounts = Callable[[], dict[str, int]]
"""The current counts: `transforms.accounting.metrics.LIVE`, or the counters of a remote job."""

_PLAIN_EVERY_S = 10.0
_SAMPLE_EVERY_S = 0.25
_SAMPLE_SHARE = 50
"""Fetching a remote job's counts is a network call: it may take at most 1/50 of the time."""
_SPEED_OVER_S = 10.0
_STATE_OVER_S = 3.0
_CLEARLY_BELOW = 0.8
_SILENT_AFTER_S = 15
_LONGEST_PROBE_AFTER_S = 16
"""The breaker probes after 0.5, 1, 2, 4 and 8 s, then every 10 s (`transforms.dispatch.pace`)."""
_END_SHOWN_AFTER_S = 60

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A snapshot of a run's progress.

    Attributes:
      elapsed_s: Seconds since the start.
      read: Inputs read.
      completed: Records whose request has ended, failures included.
      per_s: Completed records per second over the last seconds.
      written: Result rows on their way into a sink.
      dead_letters: Dead letters on their way into a sink.
      retries: Calls that were repeats.
      in_flight: Calls in flight over the last seconds; None if unknown (a remote job).
      limit: How many calls may be in flight.
      waiting: Requests waiting to be sent.
      backing_off: Those of them that wait between two attempts.
      held: Whether requests wait although more calls could be in flight.
      rate_per_minute: The call rate learned from 429s, per minute; None before the first.
      down_s: How long the backend has been unavailable; 0 while it is available.
      holds: Whether the run holds its messages through an outage of any length; else it stops.
      silent_s: How long no call has ended although some are in flight.
      throttled_s: A remote job's throttled time, summed over its threads.
    """

    elapsed_s: float = 0.0
    read: int = 0
    completed: int = 0
    per_s: float = 0.0
    written: int = 0
    dead_letters: int = 0
    retries: int = 0
    in_flight: int | None = None
    limit: int = 0
    waiting: int = 0
    backing_off: int = 0
    held: bool = False
    rate_per_minute: float | None = None
    down_s: int = 0
    holds: bool = False
    silent_s: int = 0
    throttled_s: float = 0.0


class Recent:
    """The counts of the last seconds.

    Args:
      now: The time at the start, in seconds of any monotonic clock.
      holds: See `View`.
    """

    def __init__(self, now: float, *, holds: bool = False) -> None:
        self._began = now
        self._holds = holds
        self._samples: collections.deque[tuple[float, dict[str, int]]] = collections.deque()
        self._samples.append((now, {}))
        self._moved_at = now
        self._moved: tuple[int, ...] = ()
        self._held = False

    def note(self, counts: dict[str, int], now: float) -> None:
        """Adds a sample."""
        self._samples.append((now, counts))
        while self._samples[1][0] <= now - _SPEED_OVER_S:
            self._samples.popleft()
        moved = tuple(counts.get(name, 0) for name in ("completed", "sent", "retried"))
        if moved != self._moved:
            self._moved, self._moved_at = moved, now
        state = self._state(now)
        share = sum(map(_is_held, state)) / max(1, len(state))
        if share > 0.75 or share < 0.25:  # between the two it stays as it was
            self._held = share > 0.5

    def view(self, now: float) -> View:
        """The view at a moment."""
        before_at, before = self._samples[0]
        at, counts = self._samples[-1]
        completed = _completed(counts)
        state = self._state(now)
        in_flight = [gauges["in_flight_requests"] for gauges in state]
        rates = [rate for gauges in state if (rate := gauges.get("rate_limit_per_minute", 0))]
        return View(
            elapsed_s=now - self._began,
            read=max(counts.get("read", counts.get("records", 0)), completed),
            completed=completed,
            per_s=(
                max(0, completed - _completed(before)) / (at - before_at) if at > before_at else 0.0
            ),
            written=counts.get("results", 0),
            dead_letters=sum(n for name, n in counts.items() if name.startswith("dead_letters_")),
            retries=counts.get("retried", counts.get("retries", 0)),
            in_flight=round(sum(in_flight) / len(in_flight)) if in_flight else None,
            limit=counts.get("concurrency_limit", 0),
            waiting=counts.get("waiting_requests", 0),
            backing_off=counts.get("backing_off_requests", 0),
            held=self._held,
            rate_per_minute=sum(rates) / len(rates) if rates else None,
            down_s=counts.get("outage_s", 0),
            holds=self._holds,
            silent_s=int(now - self._moved_at) if counts.get("in_flight_requests") else 0,
            throttled_s=counts.get("throttled_ms", 0) / 1000,
        )

    def _state(self, now: float) -> Sequence[dict[str, int]]:
        """The gauges of the last seconds; empty for a remote job."""
        last = self._samples[-1]
        lately = [sample for sample in self._samples if sample[0] > now - _STATE_OVER_S] or [last]
        return [counts for _, counts in lately if "in_flight_requests" in counts]


def _completed(counts: dict[str, int]) -> int:
    return counts.get("completed", counts.get("completed_records", 0))


def _is_held(counts: dict[str, int]) -> bool:
    """Whether requests wait although more calls could be in flight.

    A few below the limit mean nothing: another call may be about to start.
    """
    most = min(counts["waiting_requests"], _CLEARLY_BELOW * counts["concurrency_limit"])
    in_flight = counts.get("in_flight_calls", counts["in_flight_requests"])
    return not counts["outage_s"] and in_flight < most


def counts_line(view: View, width: int | None = None) -> str:
    """Records read, completed and written, and the speed.

    >>> counts_line(View(elapsed_s=10, read=500, completed=250, per_s=25))
    '0:10  read 500 · completed 250 · 25/s · written 0'
    """
    digits = 1 if 0 < view.per_s < 9.95 else 0
    parts = [
        (1, f"read {view.read:,}"),
        (3, f"completed {view.completed:,}"),
        (3, f"{view.per_s:,.{digits}f}/s"),
        (0, f"written {view.written:,}"),
        (2, f"dead letters {view.dead_letters:,}" if view.dead_letters else ""),
    ]
    clock = f"{_clock(view.elapsed_s)}  "
    return clock + _fit(parts, None if width is None else width - len(clock))


def pace_line(view: View, width: int | None = None) -> str:
    """Calls in flight, and the reason why others wait; empty without calls and requests.

    >>> pace_line(View(in_flight=3, limit=32, waiting=560, held=True, rate_per_minute=1187))
    'in flight 3 · waiting for quota (~1,200/min)'
    >>> pace_line(View(in_flight=0, limit=41, waiting=1116, down_s=35))
    'backend down for 35 s, probing every 10 s'
    """
    if view.in_flight is None:
        return f"throttled {view.throttled_s:,.0f} s, all threads" if view.throttled_s >= 1 else ""
    retries = (0, f"retries {view.retries:,}" if view.retries else "")
    if view.down_s:
        probing = "probing every 10 s" if view.down_s >= _LONGEST_PROBE_AFTER_S else "probing"
        down = f"backend down for {_duration(view.down_s)}, {probing}"
        stops = f"the run stops after {_duration(int(DispatchLimits().give_up_after_s))}"
        end = "holding messages" if view.holds else stops
        return _fit([(2, down), (1, end if view.down_s >= _END_SHOWN_AFTER_S else "")], width)
    if not view.in_flight and not view.waiting:
        return ""
    # a model in the worker takes whole batches: the limit on calls does not apply to it
    binding = not view.held and view.in_flight <= 1.5 * view.limit
    limit = f" (limit {view.limit:,})" if binding else ""
    return _fit(
        [(1, f"in flight {view.in_flight:,}{limit}"), (2, _holds_back(view)), retries], width
    )


def _holds_back(view: View) -> str:
    if view.held and view.rate_per_minute is not None:
        return f"waiting for quota (~{_two_digits(view.rate_per_minute):,}/min)"
    if view.held and view.waiting <= view.backing_off:
        return f"{view.waiting:,} waiting to retry"
    if view.held:
        return "waiting for quota"
    if view.silent_s >= _SILENT_AFTER_S:
        return f"no call completed for {_duration(view.silent_s)}"
    return ""


def _fit(parts: Sequence[tuple[int, str]], width: int | None) -> str:
    """Joins the parts in order, leaving out the least important ones if they do not fit."""
    kept = [part for part in parts if part[1]]
    while len(kept) > 1 and width is not None:
        if len(" · ".join(text for _, text in kept)) <= width:
            break
        kept.remove(min(kept, key=lambda part: part[0]))
    return " · ".join(text for _, text in kept)


def _clock(seconds: float) -> str:
    """Minutes and seconds, and hours if any.

    >>> _clock(10), _clock(3725)
    ('0:10', '1:02:05')
    """
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _duration(seconds: int) -> str:
    """Seconds; minutes and seconds from two minutes on.

    >>> _duration(119), _duration(125), _duration(900)
    ('119 s', '2 min 5 s', '15 min')
    """
    if seconds < 120:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:,} min {rest} s" if rest else f"{minutes:,} min"


def _two_digits(value: float) -> int:
    """Two significant digits: a learned rate swings around the quota, more would mean nothing.

    >>> _two_digits(1187.3), _two_digits(46.0), _two_digits(3)
    (1200, 46, 3)
    """
    return round(float(f"{value:.1e}"))


class Progress:
    """Shows counts until closed; use it as a context manager, and call `tick` often.

    Args:
      console: The console to print on: a live bar if it is a terminal, else plain lines.
      counts: Returns the current counts.
      holds: See `View`.
    """

    def __init__(self, console: Console, counts: ReadCounts, *, holds: bool = False) -> None:
        self._console = console
        self._counts = counts
        now = time.monotonic()
        self._recent = Recent(now, holds=holds)
        self._said = now
        self._sample_at = -1.0
        self._spinner = Spinner("dots")
        self._view = View()
        self._redirected: list[logging.StreamHandler[Any]] = []
        self._live = (
            Live(console=console, refresh_per_second=8, transient=True, get_renderable=self._bar)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> "Progress":
        if self._live:
            before = sys.stderr
            self._live.__enter__()
            self._redirected = [
                handler
                for handler in logging.getLogger().handlers
                if isinstance(handler, logging.StreamHandler) and handler.stream is before
            ]
            self._log_to_stderr()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.__exit__(None, None, None)
            self._log_to_stderr()

    def _log_to_stderr(self) -> None:
        """Makes log handlers print above the bar: each keeps its original `sys.stderr`."""
        for handler in self._redirected:
            handler.setStream(sys.stderr)

    def tick(self) -> None:
        """Samples the counts and prints a plain line, each when it is due."""
        now = time.monotonic()
        if now >= self._sample_at:
            self._sample(now)
        self._view = self._recent.view(time.monotonic())
        if self._live is None and now - self._said >= _PLAIN_EVERY_S:
            self._said = now
            parts = (counts_line(self._view), pace_line(self._view))
            self._console.print(" · ".join(filter(None, parts)), highlight=False, markup=False)

    def _sample(self, now: float) -> None:
        try:
            counts = self._counts()
        except Exception as error:  # a remote job's counters: the job goes on without them
            _log.debug("cannot read the counts", exc_info=error)
        else:
            self._recent.note(counts, now)
        took_s = time.monotonic() - now
        self._sample_at = now + min(max(_SAMPLE_EVERY_S, _SAMPLE_SHARE * took_s), _PLAIN_EVERY_S)

    def _bar(self) -> Table:
        """Always two lines high, so that nothing below it moves."""
        width = self._console.width - 2
        grid = Table.grid(padding=(0, 1))
        lines = (
            Text(line, no_wrap=True, overflow="ellipsis")
            for line in (counts_line(self._view, width), pace_line(self._view, width) or " ")
        )
        grid.add_row(self._spinner, Group(*lines))
        return grid
