"""Rows loaded into a BigQuery table: staged files, one load job, the count of the table's rows.

A load job is atomic, and its id is made from the run's: an attempt that Beam repeats finds the job
of the first attempt instead of loading twice (BigQuery API, "jobs.insert": 409 for an id in use).
"""

import dataclasses
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems

from transforms.accounting.sink_report import SinkReport
from transforms.clients.bigquery import TableSpec, bigquery_schema
from transforms.records.errors import RunError
from transforms.sinks.base import EncodedRow, NeverRejected, Written
from transforms.sinks.bigquery.run_table import RunTable
from transforms.sinks.staging import StagedFile, StageRows, delete_folder

if TYPE_CHECKING:
    from google.cloud import bigquery

_URIS_PER_JOB = 10_000
_LOAD_ATTEMPTS = 3
_BIGQUERYS_OWN = ("backendError", "internalError", "rateLimitExceeded")
_log = logging.getLogger(__name__)


def load_files(
    spec: TableSpec,
    staged: Sequence[StagedFile],
    *,
    client: "bigquery.Client",
    job_prefix: str,
    write_disposition: str,
) -> None:
    """Loads staged JSON-lines files; idempotent by the job ids.

    Raises:
      RunError: BigQuery rejects the load; the staged files stay, and the message says where.
    """
    files = sorted(file.path for file in staged)
    if not files:
        if write_disposition == "WRITE_TRUNCATE":
            client.query(f"TRUNCATE TABLE `{spec.name}`").result()
        return
    for first in range(0, len(files), _URIS_PER_JOB):
        chunk = files[first : first + _URIS_PER_JOB]
        disposition = write_disposition if first == 0 else "WRITE_APPEND"
        _load_chunk(spec, chunk, client, f"{job_prefix}-{first // _URIS_PER_JOB}", disposition)


def _load_chunk(
    spec: TableSpec,
    files: list[str],
    client: "bigquery.Client",
    job_id: str,
    disposition: str,
) -> None:
    """Runs one load job; a job that failed for BigQuery's own reasons is followed by another."""
    from google.api_core.exceptions import GoogleAPICallError

    for attempt in range(_LOAD_ATTEMPTS):
        job = _start_or_find(spec, files, client, f"{job_id}-{attempt}", disposition)
        try:
            job.result()
            return
        except GoogleAPICallError as error:
            reason = (job.error_result or {}).get("reason")
            if reason in _BIGQUERYS_OWN and attempt + 1 < _LOAD_ATTEMPTS:
                continue
            raise RunError(
                f"BigQuery did not load {len(files)} staged file(s) into {spec.name}: {error}. "
                f"The rows are safe in {files[0].rpartition('/')[0]}"
            ) from error


def _start_or_find(
    spec: TableSpec,
    files: list[str],
    client: "bigquery.Client",
    job_id: str,
    disposition: str,
) -> Any:
    from google.api_core.exceptions import Conflict
    from google.cloud import bigquery

    config = bigquery.LoadJobConfig(
        source_format="NEWLINE_DELIMITED_JSON",
        schema=bigquery_schema(spec.columns),
        write_disposition=disposition,
        create_disposition="CREATE_NEVER",
    )
    if disposition == "WRITE_APPEND":
        config.schema_update_options = ["ALLOW_FIELD_ADDITION"]
    try:
        if files[0].startswith("gs://"):
            return client.load_table_from_uri(
                files, str(spec.name), job_id=job_id, job_config=config
            )
        with tempfile.TemporaryFile() as together:
            size = _concatenate(files, together)
            return client.load_table_from_file(
                together, str(spec.name), size=size, job_id=job_id, job_config=config
            )
    except Conflict:
        return client.get_job(job_id)


def _concatenate(files: list[str], target: Any) -> int:
    for path in files:
        with FileSystems.open(path) as source:
            while block := source.read(1 << 20):
                target.write(block)
    size = target.tell()
    target.seek(0, io.SEEK_SET)
    return cast(int, size)


class _LoadDoFn(beam.DoFn):
    def __init__(self, table: RunTable, folder: str, write_disposition: str) -> None:
        self._table, self._folder, self._disposition = table, folder, write_disposition

    def process(self, _: None, staged: list[StagedFile]) -> Iterator[SinkReport | NeverRejected]:
        table, spec = self._table, self._table.spec
        client = spec.client()
        spec.create(client)
        load_files(
            spec,
            staged,
            client=client,
            job_prefix=spec.job_id(table.run_id, table.kind),
            write_disposition=self._disposition,
        )
        report = table.report(client)
        table.make_view(client)
        if report.rows == sum(file.rows for file in staged):
            delete_folder(self._folder)
        yield report


@dataclasses.dataclass(kw_only=True, eq=False)
class LoadRows(beam.PTransform):
    """Loads encoded rows into a BigQuery table; bounded, each row once, all or none; a `Sink`.

    The table is created when it is missing. Staged files are deleted when the table holds their
    rows. BigQuery rejects a load as a whole: then the run fails.

    Args:
      table: The table.
      folder: Where rows are staged: ``gs://``, or local for a local runner.
      write_disposition: BigQuery's.

    Returns:
      `Written`: nothing is rejected; its one report is the table's own count of the run's rows.
    """

    table: RunTable
    folder: str
    write_disposition: str = "WRITE_APPEND"

    can_reject: ClassVar[bool] = False
    whole_payloads: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, rows: beam.PCollection[EncodedRow]) -> Written:
        columns = self.table.spec.columns
        staged = rows | StageRows(folder=self.folder, format="jsonl", columns=columns)
        load = _LoadDoFn(self.table, self.folder, self.write_disposition)
        once = rows.pipeline | "Once" >> beam.Create([None])
        loaded = once | "LoadRows" >> beam.ParDo(load, beam.pvalue.AsList(staged)).with_outputs(
            "rejected", main="reports"
        )
        return Written(rows, loaded.rejected, loaded.reports)
