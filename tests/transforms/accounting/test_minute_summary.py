"""The streaming summary: each minute's row is revised until all of its records have ended."""

import collections
import decimal
import json
import logging
import threading
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from tests.transforms import answer_of, coded, pipeline
from tests.transforms.streams import (
    at,
    collected_from,
    described,
    messages_from,
    stream,
    stream_clock,
    streaming_pipeline,
)
from transforms.accounting import metrics
from transforms.accounting.counts import Counts
from transforms.accounting.minute_counts import (
    UNKNOWN_MINUTE,
    CountReadMinutes,
    CountsByMinute,
    MinuteCounts,
)
from transforms.accounting.minute_state import Backlog, MinuteCount, MinuteCountCoder
from transforms.accounting.minute_summary import (
    MINUTE_COLUMNS,
    SummariseMinutes,
    difference,
    gauges,
    minute_row,
    watch,
)
from transforms.accounting.reconcile import SummarySpec, encode_summary
from transforms.records.errors import ConfigurationError
from transforms.records.records import DeadLetter, Record, Usage
from transforms.results.rows import RunInfo, result_row

SPEC = SummarySpec(
    run_id="job",
    started_at="2026-11-21T08:00:00Z",
    pipeline_version="1.2.3",
    config={"model": "m"},
    sinks=2,
)


def _counts(records: int = 0, results: int = 0, **dead_letters: int) -> Counts:
    counts = collections.Counter(
        records=records, results=results, dead_letters=sum(dead_letters.values())
    )
    return Counts(counts, collections.Counter(dead_letters))


def _rows(*events: Any, **arguments: Any) -> list[str]:
    """The rows of a stream of counts: ``minute.revision records-results-dead_letters`` each."""
    lines = collected_from(
        lambda root: (
            root
            | stream(*events)
            | beam.Map(at).with_output_types(MinuteCounts)
            | SummariseMinutes(spec=SPEC, clock=stream_clock, **arguments)
        )
    )
    rows = [json.loads(line) for line in lines]
    for row in rows:
        assert set(row) == {column.name for column in MINUTE_COLUMNS}
        assert row["difference"] == row["records"] - row["results"] - row["dead_letters"]
        assert row["reconciled"] is (row["difference"] == 0)
    return [
        f"{row['read_minute'][14:16]}.{row['revision']} "
        f"{row['records']}-{row['results']}-{row['dead_letters']}" + " expired" * row["expired"]
        for row in rows
    ]


def test_revised_until_it_reconciles() -> None:
    """A change adds a row, at most one a minute; an unchanged minute adds none."""
    assert _rows(
        (61, [(1, _counts(records=3))]),
        (100, [(1, _counts(results=1))]),
        (200, [(1, _counts(timeout=1))]),
        (400, [(2, _counts())]),
        (600, [(1, _counts(results=1))]),
        (900, [(3, _counts(records=1))]),
    ) == ["01.1 3-1-0", "01.2 3-1-1", "02.1 0-0-0", "01.3 3-2-1", "03.1 1-0-0"]


def test_the_first_row_waits_for_the_minute() -> None:
    """The first row includes everything up to `every_s` after the minute's end."""
    early, late = (179, [(1, _counts(results=1))]), (181, [(1, _counts(results=1))])
    assert _rows((60, [(1, _counts(records=2))]), early) == ["01.1 2-1-0"]
    assert _rows((60, [(1, _counts(records=2))]), late) == ["01.1 2-0-0", "01.2 2-1-0"]
    assert _rows((60, [(1, _counts(records=2))]), late, every_s=62) == ["01.1 2-1-0"]


def test_two_minutes() -> None:
    """Two minutes have their own sums, revisions and rows, in whatever order counts arrive."""
    rows = _rows(
        (61, [(1, _counts(records=2)), (2, _counts(results=1)), (1, _counts(results=1))]),
        (130, [(2, _counts(records=1)), (1, _counts(results=1))]),
        (500, [(2, _counts(records=4))]),
    )
    assert rows == ["01.1 2-2-0", "02.1 1-1-0", "02.2 5-1-0"]


def test_drain_writes_the_pending_row() -> None:
    """A drain writes the pending row without waiting."""
    assert _rows((61, [(1, _counts(records=3, results=2, blocked=1))])) == ["01.1 3-2-1"]


def test_late_counted() -> None:
    """Late counts belong to the minute that they name, however far behind the watermark."""
    events = ((61, [(1, _counts(records=1))], 100), 5_000, (62, [(1, _counts(results=1))], 1))
    assert _rows(*events) == ["01.1 1-1-0"]


def test_empty_input() -> None:
    """Without input no row is written."""
    assert _rows(100) == []


def test_expiry(caplog: pytest.LogCaptureFixture) -> None:
    """After `keep_s` without a change the state is deleted; a lossy minute reports it once."""
    clock = (10_000, [(9, _counts())])
    with caplog.at_level(logging.ERROR):
        rows = _rows(
            (61, [(1, _counts(records=3, results=1)), (2, _counts(records=1, results=1))]),
            clock,
            1_200,
            (10_001, [(1, _counts(results=1)), (2, _counts(results=1))]),
            keep_s=1_000,
        )
    assert rows == [
        "01.1 3-1-0",
        "02.1 1-1-0",
        "01.2 3-1-0 expired",
        "09.1 0-0-0",
        "01.1 0-1-0",
        "02.1 0-1-0",
    ]
    assert "minute 1 expired: 2 of its records have not ended" in caplog.text


def test_state_that_still_changes_is_kept() -> None:
    """State that still changes is kept, even if the watermark runs ahead of the last change."""
    rows = _rows(
        (61, [(1, _counts(records=2))]),
        (500, [(1, _counts(results=1))]),
        1_100,
        (700, [(1, _counts(results=1))]),
        keep_s=1_000,
    )
    assert rows == ["01.1 2-0-0", "01.2 2-1-0", "01.3 2-2-0"]


@pytest.mark.parametrize(("every_s", "keep_s"), [(-1, 100), (50, 100), (60, 60), (float("nan"), 9)])
def test_impossible_times(every_s: float, keep_s: float) -> None:
    """The constructor rejects impossible times with a message that holds both."""
    with pytest.raises(ConfigurationError, match=rf"every_s is {every_s}, .*\({keep_s}\)"):
        SummariseMinutes(spec=SPEC, every_s=every_s, keep_s=keep_s)


def test_gauges_follow_the_rows() -> None:
    """Backlog, oldest unfinished minute and lag are set with each row."""
    metrics.LIVE.reset()
    _rows(
        (61, [(1, _counts(records=5))]), (130, [(2, _counts(records=1))]), (400, [(3, _counts())])
    )
    assert metrics.LIVE.snapshot() == {
        "backlog_records": 6,
        "oldest_unfinished_minute": 1,
        "system_lag_s": 280,
    }
    metrics.LIVE.reset()
    _rows((61, [(1, _counts(records=5, results=5))]))
    assert metrics.LIVE.snapshot() == {
        "backlog_records": 0,
        "oldest_unfinished_minute": -1,
        "system_lag_s": 0,
    }


def test_backlog() -> None:
    """A finished minute leaves the backlog, and the oldest remaining one counts."""
    backlog = watch(watch(watch(Backlog(), 10, 4), 12, 1), 11, 2)
    assert gauges(backlog, 13 * 60) == {
        "backlog_records": 7,
        "oldest_unfinished_minute": 10,
        "system_lag_s": 120,
    }
    backlog = watch(watch(backlog, 10, 0), 12, 3)
    assert backlog == Backlog({11: 2, 12: 3})
    assert gauges(backlog, 0)["system_lag_s"] == 0
    assert watch(watch(backlog, 11, 0), 12, 0) == Backlog()


def test_minute_row() -> None:
    """A row has the columns of a batch run's summary and those of the minute."""
    counts = _counts(records=7, results=2, timeout=1, blocked=1)
    counts.by_name.update(input_tokens=5, output_tokens=6, requests_sent=4, retries=1)
    counts.cost_usd = decimal.Decimal("0.0012")
    row = minute_row(SPEC, 29_000_000, MinuteCount(counts, revision=4))
    assert row["finished_at"] > row["read_minute"] == "2025-02-19T21:20:00Z"
    del row["finished_at"], row["read_minute"]
    assert row == {
        "run_id": "job",
        "started_at": "2026-11-21T08:00:00Z",
        "pipeline_version": "1.2.3",
        "config": '{"model":"m"}',
        "records": 7,
        "results": 2,
        "dead_letters": 2,
        "dead_letters_by_error_type": '{"blocked":1,"timeout":1}',
        "duplicate_ids": None,
        "requests_sent": 4,
        "retries": 1,
        "throttled_ms": 0,
        "from_ledger": 0,
        "input_tokens": 5,
        "cached_input_tokens": 0,
        "output_tokens": 6,
        "reasoning_tokens": 0,
        "cost_usd": "0.0012",
        "reconciled": False,
        "revision": 5,
        "difference": 3,
        "expired": False,
    }


def test_a_sum_beyond_its_column() -> None:
    """A sum too large for its column is left out of the row."""
    counts = _counts(records=1, results=1)
    counts.by_name["input_tokens"] = 2**70
    row = json.loads(encode_summary(minute_row(SPEC, 1, MinuteCount(counts)), MINUTE_COLUMNS))
    assert row["input_tokens"] is None
    assert (row["records"], row["reconciled"]) == (1, True)


def test_minute_counted() -> None:
    """Counts of a minute add up like `Counts`, and start at zero after `take`."""
    counted = CountsByMinute()
    row = result_row(answer_of("x"), RunInfo(run_id="r", backend="b", model="m"), lambda *_: "0.5")
    counted.of(5).add_result(row, 3)
    letter = DeadLetter("infer", "timeout", "", attempts=2, usage=Usage(7, None, 1))
    counted.of(6).add_dead_letter({"cost_usd": None}, letter)
    counted.of(5).by_name["records"] += 2
    taken = dict(counted.take())
    assert difference(taken[5]) == 1
    assert taken[5].cost_usd == decimal.Decimal("0.5")
    assert (difference(taken[6]), taken[6].error_types, taken[6].by_name["input_tokens"]) == (
        -1,
        {"timeout": 1},
        7,
    )
    assert counted.take() == []


def test_inputs_read() -> None:
    """Records and unreadable inputs are counted by the minute that they carry."""
    records = [Record(str(n), {}, read_minute=minute) for n, minute in enumerate([5, 5, 6, None])]
    unread = [DeadLetter("read", "parse_error", "", read_minute=6)]
    with pipeline() as root:
        counted = (
            root | "Records" >> beam.Create(records),
            root | "Unread" >> beam.Create(unread),
        ) | CountReadMinutes()
        counts = counted | beam.MapTuple(lambda minute, counts: (minute, counts.by_name["records"]))
        summed = counts | beam.CombinePerKey(sum)
        assert_that(summed, equal_to([(5, 2), (6, 2), (UNKNOWN_MINUTE, 1)]))


_seen: list[dict[str, Any]] = []
_two_seen = threading.Event()


def _see(line: bytes) -> None:
    _seen.append(json.loads(line))
    if len(_seen) == 2:
        _two_seen.set()


def _read_or_answered(data: bytes) -> MinuteCounts:
    return 29_000_000, _counts(records=data == b"read", results=data == b"answered")


def test_real_time() -> None:
    """On a real clock, the result arrives only after the timer has written a row without it."""
    waiting = [b"read", b"answered"]

    def pull() -> list[bytes]:
        if waiting and len(_seen) == 2 - len(waiting):
            return [waiting.pop(0)]
        _two_seen.wait(0.01)  # the runner polls
        return []

    with messages_from(pull) as read:
        root = streaming_pipeline()
        counted = root | read | beam.Map(_read_or_answered).with_output_types(MinuteCounts)
        _ = counted | SummariseMinutes(spec=SPEC, every_s=0.05) | beam.Map(_see)
        result = root.run()
        try:
            assert _two_seen.wait(60)
        finally:
            result.cancel()
    assert [(row["revision"], row["difference"]) for row in _seen] == [(1, 1), (2, 0)]


def test_state_of_the_earlier_version_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An updated job reads its counts: fields that older bytes lack take their defaults."""
    original, written = MinuteCountCoder.encode, []

    def older(coder: MinuteCountCoder, count: MinuteCount) -> bytes:
        written.append(count)
        if len(written) > 1:
            return original(coder, count)
        return coded([dict(count.counts.by_name), {}, None], count.revision)

    monkeypatch.setattr(MinuteCountCoder, "encode", older)
    assert _rows((61, [(1, _counts(records=2))]), (62, [(1, _counts(results=1))])) == ["01.1 2-1-0"]
    assert len(written) > 1


_SUM = "SumMinutes/ParDo(_SumMinuteDoFn)"
STEPS = [
    "OneWindow [None] TupleCoder[VarIntCoder, CountsCoder]",
    f"{_SUM} [None] BytesCoder",
    f"{_SUM} [watched] TupleCoder[VarIntCoder, TupleCoder[VarIntCoder, VarIntCoder]]",
    f"{_SUM} state count read_modify_write_spec MinuteCountCoder",
    f"{_SUM} timer ts-expiry 1",
    f"{_SUM} timer ts-row 2",
    "WatchBacklog [None] FastPrimitivesCoder",
    "WatchBacklog state backlog read_modify_write_spec BacklogCoder",
]


def test_steps_state_and_coders_are_stable() -> None:
    """An updated job finds its steps, state and coders; a change here requires a drain."""
    root = streaming_pipeline()
    counted = root | stream() | beam.Map(at).with_output_types(MinuteCounts)
    _ = counted | "SummariseMinutes" >> SummariseMinutes(spec=SPEC)
    assert described(root, "SummariseMinutes") == STEPS
