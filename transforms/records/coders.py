r"""How records travel between stages: registered, versioned coders with golden bytes in a test.

Beam would pickle these dataclasses by position, and a field added in a later version would then
silently take its neighbour's value in the state of a streaming job that is updated. Ours write

.. code-block:: text

    version (1 byte) · length of the JSON (4 bytes, little endian) · JSON array · raw tail

where the array holds a type's fields in the order in which they were ever added. Rules that keep
old bytes readable: append fields, never move or reuse a place; give each a default. Shorter arrays
(written by an older version) take the defaults, longer ones (by a newer one) lose what is unknown.
A change that cannot follow these rules takes a new version byte, and the old one stays readable.

The tail holds what JSON would bloat: an embedding as float64, a payload's bytes. What only streaming
jobs hold has its coders in `transforms.requests.batch_state`.
"""

import array
import struct
import sys
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.coders import Coder

from transforms.records import json_values
from transforms.records.records import Answer, Completion, DeadLetter, Record, Request, Usage

VERSION = 1
_HEADER = struct.Struct("<BI")
_ANY_DEPTH = 1_000


HEADER_BYTES = _HEADER.size


class UnreadableBytes(ValueError):
    """Bytes that no version of this coder has written."""


def pack_header(number: int) -> bytes:
    """The version byte and a number below 2³²."""
    return _HEADER.pack(VERSION, number)


def pack(values: list[Any], tail: bytes = b"") -> bytes:
    """Values as JSON behind the header, then the tail."""
    body = json_values.dumps(values)
    return pack_header(len(body)) + body + tail


def unpack_header(encoded: bytes) -> int:
    """The number behind the version byte.

    Raises:
      UnreadableBytes: Another release has written this, or it is cut.
    """
    if len(encoded) < HEADER_BYTES:
        raise UnreadableBytes(f"a header of {HEADER_BYTES} bytes is cut at {len(encoded)}")
    version, number = _HEADER.unpack_from(encoded)
    if version != VERSION:
        raise UnreadableBytes(
            f"coder version {version} is not known to this release (it knows {VERSION}); "
            "drain the job instead of updating it"
        )
    return int(number)


def unpack(encoded: bytes) -> tuple[list[Any], bytes]:
    """The values and the tail.

    Raises:
      UnreadableBytes: Another release has written this.
    """
    end = HEADER_BYTES + unpack_header(encoded)
    return json_values.loads(encoded[HEADER_BYTES:end], _ANY_DEPTH), encoded[end:]


def _record_values(record: Record) -> list[Any]:
    return [
        record.record_id,
        record.fields,
        record.attributes,
        record.source,
        record.read_minute,
    ]


def _usage_values(usage: Usage) -> list[Any]:
    return [
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
    ]


def encode_record(record: Record) -> bytes:
    """A record as bytes."""
    return pack(_record_values(record))


def decode_record(encoded: bytes) -> Record:
    """The inverse of `encode_record`."""
    return Record(*unpack(encoded)[0][:5])


def encode_request(request: Request) -> bytes:
    """A request as bytes."""
    return pack(
        [
            _record_values(request.record),
            request.body,
            request.params,
            request.fingerprint,
            request.estimated_tokens,
        ]
    )


def decode_request(encoded: bytes) -> Request:
    """The inverse of `encode_request`."""
    record, *rest = unpack(encoded)[0][:5]
    return Request(Record(*record[:5]), *rest)


def _doubles(values: tuple[float, ...] | None) -> bytes:
    if values is None:
        return b""
    doubles = array.array("d", values)
    if sys.byteorder == "big":
        doubles.byteswap()
    return doubles.tobytes()


def _from_doubles(tail: bytes) -> tuple[float, ...]:
    doubles = array.array("d")
    doubles.frombytes(tail)
    if sys.byteorder == "big":
        doubles.byteswap()
    return tuple(doubles)


def encode_answer(answer: Answer) -> bytes:
    """An answer as bytes; the embedding is the tail."""
    completion = answer.completion
    return pack(
        [
            _record_values(answer.record),
            answer.fingerprint,
            completion.output,
            completion.output_json,
            completion.embedding is not None,
            completion.finish_reason,
            _usage_values(completion.usage),
            completion.model_version,
            completion.service_tier,
            completion.latency_ms,
            completion.attempts,
            completion.throttled_ms,
            completion.from_ledger,
        ],
        _doubles(completion.embedding),
    )


def decode_answer(encoded: bytes) -> Answer:
    """The inverse of `encode_answer`."""
    values, tail = unpack(encoded)
    record, fingerprint, output, output_json, embedded, finish_reason, usage, *rest = values[:13]
    completion = Completion(
        output,
        output_json,
        _from_doubles(tail) if embedded else None,
        finish_reason,
        Usage(*usage[:4]),
        *rest,
    )
    return Answer(Record(*record[:5]), fingerprint, completion)


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """A dead letter as bytes; `payload_bytes` is the tail."""
    return pack(
        [
            letter.stage,
            letter.error_type,
            json_values.clean_text(letter.error_message),
            letter.retryable,
            letter.record_id,
            letter.attempts,
            letter.throttled_ms,
            letter.fingerprint,
            letter.finish_reason,
            letter.output,
            _usage_values(letter.usage),
            letter.model_version,
            letter.payload,
            letter.payload_bytes is not None,
            letter.attributes,
            letter.stacktrace,
            letter.read_minute,
            letter.fields,
            letter.service_tier,
        ],
        letter.payload_bytes or b"",
    )


def decode_dead_letter(encoded: bytes) -> DeadLetter:
    """The inverse of `encode_dead_letter`."""
    values, tail = unpack(encoded)
    values[10] = Usage(*values[10][:4])
    values[13] = tail if values[13] else None
    return DeadLetter(*values[:19])


class VersionedCoder(Coder):
    """A coder over a pair of functions; equal values give equal bytes."""

    encoder: Callable[[Any], bytes]
    decoder: Callable[[bytes], Any]
    kind: type

    def encode(self, value: Any) -> bytes:
        return type(self).encoder(value)

    def decode(self, encoded: bytes) -> Any:
        return type(self).decoder(encoded)

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type:
        return self.kind

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class RecordCoder(VersionedCoder):
    """Bytes of a `Record`."""

    encoder, decoder, kind = staticmethod(encode_record), staticmethod(decode_record), Record


class RequestCoder(VersionedCoder):
    """Bytes of a `Request`."""

    encoder, decoder, kind = staticmethod(encode_request), staticmethod(decode_request), Request


class AnswerCoder(VersionedCoder):
    """Bytes of an `Answer`."""

    encoder, decoder, kind = staticmethod(encode_answer), staticmethod(decode_answer), Answer


class DeadLetterCoder(VersionedCoder):
    """Bytes of a `DeadLetter`."""

    encoder = staticmethod(encode_dead_letter)
    decoder = staticmethod(decode_dead_letter)
    kind = DeadLetter


def register() -> None:
    """Makes Beam use these coders for our types; runs when the module is imported."""
    for coder in (RecordCoder, RequestCoder, AnswerCoder, DeadLetterCoder):
        beam.coders.registry.register_coder(coder.kind, coder)


register()
