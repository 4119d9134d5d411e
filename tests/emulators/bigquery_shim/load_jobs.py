"""Load jobs: atomic, strict about JSON rows, and with the right row counts.

Unlike with the emulator's own: a job that fails leaves the table as it was; JSON rows are checked
(see rows.py) and BYTES decoded; gzip is recognised by content; ``gs://…*`` expands; a missing
object is ``notFound``; a table that a load creates gets its partitioning and clustering; and
``outputRows`` counts this job's rows instead of the table's. Uploads (``load_table_from_file``) run
the same code and keep the job id that the client chose.
"""

import contextlib
import gzip
import json
import re
import uuid
from pathlib import Path
from typing import Any

from bqemulator.api.routes import tabledata, tables, upload
from bqemulator.catalog.etag import generate_etag
from bqemulator.catalog.models import JobMeta
from bqemulator.domain.errors import (
    AlreadyExistsError,
    DomainError,
    NotFoundError,
    ValidationError,
)
from bqemulator.jobs import executor
from bqemulator.storage.arrow_bridge import bq_rows_to_arrow

from tests.emulators.bigquery_shim import job_ids
from tests.emulators.bigquery_shim.rows import InvalidRowError, convert_row

JSON_FORMATS = ("NEWLINE_DELIMITED_JSON", "JSON")
UPLOAD_JOB_ID = "shimUploadJobId"


async def handle_load_job(
    project_id: str, job_id: str, config: dict[str, Any], ctx: Any
) -> JobMeta:
    """Runs one load job and returns it, DONE; an error in the data is the job's error."""
    with job_ids.claimed(project_id, job_id):
        started = ctx.clock.now()
        job = executor._parse_load_job_config(project_id, config)
        if ctx.catalog.get_dataset(job.project_id, job.dataset_id) is None:
            raise NotFoundError(f"Not found: Dataset {job.project_id}:{job.dataset_id}")
        error_result = None
        statistics: dict[str, Any] = {"load": {"outputRows": "0"}}
        try:
            files = [file for uri in job.source_uris for file in _files_of(uri, ctx)]
            rows = await _load_all_or_nothing(job, files, started, ctx)
            statistics = {"load": {"inputFiles": str(len(files)), "outputRows": str(rows)}}
        except DomainError as error:
            error_result = {"reason": error.bq_reason, "message": error.message}
        except Exception as error:  # errors of DuckDB and of the readers: data that does not fit
            message = f"Error while reading data, error message: {error}"
            error_result = {"reason": "invalid", "message": message}
        return JobMeta(
            project_id=project_id,
            job_id=job_id,
            job_type="LOAD",
            state="DONE",
            configuration=config,
            statistics=statistics,
            error_result=error_result,
            creation_time=started,
            start_time=started,
            end_time=ctx.clock.now(),
            etag=generate_etag(project_id, job_id, str(started)),
        )


async def _load_all_or_nothing(job: Any, files: list[Path], started: Any, ctx: Any) -> int:
    """Loads the files in one transaction and returns their number of rows."""
    key = (job.project_id, job.dataset_id, job.table_id)
    async with ctx.engine.write_lock():
        created = ctx.catalog.get_table(*key) is None
        if created:
            _create_table(job, files, started, ctx)
        try:
            with _transaction(ctx):
                rows = _write_files(job, files, created=created, ctx=ctx)
        except BaseException:
            if created:
                ctx.engine.execute(f"DROP TABLE IF EXISTS {job.target_ref}")
                ctx.catalog.delete_table(*key)
            raise
        count = executor._refresh_load_row_count(job, ctx)
        changes = {"num_rows": count, "last_modified_time": ctx.clock.now()}
        ctx.catalog.update_table(ctx.catalog.get_table(*key).model_copy(update=changes))
        ctx.snapshots.record_change(*key)
    return rows


def _write_files(job: Any, files: list[Path], *, created: bool, ctx: Any) -> int:
    before: int = executor._refresh_load_row_count(job, ctx)
    if job.write_disposition == "WRITE_EMPTY" and before:
        table = f"{job.project_id}:{job.dataset_id}.{job.table_id}"
        raise AlreadyExistsError(f"Already Exists: Table {table}")
    if job.write_disposition == "WRITE_TRUNCATE":
        if not created:
            _replace_schema(job, ctx)
        before = 0
    for file in files:
        if job.source_format in JSON_FORMATS:
            _load_json(job, file, ctx)
        else:
            executor._validate_local_path(str(file))
            executor._load_path_into_target(str(file), job, ctx)
    after: int = executor._refresh_load_row_count(job, ctx)
    return after - before


@contextlib.contextmanager
def _transaction(ctx: Any) -> Any:
    ctx.engine.execute("BEGIN TRANSACTION")
    try:
        yield
    except BaseException:
        ctx.engine.execute("ROLLBACK")
        raise
    ctx.engine.execute("COMMIT")


def _create_table(job: Any, files: list[Path], started: Any, ctx: Any) -> None:
    """Creates the destination with the layout that the job requests."""
    key = (job.project_id, job.dataset_id, job.table_id)
    table = f"{job.project_id}:{job.dataset_id}.{job.table_id}"
    if job.create_disposition == "CREATE_NEVER":
        raise NotFoundError(f"Not found: Table {table}")
    executor._maybe_create_load_destination(
        dest_project=job.project_id,
        dest_dataset=job.dataset_id,
        dest_table_id=job.table_id,
        load_config={**job.raw_config, "sourceUris": [f"file://{file}" for file in files]},
        now=started,
        ctx=ctx,
    )
    meta = ctx.catalog.get_table(*key)
    if meta is None:
        raise ValidationError(f"Schema has no fields: {table}. Give a schema or autodetect.")
    partitioning = tables._rest_to_time_partitioning(job.raw_config.get("timePartitioning"), None)
    clustering = tables._rest_to_clustering(job.raw_config.get("clustering"), None)
    layout = {"time_partitioning": partitioning, "clustering": clustering}
    ctx.catalog.update_table(meta.model_copy(update=layout))


def _replace_schema(job: Any, ctx: Any) -> None:
    """Empties the table; WRITE_TRUNCATE would also set the job's schema, if that differs."""
    requested = (job.raw_config.get("schema") or {}).get("fields") or []
    meta = ctx.catalog.get_table(job.project_id, job.dataset_id, job.table_id)
    names = [field.name for field in tables._parse_schema_fields(requested)]
    if names and names != [field.name for field in meta.schema_.fields]:
        raise ValidationError("emulator: WRITE_TRUNCATE cannot change the columns of a table")
    ctx.engine.execute(f"DELETE FROM {job.target_ref}")


def _load_json(job: Any, file: Path, ctx: Any) -> None:
    fields = ctx.catalog.get_table(job.project_id, job.dataset_id, job.table_id).schema_.fields
    ignore_unknown = bool(job.raw_config.get("ignoreUnknownValues"))
    rows = []
    for number, line in enumerate(_content(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("the line is not an object")
            rows.append(convert_row(fields, row, ignore_unknown=ignore_unknown, json_as_text=False))
        except (InvalidRowError, ValueError) as error:
            message = f"JSON table encountered too many errors, giving up. Row {number}: {error}"
            raise ValidationError(f"Error while reading data, error message: {message}") from error
    if not rows:
        return
    schema = tabledata._build_arrow_schema(tabledata._fields_raw_from_schema(fields))
    view = f"load_{uuid.uuid4().hex}"
    ctx.engine.connection.register(view, bq_rows_to_arrow(rows, schema))
    try:
        columns = tabledata._build_insert_select(list(fields), view)
        ctx.engine.execute(f"INSERT INTO {job.target_ref} SELECT {columns} FROM {view}")
    finally:
        ctx.engine.connection.unregister(view)


def _content(file: Path) -> bytes:
    content = file.read_bytes()
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def _files_of(uri: str, ctx: Any) -> list[Path]:
    """Returns the local files of a URI, sorted; at least one."""
    path = Path(executor._resolve_uri(uri, ctx))
    if "*" not in uri:
        files = [path] if path.is_file() else []
    else:  # The service's wildcard crosses slashes.
        bucket = Path(executor._resolve_uri("/".join(uri.split("/")[:3]), ctx))
        pattern = re.compile(".*".join(re.escape(part) for part in str(path).split("*")))
        found = [file for file in bucket.rglob("*") if pattern.fullmatch(str(file))]
        files = sorted(file for file in found if file.is_file())
    if not files:
        raise NotFoundError(f"Not found: URI {uri}")
    return files


def keep_upload_job_id(envelope: dict[str, Any], configuration: dict[str, Any]) -> dict[str, Any]:
    """Returns an upload's configuration with the client's job id in it."""
    job_id = (envelope.get("jobReference") or {}).get("jobId")
    return {**configuration, UPLOAD_JOB_ID: job_id or upload._new_job_id()}


async def run_upload(
    *, project_id: str, configuration: dict[str, Any], media_path: str, ctx: Any
) -> tuple[str, JobMeta]:
    """Runs the load job of an uploaded file."""
    job_id = configuration[UPLOAD_JOB_ID]
    plain = {key: value for key, value in configuration.items() if key != UPLOAD_JOB_ID}
    with_file = {**plain, "load": {**plain["load"], "sourceUris": [f"file://{media_path}"]}}
    job = await handle_load_job(project_id, job_id, with_file, ctx)
    job = job.model_copy(update={"configuration": plain})
    ctx.catalog.upsert_job(job)
    return job_id, job
