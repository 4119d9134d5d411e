"""A BigQuery server that is killed while rows are appended, and restarted with its data."""

from typing import Any

import apache_beam as beam
import pytest

from tests.emulators.restartable_bigquery import RestartableBigQuery
from tests.transforms import pipeline
from tests.transforms.sinks.bigquery.test_append import numbers, row_of, run_table, spec_of
from transforms.sinks.bigquery import append_stream, row_batches
from transforms.sinks.bigquery.append import AppendRows, Delivery

ROWS = 400
FILLER = "x" * 1000
LOST = (2,)
"""Answers that are lost: the server is killed after appending the rows, before it is heard."""
UNSENT = (5,)
"""Requests during which the server is killed; their rows may or may not be stored."""


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch, mortal_bigquery: RestartableBigQuery) -> list[str]:
    """Kills the server at the places above; returns the list of events."""
    happened: list[str] = []
    receive = append_stream._Connection.receive
    asked = 0

    def receive_and_kill(self: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked in UNSENT:
            happened.append("killed")
            mortal_bigquery.restart()
        if asked in LOST:
            answer = receive(self)
            happened.append("already there" if answer.error.code else "lost")
            mortal_bigquery.restart()
        return receive(self)

    monkeypatch.setattr(append_stream._Connection, "receive", receive_and_kill)
    monkeypatch.setattr(row_batches, "BATCH_BYTES", 25_000)
    return happened


@pytest.mark.parametrize("delivery", Delivery)
def test_nothing_is_lost(
    mortal_bigquery: RestartableBigQuery, deadly: list[str], delivery: Delivery
) -> None:
    """Exactly once doubles no row; at least once doubles the rows whose answer was lost."""
    spec = spec_of(mortal_bigquery.cloud.new_dataset())
    rows = [row_of(n, document=FILLER) for n in range(ROWS)]
    with pipeline() as p:
        _ = p | beam.Create(rows) | AppendRows(table=run_table(spec), delivery=delivery)

    assert (deadly.count("lost"), deadly.count("killed")) == (len(LOST), len(UNSENT))
    held = numbers(spec)
    assert set(held) == set(range(ROWS))
    if delivery is Delivery.EXACTLY_ONCE:
        assert held == list(range(ROWS))
    else:
        assert len(held) > ROWS
