"""Batching across bundles: every request leaves in one batch, by count, by time or at the end."""

import itertools
import threading
import types
from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows
from apache_beam.typehints import typehints
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.transforms import coded, pipeline
from tests.transforms.streams import (
    at,
    collected_from,
    described,
    messages_from,
    stream,
    stream_clock,
    streaming_pipeline,
)
from transforms.records.errors import ConfigurationError
from transforms.records.records import Record, Request
from transforms.requests import batch as batch_module
from transforms.requests.batch import (
    EMPTY,
    BatchLimits,
    BatchRequests,
    _BatchByKeyDoFn,
    _KeyDoFn,
    take_in,
)
from transforms.requests.batch_state import (
    BATCH_FRAME_BYTES,
    REQUEST_FRAME_BYTES,
    EncodedBatch,
    EncodedBatchCoder,
    EncodedRequest,
    Fill,
    FillCoder,
)

LONG_S = 1e6
LIMITS = st.builds(
    BatchLimits,
    max_batch_size=st.integers(1, 8),
    max_batch_tokens=st.none() | st.integers(1, 60),
    max_batch_bytes=st.integers(1, 400),
)
REQUESTS = st.lists(st.builds(EncodedRequest, st.binary(max_size=60), st.integers(0, 30)))


def _request(name: str) -> Request:
    return Request(Record(name, {}), {}, {}, "", 1)


def _names(batch: list[Request]) -> str:
    return " ".join(request.record.record_id for request in batch)


def _stream(*events: Any) -> Any:
    """A `stream` whose bundles are texts of names."""
    return stream(*(e if isinstance(e, int) else (e[0], e[1].split(), *e[2:]) for e in events))


def _batches(events: Any, **arguments: Any) -> list[str]:
    """The batches of a stream, as their names, in order."""
    return collected_from(
        lambda root: (
            root
            | events
            | beam.Map(at).with_output_types(str)
            | beam.Map(_request)
            | BatchRequests(clock=stream_clock, **arguments)
            | "Names" >> beam.Map(_names)
        )
    )


def _replay(limits: BatchLimits, requests: Iterable[EncodedRequest]) -> list[list[EncodedRequest]]:
    """The batches of one key, by the decisions of `take_in`."""
    batches: list[list[EncodedRequest]] = []
    held, fill = [], EMPTY
    for now_ms, request in enumerate(requests):
        step = take_in(limits, fill, request, now_ms)
        if step.close_before:
            batches.append(held)
            held = []
        held = [*held, request]
        fill = step.fill
        assert fill.requests == len(held)
        if step.close_after:
            batches.append(held)
            held, fill = [], EMPTY
    return [*batches, held] if held else batches


@settings(deadline=None)
@given(LIMITS, REQUESTS)
@example(BatchLimits(max_batch_bytes=1), [EncodedRequest(b"", 0)] * 3)
def test_take_in(limits: BatchLimits, requests: list[EncodedRequest]) -> None:
    """No request is lost, doubled or moved; only a request alone in a batch may exceed a limit."""
    batches = _replay(limits, requests)
    assert [request for batch in batches for request in batch] == requests
    for batch in batches:
        assert 1 <= len(batch) <= limits.max_batch_size
        if len(batch) > 1:
            encoded = EncodedBatch(tuple(request.encoded for request in batch))
            assert len(EncodedBatchCoder().encode(encoded)) < limits.max_batch_bytes
            assert sum(request.tokens for request in batch) <= (limits.max_batch_tokens or 10**9)


@settings(deadline=None)
@given(LIMITS, REQUESTS)
def test_batches_are_full(limits: BatchLimits, requests: list[EncodedRequest]) -> None:
    """A batch ends only where the next request would not have fitted, or where none could."""
    for batch, following in itertools.pairwise(_replay(limits, requests)):
        more = [*batch, following[0]]
        size = BATCH_FRAME_BYTES + sum(
            REQUEST_FRAME_BYTES + max(1, len(request.encoded)) for request in more
        )
        tokens = sum(max(1, request.tokens) for request in more)
        assert (
            len(batch) == limits.max_batch_size
            or tokens > (limits.max_batch_tokens or 10**9)
            or size > limits.max_batch_bytes
        )


def test_a_batch_opens_with_its_first_request() -> None:
    """The waiting time starts with the batch's first request, even one that did not fit before."""
    limits = BatchLimits(max_batch_tokens=10)
    six = EncodedRequest(b"", 6)
    first = take_in(limits, EMPTY, EncodedRequest(b"", 1), 5)
    second = take_in(limits, first.fill, EncodedRequest(b"", 1), 6)
    third = take_in(limits, second.fill, six, 7)
    fourth = take_in(limits, third.fill, six, 8)
    assert [step.fill.opened_ms for step in (first, second, third, fourth)] == [5, 5, 5, 8]
    assert fourth.close_before
    assert fourth.fill.tokens == 6


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_invalid_waiting_times(value: float) -> None:
    """Impossible waiting times are rejected with the value."""
    with pytest.raises(ConfigurationError, match=rf"max_batch_wait_s is {value}, but must be 0 or"):
        BatchLimits(max_batch_wait_s=value)


def test_no_keys() -> None:
    """Zero keys are rejected, since nothing could be batched."""
    with pytest.raises(ConfigurationError, match="keys is 0, but must be at least 1"):
        BatchRequests(keys=0)


@pytest.mark.parametrize("bundle", [1, 3, 50])
def test_by_count(bundle: int) -> None:
    """Batches are filled by count, across bundles."""
    names = [str(n) for n in range(24)]
    bundles = [(0, " ".join(names[i : i + bundle])) for i in range(0, len(names), bundle)]
    limits = BatchLimits(max_batch_size=10, max_batch_wait_s=LONG_S)
    expected = [" ".join(names[i : i + 10]) for i in (0, 10, 20)]
    assert _batches(_stream(*bundles), limits=limits) == expected


def test_by_time() -> None:
    """A partial batch leaves one waiting time after its first request."""
    events = _stream((0, "a"), (0.5, "b"), (1.25, "c"), (2, "d"), (2.5, "e"))
    assert _batches(events, limits=BatchLimits(max_batch_wait_s=1)) == ["a b", "c d", "e"]


def test_a_full_batch_takes_its_timer_with_it() -> None:
    """A batch has its whole waiting time, whatever timer an earlier full batch had."""
    events = _stream((0, "a b"), (0.5, "c"), (1.25, "d"), (1.75, "e"))
    limits = BatchLimits(max_batch_size=2, max_batch_wait_s=1)
    assert _batches(events, limits=limits) == ["a b", "c d", "e"]


def test_without_waiting() -> None:
    """A waiting time of 0 ends batches with their bundle."""
    events = _stream((1, "a b"), (2, "c"), (3, "d"))
    assert _batches(events, limits=BatchLimits(max_batch_wait_s=0)) == ["a b", "c", "d"]


def test_by_drain() -> None:
    """A drain flushes every batch without waiting."""
    limits = BatchLimits(max_batch_size=2, max_batch_wait_s=LONG_S)
    assert _batches(_stream((0, "a b c")), limits=limits) == ["a b", "c"]


def _windowed(events: Any) -> list[str]:
    """The same in windows of 10 s, without the shuffle: this runner's drops a timer's output."""
    limits = BatchLimits(max_batch_wait_s=LONG_S)
    return collected_from(
        lambda root: (
            root
            | events
            | beam.Map(at).with_output_types(str)
            | beam.Map(_request)
            | beam.WindowInto(FixedWindows(10))
            | beam.ParDo(_KeyDoFn(1))
            | beam.ParDo(_BatchByKeyDoFn(limits, stream_clock))
            | beam.Map(EncodedBatch.open)
            | "Names" >> beam.Map(_names)
        )
    )


def test_by_window_end() -> None:
    """A window's end flushes its batch, and no batch holds requests of two windows."""
    events = _stream((0, "a b", 1), (0, "c", 12), (0, "d", 3), 10, (0, "e", 13), 30)
    assert _windowed(events) == ["a b d", "c e"]


def test_late_data() -> None:
    """A late request joins the open batch, and even after its window's end it is flushed."""
    limits = BatchLimits(max_batch_wait_s=LONG_S)
    assert _batches(_stream((0, "a", 50), 100, (0, "late", 1), 200), limits=limits) == ["a late"]
    events = _stream((0, "a", 1), 15, (0, "late", 2), 16, (0, "later", 3), 17)
    assert _windowed(events) == ["a", "late", "later"]


def test_two_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key has its own batch, waiting time and end."""
    turns = itertools.cycle([0, 1])
    chance = types.SimpleNamespace(randrange=lambda keys: next(turns) % keys)
    monkeypatch.setattr(batch_module, "random", chance)
    events = _stream((0, "a"), (0.5, "b"), (1.25, "c"), (1.75, "d"), (2, "e"), (2.125, "f"))
    limits = BatchLimits(max_batch_size=2, max_batch_wait_s=1)
    assert _batches(events, limits=limits, keys=2) == ["a", "b", "c e", "d f"]


def test_empty_input() -> None:
    """Without requests there is no batch."""
    assert _batches(_stream(5), limits=BatchLimits()) == []


def test_by_tokens_and_bytes() -> None:
    """Limits of tokens and of encoded bytes hold across bundles, too."""
    bundles = ((0, "a b"), (0, "c"), (0, "d"))
    tokens = BatchLimits(max_batch_tokens=3, max_batch_wait_s=LONG_S)
    assert _batches(_stream(*bundles), limits=tokens) == ["a b c", "d"]
    one = len(EncodedRequest.of(_request("a")).encoded) + REQUEST_FRAME_BYTES
    size = BatchLimits(max_batch_bytes=2 * one + BATCH_FRAME_BYTES + 1, max_batch_wait_s=LONG_S)
    assert _batches(_stream(*bundles), limits=size) == ["a b", "c d"]


def test_bounded_input_is_batched_within_bundles() -> None:
    """A bounded input is batched within bundles by default; across them, metrics show the waits."""
    requests = [_request(str(n)) for n in range(7)]
    root = pipeline()
    batches = (
        root
        | beam.Create(requests)
        | BatchRequests(limits=BatchLimits(max_batch_size=3), across_bundles=True)
    )
    assert batches.element_type == typehints.List[Request]
    assert_that(batches | beam.FlatMap(lambda batch: batch), equal_to(requests))
    assert_that(batches | beam.Map(len), equal_to([3, 3, 1]), label="sizes")
    result = root.run()
    result.wait_until_finish()
    found = {
        metric.key.metric.name: metric.committed
        for metric in result.metrics().query(MetricsFilter())["distributions"]
    }
    assert (found["batch_size"].sum, found["batch_size"].count) == (7, 3)
    assert found["batch_wait_ms"].count == 3
    with pipeline() as plain:
        steps = plain | beam.Create(requests) | BatchRequests()
        assert steps.producer.full_label.endswith("BatchRequests/Batch")


_left: list[str] = []
_all_left = threading.Event()


def _leave(batch: list[Request]) -> None:
    _left.append(_names(batch))
    if len(_left) == 3:
        _all_left.set()


def test_real_time() -> None:
    """On a real clock, a timer sends a batch before the next request arrives."""
    waiting = [b"a", b"b", b"c"]

    def pull() -> list[bytes]:
        if waiting and len(_left) == 3 - len(waiting):
            return [waiting.pop(0)]
        _all_left.wait(0.01)  # the runner asks again and again
        return []

    with messages_from(pull) as read:
        root = streaming_pipeline()
        _ = (
            root
            | read
            | beam.Map(bytes.decode).with_output_types(str)
            | beam.Map(_request)
            | BatchRequests(limits=BatchLimits(max_batch_wait_s=0.05))
            | beam.Map(_leave)
        )
        result = root.run()
        try:
            assert _all_left.wait(60)
        finally:
            result.cancel()
    assert _left == ["a", "b", "c"]


def test_state_of_the_earlier_version_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An updated job reads its open batch: fields that older bytes lack take their defaults."""
    written = []

    def older(_: FillCoder, fill: Fill) -> bytes:
        written.append(coded(fill.requests, fill.tokens))
        return written[-1]

    monkeypatch.setattr(FillCoder, "encode", older)
    limits = BatchLimits(max_batch_size=3, max_batch_wait_s=LONG_S)
    assert _batches(_stream((0, "a"), (0, "b"), (0, "c"), (0, "d")), limits=limits) == [
        "a b c",
        "d",
    ]
    assert written


_SPREAD = "SpreadBatches/ReshufflePerKey"
_META = "NullableCoder[FastPrimitivesCoder], PaneInfoCoder"
STEPS = [
    "BatchByKey [None] EncodedBatchCoder",
    "BatchByKey state fill read_modify_write_spec FillCoder",
    "BatchByKey state requests bag_spec EncodedRequestCoder",
    "BatchByKey timer ts-waited 2",
    "BatchByKey timer ts-window_end 1",
    "KeyRequests [None] TupleCoder[VarIntCoder, EncodedRequestCoder]",
    "OpenBatches [None] ListCoder[RequestCoder]",
    "SpreadBatches/AddRandomKeys [None] TupleCoder[VarIntCoder, EncodedBatchCoder]",
    "SpreadBatches/RemoveRandomKeys [None] EncodedBatchCoder",
    (
        f"{_SPREAD}/FlatMap(restore_metadata_default_window) [None] "
        "TupleCoder[VarIntCoder, EncodedBatchCoder]"
    ),
    (
        f"{_SPREAD}/GroupByKey [None] "
        f"TupleCoder[VarIntCoder, IterableCoder[TupleCoder[EncodedBatchCoder, {_META}]]]"
    ),
    (
        f"{_SPREAD}/Map(reify_metadata_default_window) [None] "
        f"TupleCoder[VarIntCoder, TupleCoder[EncodedBatchCoder, {_META}]]"
    ),
]


def test_steps_state_and_coders_are_stable() -> None:
    """An updated streaming job finds these parts again; a change here requires a drain."""
    root = streaming_pipeline()
    _ = root | _stream() | beam.Map(_request) | "BatchRequests" >> BatchRequests()
    assert described(root, "BatchRequests") == STEPS


def test_batches_are_encoded_as_the_bytes_of_their_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shuffle carries a batch in our own coder, and each request is decoded only once."""
    decoded: list[bytes] = []
    original = EncodedBatchCoder.decode

    def spy(coder: EncodedBatchCoder, encoded: bytes) -> Any:
        decoded.append(encoded)
        return original(coder, encoded)

    monkeypatch.setattr(EncodedBatchCoder, "decode", spy)
    requests = [_request("a"), _request("b")]
    with pipeline() as root:
        batches = root | beam.Create(requests) | BatchRequests(across_bundles=True)
        assert_that(batches, equal_to([requests]))
    assert decoded == [coded([EncodedRequest.of(request).encoded for request in requests])]
