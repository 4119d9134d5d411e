"""Batching: requests in workload batches, by count, estimated tokens and bytes.

`Batcher` is the pure part, `BatchRequests` the transform around it. A workload batch is several
times what a backend works on at once, so that the backend never waits for the pipeline.
"""

import dataclasses
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.errors import ConfigurationError
from transforms.order import prefix_text
from transforms.records import Request
from transforms.render import BYTES_PER_TOKEN


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """The most that one batch holds; a request beyond a limit travels alone.

    Attributes:
      max_batch_size: Requests.
      max_batch_tokens: Estimated input tokens; None for no limit.
      max_batch_bytes: Bytes of the rendered requests, estimated from their tokens.
    """

    max_batch_size: int = 256
    max_batch_tokens: int | None = None
    max_batch_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_batch_tokens", "max_batch_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} is {value}, but must be at least 1")


class Batcher:
    """Fills batches in order of arrival.

    >>> batcher = Batcher(BatchLimits(max_batch_size=2))
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._most_tokens = min(
            limits.max_batch_tokens or limits.max_batch_bytes,
            limits.max_batch_bytes // BYTES_PER_TOKEN,
        )
        self._batch: list[Request] = []
        self._tokens = 0

    def add(self, request: Request) -> list[Request] | None:
        """Takes one request; returns the batch that it did not fit into, or that it filled."""
        tokens = self._tokens + request.estimated_tokens
        if self._batch and tokens > self._most_tokens:
            full, self._batch = self._batch, [request]
            self._tokens = request.estimated_tokens
            return full
        self._batch.append(request)
        self._tokens = tokens
        if len(self._batch) >= self._limits.max_batch_size:
            return self.flush()
        return None

    def flush(self) -> list[Request] | None:
        """What is left, if anything."""
        full, self._batch, self._tokens = self._batch, [], 0
        return full or None


class _BatchDoFn(beam.DoFn):
    def __init__(self, limits: BatchLimits, order_by_prefix: bool) -> None:
        self._limits = limits
        self._order_by_prefix = order_by_prefix

    def start_bundle(self) -> None:
        self._batcher = Batcher(self._limits)

    def process(self, request: Request) -> Iterator[list[Request]]:
        if batch := self._batcher.add(request):
            yield self._ordered(batch)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if batch := self._batcher.flush():
            window = GlobalWindow()
            yield WindowedValue(self._ordered(batch), window.max_timestamp(), [window])

    def _ordered(self, batch: list[Request]) -> list[Request]:
        return sorted(batch, key=prefix_text) if self._order_by_prefix else batch


@dataclasses.dataclass(kw_only=True, eq=False)
class BatchRequests(beam.PTransform):
    """Groups requests into workload batches within each bundle, in the global window.

    For bounded input, where bundles are large. Every request is in exactly one batch; order within
    a bundle is kept, unless batches are ordered.

    Args:
      limits: The most that one batch holds.
      order_by_prefix: Whether the requests of a batch that begin alike run one behind the other.

    Returns:
      A PCollection of non-empty lists of `Request`.
    """

    limits: BatchLimits = BatchLimits()
    order_by_prefix: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, requests: beam.PCollection[Request]) -> beam.PCollection[list[Request]]:
        batch = _BatchDoFn(self.limits, self.order_by_prefix)
        return requests | "Batch" >> beam.ParDo(batch).with_output_types(list[Request])
