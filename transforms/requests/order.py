"""Order: requests with a common beginning side by side, so that a server computes it once.

A server with a prefix cache (vLLM, SGLang, OpenAI's and Google's own) keeps its computation of a
prompt for a while. Prompts with the same beginning profit if they arrive close together.

`prefix_text` is the pure part, `OrderByPrefix` the transform for a whole data set;
`transforms.requests.batch.BatchRequests` orders by the same text within a batch.
"""

import dataclasses
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam

from transforms.records import json_values
from transforms.records.errors import ConfigurationError
from transforms.records.records import Request

_WHOLE = ("messages", "prompt", "input", "text", "contents", "instance")


def prefix_text(request: Request) -> str:
    r"""The text a model reads, from its start: requests with a common prefix sort side by side.

    >>> from transforms.records.records import Record
    >>> body = {"messages": [{"role": "system", "content": "Be brief."},
    ...                      {"role": "user", "content": "Hello"}]}
    >>> prefix_text(Request(Record("1", {}), body, {}, "", 0))
    'Be brief.\nHello'
    """
    body: Any = request.body.get("request", request.body)
    if isinstance(body, Mapping):
        body = next((body[name] for name in _WHOLE if name in body), body)
    return "\n".join(_texts(body))


def _texts(part: Any) -> Iterable[str]:
    """The texts of a chat or a prompt, in order; the JSON of a part without text."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, list):
        for inner in part:
            yield from _texts(inner)
    elif isinstance(part, Mapping):
        inner = next((part[name] for name in ("content", "text", "parts") if part.get(name)), None)
        yield from _texts(inner if inner is not None else json_values.canonical(part).decode())
    else:
        yield json_values.canonical(part).decode()


def group_of(request: Request, prefix_chars: int, shards: int) -> int:
    """The group of a request: one of the ``shards`` groups of its prefix.

    It is the same in every run and on every worker.
    """
    prefix = zlib.crc32(prefix_text(request)[:prefix_chars].encode("utf-8", "replace"))
    shard = zlib.crc32(
        f"{request.fingerprint}{request.record.record_id}".encode("utf-8", "replace")
    )
    return prefix * shards + shard % shards


@dataclasses.dataclass(kw_only=True, eq=False)
class OrderByPrefix(beam.PTransform):
    """Brings requests with a common beginning together, across a data set: one shuffle by prefix.

    For bounded input only: nothing is emitted before all input has arrived. Every request is
    emitted exactly once. Apply `BatchRequests` directly after it.

    Args:
      prefix_chars: Characters that must be equal; longer common beginnings are found only within a
        batch.
      shards: Groups among which the requests of one prefix are spread. One thread of one worker
        processes a group: more groups use more workers if there are few prefixes, and make runs of
        one prefix shorter.

    Returns:
      A PCollection of `Request`.
    """

    prefix_chars: int = 1000
    shards: int = 8

    def __post_init__(self) -> None:
        super().__init__()
        for name in ("prefix_chars", "shards"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}, but must be at least 1")

    def expand(self, requests: beam.PCollection[Request]) -> beam.PCollection[Request]:
        prefix_chars, shards = self.prefix_chars, self.shards
        keyed = requests | "Prefix" >> beam.Map(
            lambda request: (group_of(request, prefix_chars, shards), request)
        ).with_output_types(tuple[int, Request])
        return (
            keyed
            | "Together" >> beam.GroupByKey()
            | "Groups" >> beam.FlatMap(lambda group: group[1]).with_output_types(Request)
        )
