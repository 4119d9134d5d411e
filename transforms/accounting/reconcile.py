"""The reconciliation: ``records = results + dead letters``, by the rows that the sinks really hold.

`summarise` and `check_reconciled` are the pure parts. `WriteRunSummary` compares the counts of the
read (`transforms.accounting.counts`) with the finished sinks, writes the summary and then raises if
they do not agree: a run that lost a record is a failed run.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import AsList

from transforms.accounting.counts import Counts
from transforms.accounting.sink_report import SinkReport
from transforms.clients.bigquery import TableSpec, load_summary
from transforms.records import json_values
from transforms.records.errors import NotReconciled, StoppedEarly, WriteRejected
from transforms.results.rows import SUMMARY_COLUMNS, Column, Row, encode_row, now


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SummarySpec:
    """Where to write the summary, and the facts about the run in it.

    Attributes:
      run_id: The run.
      started_at: When the run was launched (RFC 3339).
      pipeline_version: The release.
      config: The options, without secrets.
      table: ``<output_table>_runs``.
      path: ``DIR/run.json``.
      sinks: The number of sinks that must report their rows; None for any number.
    """

    run_id: str
    started_at: str
    pipeline_version: str
    config: Mapping[str, Any]
    table: TableSpec | None = None
    path: str | None = None
    sinks: int | None = None


def summarise(spec: SummarySpec, total: Counts, reports: Sequence[SinkReport]) -> Row:
    """The summary row; ``reconciled`` only if every sink holds exactly the rows counted for it.

    ``results`` and ``dead_letters`` are the sinks' own counts; if two sinks of a kind disagree, it
    is the smaller one, so that missing rows show.
    """
    counts = total.by_name
    reports = _by_sink(reports)
    held = {
        kind: [report.rows for report in reports if report.kind == kind] or [0]
        for kind in ("results", "dead_letters")
    }
    results, dead_letters = (min(rows) for rows in held.values())
    reconciled = (
        counts["records"] == results + dead_letters
        and all(rows == counts[kind] for kind in held for rows in held[kind])
        and spec.sinks in (None, len(reports))
    )
    return {
        "run_id": spec.run_id,
        "started_at": spec.started_at,
        "finished_at": now(),
        "pipeline_version": spec.pipeline_version,
        "config": json_values.dumps(json_values.to_json_value(dict(spec.config))).decode("utf-8"),
        "records": counts["records"],
        "results": results,
        "dead_letters": dead_letters,
        "dead_letters_by_error_type": json_values.canonical(dict(total.error_types)).decode(),
        "duplicate_ids": counts["duplicate_ids"],
        "requests_sent": counts["requests_sent"],
        "retries": counts["retries"],
        "throttled_ms": counts["throttled_ms"],
        "from_ledger": counts["from_ledger"],
        "input_tokens": counts["input_tokens"],
        "cached_input_tokens": counts["cached_input_tokens"],
        "output_tokens": counts["output_tokens"],
        "reasoning_tokens": counts["reasoning_tokens"],
        "cost_usd": None if total.cost_usd is None else format(total.cost_usd, "f"),
        "reconciled": reconciled,
    }


def _by_sink(reports: Sequence[SinkReport]) -> list[SinkReport]:
    """One report per sink: some sinks report each bundle."""
    rows: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for report in reports:
        rows[report.kind, report.sink, report.location] += report.rows
    return [SinkReport(*sink, amount) for sink, amount in rows.items()]


def check_reconciled(row: Row) -> None:
    """Raises `NotReconciled`, with the number of records, unless the run reconciles.

    Raises:
      NotReconciled: A sink does not hold the rows counted for it.
      StoppedEarly: The run reconciles, but stopped before it had sent every record.
    """
    if row["reconciled"]:
        unsent = json_values.loads(row["dead_letters_by_error_type"]).get("not_attempted", 0)
        if unsent:
            raise StoppedEarly(
                f"run {row['run_id']} stopped early: {unsent:,} records were not attempted; their "
                "dead letters say why; a later run can read the dead letters and retry them"
            )
        return
    records, results, dead_letters = row["records"], row["results"], row["dead_letters"]
    difference = records - results - dead_letters
    raise NotReconciled(
        f"run {row['run_id']} does not reconcile: {records:,} records, but the sinks hold "
        f"{results:,} results and {dead_letters:,} dead letters: "
        + (
            f"{difference:,} missing"
            if difference > 0
            else f"{-difference:,} too many"
            if difference
            else "the total is right, but a sink does not hold the rows counted for it"
        )
    )


class _SummariseDoFn(beam.DoFn):
    def __init__(self, spec: SummarySpec) -> None:
        self._spec = spec

    def process(
        self, _: None, counted: list[Counts], reports: list[SinkReport]
    ) -> Iterator[dict[str, Any]]:
        row = summarise(self._spec, Counts.total(counted), reports)
        write_summary(self._spec, row)
        yield row


def write_summary(spec: SummarySpec, row: Row) -> None:
    """Writes the summary; a repeated attempt overwrites it."""
    line = encode_summary(row, SUMMARY_COLUMNS)
    if spec.table is not None:
        load_summary(spec.table, line, spec.run_id)
    if spec.path is not None:
        with FileSystems.create(spec.path, "application/json") as file:
            file.write(line + b"\n")


def encode_summary(row: Row, columns: tuple[Column, ...]) -> bytes:
    """The row as a JSON line; a sum too large for its column (servers report nonsense) is NULL."""
    try:
        return encode_row(row, columns)
    except WriteRejected:
        fitting = {column.name: _fitting(column, row) for column in columns}
        return encode_row(fitting, columns)


def _fitting(column: Column, row: Row) -> Any:
    try:
        encode_row(row, (column,))
    except WriteRejected:
        return None
    return row[column.name]


def _raise_unless_reconciled(row: Row) -> Row:
    check_reconciled(row)
    return row


@dataclasses.dataclass(kw_only=True, eq=False)
class WriteRunSummary(beam.PTransform):
    """Reconciles the run, writes its summary, and fails the run if it does not reconcile.

    It runs after every load job and file is finished, because it waits for the sinks' reports. The
    last step raises in its own stage, so that the summary is not written again.

    Takes ``(counts, reports)``.

    Args:
      spec: Where to write the summary, and the facts about the run in it.

    Returns:
      A PCollection of one summary row.
    """

    spec: SummarySpec

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, ended: tuple[beam.PCollection[Counts], beam.PCollection[SinkReport]]
    ) -> beam.PCollection[dict[str, Any]]:
        counts, reports = ended
        return (
            counts.pipeline
            | "Once" >> beam.Create([None])
            | "Summarise" >> beam.ParDo(_SummariseDoFn(self.spec), AsList(counts), AsList(reports))
            | "KeepSummary" >> beam.Reshuffle()
            | "RaiseUnlessReconciled" >> beam.Map(_raise_unless_reconciled)
        )
