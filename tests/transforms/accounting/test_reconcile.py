"""The reconciliation: it holds only if every sink holds exactly the rows counted for it."""

import dataclasses
import decimal
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms import pipeline
from transforms.accounting import reconcile
from transforms.accounting.counts import Counts
from transforms.accounting.reconcile import (
    SummarySpec,
    WriteRunSummary,
    check_reconciled,
    summarise,
    write_summary,
)
from transforms.accounting.sink_report import SinkReport
from transforms.records.errors import NotReconciled, StoppedEarly
from transforms.results.rows import SUMMARY_COLUMNS

SPEC = SummarySpec(
    run_id="run-1",
    started_at="2026-11-21T08:00:00Z",
    pipeline_version="1.2.3",
    config={"model": "m", "limit": None, "tags": ("a",)},
)


def _counts(records: int, results: int, dead_letters: int, **others: int) -> Counts:
    counts = Counts()
    counts.by_name.update(records=records, results=results, dead_letters=dead_letters, **others)
    counts.error_types["timeout"] = dead_letters
    return counts


def _reports(results: Iterable[int], dead_letters: Iterable[int]) -> list[SinkReport]:
    return [
        *(SinkReport("results", "files", f"r{n}", rows) for n, rows in enumerate(results)),
        *(
            SinkReport("dead_letters", "files", f"d{n}", rows)
            for n, rows in enumerate(dead_letters)
        ),
    ]


def _summary(
    counted: tuple[int, int, int], results: Iterable[int], dead_letters: Iterable[int]
) -> dict[str, Any]:
    row = summarise(SPEC, _counts(*counted), _reports(results, dead_letters))
    assert set(row) == {column.name for column in SUMMARY_COLUMNS}
    return row


@pytest.mark.parametrize(
    ("counted", "results", "dead_letters"),
    [
        ((7, 5, 2), [5], [2]),
        ((7, 5, 2), [5, 5], [2, 2]),
        ((5, 5, 0), [5], [0]),
        ((2, 0, 2), [0], [2]),
        ((0, 0, 0), [0], [0]),
        ((0, 0, 0), [], []),
        ((5, 5, 0), [5], []),
    ],
)
def test_reconciled(
    counted: tuple[int, int, int], results: list[int], dead_letters: list[int]
) -> None:
    """A run reconciles if every record is one row in every sink of its kind."""
    row = _summary(counted, results, dead_letters)
    assert row["reconciled"] is True
    assert (row["records"], row["results"], row["dead_letters"]) == counted
    check_reconciled(row)


def test_stopped_early() -> None:
    """A stopped run reconciles, but has failed: some records were never sent."""
    row = {**_summary((7, 5, 2), [5], [2]), "dead_letters_by_error_type": '{"not_attempted":2}'}
    with pytest.raises(StoppedEarly, match=r"^run run-1 stopped early: 2 records were not attemp"):
        check_reconciled(row)


@pytest.mark.parametrize(
    ("counted", "results", "dead_letters", "message"),
    [
        ((7, 5, 2), [4], [2], "4 results and 2 dead letters: 1 missing"),
        ((7, 5, 2), [5], [1], "5 results and 1 dead letters: 1 missing"),
        ((7, 5, 2), [10], [2], "10 results and 2 dead letters: 5 too many"),
        ((7, 5, 2), [5], [4], "5 results and 4 dead letters: 2 too many"),
        ((7, 5, 2), [], [2], "0 results and 2 dead letters: 5 missing"),
        ((7, 5, 2), [5], [], "5 results and 0 dead letters: 2 missing"),
        ((7, 5, 2), [5, 4], [2], "4 results and 2 dead letters: 1 missing"),
        ((7, 5, 2), [5], [2, 0], "5 results and 0 dead letters: 2 missing"),
        ((7, 5, 2), [5, 10], [2], "5 results and 2 dead letters: the total is right, but a "),
        ((7, 5, 2), [4], [3], "4 results and 3 dead letters: the total is right, but a sink "),
        ((7, 4, 2), [5], [2], "5 results and 2 dead letters: the total is right, but a sink "),
        ((8, 5, 2), [5], [2], "5 results and 2 dead letters: 1 missing"),
        ((6, 5, 2), [5], [2], "5 results and 2 dead letters: 1 too many"),
        ((2_000_000, 2_000_000, 0), [0], [0], "0 results and 0 dead letters: 2,000,000 missing"),
    ],
)
def test_not_reconciled(
    counted: tuple[int, int, int], results: list[int], dead_letters: list[int], message: str
) -> None:
    """A sink that is short, doubled or different, and errors that cancel, are all noticed."""
    row = _summary(counted, results, dead_letters)
    assert row["reconciled"] is False
    with pytest.raises(NotReconciled) as caught:
        check_reconciled(row)
    start = f"run run-1 does not reconcile: {counted[0]:,} records, but the sinks hold "
    assert str(caught.value).startswith(start + message)


@settings(deadline=None)
@given(
    st.integers(0, 6),
    st.integers(0, 6),
    st.integers(0, 12),
    st.lists(st.integers(0, 6), max_size=3),
    st.lists(st.integers(0, 6), max_size=3),
)
def test_reconciled_is_exact(
    results: int, letters: int, records: int, held: list[int], held_letters: list[int]
) -> None:
    """For any counts, a run reconciles only if no row is lost or doubled in any sink."""
    row = _summary((records, results, letters), held, held_letters)
    whole = set(held) <= {results} and set(held_letters) <= {letters}
    present = (bool(held) or not results) and (bool(held_letters) or not letters)
    assert row["reconciled"] is (whole and present and records == results + letters)


def test_a_sink_that_reports_each_bundle_is_one_sink() -> None:
    """A topic's reports, zero at the start and one per bundle, are one sink."""
    reports = _reports([4], [0]) + [SinkReport("dead_letters", "files", "d0", n) for n in (2, 3)]
    spec = dataclasses.replace(SPEC, sinks=2)
    row = summarise(spec, _counts(9, 4, 5), reports)
    assert (row["results"], row["dead_letters"], row["reconciled"]) == (4, 5, True)
    assert not summarise(spec, _counts(9, 4, 5), reports[:-1])["reconciled"]


def test_summary_row() -> None:
    """The summary has every column, from the counts and from the sinks."""
    counts = _counts(
        7,
        5,
        2,
        duplicate_ids=1,
        requests_sent=9,
        retries=2,
        throttled_ms=30,
        from_ledger=1,
        input_tokens=100,
        cached_input_tokens=10,
        output_tokens=50,
        reasoning_tokens=5,
    )
    counts.error_types.update(forbidden=1)
    counts._add_cost(decimal.Decimal("0.000000100"))
    row = summarise(SPEC, counts, _reports([5], [2]))
    assert list(row) == [column.name for column in SUMMARY_COLUMNS]
    finished_at = row.pop("finished_at")
    assert finished_at.endswith("Z")
    assert row == {
        "run_id": "run-1",
        "started_at": "2026-11-21T08:00:00Z",
        "pipeline_version": "1.2.3",
        "config": '{"model":"m","limit":null,"tags":["a"]}',
        "records": 7,
        "results": 5,
        "dead_letters": 2,
        "dead_letters_by_error_type": '{"forbidden":1,"timeout":2}',
        "duplicate_ids": 1,
        "requests_sent": 9,
        "retries": 2,
        "throttled_ms": 30,
        "from_ledger": 1,
        "input_tokens": 100,
        "cached_input_tokens": 10,
        "output_tokens": 50,
        "reasoning_tokens": 5,
        "cost_usd": "0.000000100",
        "reconciled": True,
    }


def test_write_summary(tmp_path: Path) -> None:
    """A summary is one JSON line, which a repeated attempt overwrites."""
    path = tmp_path / "run.json"
    spec = SummarySpec(
        run_id="r",
        started_at="2026-11-21T08:00:00Z",
        pipeline_version="1",
        config={},
        path=str(path),
    )
    for results in (4, 5):
        row = summarise(spec, _counts(5, 5, 0), _reports([results], []))
        write_summary(spec, row)
        assert path.read_bytes().count(b"\n") == 1
        assert json.loads(path.read_bytes()) == row


def test_sums_beyond_their_columns(tmp_path: Path) -> None:
    """An absurd number from a server empties its own column; the summary is still written."""
    path = tmp_path / "run.json"
    spec = SummarySpec(
        run_id="r",
        started_at="2026-11-21T08:00:00Z",
        pipeline_version="1",
        config={},
        path=str(path),
    )
    counts = _counts(1, 1, 0, input_tokens=2**63, output_tokens=2**63 - 1)
    counts._add_cost(decimal.Decimal(10) ** 30)
    row = summarise(spec, counts, _reports([1], []))
    write_summary(spec, row)
    written = json.loads(path.read_bytes())
    assert written == {**row, "input_tokens": None, "cost_usd": None}
    assert written["output_tokens"] == 2**63 - 1
    assert written["reconciled"] is True


def _run(path: Path, counted: list[Counts], reports: list[SinkReport]) -> None:
    spec = SummarySpec(
        run_id="r",
        started_at="2026-11-21T08:00:00Z",
        pipeline_version="1",
        config={},
        path=str(path),
    )
    with pipeline() as root:
        counts = root | "T" >> beam.Create(counted).with_output_types(Counts)
        held = root | "S" >> beam.Create(reports).with_output_types(SinkReport)
        summaries = (counts, held) | WriteRunSummary(spec=spec)
        kept = summaries | beam.Map(lambda row: (row["run_id"], row["records"], row["reconciled"]))
        records = sum(each.by_name["records"] for each in counted)
        assert_that(kept, equal_to([("r", records, True)]))


def test_write_run_summary(tmp_path: Path) -> None:
    """The counts of all bundles make one summary row in one file."""
    path = tmp_path / "run.json"
    _run(path, [_counts(4, 3, 1), _counts(3, 2, 1)], _reports([5], [2]))
    written = json.loads(path.read_bytes())
    assert written["reconciled"] is True
    assert (written["records"], written["results"], written["dead_letters"]) == (7, 5, 2)
    assert written["dead_letters_by_error_type"] == '{"timeout":2}'


def test_an_empty_run_is_summarised_too(tmp_path: Path) -> None:
    """A run without any record, count or report still has one summary row."""
    path = tmp_path / "run.json"
    _run(path, [], [])
    assert json.loads(path.read_bytes())["reconciled"] is True


def test_a_wrong_report_fails_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong report fails the run with the number of records, after one summary is written."""
    path = tmp_path / "run.json"
    written = []

    def spy(spec: SummarySpec, row: dict[str, Any]) -> None:
        written.append(row["reconciled"])
        write_summary(spec, row)

    monkeypatch.setattr(reconcile, "write_summary", spy)
    with (
        caplog.at_level(logging.CRITICAL),
        pytest.raises(
            NotReconciled, match=r"7 records, .* 4 results and 2 dead letters: 1 missing"
        ),
    ):
        _run(path, [_counts(7, 5, 2)], _reports([4], [2]))
    assert written == [False]
    assert json.loads(path.read_bytes())["reconciled"] is False
