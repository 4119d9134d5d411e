"""Makes the sinks that `pipeline.build` wires from the configuration."""

from pipeline.config import RunConfig
from transforms.accounting.minute_summary import MINUTE_COLUMNS
from transforms.clients.bigquery import TableSpec
from transforms.results.rows import DEAD_LETTER_COLUMNS, RESULT_COLUMNS, Column
from transforms.sinks.base import Sink
from transforms.sinks.bigquery.append import AppendRows, Delivery
from transforms.sinks.bigquery.insert import InsertRows
from transforms.sinks.bigquery.latest_view import latest_view_sql
from transforms.sinks.bigquery.load import LoadRows
from transforms.sinks.bigquery.row_batches import Fallback
from transforms.sinks.bigquery.run_table import RunTable
from transforms.sinks.files import WriteFiles
from transforms.sinks.pubsub import PublishDeadLetters
from transforms.sinks.write import WriteDeadLetters, WriteResults, shorten_dead_letter


def write_results(config: RunConfig) -> WriteResults:
    """`WriteResults` into every sink that the configuration names."""
    wanted = config.sinks
    sinks: list[tuple[str, Sink]] = []
    if wanted.results_path:
        sinks.append(_files(config, wanted.results_path, "results", RESULT_COLUMNS))
    if wanted.output_table:
        view = latest_view_sql(wanted.output_table.name, config.output_schema)
        table = _table(config, wanted.output_table, "results", view)
        sinks.append(_to_table(config, table))
    return WriteResults(run=config.run, price=config.prices, sinks=sinks)


def write_dead_letters(config: RunConfig) -> WriteDeadLetters:
    """`WriteDeadLetters` into every sink that the configuration names."""
    wanted = config.sinks
    sinks: list[tuple[str, Sink]] = []
    if wanted.dead_letter_path:
        path = wanted.dead_letter_path
        sinks.append(_files(config, path, "dead_letters", DEAD_LETTER_COLUMNS))
    if wanted.dead_letter_topic:
        sinks.append(("PublishDeadLetters", PublishDeadLetters(topic=wanted.dead_letter_topic)))
    if wanted.dead_letter_table:
        table = _table(config, wanted.dead_letter_table, "dead_letters")
        sinks.append(_to_table(config, table, fallback=shorten_dead_letter))
    return WriteDeadLetters(run=config.run, price=config.prices, sinks=sinks)


def minute_sinks(config: RunConfig) -> list[tuple[str, Sink]]:
    """The sinks of a stream's summary rows: the table of runs, files next to the others, or both.

    The table may hold a row twice: the same revision with the same values.
    """
    sinks: list[tuple[str, Sink]] = []
    if config.sinks.runs_table:
        table = _table(config, config.sinks.runs_table, "runs")
        if config.sinks.write_method == "streaming_inserts":
            sinks.append(("AppendTable", InsertRows(table=table)))
        else:
            sinks.append(("AppendTable", AppendRows(table=table)))
    if config.sinks.runs_path:
        sinks.append(_files(config, config.sinks.runs_path, "runs", MINUTE_COLUMNS))
    return sinks


def _table(config: RunConfig, spec: TableSpec, kind: str, view: str | None = None) -> RunTable:
    return RunTable(
        spec=spec,
        run_id=config.run_id,
        started_at=config.started_at,
        kind=kind,
        view_sql=view,
    )


def _files(
    config: RunConfig, folder: str, kind: str, columns: tuple[Column, ...]
) -> tuple[str, Sink]:
    write = WriteFiles(
        folder=folder,
        run_id=config.run_id,
        columns=columns,
        kind=kind,
        format=config.sinks.output_format,
        replace=config.sinks.replace,
    )
    return "WriteFiles", write


def _to_table(
    config: RunConfig, table: RunTable, fallback: Fallback | None = None
) -> tuple[str, Sink]:
    method = config.sinks.write_method
    if method == "file_loads":
        load = LoadRows(
            table=table,
            folder=f"{config.sinks.staging}/{table.kind}",
            write_disposition=config.sinks.write_disposition,
        )
        return "LoadTable", load
    drained = config.local  # a local stream ends when it is drained
    if method == "streaming_inserts":
        insert = InsertRows(table=table, fallback=fallback, count_when_drained=drained)
        return "AppendTable", insert
    append = AppendRows(
        table=table,
        delivery=Delivery.EXACTLY_ONCE if config.sinks.exactly_once else Delivery.AT_LEAST_ONCE,
        fallback=fallback,
        count_when_drained=drained,
    )
    return "AppendTable", append
