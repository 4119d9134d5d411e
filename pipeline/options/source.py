"""The flags of sources, and the one source that they describe.

A source is a `SourceAdapter`: the flag that names it, the flags it takes, and how to make it.
Another package adds one by an entry point of the group ``batch_inference.sources`` that names a
`SourceAdapter`; its flags are then added to these.
"""

import dataclasses
import functools
import importlib.metadata
import logging
from collections.abc import Callable
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.options.flag import BATCH_ONLY, STREAMING_ONLY, Flag, Place
from pipeline.options.kinds import (
    COUNT,
    GLOB,
    NAME,
    NAMES,
    SQL,
    SUBSCRIPTION,
    TABLE,
    TABLE_OR_GLOB,
    TEXT,
    one_of,
)
from pipeline.options.plugins import Unusable, offers
from pipeline.options.run import BIGQUERY_LOCATION, RESOURCE_LABELS, TEMP_DATASET, project_of
from pipeline.options.values import Values
from transforms.clients.bigquery import TableName
from transforms.records.errors import ConfigurationError
from transforms.sources.base import Source
from transforms.sources.bigquery import QuerySource, TableSource
from transforms.sources.dead_letters import DeadLetterSource, is_table
from transforms.sources.files import FileSource, InputFormat
from transforms.sources.pubsub import PubSubSource

GROUP = "Source"
ENTRY_POINTS = "batch_inference.sources"

_log = logging.getLogger(__name__)

_BATCH = Place(templates=BATCH_ONLY)

INPUT_FILES: Flag[str | None] = Flag(
    "input_files",
    GROUP,
    "Files to read: a local or gs:// glob.",
    GLOB,
    of=FileSource,
    field="pattern",
    place=_BATCH,
)
INPUT_FORMAT: Flag[InputFormat | None] = Flag(
    "input_format",
    GROUP,
    "The format of the files, if their names do not imply it. `objects` makes one record per file, "
    "with its uri and mime_type; the model gets the file with the prompt.",
    one_of(InputFormat),
    of=FileSource,
    field="format",
    place=Place(templates=BATCH_ONLY, parent="input_files"),
)
INPUT_TABLE: Flag[str | None] = Flag(
    "input_table", GROUP, "A BigQuery table to read.", TABLE, place=_BATCH
)
INPUT_FIELDS: Flag[tuple[str, ...]] = Flag(
    "input_fields",
    GROUP,
    "The table's columns to read. Default: all.",
    NAMES,
    of=TableSource,
    field="fields",
    place=Place(templates=BATCH_ONLY, parent="input_table"),
)
INPUT_FILTER: Flag[str | None] = Flag(
    "input_filter",
    GROUP,
    "Which of the table's rows to read: SQL, as in WHERE.",
    TEXT,
    of=TableSource,
    field="filter",
    place=_BATCH,
)
INPUT_QUERY: Flag[str | None] = Flag(
    "input_query",
    GROUP,
    "A BigQuery query (GoogleSQL) whose rows to read.",
    SQL,
    of=QuerySource,
    field="query",
    place=_BATCH,
)
INPUT_SUBSCRIPTION: Flag[str | None] = Flag(
    "input_subscription",
    GROUP,
    "A Pub/Sub subscription to read until the job is stopped: one JSON object per message.",
    SUBSCRIPTION,
    of=PubSubSource,
    field="subscription",
    place=Place(templates=STREAMING_ONLY, required=STREAMING_ONLY),
)
PUBSUB_ID_ATTRIBUTE: Flag[str | None] = Flag(
    "pubsub_id_attribute",
    GROUP,
    "The attribute by which Dataflow drops copies of a message that arrive within ten minutes. "
    "Without it, a message published twice becomes two records.",
    NAME,
    of=PubSubSource,
    field="id_attribute",
    place=Place(templates=STREAMING_ONLY, parent="input_subscription"),
)
INPUT_DEAD_LETTERS: Flag[str | None] = Flag(
    "input_dead_letters",
    GROUP,
    "Dead letters of earlier runs to retry: a BigQuery table (with --input_filter) or files.",
    TABLE_OR_GLOB,
    place=_BATCH,
)
LIMIT: Flag[int | None] = Flag(
    "limit", GROUP, "Read only this many inputs.", COUNT, of=FileSource, place=_BATCH
)

SOURCE_FLAGS: tuple[Flag[Any], ...] = (
    INPUT_FILES,
    INPUT_FORMAT,
    INPUT_TABLE,
    INPUT_FIELDS,
    INPUT_FILTER,
    INPUT_QUERY,
    INPUT_SUBSCRIPTION,
    PUBSUB_ID_ATTRIBUTE,
    INPUT_DEAD_LETTERS,
    LIMIT,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceAdapter:
    """How flags describe a source.

    Attributes:
      flag: The flag that names it; exactly one of all sources' is set.
      flags: The flags it takes: its own, and those it shares with others.
      make: Makes the source from ``(values, options)``; called when `flag` is set, does no I/O, and
        raises `ConfigurationError` for a source that cannot be read.
    """

    flag: Flag[Any]
    flags: tuple[Flag[Any], ...] = ()
    make: Callable[[Values, PipelineOptions], Source]


def _files(values: Values, options: PipelineOptions) -> Source:  # noqa: ARG001 - as all are made
    return FileSource(
        pattern=values.text(INPUT_FILES), format=values[INPUT_FORMAT], limit=values[LIMIT]
    )


def _table(values: Values, options: PipelineOptions) -> Source:
    return _rows(values.text(INPUT_TABLE), values, options)


def _rows(name: str, values: Values, options: PipelineOptions) -> TableSource:
    project = project_of(options)
    table = TableName.parse(name, project)
    return TableSource(
        table=table,
        fields=values[INPUT_FIELDS],
        filter=values[INPUT_FILTER],
        limit=values[LIMIT],
        job_project=project or table.project,
        temp_dataset=values[TEMP_DATASET],
        location=values[BIGQUERY_LOCATION],
        labels=values[RESOURCE_LABELS],
    )


def _query(values: Values, options: PipelineOptions) -> Source:
    project = project_of(options)
    if project is None:
        raise ConfigurationError("--input_query needs a project to bill: set --project")
    return QuerySource(
        query=values.text(INPUT_QUERY),
        limit=values[LIMIT],
        job_project=project,
        temp_dataset=values[TEMP_DATASET],
        location=values[BIGQUERY_LOCATION],
        labels=values[RESOURCE_LABELS],
    )


def _subscription(values: Values, options: PipelineOptions) -> Source:  # noqa: ARG001 - likewise
    return PubSubSource(
        subscription=values.text(INPUT_SUBSCRIPTION), id_attribute=values[PUBSUB_ID_ATTRIBUTE]
    )


def _dead_letters(values: Values, options: PipelineOptions) -> Source:
    name = values.text(INPUT_DEAD_LETTERS)
    try:
        in_table = is_table(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"{INPUT_DEAD_LETTERS}: {error}") from None
    if in_table:
        return DeadLetterSource(rows=_rows(name, values, options))
    values.only_with(INPUT_FILTER, "--input_table or a table of dead letters")
    return DeadLetterSource(rows=FileSource(pattern=name, limit=values[LIMIT]))


_SOURCES = (
    SourceAdapter(flag=INPUT_FILES, flags=(INPUT_FORMAT, LIMIT), make=_files),
    SourceAdapter(
        flag=INPUT_TABLE, flags=(INPUT_FIELDS, INPUT_FILTER, LIMIT, TEMP_DATASET), make=_table
    ),
    SourceAdapter(flag=INPUT_QUERY, flags=(LIMIT, TEMP_DATASET), make=_query),
    SourceAdapter(flag=INPUT_SUBSCRIPTION, flags=(PUBSUB_ID_ATTRIBUTE,), make=_subscription),
    SourceAdapter(
        flag=INPUT_DEAD_LETTERS, flags=(INPUT_FILTER, LIMIT, TEMP_DATASET), make=_dead_letters
    ),
)


def _checked(name: str, source: object) -> SourceAdapter:  # noqa: ARG001 - the flag names a source
    if not isinstance(source, SourceAdapter):
        raise TypeError(f"{type(source).__name__} is not a SourceAdapter")
    return source


@functools.cache
def sources() -> tuple[SourceAdapter, ...]:
    """Every source: our own, then those of other packages whose flags clash with no others."""
    found, names = list(_SOURCES), {flag.name for flag in (*SOURCE_FLAGS, TEMP_DATASET)}
    offered = offers(importlib.metadata.entry_points(group=ENTRY_POINTS), _checked)
    for name, source in offered.items():
        if isinstance(source, Unusable):
            _log.warning(
                "source %r of package %s is ignored: %s", name, source.package, source.reason
            )
            continue
        new = {
            f.name for f in (source.flag, *source.flags) if f not in (*SOURCE_FLAGS, TEMP_DATASET)
        }
        if taken := new & names:
            _log.warning("the source %s is ignored: --%s exists", source.flag, min(taken))
            continue
        names |= new
        found.append(source)
    return tuple(found)


def source_flags() -> tuple[Flag[Any], ...]:
    """The flags of every source, those of other packages last."""
    brought = [f for source in sources() for f in (source.flag, *source.flags)]
    return tuple(dict.fromkeys([*SOURCE_FLAGS, *(f for f in brought if f is not TEMP_DATASET)]))


def make_source(values: Values, options: PipelineOptions) -> Source:
    """The one source that the flags name.

    Raises:
      ConfigurationError: None or several are named, or the source does not take a flag.
    """
    named = [source for source in sources() if values.text(source.flag)]
    if len(named) != 1:
        given = f"{' and '.join(str(s.flag) for s in named)} are set" if named else "none is set"
        known = ", ".join(str(source.flag) for source in sources())
        raise ConfigurationError(f"exactly one input is needed, but {given}: set one of {known}")
    (source,) = named
    for flag in dict.fromkeys(flag for each in sources() for flag in each.flags):
        takers = [str(each.flag) for each in sources() if flag in each.flags]
        values.only_with(flag, _either(takers), allowed=flag in source.flags)
    return source.make(values, options)


def _either(words: list[str]) -> str:
    """Words as a choice.

    >>> _either(["--a"]), _either(["--a", "--b", "--c"])
    ('--a', '--a, --b or --c')
    """
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
