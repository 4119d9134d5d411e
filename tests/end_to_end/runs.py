"""Runs a command line in this process and reads its rows from every sink."""

import collections
import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import orjson
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipeline.main import main
from tests.end_to_end.hostile import Outcome, outcome_of_row

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """The content of one pair of sinks.

    Attributes:
      results: The result rows.
      letters: The dead-letter rows.
      summary: The run's summary row.
    """

    results: list[Row]
    letters: list[Row]
    summary: Row

    def outcomes(self) -> collections.Counter[Outcome]:
        """How each input ended, from the rows."""
        return collections.Counter(map(outcome_of_row, [*self.results, *self.letters]))


def run(*arguments: str) -> int:
    """The exit code of a command line; this process's loggers and warnings are restored."""
    levels = {
        name: logging.getLogger(name).level for name in ("", "apache_beam", "google", "urllib3")
    }
    try:
        with warnings.catch_warnings():
            return main(arguments)
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def in_files(folder: str | Path) -> Held:
    """The content of ``--output_path``, local or ``gs://``, in either format."""
    summary = orjson.loads(read_object(f"{folder}/run.json"))
    rows = {name: list(rows_of(f"{folder}/{name}/*")) for name in ("results", "dead_letters")}
    return Held(rows["results"], rows["dead_letters"], summary)


def rows_of(pattern: str) -> Iterator[Row]:
    """The rows of the files that a glob matches, in either format."""
    for path in paths(pattern):
        if path.endswith(".parquet"):
            with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
                yield from pq.read_table(file).to_pylist()
        else:
            for line in read_object(path).splitlines():
                yield orjson.loads(line)


def paths(pattern: str) -> list[str]:
    """The files that a glob matches, by name."""
    return sorted(found.path for found in FileSystems.match([pattern])[0].metadata_list)


def read_object(path: str) -> bytes:
    """The content of a local file or a ``gs://`` object."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        return bytes(file.read())


def write_object(path: str, content: bytes) -> None:
    """Writes a local file or a ``gs://`` object."""
    with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        file.write(content)


def in_tables(table: str) -> Held:
    """The content of ``--output_table`` and of the tables next to it."""
    from google.cloud import bigquery

    with bigquery.Client() as client:

        def rows(suffix: str) -> list[Row]:
            found = client.query(f"SELECT * FROM `{table}{suffix}`").result()
            return [dict(row) for row in found]

        (summary,) = rows("_runs")
        return Held(rows(""), rows("_dead_letters"), summary)


def check_summary(held: Held) -> None:
    """Checks that the summary agrees with the rows and that the run reconciles."""
    summary = held.summary
    assert summary["reconciled"] is True
    assert summary["results"] == len(held.results)
    assert summary["dead_letters"] == len(held.letters)
    assert summary["records"] == len(held.results) + len(held.letters)
    by_type = collections.Counter(row["error_type"] for row in held.letters)
    assert json.loads(summary["dead_letters_by_error_type"]) == by_type


def missing_part(message: str) -> NoReturn:
    """Skips a test whose requirements are missing on this machine; fails it in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
