"""A BigQuery that is killed while rows are appended, and started again on what it held."""

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
"""The answers that are lost: the server has appended the rows, and is killed before it is heard."""
UNSENT = (5,)
"""The requests during which the server is killed; nobody knows whether the rows are there."""


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch, mortal_bigquery: RestartableBigQuery) -> list[str]:
    """Kills the server at the places above; returns the list of what has happened."""
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
    """Exactly once: no row is doubled. At least once: rows whose answer was lost are doubled."""
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
