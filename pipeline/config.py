"""The configuration of one run: frozen dataclasses, made from the flags and checked before launch.

Construction does no I/O beyond reading the files that flags name (prompt, schema). What asks a
service is in `pipeline.checks`.
"""

import dataclasses
import datetime as dt
import re
import secrets
import tempfile
from collections.abc import Mapping
from typing import Any

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)

from pipeline import VERSION, registry
from pipeline.gpu_options import resource_hints
from pipeline.media import media_fields
from pipeline.options import InferenceOptions, Values
from pipeline.order import Order, order_of
from pipeline.pace import dispatch_limits
from pipeline.texts import read_text
from transforms.backends.base import Backend
from transforms.batch import BatchLimits
from transforms.dispatch.limits import DispatchLimits
from transforms.errors import ConfigurationError
from transforms.prices import TokenPrices
from transforms.reconcile import SummarySpec
from transforms.records import Json
from transforms.render import RequestSpec
from transforms.rows import (
    DEAD_LETTER_COLUMNS,
    RESULT_COLUMNS,
    SUMMARY_COLUMNS,
    Column,
    RunInfo,
    now,
)
from transforms.sinks.bigquery import TableName, TableSpec
from transforms.sources.base import DEFAULT_ID_FIELD, IdRule, Source
from transforms.validate import check_schema

LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_LOCAL_RUNNERS = ("FnApiRunner", "DirectRunner", "BundleBasedDirectRunner", "PrismRunner")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sinks:
    """Where a run writes.

    Attributes:
      output_table: Results in BigQuery.
      output_path: Results in files: this is the folder above ``results/``.
      output_format: ``jsonl`` or ``parquet``.
      dead_letter_table: Dead letters in BigQuery.
      dead_letter_path: Dead letters in files: this is their folder.
      runs_table: Run summaries in BigQuery.
      write_mode: ``append``, ``replace``, ``fail`` or None for each sink's default.
      staging: The folder where rows wait for a load job.
    """

    output_table: TableSpec | None = None
    output_path: str | None = None
    output_format: str = "jsonl"
    dead_letter_table: TableSpec | None = None
    dead_letter_path: str | None = None
    runs_table: TableSpec | None = None
    write_mode: str | None = None
    staging: str | None = None

    @property
    def count(self) -> int:
        """How many sinks report what they hold."""
        sinks = (
            self.output_table,
            self.output_path,
            self.dead_letter_table,
            self.dead_letter_path,
        )
        return sum(sink is not None for sink in sinks)

    @property
    def replace(self) -> bool:
        """Whether rows and files of other runs go."""
        return self.write_mode == "replace"

    @property
    def write_disposition(self) -> str:
        """BigQuery's word for the write mode."""
        words = {"replace": "WRITE_TRUNCATE", "fail": "WRITE_EMPTY"}
        return words.get(self.write_mode or "", "WRITE_APPEND")

    @property
    def results_path(self) -> str | None:
        """The folder of result files."""
        return FileSystems.join(self.output_path, "results") if self.output_path else None

    @property
    def summary_path(self) -> str | None:
        """``run.json``."""
        return FileSystems.join(self.output_path, "run.json") if self.output_path else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that `pipeline.build` needs; picklable."""

    run_id: str
    started_at: str
    source: Source
    id_rule: IdRule
    request: RequestSpec
    backend: Backend
    limits: DispatchLimits
    batch: BatchLimits
    output_schema: Mapping[str, Json] | None
    prices: TokenPrices
    run: RunInfo
    sinks: Sinks
    summary: SummarySpec
    order: Order = Order()
    resource_hints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    preview: int | None = None
    wait: bool = False
    local: bool = True

    @classmethod
    def from_options(cls, options: PipelineOptions) -> "RunConfig":
        """The configuration that the flags describe.

        Raises:
          ConfigurationError: A value or a combination that cannot run, with the remedy.
        """
        values = Values.of(options.view_as(InferenceOptions))
        run_id = _run_id(values)
        backend = registry.make_backend(values, options)
        schema = values.json_object("output_schema") or None
        if schema is not None:
            check_schema(schema)
        source = registry.make_source(values, options)
        request = _request(values, backend, schema, source)
        request.check()
        started_at = now()
        preview = values.integer("preview")
        sinks = _sinks(values, options, run_id, needed=preview is None)
        _check_reachable(values, options)
        record_fields = values.text("record_fields") or "all"
        return cls(
            run_id=run_id,
            started_at=started_at,
            source=source,
            id_rule=IdRule(
                values.text("id_field") or DEFAULT_ID_FIELD, bool(values.text("id_field"))
            ),
            request=request,
            backend=backend,
            limits=dispatch_limits(values, options, local=is_local(options)),
            batch=BatchLimits(max_batch_size=values.integer("max_batch_size") or 256),
            output_schema=schema,
            prices=TokenPrices(registry.price_provider(backend), backend.model),
            run=RunInfo(
                run_id=run_id,
                backend=backend.family,
                model=backend.model,
                record_fields=(
                    None
                    if record_fields == "all"
                    else ()
                    if record_fields == "none"
                    else values.items("record_fields")
                ),
            ),
            sinks=sinks,
            summary=SummarySpec(
                run_id=run_id,
                started_at=started_at,
                pipeline_version=VERSION,
                config={
                    name: _without_secrets(value) for name, value in values.given.items() if value
                },
                table=sinks.runs_table,
                path=sinks.summary_path,
                sinks=sinks.count,
            ),
            order=order_of(values),
            resource_hints=resource_hints(values.given, backend, options),
            preview=preview,
            wait=values.boolean("wait"),
            local=is_local(options),
        )


def _check_reachable(values: Values, options: PipelineOptions) -> None:
    """Dataflow's workers see neither this machine's files nor each other's."""
    runner = str(options.view_as(StandardOptions).runner)
    if "Dataflow" not in runner:
        return
    for name in ("input_files", "output_path", "dead_letter_path"):
        path = values.text(name)
        if path and "://" not in path:
            raise ConfigurationError(
                f"--{name} is {path!r}, a local path, but --runner is {runner!r}: give a gs:// one"
            )


_URL_SECRETS = re.compile(r"(?<=://)[^/@\s]+@|[?&][^\s]*")


def _without_secrets(value: str) -> str:
    """The value of a flag, without what a URL may hold of secrets: its user and its query."""
    return _URL_SECRETS.sub("", value) if "://" in value else value


def is_local(options: PipelineOptions) -> bool:
    """Whether the pipeline runs in this process."""
    runner = options.view_as(StandardOptions).runner
    return runner is None or str(runner).rpartition(".")[2] in _LOCAL_RUNNERS


def _run_id(values: Values) -> str:
    run_id = values.text("run_id")
    if run_id is None:
        moment = dt.datetime.now(dt.timezone.utc)
        return f"{moment:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    if not _RUN_ID.fullmatch(run_id):
        raise ConfigurationError(
            f"--run_id is {run_id!r}, but may hold letters, digits, - and _ only (100 at most)"
        )
    return run_id


def _request(
    values: Values, backend: Backend, schema: dict[str, Any] | None, source: Source
) -> RequestSpec:
    prompt, prompt_name = _text_or_file(values, "prompt")
    system, _ = _text_or_file(values, "system_prompt")
    sources = [
        name
        for name in (
            "prompt",
            "prompt_file",
            "messages_field",
            "request_field",
            "instance_fields",
        )
        if values.text(name)
    ]
    if len(sources) != 1:
        given = f"--{' and --'.join(sources)} are given" if sources else "none is given"
        raise ConfigurationError(
            f"what to ask is not clear: {given}; use exactly one of --prompt, --prompt_file, "
            "--messages_field, --request_field, --instance_fields"
        )
    generation = values.json_object("generation_config")
    for name, value in (
        ("max_output_tokens", values.integer("max_output_tokens")),
        ("temperature", values.number("temperature")),
    ):
        if value is not None:
            if generation.get(name, value) != value:
                raise ConfigurationError(
                    f"--{name} is {value}, but --generation_config says {generation[name]}: "
                    "give one of them"
                )
            generation[name] = value
    options = {} if backend.family == "fake" else values.json_object("request_options")
    params: dict[str, Json] = {
        "generation_config": generation,
        "request_options": options,
        "output_schema": schema,
    }
    params = {name: part for name, part in params.items() if part}
    if values.text("request_field"):
        for name in ("system_prompt", "generation_config", "request_options"):
            if (name == "system_prompt" and system) or params.get(name):
                raise ConfigurationError(
                    f"--request_field sends each request as it stands: remove --{name} "
                    "(or --max_output_tokens, --temperature)"
                )
        params = {}
    if system and values.text("instance_fields"):
        raise ConfigurationError("--system_prompt does not go with --instance_fields: remove it")
    return RequestSpec(
        prompt=prompt,
        prompt_name=prompt_name,
        messages_field=values.text("messages_field"),
        request_field=values.text("request_field"),
        instance_fields=values.items("instance_fields"),
        system_prompt=system,
        media_fields=media_fields(values, backend, source),
        task=values.text("task") or "generate",
        instance=backend.family == "vertex_endpoint",
        params=params,
        backend=backend.family,
        model=backend.model,
    )


def _text_or_file(values: Values, name: str) -> tuple[str | None, str]:
    text, uri = values.text(name), values.text(f"{name}_file")
    if text and uri:
        raise ConfigurationError(f"--{name} and --{name}_file are both given: remove one")
    if uri is None:
        return text, f"--{name}"
    return read_text(uri, f"--{name}_file"), uri


def _sinks(values: Values, options: PipelineOptions, run_id: str, needed: bool) -> Sinks:
    project = registry.project_of(options)
    location = values.text("bigquery_location")
    output_path = _folder(values.text("output_path"))
    table_name = values.text("output_table")
    if needed and not table_name and not output_path:
        raise ConfigurationError("no output is given: use --output_path, --output_table or both")

    def table(
        name: TableName | None, columns: tuple[Column, ...], partition: str, *cluster: str
    ) -> TableSpec | None:
        if name is None:
            return None
        return TableSpec(
            name=name,
            columns=columns,
            partition_by=partition,
            cluster_by=cluster,
            job_project=project,
            location=location,
            labels=values.pairs("resource_labels"),
        )

    results = TableName.parse(table_name, project) if table_name else None
    letters_name = values.text("dead_letter_table")
    letters = (
        TableName.parse(letters_name, project)
        if letters_name
        else results.sibling("_dead_letters")
        if results
        else None
    )
    if results is not None and letters in (results, results.sibling("_runs")):
        raise ConfigurationError(
            f"--dead_letter_table is {letters_name!r}, which this run writes for another purpose: "
            "give another"
        )
    letters_path = _folder(values.text("dead_letter_path")) or (
        FileSystems.join(output_path, "dead_letters") if output_path else None
    )
    return Sinks(
        output_table=table(results, RESULT_COLUMNS, "created_at", "run_id", "record_id"),
        output_path=output_path,
        output_format=values.text("output_format") or "jsonl",
        dead_letter_table=table(letters, DEAD_LETTER_COLUMNS, "timestamp", "run_id", "error_type"),
        dead_letter_path=letters_path,
        runs_table=table(
            results.sibling("_runs") if results else None,
            SUMMARY_COLUMNS,
            "started_at",
            "run_id",
        ),
        write_mode=values.text("write_mode"),
        staging=_staging(options, run_id) if letters else None,
    )


def _folder(path: str | None) -> str | None:
    if path is None:
        return None
    stripped = path.rstrip("/")
    if not stripped or stripped == "gs:" or path.startswith("gs:///"):
        raise ConfigurationError(f"{path!r} is no folder to write into: give one below a bucket")
    if any(mark in path for mark in "*?["):
        raise ConfigurationError(
            f"{path!r} is no folder to write into: *, ? and [ are read as a pattern; give another"
        )
    return stripped


def _staging(options: PipelineOptions, run_id: str) -> str:
    """Where rows wait for BigQuery: the job's temp location, else a local folder."""
    temp = options.view_as(GoogleCloudOptions).temp_location
    if temp:
        return str(FileSystems.join(temp.rstrip("/"), "bigquery_load", run_id))
    if not is_local(options):
        raise ConfigurationError("--temp_location is missing: rows wait there for BigQuery's load")
    return str(FileSystems.join(tempfile.gettempdir(), "batch-inference", run_id))
