"""Runs a stream in this process until a condition holds, and reads its rows per minute."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable

from tests.end_to_end.runs import Held, Row, run
from transforms.accounting import metrics
from transforms.clients.bigquery import TableName, TableSpec
from transforms.results.rows import RESULT_COLUMNS, Column

DEADLINE_S = 120.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not true within {DEADLINE_S:g} s"
        threading.Event().wait(0.05)


def run_until(condition: Callable[[], bool], *arguments: str) -> int:
    """The exit code of a command line in this process, interrupted once the condition holds."""
    errors: list[AssertionError] = []

    def interrupt() -> None:
        try:
            wait_until(condition)
        except AssertionError as error:
            errors.append(error)
        os.kill(os.getpid(), signal.SIGINT)

    metrics.LIVE.reset()
    threading.Thread(target=interrupt, daemon=True).start()
    code = run(*arguments)
    assert not errors, errors[0]
    return code


def ended() -> int:
    """The number of records of the run in this process that already have a row."""
    counts = metrics.LIVE.snapshot()
    return sum(n for name, n in counts.items() if name == "results" or "dead_letters_" in name)


def make_strict_table(table: str) -> None:
    """Creates a table for results that rejects ids that are not JSON."""
    columns = tuple(
        Column(c.name, "JSON" if c.name == "record_id" else c.type, c.mode) for c in RESULT_COLUMNS
    )
    name = TableName.parse(table)
    spec = TableSpec(name=name, columns=columns, partition_by="created_at", cluster_by=("run_id",))
    spec.create(spec.client())


def latest(rows: Iterable[Row]) -> list[Row]:
    """The valid row of each minute: its highest revision."""
    newest: dict[str, Row] = {}
    for row in rows:
        minute = str(row["read_minute"])
        if minute not in newest or row["revision"] > newest[minute]["revision"]:
            newest[minute] = row
    return list(newest.values())


def check_minutes(held: Held, minutes: Iterable[Row]) -> None:
    """Checks that each minute reconciles and that all minutes add up to the rows in the tables."""
    rows = latest(minutes)
    assert [row["difference"] for row in rows] == [0] * len(rows)
    assert all(row["reconciled"] and not row["expired"] for row in rows)
    sums = {name: sum(row[name] for row in rows) for name in ("results", "dead_letters", "records")}
    assert sums == {
        "results": len(held.results),
        "dead_letters": len(held.letters),
        "records": len(held.results) + len(held.letters),
    }


def tables(table: str) -> tuple[Held, list[Row]]:
    """The content of a stream's tables and the rows of its minutes; `Held.summary` is empty."""
    from google.cloud import bigquery

    with bigquery.Client() as client:

        def rows(suffix: str) -> list[Row]:
            found = client.query(f"SELECT * FROM `{table}{suffix}`").result()
            return [dict(row) for row in found]

        return Held(rows(""), rows("_dead_letters"), {}), rows("_runs")
