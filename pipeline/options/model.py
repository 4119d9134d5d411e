"""From names to parts: which flags make which source, backend and sink."""

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends import backend_flags, takers
from pipeline.backends.base import BackendAdapter
from pipeline.options.cloud import project_of
from pipeline.options.command_line import Values
from transforms.backends.base import Backend, capabilities_of
from transforms.clients.bigquery import TableName
from transforms.records.errors import ConfigurationError
from transforms.sources.base import Source
from transforms.sources.bigquery import QuerySource, TableSource
from transforms.sources.dead_letters import DeadLetterSource, is_table
from transforms.sources.files import FileSource
from transforms.sources.pubsub import PubSubSource

INPUTS = (
    "input_files",
    "input_table",
    "input_query",
    "input_subscription",
    "input_dead_letters",
)
_GENERATING = (
    "output_schema",
    "system_prompt",
    "system_prompt_file",
    "messages_field",
    "generate_api",
)
"""Flags that only go with ``--task=generate``."""


def make_source(values: Values, options: PipelineOptions) -> Source:
    """The one source that the flags name.

    Raises:
      ConfigurationError: None or several are named, or a flag does not go with it.
    """
    named = [name for name in INPUTS if values.text(name)]
    if len(named) != 1:
        given = f"--{' and --'.join(named)} are given" if named else "none is given"
        raise ConfigurationError(
            f"exactly one input is needed, but {given}: use one of --{', --'.join(INPUTS)}"
        )
    name = named[0]
    _only_with(values, "input_format", name == "input_files", "--input_files")
    _only_with(values, "input_fields", name == "input_table", "--input_table")
    letters_in_table = name == "input_dead_letters" and is_table(values.require(name, ""))
    filtered = name == "input_table" or letters_in_table
    _only_with(values, "input_filter", filtered, "--input_table or a table of dead letters")
    queried = name in ("input_table", "input_query", "input_dead_letters")
    _only_with(values, "temp_dataset", queried, "--input_query or --input_table")
    _only_with(values, "limit", name != "input_subscription", "an input that ends")
    _only_with(values, "pubsub_id_attribute", name == "input_subscription", "--input_subscription")
    if name == "input_subscription":
        return PubSubSource(
            subscription=values.require(name, ""), id_attribute=values.text("pubsub_id_attribute")
        )
    limit = values.integer("limit")
    if name == "input_files" or (name == "input_dead_letters" and not letters_in_table):
        files = FileSource(
            pattern=values.require(name, ""), format=values.text("input_format"), limit=limit
        )
        return files if name == "input_files" else DeadLetterSource(rows=files)
    project = project_of(options)
    if name != "input_query":
        table = TableName.parse(values.require(name, ""), project)
        rows = TableSource(
            table=table,
            fields=values.items("input_fields"),
            filter=values.text("input_filter"),
            limit=limit,
            job_project=project or table.project,
            temp_dataset=values.text("temp_dataset"),
            location=values.text("bigquery_location"),
            labels=values.pairs("resource_labels"),
        )
        return rows if name == "input_table" else DeadLetterSource(rows=rows)
    if project is None:
        raise ConfigurationError("--input_query needs --project: who pays for the query")
    return QuerySource(
        query=values.require(name, ""),
        limit=limit,
        job_project=project,
        temp_dataset=values.text("temp_dataset"),
        location=values.text("bigquery_location"),
        labels=values.pairs("resource_labels"),
    )


def _only_with(values: Values, flag: str, allowed: bool, wanted: str) -> None:
    if values.text(flag) and not allowed:
        raise ConfigurationError(
            f"--{flag} is {values.text(flag)!r}, but goes with {wanted} only: remove it"
        )


def make_backend(adapter: BackendAdapter, values: Values, options: PipelineOptions) -> Backend:
    """The backend that the flags describe.

    Raises:
      ConfigurationError: A flag that it needs is missing, or one does not go with it.
    """
    for flag in backend_flags():
        value = values.text(flag.name)
        if value and value != flag.default and flag not in adapter.flags:
            raise ConfigurationError(
                f"{_shown(flag.name, value)}, but backend {adapter.name} does not take it: remove "
                f"it, or use --backend={' or '.join(takers(flag.name))}"
            )
    for name, reason in adapter.refuses.items():
        if value := values.text(name):
            raise ConfigurationError(f"{_shown(name, value)}, but {reason}: remove it")
    task = values.text("task") or "generate"
    if task == "embed":
        for name in _GENERATING:
            _only_with(values, name, False, "--task=generate")
    backend = adapter.make(values, options)
    tasks = capabilities_of(backend).tasks
    if task not in tasks:
        raise ConfigurationError(
            f"--task is {task!r}, but backend {adapter.name} takes {' and '.join(tasks)} only: "
            f"set --task={tasks[0]}"
        )
    return backend


def _shown(flag: str, value: str) -> str:
    """A flag and its value; not the value of one that names a secret, and may hold it by mistake."""
    return f"--{flag} is set" if flag.endswith("_secret") else f"--{flag} is {value!r}"


def write_method(values: Values, *, to_table: bool, streaming: bool) -> str | None:
    """How tables get their rows; None for what the input asks for.

    Raises:
      ConfigurationError: The flag does not go with another.
    """
    method, mode = values.text("write_method"), values.text("write_mode")
    for flag in ("write_method", "exactly_once"):
        if values.text(flag) and not to_table:
            raise ConfigurationError(
                f"--{flag} is {values.text(flag)!r}, but goes with a table only: remove it"
            )
    if streaming and method == "file_loads":
        raise ConfigurationError(
            "--write_method is 'file_loads', but the input never ends: use storage_write"
        )
    if streaming and to_table and mode == "replace":
        raise ConfigurationError(
            "--write_mode is 'replace', but the input never ends, and a stream only adds rows: "
            "remove it"
        )
    if method == "streaming_inserts" and values.boolean("exactly_once"):
        raise ConfigurationError(
            "--exactly_once is 'true', but --write_method is 'streaming_inserts': use storage_write"
        )
    if method not in (None, "file_loads") and mode == "replace":
        raise ConfigurationError(
            f"--write_mode is 'replace', but --write_method is {method!r}, which only adds rows: "
            "use file_loads"
        )
    return method
