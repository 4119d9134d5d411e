"""BigQuery as a sink: staged rows, one load job, the count of what the table then holds.

A load job is atomic, and its id is made from the run's: an attempt that Beam repeats finds the job
of the first instead of loading twice (BigQuery API, "jobs.insert": 409 for an id in use).
"""

import dataclasses
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems

from transforms.accounting.sink_report import SinkReport
from transforms.clients.bigquery import TableSpec, bigquery_schema
from transforms.records.errors import RunError
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
      RunError: BigQuery refuses the load; the staged files stay, and the message says where.
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
    """One load job; a job that failed for BigQuery's own reasons is followed by another."""
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
    def __init__(self, sink: "LoadRows") -> None:
        self._spec, self._run_id, self._kind = sink.spec, sink.run_id, sink.kind
        self._folder, self._disposition = sink.folder, sink.write_disposition
        self._started_at, self._view_sql = sink.started_at, sink.view_sql

    def process(self, _: None, staged: list[StagedFile]) -> Iterator[SinkReport]:
        client = self._spec.client()
        self._spec.create(client)
        load_files(
            self._spec,
            staged,
            client=client,
            job_prefix=self._spec.job_id(self._run_id, self._kind),
            write_disposition=self._disposition,
        )
        rows = self._spec.count(client, self._run_id, self._started_at)
        if self._view_sql:
            self._spec.make_view(client, self._view_sql)
        if rows == sum(file.rows for file in staged):
            delete_folder(self._folder)
        yield SinkReport(self._kind, "bigquery", str(self._spec.name), rows)


@dataclasses.dataclass(kw_only=True, eq=False)
class LoadRows(beam.PTransform):
    """Loads encoded rows into a BigQuery table; bounded, one row each, all or none.

    The table is made when it is missing. Staged files are deleted when the table holds their rows.

    Args:
      spec: The table.
      run_id: The run; its rows are counted by it.
      started_at: Nothing of this run is older (RFC 3339); it bounds what the count scans.
      folder: Where rows are staged: ``gs://``, or local for a local runner.
      kind: ``results`` or ``dead_letters``, for the report.
      write_disposition: BigQuery's.
      view_sql: A statement to run when the rows are loaded.

    Returns:
      A PCollection of one `SinkReport`.
    """

    spec: TableSpec
    run_id: str
    started_at: str
    folder: str
    kind: str = "results"
    write_disposition: str = "WRITE_APPEND"
    view_sql: str | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, rows: beam.PCollection[bytes]) -> beam.PCollection[SinkReport]:
        staged = rows | StageRows(folder=self.folder, format="jsonl", columns=self.spec.columns)
        return (
            rows.pipeline
            | "Once" >> beam.Create([None])
            | "LoadRows" >> beam.ParDo(_LoadDoFn(self), beam.pvalue.AsList(staged))
        )
