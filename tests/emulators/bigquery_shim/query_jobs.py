"""Query jobs with a destination table, and ``jobs.query`` errors as HTTP errors.

The emulator ignores ``destinationTable`` for SELECT statements, and answers 200 to a failing
``jobs.query``, which google-cloud-bigquery takes for an empty result.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from bqemulator.api.routes import jobs
from bqemulator.domain.errors import (
    AlreadyExistsError,
    DomainError,
    InvalidQueryError,
    NotFoundError,
    PermissionDeniedError,
)

from tests.emulators.bigquery_shim import job_ids

HandleQueryJob = Callable[..., Awaitable[Any]]

READS_ROWS = re.compile(r"\s*(select|with|\()", re.IGNORECASE)

_ERROR_BY_REASON: dict[str, type[DomainError]] = {
    "notFound": NotFoundError,
    "duplicate": AlreadyExistsError,
    "accessDenied": PermissionDeniedError,
}


async def query(project: str, request: Any, context: Any, caller: Any) -> dict[str, Any]:
    """Answers ``jobs.query``; a failed query raises the error of its HTTP status."""
    answer: dict[str, Any] = await jobs.query(project, request, context, caller)
    for error in answer.get("errors", []):
        raise _ERROR_BY_REASON.get(error["reason"], InvalidQueryError)(error["message"])
    return answer


def with_destination_tables(stock_handle: HandleQueryJob) -> HandleQueryJob:
    """Returns the emulator's query handler plus destination tables and once-only job ids.

    The rows are written first and the job's result is then read from the table, so that a query
    that is not deterministic runs once. A dry run uses up no job id.
    """

    async def handle(
        project_id: str, job_id: str, config: dict[str, Any], *, dry_run: bool, **options: Any
    ) -> Any:
        if dry_run:
            return await stock_handle(project_id, job_id, config, dry_run=True, **options)
        with job_ids.claimed(project_id, job_id):
            requested = config["query"]
            destination = requested.get("destinationTable")
            if not destination or not READS_ROWS.match(requested.get("query", "")):
                return await stock_handle(project_id, job_id, config, dry_run=False, **options)
            name = _table_name(project_id, destination)
            try:
                statement = _write_statement(name, requested, destination, options["ctx"])
            except AlreadyExistsError as error:
                result = jobs._domain_error_to_error_result(error)
                now = options["ctx"].clock.now()
                return jobs._failed_job_meta(project_id, job_id, "QUERY", config, result, now)
            layout = ("destinationTable", "writeDisposition", "timePartitioning", "clustering")
            write = {key: value for key, value in requested.items() if key not in layout}
            read = {key: value for key, value in write.items() if key != "queryParameters"}
            write["query"], read["query"] = statement, f"SELECT * FROM {name}"
            for step_id, step in ((f"{job_id}_write", write), (job_id, read)):
                job = await stock_handle(
                    project_id, step_id, {**config, "query": step}, dry_run=False, **options
                )
                if job.error_result:
                    break
            return job.model_copy(update={"job_id": job_id, "configuration": config})

    return handle


def _write_statement(
    name: str, requested: dict[str, Any], destination: dict[str, Any], context: Any
) -> str:
    """Returns the statement that writes the query's rows as its disposition says."""
    sql = requested["query"].rstrip().rstrip(";")
    disposition = requested.get("writeDisposition", "WRITE_EMPTY")
    existing = context.catalog.get_table(*_table_parts(destination))
    if existing is not None and disposition == "WRITE_APPEND":
        return f"INSERT INTO {name} {sql}"
    if existing is not None and disposition == "WRITE_EMPTY" and existing.num_rows:
        raise AlreadyExistsError(f"Already Exists: Table {name}")
    return f"CREATE OR REPLACE TABLE {name} AS {sql}"


def _table_parts(reference: dict[str, Any]) -> tuple[str, str, str]:
    return reference["projectId"], reference["datasetId"], reference["tableId"]


def _table_name(project: str, reference: dict[str, Any]) -> str:
    reference.setdefault("projectId", project)
    return ".".join(f"`{part}`" for part in _table_parts(reference))
