"""What a run shows while it works: a live bar on a terminal, plain lines otherwise.

`Recent` makes a `View` of the counts of the last seconds, so that no figure jumps with a single
sample; `counts_line` and `pace_line` say it in words. All three are pure: they take the time.
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

Counts = Callable[[], dict[str, int]]
"""The counts of the moment: `transforms.accounting.metrics.LIVE`, or the counters of a remote job."""

_PLAIN_EVERY_S = 10.0
_SAMPLE_EVERY_S = 0.25
_SAMPLE_SHARE = 50
"""A remote job's counts are asked for over the network: for at most 1/50 of the time."""
_SPEED_OVER_S = 10.0
_STATE_OVER_S = 3.0
_CLEARLY_BELOW = 0.8
_SILENT_AFTER_S = 15
_LONGEST_PROBE_AFTER_S = 16
"""The breaker asks after 0.5, 1, 2, 4 and 8 s, and then every 10 s (`transforms.dispatch.pace`)."""
_END_SHOWN_AFTER_S = 60

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is shown at one moment.

    Attributes:
      elapsed_s: Since the start.
      read: Inputs that were read.
      asked: Records that have ended at the model, failures included.
      per_s: Of those, per second, lately.
      written: Result rows on their way into a sink.
      dead_letters: Dead letters on theirs.
      retries: Calls that were repeats.
      in_flight: Calls in flight, lately; None where nobody tells (a remote job).
      limit: How many may be.
      waiting: Requests that wait to be sent.
      backing_off: Of those, the ones between two attempts.
      held: Whether they wait although more calls could be in flight.
      rate_per_minute: What refusals have taught, in calls per minute; None for nothing yet.
      down_s: How long the backend has been down; 0 while it is not.
      holds: Whether the run keeps its messages for however long that is; else it stops.
      silent_s: How long no call has ended although some are in flight.
      throttled_s: A remote job's throttled time, summed over its threads.
    """

    elapsed_s: float = 0.0
    read: int = 0
    asked: int = 0
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
        """Takes a sample."""
        self._samples.append((now, counts))
        while self._samples[1][0] <= now - _SPEED_OVER_S:
            self._samples.popleft()
        moved = tuple(counts.get(name, 0) for name in ("asked", "sent", "retried"))
        if moved != self._moved:
            self._moved, self._moved_at = moved, now
        state = self._state(now)
        share = sum(map(_is_held, state)) / max(1, len(state))
        if share > 0.75 or share < 0.25:  # between the two it stays as it was
            self._held = share > 0.5

    def view(self, now: float) -> View:
        """What to show."""
        before_at, before = self._samples[0]
        at, counts = self._samples[-1]
        asked = _asked(counts)
        state = self._state(now)
        in_flight = [gauges["in_flight_requests"] for gauges in state]
        rates = [rate for gauges in state if (rate := gauges.get("rate_limit_per_minute", 0))]
        return View(
            elapsed_s=now - self._began,
            read=max(counts.get("read", counts.get("records", 0)), asked),
            asked=asked,
            per_s=max(0, asked - _asked(before)) / (at - before_at) if at > before_at else 0.0,
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
        """The gauges of the last seconds; none of a remote job."""
        last = self._samples[-1]
        lately = [sample for sample in self._samples if sample[0] > now - _STATE_OVER_S] or [last]
        return [counts for _, counts in lately if "in_flight_requests" in counts]


def _asked(counts: dict[str, int]) -> int:
    return counts.get("asked", counts.get("asked_records", 0))


def _is_held(counts: dict[str, int]) -> bool:
    """Whether requests wait although more calls could be in flight.

    A few fewer than the limit says nothing: another call may be on its way at that moment.
    """
    most = min(counts["waiting_requests"], _CLEARLY_BELOW * counts["concurrency_limit"])
    in_flight = counts.get("in_flight_calls", counts["in_flight_requests"])
    return not counts["outage_s"] and in_flight < most


def counts_line(view: View, width: int | None = None) -> str:
    """What was read, asked and written, and how fast.

    >>> counts_line(View(elapsed_s=10, read=500, asked=250, per_s=25))
    '0:10  read 500 · asked 250 · 25/s · written 0'
    """
    digits = 1 if 0 < view.per_s < 9.95 else 0
    parts = [
        (1, f"read {view.read:,}"),
        (3, f"asked {view.asked:,}"),
        (3, f"{view.per_s:,.{digits}f}/s"),
        (0, f"written {view.written:,}"),
        (2, f"dead letters {view.dead_letters:,}" if view.dead_letters else ""),
    ]
    clock = f"{_clock(view.elapsed_s)}  "
    return clock + _fit(parts, None if width is None else width - len(clock))


def pace_line(view: View, width: int | None = None) -> str:
    """How many calls are in flight, and what holds the others back; empty when nothing is asked.

    >>> pace_line(View(in_flight=3, limit=32, waiting=560, held=True, rate_per_minute=1187))
    'in flight 3 · waiting for a quota (~1,200/min)'
    >>> pace_line(View(in_flight=0, limit=41, waiting=1116, down_s=35))
    'backend is down for 35 s, asking every 10 s'
    """
    if view.in_flight is None:
        return f"throttled {view.throttled_s:,.0f} s, all threads" if view.throttled_s >= 1 else ""
    retries = (0, f"retries {view.retries:,}" if view.retries else "")
    if view.down_s:
        again = "every 10 s" if view.down_s >= _LONGEST_PROBE_AFTER_S else "again"
        down = f"backend is down for {_duration(view.down_s)}, asking {again}"
        stops = f"the run stops after {_duration(int(DispatchLimits().give_up_after_s))}"
        end = "messages are held" if view.holds else stops
        return _fit([(2, down), (1, end if view.down_s >= _END_SHOWN_AFTER_S else "")], width)
    if not view.in_flight and not view.waiting:
        return ""
    # what a model in the worker takes is whole batches, which no limit of calls is about
    binding = not view.held and view.in_flight <= 1.5 * view.limit
    limit = f" (limit {view.limit:,})" if binding else ""
    return _fit(
        [(1, f"in flight {view.in_flight:,}{limit}"), (2, _holds_back(view)), retries], width
    )


def _holds_back(view: View) -> str:
    if view.held and view.rate_per_minute is not None:
        return f"waiting for a quota (~{_two_digits(view.rate_per_minute):,}/min)"
    if view.held and view.waiting <= view.backing_off:
        return f"{view.waiting:,} wait to be asked again"
    if view.held:
        return "waiting for a quota"
    if view.silent_s >= _SILENT_AFTER_S:
        return f"no call has ended for {_duration(view.silent_s)}"
    return ""


def _fit(parts: Sequence[tuple[int, str]], width: int | None) -> str:
    """The parts in their order; without the least important ones where they do not fit."""
    kept = [part for part in parts if part[1]]
    while len(kept) > 1 and width is not None:
        if len(" · ".join(text for _, text in kept)) <= width:
            break
        kept.remove(min(kept, key=lambda part: part[0]))
    return " · ".join(text for _, text in kept)


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some.

    >>> _clock(10), _clock(3725)
    ('0:10', '1:02:05')
    """
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _duration(seconds: int) -> str:
    """Seconds, from two minutes on minutes.

    >>> _duration(119), _duration(125), _duration(900)
    ('119 s', '2 min 5 s', '15 min')
    """
    if seconds < 120:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:,} min {rest} s" if rest else f"{minutes:,} min"


def _two_digits(value: float) -> int:
    """A learnt rate swings around the quota: more digits would say nothing.

    >>> _two_digits(1187.3), _two_digits(46.0), _two_digits(3)
    (1200, 46, 3)
    """
    return round(float(f"{value:.1e}"))


class Progress:
    """Shows counts until it is closed; use as a context manager, and call `tick` often.

    Args:
      console: Where to; its being a terminal decides the form.
      counts: The counts of the moment.
      holds: See `View`.
    """

    def __init__(self, console: Console, counts: Counts, *, holds: bool = False) -> None:
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
        """While the bar lives, `sys.stderr` prints above it; a handler keeps the one it found."""
        for handler in self._redirected:
            handler.setStream(sys.stderr)

    def tick(self) -> None:
        """Samples the counts when it is time, and prints a plain line when one is due."""
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
            _log.debug("the counts were not had", exc_info=error)
        else:
            self._recent.note(counts, now)
        took_s = time.monotonic() - now
        self._sample_at = now + min(max(_SAMPLE_EVERY_S, _SAMPLE_SHARE * took_s), _PLAIN_EVERY_S)

    def _bar(self) -> Table:
        """Always two lines, so that nothing below them moves."""
        width = self._console.width - 2
        grid = Table.grid(padding=(0, 1))
        lines = (
            Text(line, no_wrap=True, overflow="ellipsis")
            for line in (counts_line(self._view, width), pace_line(self._view, width) or " ")
        )
        grid.add_row(self._spinner, Group(*lines))
        return grid
