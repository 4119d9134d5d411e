"""The state of batching in a streaming job: requests as bytes, and how full a batch is.

State outlives the release that wrote it: an updated job reads the bytes of the earlier one. The
rules of `transforms.records.coders` hold here as well. A request is encoded once, when it gets its
key, and decoded once, before the model call: state and shuffles carry its bytes unread.
"""

import dataclasses

from transforms.records.coders import VersionedCoder, layout_of
from transforms.records.records import Request

REQUEST_FRAME_BYTES = 5
"""The most bytes that a request adds to a batch besides its own."""
BATCH_FRAME_BYTES = 64
"""The most bytes that a batch adds: its version and lengths, and the shuffle's own framing."""
_REQUEST = layout_of(Request)


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedRequest:
    """A request as bytes, with the size that batching needs.

    Attributes:
      encoded: Bytes of `transforms.records.coders.RequestCoder`.
      tokens: Estimated input tokens.
    """

    encoded: bytes
    tokens: int

    @classmethod
    def of(cls, request: Request) -> "EncodedRequest":
        """Encodes a request."""
        return cls(_REQUEST.encode(request), request.estimated_tokens)


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedBatch:
    """A batch of requests as bytes, in order."""

    requests: tuple[bytes, ...]

    def open(self) -> list[Request]:
        """Decodes the requests; their params are sealed, see `transforms.records.records.Params`.

        Raises:
          UnreadableBytes: Another version of the coders wrote them.
        """
        return [_REQUEST.decode(encoded) for encoded in self.requests]


@dataclasses.dataclass(frozen=True, slots=True)
class Fill:
    """How full a batch is.

    Attributes:
      requests: Number of requests.
      tokens: Sum of their estimated input tokens.
      bytes: An upper bound of their size in an `EncodedBatch`.
      opened_ms: When the first request arrived (milliseconds since the epoch).
    """

    requests: int = 0
    tokens: int = 0
    bytes: int = 0
    opened_ms: int = 0


class EncodedRequestCoder(VersionedCoder, kind=EncodedRequest):
    """Bytes of an `EncodedRequest`."""


class EncodedBatchCoder(VersionedCoder, kind=EncodedBatch):
    """Bytes of an `EncodedBatch`."""


class FillCoder(VersionedCoder, kind=Fill):
    """Bytes of a `Fill`."""
