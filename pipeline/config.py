"""The configuration of one run: frozen dataclasses, made from the flags and checked before launch.

Construction does no I/O beyond reading the files that flags name (prompt, schema). What asks a
service is in `pipeline.checks.all`.
"""

import dataclasses
import datetime as dt
import re
import secrets
import tempfile
from collections.abc import Mapping

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)

from pipeline import VERSION
from pipeline.backends import adapter_of
from pipeline.backends.base import BackendAdapter
from pipeline.options import model as registry
from pipeline.options.cloud import project_of
from pipeline.options.command_line import InferenceOptions, Values
from pipeline.options.gpu import resource_hints
from pipeline.options.order import Order, order_of
from pipeline.options.pace import batch_limits, dispatch_limits
from pipeline.options.request import request_spec
from transforms.accounting.minute_summary import MINUTE_COLUMNS
from transforms.accounting.reconcile import SummarySpec
from transforms.backends.base import Backend, capabilities_of
from transforms.clients.bigquery import TableName, TableSpec
from transforms.dispatch.limits import DispatchLimits
from transforms.records.errors import ConfigurationError
from transforms.records.records import Json
from transforms.requests.batch import BatchLimits
from transforms.requests.render import RequestSpec
from transforms.results.prices import TokenPrices
from transforms.results.rows import (
    DEAD_LETTER_COLUMNS,
    RESULT_COLUMNS,
    SUMMARY_COLUMNS,
    Column,
    RunInfo,
    now,
)
from transforms.results.validate import check_schema
from transforms.sinks.pubsub import check_topic_name
from transforms.sources.base import DEFAULT_ID_FIELD, IdRule, Source
from transforms.sources.pubsub import PubSubSource

LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_LOCAL_RUNNERS = (
    "FnApiRunner",
    "DirectRunner",
    "BundleBasedDirectRunner",
    "LocalStreamingRunner",
    "PrismRunner",
)
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
      dead_letter_topic: Dead letters as messages, ``projects/P/topics/T``.
      runs_table: Run summaries in BigQuery.
      write_mode: ``append``, ``replace``, ``fail`` or None for each sink's default.
      staging: The folder where rows wait for a load job.
      write_method: How tables get their rows; None for what the input asks for.
      exactly_once: Whether appended rows are kept from being doubled; None likewise.
    """

    output_table: TableSpec | None = None
    output_path: str | None = None
    output_format: str = "jsonl"
    dead_letter_table: TableSpec | None = None
    dead_letter_path: str | None = None
    dead_letter_topic: str | None = None
    runs_table: TableSpec | None = None
    write_mode: str | None = None
    staging: str | None = None
    write_method: str | None = None
    exactly_once: bool | None = None

    @property
    def count(self) -> int:
        """How many sinks report what they hold."""
        sinks = (
            self.output_table,
            self.output_path,
            self.dead_letter_table,
            self.dead_letter_path,
            self.dead_letter_topic,
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
    def runs_path(self) -> str | None:
        """The folder of a stream's summaries, one row per minute."""
        return FileSystems.join(self.output_path, "runs") if self.output_path else None

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
    adapter: BackendAdapter
    backend: Backend
    limits: DispatchLimits
    batch: BatchLimits
    batch_keys: int
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

    @property
    def streaming(self) -> bool:
        """Whether the run goes on until it is stopped."""
        return isinstance(self.source, PubSubSource)

    @classmethod
    def from_options(cls, options: PipelineOptions) -> "RunConfig":
        """The configuration that the flags describe.

        Raises:
          ConfigurationError: A value or a combination that cannot run, with the remedy.
        """
        values = Values.of(options.view_as(InferenceOptions))
        source = registry.make_source(values, options)
        streaming = isinstance(source, PubSubSource)
        run_id = _run_id(values, options, streaming=streaming)
        adapter = adapter_of(values.given["backend"])
        backend = registry.make_backend(adapter, values, options)
        schema = values.json_object("output_schema") or None
        if schema is not None:
            check_schema(schema)
        request = request_spec(values, backend, schema, source)
        request.check()
        started_at = now()
        preview = values.integer("preview")
        sinks = _sinks(values, options, run_id, needed=preview is None, streaming=streaming)
        _check_reachable(values, options, streaming=streaming)
        record_fields = values.text("record_fields") or "all"
        return cls(
            run_id=run_id,
            started_at=started_at,
            source=source,
            id_rule=IdRule(
                values.text("id_field") or DEFAULT_ID_FIELD, bool(values.text("id_field"))
            ),
            request=request,
            adapter=adapter,
            backend=backend,
            limits=dispatch_limits(values, options, local=is_local(options), streaming=streaming),
            batch=batch_limits(values),
            batch_keys=values.integer("batch_keys") or 1,
            output_schema=schema,
            prices=TokenPrices(capabilities_of(backend).price_provider, backend.model),
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
                table=None if streaming else sinks.runs_table,
                path=_summary_path(sinks, options, run_id, streaming=streaming),
                sinks=sinks.count,
            ),
            order=order_of(values, streaming=streaming),
            resource_hints=resource_hints(values.given, adapter.dataflow.gpu_driver, options),
            preview=preview,
            wait=values.boolean("wait"),
            local=is_local(options),
        )


def _check_reachable(values: Values, options: PipelineOptions, *, streaming: bool) -> None:
    """Dataflow's workers see no machine's files; a local runner cannot de-duplicate messages.

    A stream writes a file per bundle: on Dataflow too many and too small to be of use.
    """
    if is_local(options) and values.text("pubsub_id_attribute"):
        raise ConfigurationError(
            f"--pubsub_id_attribute is {values.text('pubsub_id_attribute')!r}, but it is Dataflow "
            "that de-duplicates, and this run is local: remove it"
        )
    runner = str(options.view_as(StandardOptions).runner)
    if "Dataflow" not in runner:
        return
    for name in ("input_files", "output_path", "dead_letter_path"):
        path = values.text(name)
        if path and "://" not in path:
            raise ConfigurationError(
                f"--{name} is {path!r}, a local path, but --runner is {runner!r}: give a gs:// one"
            )
        if path and streaming and name != "input_files":
            raise ConfigurationError(
                f"--{name} is {path!r}, but --input_subscription on Dataflow would write a small "
                "file for each of its many bundles: use --output_table, and for dead letters "
                "--dead_letter_table or --dead_letter_topic"
            )


_URL_SECRETS = re.compile(r"(?<=://)[^/@\s]+@|[?&][^\s]*")


def _without_secrets(value: str) -> str:
    """The value of a flag, without what a URL may hold of secrets: its user and its query."""
    return _URL_SECRETS.sub("", value) if "://" in value else value


def is_local(options: PipelineOptions) -> bool:
    """Whether the pipeline runs in this process."""
    runner = options.view_as(StandardOptions).runner
    return runner is None or str(runner).rpartition(".")[2] in _LOCAL_RUNNERS


def _run_id(values: Values, options: PipelineOptions, *, streaming: bool) -> str:
    """The name that was given; else a stream's is its job's, which an update keeps."""
    run_id = values.text("run_id")
    if run_id is None and streaming:
        run_id = options.view_as(GoogleCloudOptions).job_name
    if run_id is None:
        moment = dt.datetime.now(dt.timezone.utc)
        name = f"{moment:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        return f"inference-{name}" if streaming and not is_local(options) else name
    if not _RUN_ID.fullmatch(run_id):
        raise ConfigurationError(
            f"--run_id is {run_id!r}, but may hold letters, digits, - and _ only (100 at most)"
        )
    return run_id


def _sinks(
    values: Values, options: PipelineOptions, run_id: str, *, needed: bool, streaming: bool
) -> Sinks:
    project = project_of(options)
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
    topic = values.text("dead_letter_topic")
    method = registry.write_method(values, to_table=letters is not None, streaming=streaming)
    loads = letters is not None and (method == "file_loads" or (method is None and not streaming))
    return Sinks(
        output_table=table(results, RESULT_COLUMNS, "created_at", "run_id", "record_id"),
        output_path=output_path,
        output_format=values.text("output_format") or "jsonl",
        dead_letter_table=table(letters, DEAD_LETTER_COLUMNS, "timestamp", "run_id", "error_type"),
        dead_letter_path=letters_path,
        dead_letter_topic=check_topic_name(topic) if topic else None,
        runs_table=table(
            results.sibling("_runs") if results else None,
            MINUTE_COLUMNS if streaming else SUMMARY_COLUMNS,
            "started_at",
            "run_id",
        ),
        write_mode=values.text("write_mode"),
        staging=_staging(options, run_id) if loads else None,
        write_method=method,
        exactly_once=values.boolean("exactly_once") if values.text("exactly_once") else None,
    )


def _summary_path(
    sinks: Sinks, options: PipelineOptions, run_id: str, *, streaming: bool
) -> str | None:
    """Where the closing summary goes: a local stream's always into a file.

    The table of runs has a row for each of its minutes, which one of the whole would double.
    """
    if sinks.summary_path is None and streaming and is_local(options):
        folder = FileSystems.join(tempfile.gettempdir(), "batch-inference")
        return str(FileSystems.join(folder, f"{run_id}.json"))
    return sinks.summary_path


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
