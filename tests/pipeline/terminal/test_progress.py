"""Progress: recent seconds become a view, a view becomes lines, lines go to a console."""

import io
import itertools
import logging
import sys
from typing import Any

import pytest
from rich.console import Console

from pipeline.terminal.progress import Progress, Recent, View, counts_line, pace_line

IN_FLIGHT = {"in_flight_requests": 32, "concurrency_limit": 32, "outage_s": 0}
FULL = {**IN_FLIGHT, "waiting_requests": 500}
HELD = {**FULL, "in_flight_requests": 2, "rate_limit_per_minute": 1187}


def seen(*samples: tuple[float, dict[str, int]]) -> View:
    """The view after some samples of a run that began at 0."""
    recent = Recent(0.0)
    for now, counts in samples:
        recent.note(counts, now)
    return recent.view(samples[-1][0])


# The last seconds


def test_counts_are_those_of_the_last_sample() -> None:
    """Counts are those of the last sample, with dead letters of all types added up."""
    counts = {"read": 900, "completed": 600, "results": 400, "retried": 7}
    letters = {"dead_letters_blocked": 3, "dead_letters_internal": 1}
    view = seen((1.0, {"read": 100}), (4.0, {**counts, **letters}))
    assert (view.elapsed_s, view.read, view.completed, view.written) == (4.0, 900, 600, 400)
    assert (view.dead_letters, view.retries) == (4, 7)


def test_at_least_as_many_were_read_as_completed() -> None:
    """A view never shows more records completed than read, although sources count in steps."""
    assert seen((1.0, {"read": 0, "completed": 600})).read == 600


def test_counters_of_a_remote_job_have_other_names() -> None:
    """A remote job's counters have other names, and it has no gauges."""
    view = seen((1.0, {"records": 9, "completed_records": 5, "retries": 2, "throttled_ms": 35_400}))
    assert (view.read, view.completed, view.retries, view.in_flight) == (9, 5, 2, None)
    assert pace_line(view) == "throttled 35 s, all threads"


def test_the_speed_is_that_of_the_last_ten_seconds() -> None:
    """The speed is that of the last ten seconds; a slow start does not count."""
    view = seen(
        *((float(second), {"completed": max(0, second - 60) * 20}) for second in range(1, 81))
    )
    assert view.per_s == pytest.approx(20)


def test_the_speed_falls_to_nothing() -> None:
    """Ten seconds after the last record the speed is unknown."""
    assert (
        seen((1.0, {"completed": 90}), (5.0, {"completed": 90}), (15.0, {"completed": 90})).per_s
        == 0
    )


def test_a_view_before_the_first_sample() -> None:
    """Before the first sample a view has zeros and no pace."""
    view = Recent(0.0).view(0.0)
    assert counts_line(view) == "0:00  read 0 · completed 0 · 0/s · written 0"
    assert pace_line(view) == ""


def test_calls_in_flight_and_a_learnt_rate_are_means_of_the_last_seconds() -> None:
    """Calls in flight and the learnt rate, which oscillate, are means of recent seconds."""
    rates, flying = (1100, 1300, 1500), (0, 3, 6)
    samples = [
        (second, {**HELD, "rate_limit_per_minute": rate, "in_flight_requests": calls})
        for second, rate, calls in zip((1.0, 2.0, 3.0), rates, flying, strict=True)
    ]
    view = seen((0.5, {}), *samples)
    assert view.rate_per_minute == pytest.approx(1300)
    assert view.in_flight == 3


def test_requests_between_two_attempts_are_those_of_the_last_sample() -> None:
    """Requests between attempts, like waiting ones, are those of the last sample."""
    view = seen((1.0, HELD), (2.0, {**HELD, "waiting_requests": 9, "backing_off_requests": 7}))
    assert (view.waiting, view.backing_off) == (9, 7)


@pytest.mark.parametrize("rate", [{}, {"rate_limit_per_minute": 0}])
def test_no_learnt_rate_is_none(rate: dict[str, int]) -> None:
    """Without a learnt rate the gauge is absent or 0, because it cannot be infinite."""
    assert seen((1.0, {**FULL, **rate})).rate_per_minute is None


@pytest.mark.parametrize(
    ("counts", "held"),
    [
        pytest.param(HELD, True, id="fewer in flight than the limit"),
        pytest.param(FULL, False, id="as many in flight as the limit"),
        pytest.param({**FULL, "in_flight_requests": 30}, False, id="another is about to start"),
        pytest.param({**HELD, "waiting_requests": 0}, False, id="nothing waits"),
        pytest.param({**HELD, "outage_s": 5}, False, id="an outage"),
        pytest.param({}, False, id="no gauges"),
    ],
)
def test_requests_are_held_when_they_wait_although_more_could_be_sent(
    counts: dict[str, int], held: bool
) -> None:
    """A quota, a Retry-After or a wait between attempts holds requests although calls are free."""
    assert seen((1.0, counts)).held is held


def test_a_single_sample_changes_no_state() -> None:
    """A single sample changes no state, so no word flickers."""
    recent = Recent(0.0)
    quarters = itertools.count(1)

    def after(*samples: dict[str, int]) -> bool:
        for counts in samples:
            now = next(quarters) / 4
            recent.note(counts, now)
        return recent.view(now).held

    assert not after(*12 * [FULL])
    assert not after(HELD, FULL, HELD, FULL)
    assert after(*12 * [HELD])
    assert after(FULL, HELD, FULL, HELD)
    assert not after(*12 * [FULL])


def test_silence_is_the_time_since_anything_moved() -> None:
    """Silence is counted from the last change, and only while calls are in flight."""
    busy, idle = {**FULL, "sent": 32}, {**FULL, "sent": 32, "in_flight_requests": 0}
    assert seen((1.0, busy), (21.0, busy)).silent_s == 20
    assert seen((1.0, busy), (21.0, {**busy, "sent": 33})).silent_s == 0
    assert seen((1.0, idle), (21.0, idle)).silent_s == 0


# Words

LARGE = View(
    elapsed_s=45_296,
    read=1_234_567,
    completed=1_234_567,
    per_s=8_928,
    written=1_234_567,
    dead_letters=12_345,
    retries=123_456,
    in_flight=2_048,
    limit=2_048,
    waiting=4_000,
)


def test_speeds_below_ten_have_a_decimal() -> None:
    """Speeds below ten have a decimal, for models that answer a few requests per second."""
    shown = [counts_line(View(per_s=per_s)).split(" · ")[2] for per_s in (0.42, 9.94, 9.96, 8928)]
    assert shown == ["0.4/s", "9.9/s", "10/s", "8,928/s"]


def test_the_counts_of_a_large_run_fit_a_terminal() -> None:
    """A long line drops the least important counts first, and never the clock or the speed."""
    assert counts_line(LARGE, 98) == (
        "12:34:56  read 1,234,567 · completed 1,234,567 · 8,928/s · written 1,234,567 · "
        "dead letters 12,345"
    )
    assert counts_line(LARGE, 78) == (
        "12:34:56  read 1,234,567 · completed 1,234,567 · 8,928/s · dead letters 12,345"
    )
    assert counts_line(LARGE, 40) == "12:34:56  completed 1,234,567 · 8,928/s"
    assert counts_line(LARGE, 20) == "12:34:56  8,928/s"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        pytest.param({"in_flight": 41, "limit": 41}, "in flight 41 (limit 41)", id="busy"),
        pytest.param(
            {"in_flight": 41, "limit": 41, "retries": 54},
            "in flight 41 (limit 41) · retries 54",
            id="retries",
        ),
        pytest.param(
            {"in_flight": 2, "limit": 32, "waiting": 9, "held": True, "rate_per_minute": 1187.3},
            "in flight 2 · waiting for quota (~1,200/min)",
            id="a quota learnt from 429s",
        ),
        pytest.param(
            {"in_flight": 2, "limit": 32, "waiting": 9, "held": True, "retries": 30},
            "in flight 2 · waiting for quota · retries 30",
            id="a configured quota, or a Retry-After",
        ),
        pytest.param(
            {"in_flight": 0, "limit": 32, "waiting": 3, "held": True, "backing_off": 3},
            "in flight 0 · 3 waiting to retry",
            id="the last ones, between two attempts",
        ),
        pytest.param(
            {"in_flight": 2, "limit": 32, "waiting": 9, "held": True, "backing_off": 8},
            "in flight 2 · waiting for quota",
            id="another waits for quota",
        ),
        pytest.param(
            {"in_flight": 1, "limit": 32, "rate_per_minute": 1187.0},
            "in flight 1 (limit 32)",
            id="a learnt rate that delays nothing",
        ),
        pytest.param(
            {"in_flight": 512, "limit": 32, "waiting": 512},
            "in flight 512",
            id="whole batches in the worker",
        ),
        pytest.param(
            {"in_flight": 8, "limit": 8, "silent_s": 40},
            "in flight 8 (limit 8) · no call completed for 40 s",
            id="silence",
        ),
        pytest.param(
            {"in_flight": 8, "limit": 8, "silent_s": 14}, "in flight 8 (limit 8)", id="a pause"
        ),
        pytest.param(
            {"in_flight": 1, "down_s": 3}, "backend down for 3 s, probing", id="an outage"
        ),
        pytest.param(
            {"in_flight": 0, "down_s": 35},
            "backend down for 35 s, probing every 10 s",
            id="a longer outage",
        ),
        pytest.param(
            {"in_flight": 0, "down_s": 125, "silent_s": 30, "retries": 9, "waiting": 900},
            "backend down for 2 min 5 s, probing every 10 s · the run stops after 15 min",
            id="an outage of minutes",
        ),
        pytest.param(
            {"in_flight": 0, "down_s": 125, "holds": True},
            "backend down for 2 min 5 s, probing every 10 s · holding messages",
            id="an outage of minutes in a stream",
        ),
        pytest.param({"in_flight": 0, "limit": 41}, "", id="no requests"),
        pytest.param({}, "", id="no gauges"),
        pytest.param({"throttled_s": 0.9}, "", id="a remote job that was hardly throttled"),
    ],
)
def test_the_pace_in_words(given: dict[str, Any], line: str) -> None:
    """The pace says how many calls are in flight and why others wait."""
    assert pace_line(View(**given)) == line


def test_the_pace_of_a_large_run_fits_a_terminal() -> None:
    """A long pace line keeps the reason for waiting longest."""
    held = {"held": True, "rate_per_minute": 1_234_567.0}
    view = View(in_flight=2_047, limit=2_048, waiting=900_000, retries=123_456, **held)  # type: ignore[arg-type]
    assert pace_line(view, 78) == (
        "in flight 2,047 · waiting for quota (~1,200,000/min) · retries 123,456"
    )
    assert pace_line(view, 60) == "in flight 2,047 · waiting for quota (~1,200,000/min)"
    assert pace_line(view, 50) == "waiting for quota (~1,200,000/min)"
    down = View(in_flight=0, down_s=899)
    assert len(pace_line(down, 78)) <= 78
    assert pace_line(down, 60) == "backend down for 14 min 59 s, probing every 10 s"


def test_a_plain_line_of_a_usual_run_fits_100_columns() -> None:
    """A plain line of a usual run fits 100 columns, since plain lines are never cut."""
    view = View(
        elapsed_s=610, read=100_000, completed=89_856, per_s=892, written=50_000, in_flight=64
    )
    line = f"{counts_line(view)} · {pace_line(view)}"
    assert line.endswith("written 50,000 · in flight 64")
    assert len(line) <= 100


# On a console


class Clock:
    """A clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("pipeline.terminal.progress.time.monotonic", lambda: self.now)


def test_plain_lines_come_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain lines appear every ten seconds with counts and pace, without control codes."""
    clock, file = Clock(monkeypatch), io.StringIO()
    shown = Progress(
        Console(file=file, width=40, soft_wrap=True), lambda: {"completed": 100, **FULL}
    )
    with shown:
        for _ in range(50):
            clock.now += 0.5
            shown.tick()
    pace = "in flight 32 (limit 32)"
    assert file.getvalue().splitlines() == [
        f"0:10  read 100 · completed 100 · 10/s · written 0 · {pace}",
        f"0:20  read 100 · completed 100 · 0/s · written 0 · {pace} · no call completed for 19 s",
    ]


def test_a_stream_holds_messages_instead_of_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream holds its messages however long the outage lasts."""
    clock, file = Clock(monkeypatch), io.StringIO()
    down = {**FULL, "outage_s": 125}
    shown = Progress(Console(file=file, width=120, soft_wrap=True), lambda: down, holds=True)
    clock.now += 10
    shown.tick()
    assert file.getvalue() == (
        "0:10  read 0 · completed 0 · 0/s · written 0 · "
        "backend down for 2 min 5 s, probing every 10 s · holding messages\n"
    )


@pytest.mark.parametrize("width", [80, 100])
def test_the_bar_always_has_two_lines_that_fit(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """The bar always has two lines that fit, since a changing height would make it flicker."""
    clock, large = Clock(monkeypatch), 10**7
    counts: dict[str, int] = {}
    console = Console(file=io.StringIO(), width=width, force_terminal=True, soft_wrap=True)
    shown = Progress(console, lambda: counts)
    for more in (
        {},
        {"read": 5},
        {**FULL, "completed": large},
        {**HELD, "sent": large, "retried": large, "dead_letters_blocked": large},
        {**FULL, "outage_s": 899},
    ):
        counts.update(more)
        clock.now += 5
        shown.tick()
        lines = console.render_lines(shown._bar(), pad=False)
        text = ["".join(segment.text for segment in line) for line in lines]
        assert len(text) == 2
        assert all(len(line) <= width for line in text)
        assert "…" not in "".join(text)


def test_slow_counts_are_fetched_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow counts of a remote job are fetched rarely while the clock goes on."""
    clock, fetched = Clock(monkeypatch), []

    def counts() -> dict[str, int]:
        fetched.append(clock.now)
        clock.now += 0.1
        return {"completed_records": 7}

    shown = Progress(Console(file=io.StringIO()), counts)
    for _ in range(200):
        clock.now += 0.1
        shown.tick()
    assert [round(later - sooner) for sooner, later in itertools.pairwise(fetched)] == [5, 5, 5, 5]


def test_unavailable_counts_do_not_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unavailable counts do not end the wait; the line shows the last known counts."""
    clock, file = Clock(monkeypatch), io.StringIO()
    replies = iter([{"completed_records": 50}])

    def counts() -> dict[str, int]:
        try:
            return next(replies)
        except StopIteration:
            raise ConnectionError("the service is away") from None

    shown = Progress(Console(file=file, width=100, soft_wrap=True), counts)
    for _ in range(11):
        clock.now += 1
        shown.tick()
    assert file.getvalue() == "0:10  read 50 · completed 50 · 50/s · written 0\n"


def test_logged_lines_stand_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logged lines appear above the bar; afterwards the handler writes to its former stream."""
    file, stderr = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    handler, root = logging.StreamHandler(), logging.getLogger()
    root.addHandler(handler)
    try:
        with Progress(Console(file=file, width=80, force_terminal=True, soft_wrap=True), dict):
            root.error("the run stopped")
        root.error("it has ended")
    finally:
        root.removeHandler(handler)
    assert "the run stopped\n" in file.getvalue()
    assert stderr.getvalue() == "it has ended\n"
