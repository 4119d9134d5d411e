"""Puts the shim into the installed emulator, and only into the version it was written for."""

import functools
import importlib.metadata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from bqemulator import server
from bqemulator.api.dependencies import get_caller, get_context
from bqemulator.api.routes import jobs, tables, upload
from bqemulator.grpc_api import write_servicer
from bqemulator.versioning.snapshots import SnapshotManager
from fastapi import APIRouter, FastAPI, Request

from tests.emulators.bigquery_shim import (
    extract_jobs,
    job_ids,
    load_jobs,
    query_jobs,
    resources,
    streaming_inserts,
    write_api,
)

PATCHED_VERSIONS = {"bqemulator": "1.4.0", "duckdb": "1.5.5"}

CONNECTIONS = 256
"""How many gRPC calls may be open: each connection of the Storage Write API holds a thread, and
connections beyond the emulator's own pool (cores + 4) would wait for ever."""

PROJECT = "/bigquery/v2/projects/{project}"


def install(storage_url: str) -> None:
    """Replaces the emulator's functions; call it before the server is built.

    Args:
        storage_url: the storage emulator, which gets the files of extract jobs.

    Raises:
        RuntimeError: another version of the emulator is installed.
    """
    for package, expected in PATCHED_VERSIONS.items():
        if (version := importlib.metadata.version(package)) != expected:
            raise RuntimeError(f"{package} {version} is not {expected}, which the shim patches")
    tables._field_to_rest = resources.with_legacy_type_names(tables._field_to_rest)
    server.create_app = _with_replaced_routes(server.create_app)
    jobs._handle_query_job = query_jobs.with_destination_tables(jobs._handle_query_job)
    jobs._handle_load_job_with_async_envelope = load_jobs.handle_load_job
    extract = extract_jobs.extract_into_storage(jobs.execute_extract_job, storage_url)
    jobs.execute_extract_job = _once(extract)
    jobs.execute_copy_job = _once(jobs.execute_copy_job)
    upload._run_load = load_jobs.run_upload
    stock_configuration = upload._load_configuration_from_envelope
    upload._load_configuration_from_envelope = lambda envelope: load_jobs.keep_upload_job_id(
        envelope, stock_configuration(envelope)
    )
    write_servicer._table_arrow_schema = write_api.arrow_schema
    write_servicer.BigQueryWriteHandler = write_api.WriteHandler
    grpc.aio.server = functools.partial(
        grpc.aio.server, migration_thread_pool=ThreadPoolExecutor(CONNECTIONS)
    )
    # Time travel copies the whole table for each append, and no test reads it.
    SnapshotManager.capture = lambda *_, **__: None
    # google-cloud-bigquery sends the file's part as */*.
    stock_is_permitted = upload._is_permitted_media_type
    upload._is_permitted_media_type = lambda kind: kind == "*/*" or stock_is_permitted(kind)


def _once(execute: extract_jobs.ExecuteJob) -> extract_jobs.ExecuteJob:
    async def execute_once(project: str, job_id: str, config: dict[str, Any], ctx: Any) -> Any:
        with job_ids.claimed(project, job_id):
            return await execute(project, job_id, config, ctx)

    return execute_once


def _with_replaced_routes(stock_create_app: Callable[[Any], FastAPI]) -> Callable[[Any], FastAPI]:
    """Returns an application factory whose first routes are the shim's own."""

    def create_app(context: Any) -> FastAPI:
        app = stock_create_app(context)
        router = APIRouter()

        @router.post(PROJECT + "/datasets/{dataset}/tables/{table}/insertAll")
        async def insert_all(
            project: str, dataset: str, table: str, request: Request
        ) -> dict[str, Any]:
            body = await request.json()
            return await streaming_inserts.insert_all(project, dataset, table, body, context)

        @router.post(PROJECT + "/queries")
        async def query(project: str, request: Request) -> dict[str, Any]:
            return await query_jobs.query(
                project, request, get_context(request), get_caller(request)
            )

        @router.patch(PROJECT + "/datasets/{dataset}/tables/{table}")
        async def patch_table(
            project: str, dataset: str, table: str, request: Request
        ) -> dict[str, Any]:
            return await resources.patch_table((project, dataset, table), request, context)

        @router.get(PROJECT + "/datasets")
        def list_datasets(project: str, request: Request) -> dict[str, Any]:
            options = request.query_params
            most = int(options.get("maxResults") or 1000)
            return resources.list_datasets(project, options.get("filter", ""), most, context)

        app.router.routes[:0] = router.routes
        return app

    return create_app
