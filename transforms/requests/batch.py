"""Batching: requests in workload batches, by count, estimated tokens, bytes and waiting time.

`Batcher` (within a bundle) and `take_in` (across bundles) are the pure parts, `BatchRequests` the
transform around both. A workload batch holds several times the requests that a backend processes at
a time, so that the backend never waits for the pipeline.
"""

import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    ReadModifyWriteStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.accounting import metrics
from transforms.records.errors import ConfigurationError
from transforms.records.records import Request
from transforms.requests.batch_state import (
    BATCH_FRAME_BYTES,
    REQUEST_FRAME_BYTES,
    EncodedBatch,
    EncodedRequest,
    EncodedRequestCoder,
    Fill,
    FillCoder,
)
from transforms.requests.order import prefix_text
from transforms.requests.render import BYTES_PER_TOKEN


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """The limits of one batch; a request that exceeds a limit by itself forms a batch alone.

    Attributes:
      max_batch_size: The most requests.
      max_batch_tokens: The most estimated input tokens; None for no limit.
      max_batch_bytes: The most bytes of the rendered requests, estimated from their tokens; across
        bundles, of the whole encoded batch.
      max_batch_wait_s: Across bundles only: how long a batch that is not full stays open.
    """

    max_batch_size: int = 256
    max_batch_tokens: int | None = None
    max_batch_bytes: int = 8 << 20
    max_batch_wait_s: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_batch_tokens", "max_batch_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} is {value}, but must be at least 1")
        if not 0 <= self.max_batch_wait_s < float("inf"):
            raise ConfigurationError(
                f"max_batch_wait_s is {self.max_batch_wait_s}, but must be 0 or more seconds"
            )

    def allows(self, fill: Fill) -> bool:
        """Whether a batch with this fill is within every limit."""
        return (
            fill.requests <= self.max_batch_size
            and (self.max_batch_tokens is None or fill.tokens <= self.max_batch_tokens)
            and fill.bytes + BATCH_FRAME_BYTES <= self.max_batch_bytes
        )

    def is_full(self, fill: Fill) -> bool:
        """Whether no more requests fit."""
        return not self.allows(
            Fill(fill.requests + 1, fill.tokens + 1, fill.bytes + 1 + REQUEST_FRAME_BYTES)
        )


EMPTY = Fill()


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """The effect of one more request on an open batch.

    Attributes:
      close_before: Whether the open batch is complete without the request.
      fill: The fill of the open batch with the request; of a new one after `close_before`.
      close_after: Whether that batch is complete as well.
    """

    close_before: bool
    fill: Fill
    close_after: bool


def take_in(limits: BatchLimits, fill: Fill, request: EncodedRequest, now_ms: int) -> Step:
    """Decides, for one key, which batch a request joins and which batches it completes.

    >>> request = EncodedRequest(b"...", tokens=5)
    >>> step = take_in(BatchLimits(max_batch_size=2), EMPTY, request, now_ms=0)
    >>> step.fill.requests, step.close_after
    (1, False)
    >>> take_in(BatchLimits(max_batch_size=2), step.fill, request, now_ms=9).close_after
    True
    """
    size = len(request.encoded) + REQUEST_FRAME_BYTES
    if fill.requests:
        grown = Fill(
            fill.requests + 1, fill.tokens + request.tokens, fill.bytes + size, fill.opened_ms
        )
        if limits.allows(grown):
            return Step(close_before=False, fill=grown, close_after=limits.is_full(grown))
    alone = Fill(1, request.tokens, size, now_ms)
    return Step(close_before=fill.requests > 0, fill=alone, close_after=limits.is_full(alone))


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
        """Adds a request; returns the batch that it filled or did not fit into, if any."""
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
        """The rest, if any."""
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


class _KeyDoFn(beam.DoFn):
    """Encodes a request and assigns a random key, because a bundle may hold one request only."""

    def __init__(self, keys: int) -> None:
        self._keys = keys

    def process(self, request: Request) -> Iterator[tuple[int, EncodedRequest]]:
        yield random.randrange(self._keys), EncodedRequest.of(request)


class _BatchByKeyDoFn(beam.DoFn):
    """Keeps each key's open batch in state.

    A real-time timer bounds the waiting. Runners drop it when a job is drained or a window ends, so
    it is paired with a timer at the window's end, which then emits the rest.
    """

    WAITED = TimerSpec("waited", TimeDomain.REAL_TIME)
    WINDOW_END = TimerSpec("window_end", TimeDomain.WATERMARK)
    _requests = beam.DoFn.StateParam(BagStateSpec("requests", EncodedRequestCoder()))
    _fill = beam.DoFn.StateParam(ReadModifyWriteStateSpec("fill", FillCoder()))
    _waited = beam.DoFn.TimerParam(WAITED)
    _window_end = beam.DoFn.TimerParam(WINDOW_END)

    _batch_size = Metrics.distribution(metrics.NAMESPACE, "batch_size")
    _batch_wait_ms = Metrics.distribution(metrics.NAMESPACE, "batch_wait_ms")

    def __init__(self, limits: BatchLimits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock

    def process(
        self,
        keyed: tuple[int, EncodedRequest],
        window: Any = beam.DoFn.WindowParam,
        requests: Any = _requests,
        fill: Any = _fill,
        waited: Any = _waited,
        window_end: Any = _window_end,
    ) -> Iterator[EncodedBatch]:
        now = self._clock()
        before = fill.read() or EMPTY
        step = take_in(self._limits, before, keyed[1], round(now * 1000))
        if step.close_before:
            yield self._batch(before, requests, fill)
        requests.add(keyed[1])
        if step.close_after:
            yield self._batch(step.fill, requests, fill)
            waited.clear()
            return
        fill.write(step.fill)
        if step.fill.requests == 1:
            waited.set(now + self._limits.max_batch_wait_s)
            window_end.set(window.end)

    @on_timer(WAITED)  # type: ignore[untyped-decorator]
    def on_waited(
        self,
        requests: Any = _requests,
        fill: Any = _fill,
    ) -> Iterator[EncodedBatch]:
        return self._rest(requests, fill)

    @on_timer(WINDOW_END)  # type: ignore[untyped-decorator]
    def on_window_end(
        self,
        requests: Any = _requests,
        fill: Any = _fill,
        waited: Any = _waited,
    ) -> Iterator[EncodedBatch]:
        waited.clear()
        return self._rest(requests, fill)

    def _rest(self, requests: Any, fill: Any) -> Iterator[EncodedBatch]:
        left = fill.read()
        if left is not None:  # else a late timer: its batch is gone
            yield self._batch(left, requests, fill)

    def _batch(self, full: Fill, requests: Any, fill: Any) -> EncodedBatch:
        batch = EncodedBatch(tuple(request.encoded for request in requests.read()))
        requests.clear()
        fill.clear()
        self._batch_size.update(full.requests)
        self._batch_wait_ms.update(max(0, round(self._clock() * 1000) - full.opened_ms))
        return batch


def _open_ordered(batch: EncodedBatch) -> list[Request]:
    return sorted(batch.open(), key=prefix_text)


@dataclasses.dataclass(kw_only=True, eq=False)
class BatchRequests(beam.PTransform):
    """Groups requests into workload batches; every request is in exactly one.

    Bounded input, where bundles are large, is batched within each bundle, in the global window;
    order within a bundle is kept, unless batches are ordered.

    Unbounded input is batched across bundles, whose size then does not matter: each of a few keys
    has one open batch in state. It is emitted when it is full, `max_batch_wait_s` after its first
    request (by the worker's clock), and at the window's end, so that a drained job leaves nothing
    behind. Windows are kept; in the global window nothing is late. A shuffle follows, because a key
    and its timers are blocked for as long as a step fused with this one works. A batch emitted by a
    timer carries the timer's timestamp.

    Args:
      limits: The limits of one batch.
      keys: Across bundles only: how many batches are open at a time. Fewer keys fill their batches
        sooner: full batches need `keys` · `max_batch_size` requests in `max_batch_wait_s`. More
        keys spread the work of batching, which for one key is done on one core.
      order_by_prefix: Whether requests of a batch that begin alike are placed next to each other.
      across_bundles: Whether to batch across bundles; None does so for unbounded input only.
      clock: Seconds since the epoch; for tests, whose runners have their own clock.

    Returns:
      A PCollection of non-empty lists of `Request`.
    """

    limits: BatchLimits = BatchLimits()
    keys: int = 1
    order_by_prefix: bool = False
    across_bundles: bool | None = None
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        super().__init__()
        if self.keys < 1:
            raise ConfigurationError(f"keys is {self.keys}, but must be at least 1")

    def expand(self, requests: beam.PCollection[Request]) -> beam.PCollection[list[Request]]:
        across = not requests.is_bounded if self.across_bundles is None else self.across_bundles
        if not across:
            batch = _BatchDoFn(self.limits, self.order_by_prefix)
            return requests | "Batch" >> beam.ParDo(batch).with_output_types(list[Request])
        open_batch = _open_ordered if self.order_by_prefix else EncodedBatch.open
        return (
            requests
            | "KeyRequests" >> beam.ParDo(_KeyDoFn(self.keys))
            | "BatchByKey" >> beam.ParDo(_BatchByKeyDoFn(self.limits, self.clock))
            | "SpreadBatches" >> beam.Reshuffle()
            | "OpenBatches" >> beam.Map(open_batch).with_output_types(list[Request])
        )
