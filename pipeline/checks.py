"""Checks that ask the file systems and services, before anything is launched.

Each has five seconds, all together twenty. A definite "not found" or "invalid" stops the launch;
forbidden or a timeout only warns, because the workers may be another identity with other rights.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from pipeline.config import RunConfig
from pipeline.local_model_checks import check_local_model
from pipeline.pubsub_checks import CHECK_TIMEOUT_S, pubsub_checks
from pipeline.texts import NO_CREDENTIALS, reason
from transforms.backends.gemini import GeminiBackend
from transforms.backends.openai import OpenAIBackend
from transforms.backends.vertex_endpoint import VertexEndpointBackend
from transforms.errors import BackendUnusable, ConfigurationError
from transforms.sinks.bigquery import TableSpec, make_client
from transforms.sinks.staging import make_folder
from transforms.sources import files as file_source
from transforms.sources.bigquery import QuerySource, TableSource
from transforms.sources.dead_letters import DeadLetterSource
from transforms.sources.files import FileSource

if TYPE_CHECKING:
    from google.cloud import bigquery

ALL_CHECKS_TIMEOUT_S = 20.0

Check = Callable[[], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Warned:
    """A check that could not tell.

    Attributes:
      what: What was to be checked.
      why: Why it is not known.
    """

    what: str
    why: str


def run_checks(config: RunConfig, more: Iterable[tuple[str, Check]] = ()) -> list[Warned]:
    """Runs every check of a configuration, and more, side by side; returns what is not known.

    Raises:
      ConfigurationError: The first definite problem, in the order of the checks.
    """
    checks = [*all_checks(config), *more]
    outcomes: dict[int, BaseException | None] = {}
    done: queue.Queue[tuple[int, BaseException | None]] = queue.Queue()

    def run(number: int, check: Check) -> None:
        try:
            check()
        except Exception as error:  # every outcome is sorted below
            done.put((number, error))
        else:
            done.put((number, None))

    waiting = list(enumerate(checks))
    deadline = time.monotonic() + min(ALL_CHECKS_TIMEOUT_S, CHECK_TIMEOUT_S * len(checks))
    running: dict[int, float] = {}
    while len(outcomes) < len(checks):
        while waiting and len(running) < 4:
            number, (_, check) = waiting.pop(0)
            running[number] = time.monotonic() + CHECK_TIMEOUT_S
            threading.Thread(target=run, args=(number, check), daemon=True).start()
        left = min([deadline, *running.values()]) - time.monotonic()
        try:
            number, outcome = done.get(timeout=max(left, 0.01))
        except queue.Empty:
            late = time.monotonic()
            for number in [n for n, end in running.items() if end <= late]:
                running.pop(number)
                outcomes.setdefault(number, concurrent.futures.TimeoutError("no answer in time"))
            if late >= deadline:
                for number in range(len(checks)):
                    outcomes.setdefault(number, concurrent.futures.TimeoutError("not checked"))
        else:
            running.pop(number, None)
            outcomes.setdefault(number, outcome)
    return _sorted_out(checks, outcomes)


def _sorted_out(
    checks: list[tuple[str, Check]], outcomes: dict[int, BaseException | None]
) -> list[Warned]:
    warned = []
    for number, (what, _) in enumerate(checks):
        error = outcomes[number]
        if isinstance(error, ConfigurationError):
            raise error
        if isinstance(error, BackendUnusable):
            raise ConfigurationError(str(error)) from None
        if error is not None:
            warned.append(Warned(what, reason(error)))
    return warned


def all_checks(config: RunConfig) -> Iterator[tuple[str, Check]]:
    """Every check that this configuration needs, with what it is about."""
    source, flag = config.source, "--input_files"
    if isinstance(source, DeadLetterSource):
        source, flag = source.rows, "--input_dead_letters"
    if isinstance(source, FileSource):
        yield f"{flag} {source.pattern}", functools.partial(check_files, source, flag)
    elif isinstance(source, TableSource):
        flag = flag.replace("files", "table")
        yield f"{flag} {source.table}", functools.partial(check_table, source, flag)
    elif isinstance(source, QuerySource):
        yield "--input_query", lambda: check_query(source)
    yield from pubsub_checks(config)
    yield "--backend", lambda: check_backend(config)
    if config.preview is not None:
        return
    sinks = config.sinks
    if sinks.output_path is not None:
        yield f"--output_path {sinks.output_path}", lambda: check_output_path(config)
    if sinks.dead_letter_path is not None and sinks.output_path is None:
        folder = sinks.dead_letter_path
        yield f"--dead_letter_path {folder}", lambda: check_writable(folder, "--dead_letter_path")
    for flag, table in (
        ("--output_table", sinks.output_table),
        ("--dead_letter_table", sinks.dead_letter_table),
        ("--output_table", sinks.runs_table),
    ):
        if table is not None:
            yield f"{flag} {table.name}", functools.partial(check_output_table, config, table, flag)


def check_files(source: FileSource, flag: str = "--input_files") -> None:
    """The pattern matches files of a known format, and the first one can be opened."""
    try:
        found = sorted(file_source.match(source.pattern), key=lambda file: file.path)
    except Exception as error:  # each file system has errors of its own
        if _is_unclear(error):
            raise
        raise ConfigurationError(f"{flag} {source.pattern!r}: {reason(error)}") from None
    if not found:
        raise ConfigurationError(
            f"{flag} {source.pattern!r} matches no file: check the path; quote the pattern, so "
            "that the shell does not expand it"
        )
    for file in itertools.islice(found, 10_000):
        file_source.format_of(file.path, source.format)
    first = found[0]
    if source.format == "objects":
        return
    try:
        with file_source.open_file(first.path) as opened:
            opened.read(1)
        file_source.plan_parts(first.path, first.size_in_bytes, source.format)
    except ConfigurationError:
        raise
    except Exception as error:  # each file system and format has errors of its own
        if _is_unclear(error):
            raise
        raise ConfigurationError(
            f"{flag}: {first.path!r} cannot be read: {reason(error)}"
        ) from None


def _is_unclear(error: BaseException) -> bool:
    """Forbidden, timeouts, missing credentials: the workers may fare better."""
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    if isinstance(error, BeamIOError):
        return any(_is_unclear(e) for e in (error.exception_details or {}).values() if e)
    return isinstance(
        error,
        (
            exceptions.Forbidden,
            exceptions.Unauthorized,
            exceptions.ServerError,
            exceptions.TooManyRequests,
            exceptions.RetryError,
            GoogleAuthError,
            TimeoutError,
            ConnectionError,
        ),
    )


def _ask_bigquery(flag: str, ask: Callable[[], Any]) -> Any:
    """Asks; BigQuery's definite no is wrong use, in BigQuery's words."""
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


def check_backend(config: RunConfig) -> None:
    """The credentials and packages that the backend needs are here."""
    backend = config.backend
    if config.preview is not None:
        return
    if isinstance(backend, (GeminiBackend, VertexEndpointBackend)):
        if not backend.base_url().startswith("https://"):
            return  # plain HTTP gets a made-up token
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError

        try:
            google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        except DefaultCredentialsError:
            raise ConfigurationError(f"--backend {backend.family}: {NO_CREDENTIALS}") from None
    elif isinstance(backend, OpenAIBackend):
        key = backend.api_key_secret or os.environ.get("OPENAI_API_KEY")
        if backend.at_openai() and not key:
            raise ConfigurationError(
                "--backend openai: OPENAI_API_KEY is not set: set it or give --api_key_secret, or "
                "--endpoint for a server that needs no key"
            )
    elif config.local:
        check_local_model(backend)


def check_output_path(config: RunConfig) -> None:
    """The folder can be written, and holds no other run unless that was asked for."""
    folder = config.sinks.output_path or ""
    mode = config.sinks.write_mode
    try:
        ours = [f"{folder}/{name}" for name in ("results/*", "dead_letters/*", "run*.json")]
        found = FileSystems.match(ours, [1] * len(ours))
    except Exception as error:  # each file system has errors of its own
        raise ConfigurationError(f"--output_path {folder!r}: {reason(error)}") from None
    if any(result.metadata_list for result in found) and mode in (None, "fail"):
        raise ConfigurationError(
            f"--output_path {folder!r} holds another run: give another folder, or "
            "--write_mode=append to add to it, or --write_mode=replace to replace what earlier "
            "runs wrote there"
        )
    if FileSystems.match([f"{folder}/results/{config.run_id}-*"], [1])[0].metadata_list:
        raise ConfigurationError(
            f"--run_id {config.run_id!r} has written into {folder!r} before: give another"
        )
    check_writable(folder, "--output_path")


def check_writable(folder: str, flag: str) -> None:
    """A small file can be made in the folder, and deleted."""
    probe = FileSystems.join(folder, f".probe-{uuid.uuid4().hex[:8]}")
    try:
        make_folder(folder)
        with FileSystems.create(probe) as file:
            file.write(b"\n")
        FileSystems.delete([probe])
    except Exception as error:  # each file system has errors of its own
        if _is_unclear(error):
            raise
        raise ConfigurationError(
            f"{flag} {folder!r} cannot be written: {reason(error)}; give a folder that can"
        ) from None


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
                f"{flag}: dataset {dataset} does not exist: make it with `bq mk -d {dataset}`"
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
        named = config.summary.config.get("run_id") and not config.streaming  # an update keeps it
        if named and spec.count(client, config.run_id, _EPOCH):
            raise ConfigurationError(
                f"--run_id {config.run_id!r} is in {spec.name} already: give another"
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
                    f"{flag}: {spec.name} has no column {column.name!r}: it was not made by this "
                    "pipeline; give another table"
                )
            continue
        kind = _SYNONYMS.get(field.field_type, field.field_type)
        if kind != column.type or (field.mode == "REPEATED") != (column.mode == "REPEATED"):
            raise ConfigurationError(
                f"{flag}: column {column.name!r} of {spec.name} is {field.mode} {kind}, but must "
                f"be {column.mode} {column.type}; give another table"
            )
    for field in table.schema:
        if field.name not in ours and field.mode == "REQUIRED":
            raise ConfigurationError(
                f"{flag}: {spec.name} requires a column {field.name!r} that results do not have; "
                "give another table"
            )
