"""Batching: every request in exactly one batch, in order, within the limits."""

import itertools
import re

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import GlobalWindow
from apache_beam.typehints import typehints
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms import pipeline
from transforms.records.errors import ConfigurationError
from transforms.records.records import Record, Request
from transforms.requests.batch import Batcher, BatchLimits, BatchRequests, _BatchDoFn

LIMITS = st.builds(
    BatchLimits,
    max_batch_size=st.integers(1, 8),
    max_batch_tokens=st.none() | st.integers(1, 60),
    max_batch_bytes=st.integers(1, 200),
)
SIZES = st.lists(st.integers(0, 6)) | st.lists(st.integers(0, 80))


def _requests(sizes: list[int]) -> list[Request]:
    return [Request(Record(str(n), {}), {}, {}, "", size) for n, size in enumerate(sizes)]


def _batches(limits: BatchLimits, requests: list[Request]) -> list[list[Request]]:
    batcher = Batcher(limits)
    batches = [batch for request in requests if (batch := batcher.add(request)) is not None]
    if (rest := batcher.flush()) is not None:
        batches.append(rest)
    return batches


def _sizes(limits: BatchLimits, sizes: list[int]) -> list[list[int]]:
    return [
        [request.estimated_tokens for request in batch]
        for batch in _batches(limits, _requests(sizes))
    ]


@settings(deadline=None)
@given(LIMITS, SIZES)
def test_batcher(limits: BatchLimits, sizes: list[int]) -> None:
    """No request is lost, doubled or moved; only a request alone in a batch may exceed a limit."""
    requests = _requests(sizes)
    batches = _batches(limits, requests)
    assert [request for batch in batches for request in batch] == requests
    most = min(limits.max_batch_tokens or 10**9, limits.max_batch_bytes // 4)
    for batch in batches:
        assert 1 <= len(batch) <= limits.max_batch_size
        assert len(batch) == 1 or sum(r.estimated_tokens for r in batch) <= most


@settings(deadline=None)
@given(LIMITS, SIZES)
def test_batches_are_full(limits: BatchLimits, sizes: list[int]) -> None:
    """A batch ends only where the next request would not have fitted."""
    batches = _batches(limits, _requests(sizes))
    most = min(limits.max_batch_tokens or 10**9, limits.max_batch_bytes // 4)
    for batch, following in itertools.pairwise(batches):
        tokens = sum(r.estimated_tokens for r in [*batch, following[0]])
        assert len(batch) == limits.max_batch_size or tokens > most


@pytest.mark.parametrize(
    ("limits", "sizes", "expected"),
    [
        (BatchLimits(max_batch_size=2), [1, 1, 1, 1, 1], [[1, 1], [1, 1], [1]]),
        (BatchLimits(max_batch_size=1), [1, 1], [[1], [1]]),
        (BatchLimits(max_batch_tokens=10), [5, 5, 1, 9, 1], [[5, 5], [1, 9], [1]]),
        (BatchLimits(max_batch_tokens=10), [99], [[99]]),
        (BatchLimits(max_batch_tokens=10), [1, 99, 1], [[1], [99], [1]]),
        (BatchLimits(max_batch_tokens=10), [99, 0, 10], [[99], [0, 10]]),
        (BatchLimits(max_batch_bytes=40), [5, 5, 1], [[5, 5], [1]]),
        (BatchLimits(max_batch_bytes=3), [0, 0, 1], [[0, 0], [1]]),
        (BatchLimits(max_batch_tokens=9, max_batch_bytes=40), [5, 5], [[5], [5]]),
        (BatchLimits(max_batch_tokens=99, max_batch_bytes=40), [5, 5, 1], [[5, 5], [1]]),
        (BatchLimits(), [], []),
        (BatchLimits(), [1] * 257, [[1] * 256, [1]]),
        (BatchLimits(), [1 << 21, 1, 1], [[1 << 21], [1, 1]]),
    ],
)
def test_limits(limits: BatchLimits, sizes: list[int], expected: list[list[int]]) -> None:
    """Limits work alone and together, also if none is reached or one request exceeds one."""
    assert _sizes(limits, sizes) == expected


def test_flush_starts_anew() -> None:
    """After a flush neither requests nor their tokens are left."""
    batcher = Batcher(BatchLimits(max_batch_tokens=10))
    first, second, third = _requests([9, 5, 5])
    assert batcher.flush() is None
    assert batcher.add(first) is None
    assert batcher.flush() == [first]
    assert batcher.flush() is None
    assert batcher.add(second) is None
    assert batcher.add(third) is None
    assert batcher.flush() == [second, third]


@pytest.mark.parametrize("name", ["max_batch_size", "max_batch_tokens", "max_batch_bytes"])
@pytest.mark.parametrize("value", [0, -1])
def test_invalid_limits(name: str, value: int) -> None:
    """Impossible limits are rejected with the name, the value and the remedy."""
    message = f"{name} is {value}, but must be at least 1"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        BatchLimits(**{name: value})


def test_bundles_do_not_mix() -> None:
    """A bundle's rest is flushed at its end into the global window, and the next starts empty."""
    dofn = _BatchDoFn(BatchLimits(max_batch_size=2), False)
    a, b, c, d = _requests([1, 1, 1, 1])
    dofn.start_bundle()
    assert [batch for request in (a, b, c) for batch in dofn.process(request)] == [[a, b]]
    (left,) = dofn.finish_bundle()
    assert left.value == [c]
    assert left.windows == (GlobalWindow(),) or left.windows == [GlobalWindow()]
    assert left.timestamp == GlobalWindow().max_timestamp()
    dofn.start_bundle()
    assert list(dofn.process(d)) == []
    assert [last.value for last in dofn.finish_bundle()] == [[d]]
    dofn.start_bundle()
    assert list(dofn.finish_bundle()) == []


def test_transform() -> None:
    """Every request is in exactly one batch within the limit, also after a shuffle."""
    requests = _requests([1] * 23)
    with pipeline() as root:
        batches = (
            root
            | beam.Create(requests)
            | beam.Reshuffle()
            | BatchRequests(limits=BatchLimits(max_batch_size=5))
        )
        assert batches.element_type == typehints.List[Request]
        assert_that(batches | beam.FlatMap(lambda batch: batch), equal_to(requests))
        too_long = batches | beam.Filter(lambda batch: not 1 <= len(batch) <= 5)
        assert_that(too_long, equal_to([]), label="limits")


def test_transform_without_input() -> None:
    """Without requests there is no batch."""
    with pipeline() as root:
        nothing = root | beam.Create([]).with_output_types(Request) | BatchRequests()
        assert_that(nothing, equal_to([]))
