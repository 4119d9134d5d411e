"""BigQuery tables: their names, their creation, their row counts and their summary rows."""

import dataclasses
import hashlib
import io
import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transforms.records.errors import ConfigurationError
from transforms.results.rows import Column

if TYPE_CHECKING:
    from google.cloud import bigquery

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
          ConfigurationError: The text is none of them.
        """
        found = _TABLE.fullmatch(text)
        project = (found and (found["project"] or default_project)) or None
        if found is None or project is None:
            raise ConfigurationError(f"{text!r} is not a table: write project:dataset.table")
        return cls(project, found["dataset"], found["table"])

    def sibling(self, suffix: str) -> "TableName":
        """The table in the same dataset with a suffix added to its name."""
        return dataclasses.replace(self, table=self.table + suffix)

    def __str__(self) -> str:
        return f"{self.project}.{self.dataset}.{self.table}"


def make_client(
    project: str, location: str | None = None, labels: Mapping[str, str] | None = None
) -> "bigquery.Client":
    """A BigQuery client that labels its jobs; ``BIGQUERY_EMULATOR_HOST`` redirects it."""
    from google.cloud import bigquery

    return bigquery.Client(
        project=project,
        location=location,
        default_load_job_config=bigquery.LoadJobConfig(labels=dict(labels or {})),
        default_query_job_config=bigquery.QueryJobConfig(labels=dict(labels or {})),
    )


def bigquery_schema(columns: Sequence[Column]) -> "list[bigquery.SchemaField]":
    """The columns in the form of BigQuery's client."""
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
    """A table that the pipeline writes, and how to create it if it is missing.

    Attributes:
      name: The table.
      columns: The columns of its rows.
      partition_by: The TIMESTAMP column that partitions it by day.
      cluster_by: The columns that order it within a day.
      job_project: The project that pays for jobs; None for the table's own project.
      location: The dataset's location; None lets BigQuery find it.
      labels: Labels of jobs and of a newly created table.
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
        """The id of a run's job on this table: the same for all attempts, unique otherwise."""
        table = hashlib.sha256(str(self.name).encode()).hexdigest()[:12]
        return f"{run_id}-{purpose}-{table}"

    def create(self, client: "bigquery.Client") -> None:
        """Creates the table if it does not exist."""
        from google.cloud import bigquery

        table = bigquery.Table(str(self.name), schema=bigquery_schema(self.columns))
        table.time_partitioning = bigquery.TimePartitioning(field=self.partition_by)
        table.clustering_fields = list(self.cluster_by)
        table.labels = dict(self.labels)
        client.create_table(table, exists_ok=True)

    def make_view(self, client: "bigquery.Client", sql: str) -> None:
        """Creates the view next to the table; only warns if that fails."""
        from google.api_core.exceptions import GoogleAPICallError

        try:
            client.query(sql).result()
        except GoogleAPICallError as error:
            _log.warning("cannot create the view %s_latest: %s", self.name, error)

    def count(self, client: "bigquery.Client", run_id: str, started_at: str) -> int:
        """The number of the run's rows in the table."""
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


def load_summary(spec: TableSpec, line: bytes, run_id: str) -> None:
    """Appends one row to a run-summary table; idempotent by the job's id."""
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
