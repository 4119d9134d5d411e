"""The pipeline, from records to the summary: this is the diagram of the README, as code."""

import apache_beam as beam

from pipeline.config import RunConfig, Sinks
from transforms.batch import BatchRequests
from transforms.infer import Infer
from transforms.order import OrderByPrefix
from transforms.reconcile import WriteRunSummary
from transforms.render import RenderRequests
from transforms.rows import DEAD_LETTER_COLUMNS, RESULT_COLUMNS
from transforms.sinks.bigquery import LoadRows, TableSpec, latest_view_sql
from transforms.sinks.files import WriteFiles
from transforms.sinks.write import RowSink, WriteDeadLetters, WriteResults
from transforms.sources.base import ReadRecords
from transforms.validate import ValidateOutputs


def build(root: beam.Pipeline, config: RunConfig) -> None:
    """Adds every step to a pipeline. Labels are stable: updates of streaming jobs need them."""
    records, unread, read_tally = root | "ReadRecords" >> ReadRecords(
        source=config.source, id_rule=config.id_rule
    )
    requests, unrendered = records | "RenderRequests" >> RenderRequests(spec=config.request)
    if config.order.prefix_chars is not None:
        requests = requests | "OrderByPrefix" >> OrderByPrefix(
            prefix_chars=config.order.prefix_chars
        )
    batches = requests | "BatchRequests" >> BatchRequests(
        limits=config.batch, order_by_prefix=config.order.in_batch
    )
    answered, unserved = batches | "Infer" >> Infer(
        backend=config.backend, limits=config.limits, resource_hints=config.resource_hints
    )
    failures = [unread, unrendered, unserved]
    if config.output_schema is not None:
        answered, invalid = answered | "ValidateOutputs" >> ValidateOutputs(
            schema=config.output_schema
        )
        failures.append(invalid)
    unwritten, results, result_tally = answered | "WriteResults" >> WriteResults(
        run=config.run, price=config.prices, sinks=_result_sinks(config)
    )
    files, tables = _dead_letter_sinks(config)
    letters, letter_tally = (
        (*failures, unwritten)
        | "AllDeadLetters" >> beam.Flatten()
        | "WriteDeadLetters"
        >> WriteDeadLetters(run=config.run, price=config.prices, sinks=files, short_sinks=tables)
    )
    tallies = (read_tally, result_tally, letter_tally) | "Tallies" >> beam.Flatten()
    reports = (results, letters) | "Reports" >> beam.Flatten()
    _ = (tallies, reports) | "WriteRunSummary" >> WriteRunSummary(spec=config.summary)


def _result_sinks(config: RunConfig) -> list[tuple[str, RowSink]]:
    sinks, made = config.sinks, []
    if sinks.results_path:
        files = WriteFiles(
            folder=sinks.results_path,
            run_id=config.run_id,
            columns=RESULT_COLUMNS,
            format=sinks.output_format,
            replace=sinks.replace,
        )
        made.append(("WriteFiles", files))
    if sinks.output_table:
        view = latest_view_sql(sinks.output_table.name, config.output_schema)
        made.append(("LoadTable", _load(config, sinks.output_table, "results", view)))
    return made


def _dead_letter_sinks(
    config: RunConfig,
) -> tuple[list[tuple[str, RowSink]], list[tuple[str, RowSink]]]:
    sinks: Sinks = config.sinks
    files, tables = [], []
    if sinks.dead_letter_path:
        write = WriteFiles(
            folder=sinks.dead_letter_path,
            run_id=config.run_id,
            columns=DEAD_LETTER_COLUMNS,
            kind="dead_letters",
            format=sinks.output_format,
            replace=sinks.replace,
        )
        files.append(("WriteFiles", write))
    if sinks.dead_letter_table:
        tables.append(("LoadTable", _load(config, sinks.dead_letter_table, "dead_letters")))
    return files, tables


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
