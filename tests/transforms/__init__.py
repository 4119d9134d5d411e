"""Mirrors `transforms`, and holds helpers that its tests share."""

from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import strategies as st

from transforms.records.records import Answer, Completion, Json, Record

RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"

NUMBERS = st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
JSON_OBJECTS = st.dictionaries(st.text(), JSON_VALUES, max_size=5)


def pipeline(*arguments: str) -> beam.Pipeline:
    """A pipeline on the pinned local runner that ignores the command line of the test run."""
    return beam.Pipeline(RUNNER, options=PipelineOptions(list(arguments)))


def coded(*fields: Any, version: int = 2) -> bytes:
    """The bytes of our coders, built independently: the version and a MessagePack array."""
    return bytes([version]) + msgspec.msgpack.encode(fields)


def record_of(record_id: str = "1", **fields: Json) -> Record:
    """A record with these fields."""
    return Record(record_id, fields)


def answer_of(output: str | None = None, record_id: str = "1") -> Answer:
    """An answer with this text."""
    return Answer(Record(record_id, {"text": "hello"}), "0" * 64, Completion(output=output))
