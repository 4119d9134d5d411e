"""Checks that query file systems and services before launch.

Each check has five seconds, all together have twenty. A definite "not found" or "invalid" stops the
launch; "forbidden" and timeouts only warn, because the workers may have other rights.
"""

import functools
from collections.abc import Iterator

from pipeline.checks.bigquery import check_output_table, check_query, check_table
from pipeline.checks.files import check_files, check_output_path, check_writable
from pipeline.checks.pubsub import pubsub_checks
from pipeline.checks.runner import Check
from pipeline.config import RunConfig
from transforms.sources.bigquery import QuerySource, TableSource
from transforms.sources.dead_letters import DeadLetterSource
from transforms.sources.files import FileSource


def all_checks(config: RunConfig) -> Iterator[tuple[str, Check]]:
    """Every check that this configuration needs, each with its subject."""
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
    if config.preview is not None:
        return
    yield "--backend", lambda: config.adapter.check(config.backend, config)
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
