"""The flags of sinks, and where a run writes."""

import dataclasses
import tempfile
from typing import Any, Literal

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from pipeline.options.flag import BATCH_ONLY, STREAMING_ONLY, Flag, Form, Kind, Place
from pipeline.options.kinds import (
    BOOLEAN,
    LIST_PATTERN,
    TABLE,
    TOPIC,
    items,
    list_text,
    one_of,
)
from pipeline.options.mode import Mode
from pipeline.options.run import BIGQUERY_LOCATION, RESOURCE_LABELS, is_local, project_of
from pipeline.options.values import Values
from transforms.accounting.minute_summary import MINUTE_COLUMNS
from transforms.clients.bigquery import TableName, TableSpec
from transforms.records.errors import ConfigurationError
from transforms.results.rows import (
    DEAD_LETTER_COLUMNS,
    RESULT_COLUMNS,
    SUMMARY_COLUMNS,
    Column,
    RunInfo,
)
from transforms.sinks.pubsub import check_topic_name

GROUP = "Sinks"

OutputFormat = Literal["jsonl", "parquet"]
WriteMode = Literal["append", "replace", "fail"]
WriteMethod = Literal["file_loads", "storage_write", "streaming_inserts"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sinks:
    """Where a run writes.

    Attributes:
      output_table: Results in BigQuery.
      output_path: Results in files: the parent folder of ``results/``.
      output_format: ``jsonl`` or ``parquet``.
      dead_letter_table: Dead letters in BigQuery.
      dead_letter_path: Dead letters in files: their folder.
      dead_letter_topic: Dead letters as messages, ``projects/P/topics/T``.
      runs_table: Run summaries in BigQuery.
      write_mode: ``append``, ``replace``, ``fail`` or None for each sink's default.
      staging: The folder where rows wait for a load job.
      write_method: How tables get their rows.
      exactly_once: Whether appended rows are protected from duplication.
    """

    output_table: TableSpec | None = None
    output_path: str | None = None
    output_format: OutputFormat = "jsonl"
    dead_letter_table: TableSpec | None = None
    dead_letter_path: str | None = None
    dead_letter_topic: str | None = None
    runs_table: TableSpec | None = None
    write_mode: WriteMode | None = None
    staging: str | None = None
    write_method: WriteMethod = "file_loads"
    exactly_once: bool = True

    @property
    def count(self) -> int:
        """How many sinks report their row counts."""
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
        """Whether to delete rows and files of other runs."""
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
        """The folder for a stream's summaries, one row per minute."""
        return FileSystems.join(self.output_path, "runs") if self.output_path else None

    @property
    def summary_path(self) -> str | None:
        """``run.json``."""
        return FileSystems.join(self.output_path, "run.json") if self.output_path else None


def _folder(text: str, flag: str) -> str:
    stripped = text.rstrip("/")
    if not stripped or stripped == "gs:" or text.startswith("gs:///"):
        raise ConfigurationError(
            f"{flag} is {text!r}, which is not a folder to write into: set one in a bucket"
        )
    if any(mark in text for mark in "*?["):
        raise ConfigurationError(
            f"{flag} is {text!r}, which is not a folder to write into: *, ? and [ make it a "
            "pattern; set another"
        )
    return stripped


def _topic(text: str, flag: str) -> str:  # noqa: ARG001 - every kind parses (text, flag)
    return check_topic_name(text)


def _fields(text: str, flag: str) -> tuple[str, ...] | None:  # noqa: ARG001 - likewise
    return {"all": None, "none": ()}.get(text, items(text))


def _fields_text(value: tuple[str, ...] | None) -> str:
    return "all" if value is None else list_text(value) or "none"


_FOLDER: Kind[str] = Kind(
    _folder,
    "DIR",
    Form("GCS_WRITE_FOLDER", "^gs://[^/[:space:]]+/[^*?[]+$", "gs://bucket/answers/"),
)

OUTPUT_TABLE: Flag[str | None] = Flag(
    "output_table",
    GROUP,
    "The BigQuery table for results; tables for dead letters and run summaries are next to it.",
    TABLE,
    of=Sinks,
    place=Place(required=STREAMING_ONLY),
)
OUTPUT_PATH: Flag[str | None] = Flag(
    "output_path",
    GROUP,
    "The folder for results, dead letters and run.json: local or gs://.",
    _FOLDER,
    of=Sinks,
    place=Place(templates=BATCH_ONLY),
)
OUTPUT_FORMAT: Flag[OutputFormat] = Flag(
    "output_format",
    GROUP,
    "The format of the files.",
    one_of(OutputFormat),
    of=Sinks,
    place=Place(templates=BATCH_ONLY, parent="output_path"),
)
DEAD_LETTER_TABLE: Flag[str | None] = Flag(
    "dead_letter_table",
    GROUP,
    "The BigQuery table for dead letters. Default: <output_table>_dead_letters.",
    TABLE,
    of=Sinks,
)
DEAD_LETTER_PATH: Flag[str | None] = Flag(
    "dead_letter_path",
    GROUP,
    "The folder for dead letters. Default: <output_path>/dead_letters.",
    _FOLDER,
    of=Sinks,
    place=Place(templates=BATCH_ONLY),
)
DEAD_LETTER_TOPIC: Flag[str | None] = Flag(
    "dead_letter_topic",
    GROUP,
    "The Pub/Sub topic for dead letters: the payload, with error_type, stage and run_id as "
    "attributes.",
    dataclasses.replace(TOPIC, parse=_topic),
    of=Sinks,
)
WRITE_MODE: Flag[WriteMode | None] = Flag(
    "write_mode",
    GROUP,
    "What to do with the rows of earlier runs. By default tables append, and a folder that holds "
    "another run is refused: set append or replace.",
    one_of(WriteMode),
    of=Sinks,
)
WRITE_METHOD: Flag[WriteMethod | None] = Flag(
    "write_method",
    GROUP,
    "How rows get into tables. Default: file_loads in batch (all rows or none), storage_write in "
    "streaming (rows are visible as they arrive).",
    one_of(WriteMethod),
    place=Place(parent="output_table"),
)
EXACTLY_ONCE: Flag[bool | None] = Flag(
    "exactly_once",
    GROUP,
    "Whether storage_write appends each row only once even when work is repeated, at the cost of "
    "three shuffles. Default: true in batch, false in streaming.",
    BOOLEAN,
    place=Place(parent="output_table"),
)
RECORD_FIELDS: Flag[tuple[str, ...] | None] = Flag(
    "record_fields",
    GROUP,
    "Input fields to keep in each result: all, none, or a list.",
    Kind(_fields, "all|none|A,B", Form("TEXT", LIST_PATTERN, "subject,body"), text=_fields_text),
    of=RunInfo,
)

SINK_FLAGS: tuple[Flag[Any], ...] = (
    OUTPUT_TABLE,
    OUTPUT_PATH,
    OUTPUT_FORMAT,
    DEAD_LETTER_TABLE,
    DEAD_LETTER_PATH,
    DEAD_LETTER_TOPIC,
    WRITE_MODE,
    WRITE_METHOD,
    EXACTLY_ONCE,
    RECORD_FIELDS,
)


def make_sinks(
    values: Values, options: PipelineOptions, mode: Mode, run_id: str, *, needed: bool
) -> Sinks:
    """Where the flags say that a run writes.

    Args:
      values: The flags.
      options: Beam's own options.
      mode: Whether the input ends.
      run_id: The run, for its staging folder.
      needed: Whether an output is required: not for a preview.

    Raises:
      ConfigurationError: No output is set, or flags exclude each other.
    """
    project = project_of(options)
    output_path, table_name = values[OUTPUT_PATH], values[OUTPUT_TABLE]
    if needed and not table_name and not output_path:
        raise ConfigurationError(f"no output is set: set {OUTPUT_PATH}, {OUTPUT_TABLE} or both")

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
            location=values[BIGQUERY_LOCATION],
            labels=values[RESOURCE_LABELS],
        )

    results = TableName.parse(table_name, project) if table_name else None
    letters_name = values[DEAD_LETTER_TABLE]
    letters = (
        TableName.parse(letters_name, project)
        if letters_name
        else results.sibling("_dead_letters")
        if results
        else None
    )
    if results is not None and letters in (results, results.sibling("_runs")):
        raise ConfigurationError(
            f"{DEAD_LETTER_TABLE} is {letters_name!r}, which this run uses for other rows: set "
            "another table"
        )
    _check_writes(values, mode, to_table=letters is not None)
    method = values[WRITE_METHOD] or ("file_loads" if mode.bounded else "storage_write")
    once = values[EXACTLY_ONCE]
    loads = letters is not None and method == "file_loads"
    return Sinks(
        output_table=table(results, RESULT_COLUMNS, "created_at", "run_id", "record_id"),
        output_path=output_path,
        output_format=values[OUTPUT_FORMAT],
        dead_letter_table=table(letters, DEAD_LETTER_COLUMNS, "timestamp", "run_id", "error_type"),
        dead_letter_path=values[DEAD_LETTER_PATH]
        or (FileSystems.join(output_path, "dead_letters") if output_path else None),
        dead_letter_topic=values[DEAD_LETTER_TOPIC],
        runs_table=table(
            results.sibling("_runs") if results else None,
            SUMMARY_COLUMNS if mode.bounded else MINUTE_COLUMNS,
            "started_at",
            "run_id",
        ),
        write_mode=values[WRITE_MODE],
        staging=_staging(options, run_id) if loads else None,
        write_method=method,
        exactly_once=mode.bounded if once is None else once,
    )


def _check_writes(values: Values, mode: Mode, *, to_table: bool) -> None:
    """Refuses flags for writing that conflict with each other or with the mode."""
    method, replaces = values[WRITE_METHOD], values[WRITE_MODE] == "replace"
    for flag in (WRITE_METHOD, EXACTLY_ONCE):
        values.only_with(flag, "a table", allowed=to_table)
    if mode.streaming and method == "file_loads":
        raise ConfigurationError(
            f"{WRITE_METHOD} is 'file_loads', but the input never ends: use storage_write"
        )
    if mode.streaming and to_table and replaces:
        raise ConfigurationError(
            f"{WRITE_MODE} is 'replace', but the input never ends, and a stream only adds rows: "
            "remove it"
        )
    if method == "streaming_inserts" and values[EXACTLY_ONCE]:
        raise ConfigurationError(
            f"{EXACTLY_ONCE} is 'true', but {WRITE_METHOD} is 'streaming_inserts': use storage_write"
        )
    if method not in (None, "file_loads") and replaces:
        raise ConfigurationError(
            f"{WRITE_MODE} is 'replace', but {WRITE_METHOD} is {method!r}, which only adds rows: "
            "use file_loads"
        )


def _staging(options: PipelineOptions, run_id: str) -> str:
    """The folder where rows wait for BigQuery: the job's temp location, else a local folder."""
    temp = options.view_as(GoogleCloudOptions).temp_location
    if temp:
        return str(FileSystems.join(temp.rstrip("/"), "bigquery_load", run_id))
    if not is_local(options):
        raise ConfigurationError(
            "--temp_location is missing: rows wait there until BigQuery loads them"
        )
    return str(FileSystems.join(tempfile.gettempdir(), "batch-inference", run_id))


def summary_path(sinks: Sinks, options: PipelineOptions, mode: Mode, run_id: str) -> str | None:
    """The file for the closing summary; a local stream always has one.

    The table of runs has a row for each of the stream's minutes; a row for the whole stream would
    count them twice.
    """
    if sinks.summary_path is None and mode.streaming and is_local(options):
        folder = FileSystems.join(tempfile.gettempdir(), "batch-inference")
        return str(FileSystems.join(folder, f"{run_id}.json"))
    return sinks.summary_path
