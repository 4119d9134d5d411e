"""From the configuration to the sinks that `pipeline.build` wires."""

from typing import Any

import apache_beam as beam
from apache_beam.coders import TupleCoder, VarIntCoder

from pipeline.config import RunConfig
from transforms.accounting.minute_state import TallyCoder
from transforms.accounting.minute_summary import MINUTE_COLUMNS
from transforms.clients.bigquery import TableSpec
from transforms.records.coders import AnswerCoder
from transforms.records.errors import ConfigurationError
from transforms.results.rows import DEAD_LETTER_COLUMNS, RESULT_COLUMNS, Column
from transforms.sinks.bigquery.append import AppendRows
from transforms.sinks.bigquery.latest_view import latest_view_sql
from transforms.sinks.bigquery.load import LoadRows
from transforms.sinks.files import WriteFiles
from transforms.sinks.pubsub import PublishDeadLetters
from transforms.sinks.write import RowSink, WriteDeadLetters, WriteResults, shorten_dead_letter

MINUTE_TALLY_CODER = TupleCoder((VarIntCoder(), TallyCoder()))
"""How the count of one dead letter travels with its row."""


def write_results(config: RunConfig, *, bounded: bool) -> beam.PTransform:
    """`WriteResults` into every sink that the configuration names."""
    sinks = config.sinks
    made: list[tuple[str, RowSink]] = []
    appender = None
    if sinks.results_path:
        write = _files(config, sinks.results_path, "results", RESULT_COLUMNS)
        made.append(("WriteFiles", write))
    if sinks.output_table:
        view = latest_view_sql(sinks.output_table.name, config.output_schema)
        if write_method(config, bounded=bounded) == "file_loads":
            made.append(("LoadTable", _load(config, sinks.output_table, "results", view)))
        else:
            append = _append(
                config,
                sinks.output_table,
                "results",
                bounded,
                view_sql=view,
                owner_coder=AnswerCoder(),
            )
            appender = ("AppendTable", append)
    return WriteResults(run=config.run, price=config.prices, sinks=made, appender=appender)


def write_dead_letters(config: RunConfig, *, bounded: bool) -> beam.PTransform:
    """`WriteDeadLetters` into every sink that the configuration names."""
    sinks = config.sinks
    files: list[tuple[str, RowSink]] = []
    tables: list[tuple[str, RowSink]] = []
    appender = None
    if sinks.dead_letter_path:
        write = _files(config, sinks.dead_letter_path, "dead_letters", DEAD_LETTER_COLUMNS)
        files.append(("WriteFiles", write))
    if sinks.dead_letter_topic:
        files.append(("PublishDeadLetters", PublishDeadLetters(topic=sinks.dead_letter_topic)))
    if sinks.dead_letter_table:
        table = sinks.dead_letter_table
        if write_method(config, bounded=bounded) == "file_loads":
            tables.append(("LoadTable", _load(config, table, "dead_letters")))
        else:
            append = _append(
                config,
                table,
                "dead_letters",
                bounded,
                refit=shorten_dead_letter,
                owner_coder=MINUTE_TALLY_CODER,
            )
            appender = ("AppendTable", append)
    return WriteDeadLetters(
        run=config.run,
        price=config.prices,
        sinks=files,
        short_sinks=tables,
        appender=appender,
    )


def minute_sinks(config: RunConfig) -> list[tuple[str, AppendRows | WriteFiles]]:
    """Where a stream's summary rows go: into the table of runs, beside the files, or both.

    Rows of the table may come twice: the same revision, which says the same.
    """
    sinks = config.sinks
    found: list[tuple[str, AppendRows | WriteFiles]] = []
    if sinks.runs_table:
        append = _append(config, sinks.runs_table, "runs", bounded=False)
        append.exactly_once = append.report = False
        found.append(("AppendTable", append))
    if sinks.runs_path:
        write = _files(config, sinks.runs_path, "runs", MINUTE_COLUMNS)
        found.append(("WriteFiles", write))
    return found


def write_method(config: RunConfig, *, bounded: bool) -> str:
    """How tables get their rows.

    Raises:
      ConfigurationError: A load job is asked for, but the input never ends.
    """
    method = config.sinks.write_method or ("file_loads" if bounded else "storage_write")
    if method == "file_loads" and not bounded:
        raise ConfigurationError(
            "--write_method is 'file_loads', but the input never ends: use storage_write"
        )
    return method


def _files(config: RunConfig, folder: str, kind: str, columns: tuple[Column, ...]) -> WriteFiles:
    return WriteFiles(
        folder=folder,
        run_id=config.run_id,
        columns=columns,
        kind=kind,
        format=config.sinks.output_format,
        replace=config.sinks.replace,
    )


def _append(
    config: RunConfig, table: TableSpec, kind: str, bounded: bool, **more: Any
) -> AppendRows:
    streaming_inserts = write_method(config, bounded=bounded) == "streaming_inserts"
    wanted = config.sinks.exactly_once
    return AppendRows(
        spec=table,
        run_id=config.run_id,
        started_at=config.started_at,
        kind=kind,
        method="streaming_inserts" if streaming_inserts else "storage_write",
        exactly_once=(bounded if wanted is None else wanted) and not streaming_inserts,
        report=bounded or config.local,  # a local stream ends when it is drained
        **more,
    )


def _load(config: RunConfig, table: TableSpec, kind: str, view: str | None = None) -> LoadRows:
    return LoadRows(
        spec=table,
        run_id=config.run_id,
        started_at=config.started_at,
        folder=f"{config.sinks.staging}/{kind}",
        kind=kind,
        write_disposition=config.sinks.write_disposition,
        view_sql=view,
    )
