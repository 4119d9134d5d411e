"""Whether a run ends: each source declares it, and Beam agrees."""

import dataclasses
from typing import Any

import apache_beam as beam
import pytest

from pipeline.build import build
from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from pipeline.options.mode import Mode
from transforms.clients.bigquery import TableName
from transforms.records.errors import ConfigurationError
from transforms.sources.base import IdRule
from transforms.sources.bigquery import QuerySource, TableSource
from transforms.sources.dead_letters import DeadLetterSource
from transforms.sources.files import FileSource
from transforms.sources.pubsub import PubSubSource

TABLE = TableSource(table=TableName("p", "d", "t"))
FILES = FileSource(pattern="a.jsonl")
SOURCES = [
    (FILES, Mode.BATCH),
    (FileSource(pattern="a.jsonl", limit=1), Mode.BATCH),
    (TABLE, Mode.BATCH),
    (QuerySource(query="SELECT 1", job_project="p"), Mode.BATCH),
    (DeadLetterSource(rows=FILES), Mode.BATCH),
    (DeadLetterSource(rows=TABLE), Mode.BATCH),
    (PubSubSource(subscription="projects/a-project/subscriptions/tickets"), Mode.STREAMING),
]


@pytest.mark.parametrize(("source", "mode"), SOURCES)
def test_the_mode_of_each_source(source: Any, mode: Mode) -> None:
    """The mode is the one that the source declares."""
    assert Mode.of(source) is mode
    assert (mode.bounded, mode.streaming) == (source.bounded, not source.bounded)


@pytest.mark.parametrize(("source", "mode"), [SOURCES[0], SOURCES[1], SOURCES[4], SOURCES[6]])
def test_beam_agrees(source: Any, mode: Mode) -> None:
    """Beam agrees for both outputs of every source that can be built without a service."""
    records, unread = beam.Pipeline() | source.transform(IdRule())
    assert records.is_bounded is unread.is_bounded is mode.bounded


class _Endless(FileSource):
    bounded = False


def test_a_source_that_beam_contradicts() -> None:
    """A source that Beam contradicts is rejected: half of the graph would have the other mode."""
    argv = ["--input_files=a.jsonl", "--prompt=x", "--backend=fake", "--output_path=/out"]
    config = RunConfig.from_options(parse_flags(argv))
    source = _Endless(pattern="a.jsonl")
    wrong = dataclasses.replace(config, source=source, mode=Mode.of(source))
    with pytest.raises(ConfigurationError) as raised:
        build(beam.Pipeline(), wrong)
    assert str(raised.value) == (
        "_Endless.bounded is False, but Beam reads it as bounded: correct the source"
    )
