"""Checks of BigQuery tables and queries before the launch."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.checks.runner import CHECK_TIMEOUT_S
from pipeline.config import RunConfig
from pipeline.options.messages import NO_CREDENTIALS
from transforms.clients.bigquery import TableSpec, make_client
from transforms.records.errors import ConfigurationError
from transforms.sources.bigquery import QuerySource, TableSource

if TYPE_CHECKING:
    from google.cloud import bigquery


def _ask_bigquery(flag: str, ask: Callable[[], Any]) -> Any:
    """Calls BigQuery; a bad request or a missing resource is wrong use, in BigQuery's words."""
    from google.api_core.exceptions import BadRequest, NotFound
    from google.auth.exceptions import DefaultCredentialsError

    try:
        return ask()
    except (BadRequest, NotFound) as error:
        message = error.errors[0]["message"] if error.errors else error.message
        raise ConfigurationError(f"{flag}: {message}") from None
    except DefaultCredentialsError:
        raise ConfigurationError(f"{flag}: {NO_CREDENTIALS}") from None


def _dry_run(client: "bigquery.Client", sql: str) -> None:
    from google.cloud import bigquery

    client.query(
        sql,
        job_config=bigquery.QueryJobConfig(dry_run=True, use_query_cache=False),
        retry=None,
        timeout=CHECK_TIMEOUT_S,
    )


def check_table(source: TableSource, flag: str = "--input_table") -> None:
    """The table exists, has the fields, and the filter is valid SQL."""
    from google.api_core.exceptions import NotFound

    flag = f"{flag} {source.table}"

    def ask() -> None:
        client = make_client(source.job_project or source.table.project, source.location)
        try:
            table = client.get_table(str(source.table), retry=None, timeout=CHECK_TIMEOUT_S)
        except NotFound:
            raise ConfigurationError(
                f"{flag} does not exist: check project, dataset and name"
            ) from None
        columns = [field.name for field in table.schema]
        for name in source.fields:
            if name not in columns:
                raise ConfigurationError(
                    f"--input_fields: {source.table} has no column {name!r}; it has "
                    f"{', '.join(columns)}"
                )
        if source.filter:
            _dry_run(client, source.sql())

    _ask_bigquery(flag, ask)


def check_query(source: QuerySource) -> None:
    """The query is valid, by a dry run."""

    def ask() -> None:
        _dry_run(make_client(source.job_project or "", source.location), source.sql())

    _ask_bigquery("--input_query", ask)


def check_output_table(config: RunConfig, spec: TableSpec, flag: str) -> None:
    """The dataset exists; a table that exists has our columns, and not this run's rows."""
    from google.api_core.exceptions import NotFound

    def ask() -> None:
        client = spec.client()
        dataset = f"{spec.name.project}.{spec.name.dataset}"
        try:
            client.get_dataset(dataset, retry=None, timeout=CHECK_TIMEOUT_S)
        except NotFound:
            raise ConfigurationError(
                f"{flag}: dataset {dataset} does not exist: create it with `bq mk -d {dataset}`"
            ) from None
        try:
            table = client.get_table(str(spec.name), retry=None, timeout=CHECK_TIMEOUT_S)
        except NotFound:
            return
        if table.table_type != "TABLE":
            raise ConfigurationError(f"{flag}: {spec.name} is a {table.table_type}, not a table")
        _check_columns(spec, table, flag)
        is_summary = spec is config.sinks.runs_table
        if config.sinks.write_mode == "fail" and table.num_rows and not is_summary:
            raise ConfigurationError(
                f"{flag}: {spec.name} holds {table.num_rows:,} rows and --write_mode is 'fail'"
            )
        named = (
            config.summary.config.get("run_id") and not config.mode.streaming
        )  # an update keeps it
        if named and spec.count(client, config.run_id, _EPOCH):
            raise ConfigurationError(
                f"--run_id {config.run_id!r} is already in {spec.name}: set another"
            )

    _ask_bigquery(flag, ask)


_EPOCH = "1970-01-01T00:00:00Z"


_SYNONYMS = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL", "STRUCT": "RECORD"}


def _check_columns(spec: TableSpec, table: Any, flag: str) -> None:
    have = {field.name: field for field in table.schema}
    ours = {column.name for column in spec.columns}
    for column in spec.columns:
        field = have.get(column.name)
        if field is None:
            if column.mode == "REQUIRED":
                raise ConfigurationError(
                    f"{flag}: {spec.name} has no column {column.name!r}: this pipeline did not "
                    "make it; set another table"
                )
            continue
        kind = _SYNONYMS.get(field.field_type, field.field_type)
        if kind != column.type or (field.mode == "REPEATED") != (column.mode == "REPEATED"):
            raise ConfigurationError(
                f"{flag}: column {column.name!r} of {spec.name} is {field.mode} {kind}, but must "
                f"be {column.mode} {column.type}; set another table"
            )
    for field in table.schema:
        if field.name not in ours and field.mode == "REQUIRED":
            raise ConfigurationError(
                f"{flag}: {spec.name} requires a column {field.name!r} that results do not have; "
                "set another table"
            )
