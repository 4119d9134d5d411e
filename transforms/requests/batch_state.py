r"""What a streaming job keeps between bundles, and its versioned coders.

State outlives the release that wrote it: an updated job reads the bytes of the earlier one. Here,
as in `transforms.records.coders`, fields are only ever appended, each has a default, and golden bytes stand
in a test. Requests are encoded once, where they get their key, and decoded once, in front of the
model: state and shuffles carry their bytes unread.

.. code-block:: text

    EncodedRequest   version (1 byte) · tokens (4 bytes) · bytes of a `Request`
    EncodedBatch     version (1 byte) · requests (4 bytes) · for each: length (4 bytes), its bytes
    Fill, Tally, MinuteCount, Backlog    as in `transforms.records.coders`: a JSON array behind a header

Numbers are little endian. All of it is registered when the module is imported.
"""

import dataclasses
import struct

import apache_beam as beam

from transforms.records.coders import (
    HEADER_BYTES,
    UnreadableBytes,
    VersionedCoder,
    decode_request,
    encode_request,
    pack,
    pack_header,
    unpack,
    unpack_header,
)
from transforms.records.records import Request

_MAX_TOKENS = 2**32 - 1
_LENGTH = struct.Struct("<I")
REQUEST_FRAME_BYTES = _LENGTH.size
"""What each request adds to a batch beside its own bytes."""
BATCH_FRAME_BYTES = 64
"""What a batch adds: its header, and what a shuffle puts around it."""


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedRequest:
    """A request as its bytes, with what batching has to know of it.

    Attributes:
      encoded: What `transforms.records.coders.RequestCoder` wrote.
      tokens: Estimated input tokens.
    """

    encoded: bytes
    tokens: int

    @classmethod
    def of(cls, request: Request) -> "EncodedRequest":
        """Encodes a request."""
        return cls(encode_request(request), min(request.estimated_tokens, _MAX_TOKENS))


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedBatch:
    """A batch of requests as their bytes, in order."""

    requests: tuple[bytes, ...]

    def open(self) -> list[Request]:
        """The requests.

        Raises:
          UnreadableBytes: Another release has written them.
        """
        return [decode_request(encoded) for encoded in self.requests]


@dataclasses.dataclass(frozen=True, slots=True)
class Fill:
    """How full a batch is.

    Attributes:
      requests: How many it holds.
      tokens: The sum of their estimates.
      bytes: What they take in an `EncodedBatch`, in bytes.
      opened_ms: When the first came (milliseconds since the epoch).
    """

    requests: int = 0
    tokens: int = 0
    bytes: int = 0
    opened_ms: int = 0


def encode_encoded_request(request: EncodedRequest) -> bytes:
    """An encoded request with its tokens, as bytes."""
    return pack_header(request.tokens) + request.encoded


def decode_encoded_request(encoded: bytes) -> EncodedRequest:
    """The inverse of `encode_encoded_request`."""
    return EncodedRequest(encoded[HEADER_BYTES:], unpack_header(encoded))


def encode_batch(batch: EncodedBatch) -> bytes:
    """A batch as bytes."""
    parts = [pack_header(len(batch.requests))]
    for request in batch.requests:
        parts += (_LENGTH.pack(len(request)), request)
    return b"".join(parts)


def decode_batch(encoded: bytes) -> EncodedBatch:
    """The inverse of `encode_batch`.

    Raises:
      UnreadableBytes: Another release has written this, or it is cut.
    """
    requests, start = [], HEADER_BYTES
    for _ in range(unpack_header(encoded)):
        begin = start + REQUEST_FRAME_BYTES
        if begin > len(encoded):
            raise UnreadableBytes(f"a batch of at least {begin} bytes is cut at {len(encoded)}")
        start = begin + _LENGTH.unpack_from(encoded, start)[0]
        requests.append(encoded[begin:start])
    if start > len(encoded):
        raise UnreadableBytes(f"a batch of {start} bytes is cut at {len(encoded)}")
    return EncodedBatch(tuple(requests))


def encode_fill(fill: Fill) -> bytes:
    """How full a batch is, as bytes."""
    return pack([fill.requests, fill.tokens, fill.bytes, fill.opened_ms])


def decode_fill(encoded: bytes) -> Fill:
    """The inverse of `encode_fill`."""
    return Fill(*unpack(encoded)[0][:4])


class EncodedRequestCoder(VersionedCoder):
    """Bytes of an `EncodedRequest`."""

    encoder = staticmethod(encode_encoded_request)
    decoder = staticmethod(decode_encoded_request)
    kind = EncodedRequest


class EncodedBatchCoder(VersionedCoder):
    """Bytes of an `EncodedBatch`."""

    encoder, decoder, kind = staticmethod(encode_batch), staticmethod(decode_batch), EncodedBatch


class FillCoder(VersionedCoder):
    """Bytes of a `Fill`."""

    encoder, decoder, kind = staticmethod(encode_fill), staticmethod(decode_fill), Fill


def register() -> None:
    """Makes Beam use these coders for these types; runs when the module is imported."""
    for coder in (
        EncodedRequestCoder,
        EncodedBatchCoder,
        FillCoder,
    ):
        beam.coders.registry.register_coder(coder.kind, coder)


register()
