"""BigQuery as a source: a table with fields and filter, or a query, read by the Storage Read API.

`transforms.records.json_values` converts values to JSON: NUMERIC to a string, BYTES to base64,
timestamps to RFC 3339, NaN to ``"NaN"``.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import apache_beam as beam
from apache_beam.io.gcp.bigquery import ReadFromBigQuery
from apache_beam.io.gcp.internal.clients.bigquery import DatasetReference
from apache_beam.pvalue import TaggedOutput

from transforms.accounting import metrics
from transforms.clients.bigquery import TableName, make_client
from transforms.records import json_values
from transforms.records.errors import ConfigurationError
from transforms.records.records import DeadLetter, Record
from transforms.sources.base import IdRule, ReadResult, make_record


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TableSource:
    """A table's rows.

    Attributes:
      table: The table.
      fields: The columns to read; () for all.
      filter: A SQL condition, like in WHERE.
      limit: The number of rows to read, by a query; None for all.
      job_project: The project that pays; None for the pipeline's project.
      temp_dataset: ``project:dataset`` for a query's temporary result.
      location: The location of query jobs.
      labels: Labels of query jobs.
      bounded: True, because a table ends.
    """

    bounded: ClassVar[bool] = True

    table: TableName
    fields: tuple[str, ...] = ()
    filter: str | None = None
    limit: int | None = None
    job_project: str | None = None
    temp_dataset: str | None = None
    location: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def sql(self) -> str:
        """The same read as a query."""
        columns = ", ".join(f"`{name}`" for name in self.fields) or "*"
        where = f" WHERE {self.filter}" if self.filter else ""
        limit = "" if self.limit is None else f" LIMIT {self.limit}"
        return f"SELECT {columns} FROM `{self.table}`{where}{limit}"

    def transform(self, id_rule: IdRule) -> beam.PTransform:
        """The transform that reads the table."""
        if self.limit is not None:
            query = QuerySource(
                query=self.sql(),
                job_project=self.job_project,
                temp_dataset=self.temp_dataset,
                location=self.location,
                labels=self.labels,
                name=str(self.table),
            )
            return query.transform(id_rule)
        read = ReadFromBigQuery(
            method=ReadFromBigQuery.Method.DIRECT_READ,
            table=f"{self.table.project}:{self.table.dataset}.{self.table.table}",
            selected_fields=list(self.fields) or None,
            row_restriction=self.filter,
            project=self.job_project,
        )
        return ReadRows(rows=read, name=str(self.table), id_rule=id_rule)

    def first(self, id_rule: IdRule, count: int) -> Iterator[Record | DeadLetter]:
        """The first rows, queried by this process."""
        return _first_rows(self, id_rule, count)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuerySource:
    """The rows of a GoogleSQL query, which runs once, into a temporary table.

    Attributes:
      query: The query.
      limit: The number of rows of its result to read; None for all.
      job_project: The project that pays; None for the pipeline's project.
      temp_dataset: ``project:dataset`` for its temporary result.
      location: The location of the query job.
      labels: Labels of the query job.
      name: The ``source`` of its records.
      bounded: True, because a result ends.
    """

    bounded: ClassVar[bool] = True

    query: str
    limit: int | None = None
    job_project: str | None = None
    temp_dataset: str | None = None
    location: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    name: str = "query"

    def sql(self) -> str:
        """The query with its limit."""
        query = self.query.strip().rstrip(";")
        if self.limit is None:
            return query
        return f"SELECT * FROM (\n{query}\n) LIMIT {self.limit}"

    def transform(self, id_rule: IdRule) -> beam.PTransform:
        """The transform that reads the query's result."""
        temporary = {"temp_dataset": _dataset(self.temp_dataset)} if self.temp_dataset else {}
        read = ReadFromBigQuery(
            method=ReadFromBigQuery.Method.DIRECT_READ,
            query=self.sql(),
            use_standard_sql=True,
            project=self.job_project,
            bigquery_job_labels=dict(self.labels),
            **temporary,
        )
        return ReadRows(rows=read, name=self.name, id_rule=id_rule)

    def first(self, id_rule: IdRule, count: int) -> Iterator[Record | DeadLetter]:
        """The first rows, queried by this process."""
        return _first_rows(self, id_rule, count)


def _first_rows(
    source: TableSource | QuerySource, id_rule: IdRule, count: int
) -> Iterator[Record | DeadLetter]:
    client = make_client(source.job_project or "", source.location)
    for row in client.query(f"SELECT * FROM (\n{source.sql()}\n) LIMIT {count}").result():
        yield make_record(json_values.to_json_value(dict(row)), "preview", id_rule)


def _dataset(name: str) -> DatasetReference:
    project, _, dataset = name.replace(".", ":").partition(":")
    if not dataset:
        raise ConfigurationError(f"`temp_dataset` is {name!r}, but must be project:dataset")
    return DatasetReference(projectId=project, datasetId=dataset)


class _RowRecordsDoFn(beam.DoFn):
    def __init__(self, name: str, id_rule: IdRule) -> None:
        self._name, self._id_rule = name, id_rule

    def process(
        self, row: dict[str, Any]
    ) -> Iterator[Record | TaggedOutput[Literal["unread"], DeadLetter]]:
        record = make_record(json_values.to_json_value(row), self._name, self._id_rule)
        metrics.LIVE.add("read", 1)
        yield record if isinstance(record, Record) else TaggedOutput("unread", record)


@dataclasses.dataclass(kw_only=True, eq=False)
class ReadRows(beam.PTransform):
    """Turns the rows of a Beam read, which are dictionaries, into records; bounded.

    Args:
      rows: The read.
      name: The ``source`` of the records.
      id_rule: The field that holds a record's id.

    Returns:
      ``(records, unread)``: PCollections of `Record` and of `DeadLetter` (stage ``read``).
    """

    rows: beam.PTransform
    name: str
    id_rule: IdRule = IdRule()

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: beam.Pipeline) -> ReadResult:
        read = (
            root
            | "ReadRows" >> self.rows
            | "MakeRecords"
            >> beam.ParDo(_RowRecordsDoFn(self.name, self.id_rule)).with_outputs(
                "unread", main="records"
            )
        )
        return read.records, read.unread
