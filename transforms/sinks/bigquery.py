"""BigQuery as a sink: staged rows, one load job, the count of what the table then holds.

A load job is atomic, and its id is made from the run's: an attempt that Beam repeats finds the job
of the first instead of loading twice (BigQuery API, "jobs.insert": 409 for an id in use).
"""

import dataclasses
import hashlib
import io
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems

from transforms.errors import ConfigurationError, RunError
from transforms.rows import Column
from transforms.sinks.staging import SinkReport, StagedFile, StageRows, delete_folder

if TYPE_CHECKING:
    from google.cloud import bigquery

_URIS_PER_JOB = 10_000
_LOAD_ATTEMPTS = 3
_BIGQUERYS_OWN = ("backendError", "internalError", "rateLimitExceeded")
_log = logging.getLogger(__name__)
_TABLE = re.compile(
    r"(?:(?P<project>(?:[a-z0-9.-]+:)?[\w-]+)[:.])?(?P<dataset>\w+)\.(?P<table>[\w-]+)"
)


@dataclasses.dataclass(frozen=True, slots=True)
class TableName:
    """``project:dataset.table``, in its parts.

    >>> str(TableName.parse("my-project:sales.tickets"))
    'my-project.sales.tickets'
    """

    project: str
    dataset: str
    table: str

    @classmethod
    def parse(cls, text: str, default_project: str | None = None) -> "TableName":
        """Reads ``project:dataset.table``, ``project.dataset.table`` or ``dataset.table``.

        Raises:
          ConfigurationError: It is none of them.
        """
        found = _TABLE.fullmatch(text)
        project = (found and (found["project"] or default_project)) or None
        if found is None or project is None:
            raise ConfigurationError(f"{text!r} is not a table: write project:dataset.table")
        return cls(project, found["dataset"], found["table"])

    def sibling(self, suffix: str) -> "TableName":
        """The table beside it whose name has a suffix."""
        return dataclasses.replace(self, table=self.table + suffix)

    def __str__(self) -> str:
        return f"{self.project}.{self.dataset}.{self.table}"


def make_client(
    project: str, location: str | None = None, labels: Mapping[str, str] | None = None
) -> "bigquery.Client":
    """A BigQuery client whose jobs carry labels; ``BIGQUERY_EMULATOR_HOST`` points it elsewhere."""
    from google.cloud import bigquery

    return bigquery.Client(
        project=project,
        location=location,
        default_load_job_config=bigquery.LoadJobConfig(labels=dict(labels or {})),
        default_query_job_config=bigquery.QueryJobConfig(labels=dict(labels or {})),
    )


def bigquery_schema(columns: Sequence[Column]) -> "list[bigquery.SchemaField]":
    """The columns as BigQuery's client wants them."""
    from google.cloud import bigquery

    return [
        bigquery.SchemaField(
            column.name,
            column.type,
            mode=column.mode,
            description=column.help or None,
            fields=bigquery_schema(column.fields),
        )
        for column in columns
    ]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """A table that this project writes, and how it is made when it is missing.

    Attributes:
      name: The table.
      columns: What its rows hold.
      partition_by: The TIMESTAMP column whose days partition it.
      cluster_by: The columns that order it within a day.
      job_project: Who pays for jobs; None for the table's own project.
      location: The dataset's location; None lets BigQuery find it.
      labels: Labels of jobs and of a table that is made.
    """

    name: TableName
    columns: tuple[Column, ...]
    partition_by: str
    cluster_by: tuple[str, ...]
    job_project: str | None = None
    location: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def client(self) -> "bigquery.Client":
        """A client for jobs on this table."""
        return make_client(self.job_project or self.name.project, self.location, self.labels)

    def job_id(self, run_id: str, purpose: str) -> str:
        """The id of a run's job on this table: the same for each attempt, no other's."""
        table = hashlib.sha256(str(self.name).encode()).hexdigest()[:12]
        return f"{run_id}-{purpose}-{table}"

    def create(self, client: "bigquery.Client") -> None:
        """Makes the table; no error when it is there."""
        from google.cloud import bigquery

        table = bigquery.Table(str(self.name), schema=bigquery_schema(self.columns))
        table.time_partitioning = bigquery.TimePartitioning(field=self.partition_by)
        table.clustering_fields = list(self.cluster_by)
        table.labels = dict(self.labels)
        client.create_table(table, exists_ok=True)

    def make_view(self, client: "bigquery.Client", sql: str) -> None:
        """Makes the view beside the table; one that cannot be made is no reason to fail."""
        from google.api_core.exceptions import GoogleAPICallError

        try:
            client.query(sql).result()
        except GoogleAPICallError as error:
            _log.warning("view %s_latest was not made: %s", self.name, error)

    def count(self, client: "bigquery.Client", run_id: str, started_at: str) -> int:
        """How many rows of a run the table holds."""
        from google.cloud import bigquery

        parameters = [
            bigquery.ScalarQueryParameter("run_id", "STRING", run_id),
            bigquery.ScalarQueryParameter("started_at", "TIMESTAMP", started_at),
        ]
        job = client.query(
            f"SELECT COUNT(*) FROM `{self.name}` "
            f"WHERE run_id = @run_id AND {self.partition_by} >= @started_at",
            job_config=bigquery.QueryJobConfig(query_parameters=parameters),
        )
        return int(next(iter(job.result()))[0])


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


def load_summary(spec: TableSpec, line: bytes, run_id: str) -> None:
    """Adds one row to a run-summary table; idempotent by the job's id."""
    from google.api_core.exceptions import Conflict
    from google.cloud import bigquery

    client = spec.client()
    spec.create(client)
    config = bigquery.LoadJobConfig(
        source_format="NEWLINE_DELIMITED_JSON",
        schema=bigquery_schema(spec.columns),
        write_disposition="WRITE_APPEND",
    )
    job_id = spec.job_id(run_id, "summary")
    job: Any
    try:
        job = client.load_table_from_file(
            io.BytesIO(line), str(spec.name), job_id=job_id, job_config=config
        )
    except Conflict:
        job = client.get_job(job_id)
    job.result()


def latest_view_sql(name: TableName, output_schema: Mapping[str, Any] | None = None) -> str:
    """The view ``<table>_latest``: the newest row per record, its JSON parsed.

    Each top-level property of the output schema becomes a typed column; one whose name is a
    column's already is called ``output_<name>``.
    """
    from transforms.rows import RESULT_COLUMNS

    taken = {column.name for column in RESULT_COLUMNS}
    typed = []
    for prop, schema in ((output_schema or {}).get("properties") or {}).items():
        column = "".join(c if c.isascii() and c.isalnum() else "_" for c in prop)[:300]
        if not column or column[0].isdigit() or column.lower() in taken:
            column = f"output_{column}"
        if column.lower() in taken:
            continue
        taken.add(column.lower())
        typed.append(f"  {_typed_property(prop, schema)} AS `{column}`")
    columns = [
        "  * REPLACE (",
        "    SAFE.PARSE_JSON(output_json, wide_number_mode=>'round') AS output_json,",
        "    SAFE.PARSE_JSON(record, wide_number_mode=>'round') AS record)",
    ]
    select = "\n".join(columns) + "".join(",\n" + line for line in typed)
    return (
        f"CREATE OR REPLACE VIEW `{name.sibling('_latest')}` AS\n"
        f"SELECT\n{select}\nFROM `{name}`\nWHERE TRUE\n"
        "QUALIFY ROW_NUMBER() OVER (PARTITION BY record_id ORDER BY created_at DESC) = 1"
    )


_SQL_ESCAPES = (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r"))
_SQL_TYPES = {"integer": "INT64", "number": "FLOAT64", "boolean": "BOOL"}


def _typed_property(name: str, schema: Any) -> str:
    quoted = name.replace('"', '\\"')  # as a JSONPath has it, then as a SQL literal has that
    for text, escape in _SQL_ESCAPES:
        quoted = quoted.replace(text, escape)
    path = f"'$.\"{quoted}\"'"
    kind = schema.get("type") if isinstance(schema, dict) else None
    if isinstance(kind, list):  # ["string", "null"]
        kinds = [item for item in kind if item != "null"]
        kind = kinds[0] if len(kinds) == 1 else None
    if kind is None and isinstance(schema, dict) and "enum" in schema:
        kind = "string" if all(isinstance(v, str) for v in schema["enum"]) else None
    if kind == "string":
        return f"JSON_VALUE(output_json, {path})"
    if kind in _SQL_TYPES:
        return f"SAFE_CAST(JSON_VALUE(output_json, {path}) AS {_SQL_TYPES[kind]})"
    return f"SAFE.PARSE_JSON(JSON_QUERY(output_json, {path}), wide_number_mode=>'round')"


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
