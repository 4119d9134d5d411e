"""Order: the text that a model reads decides, and equal prefixes end up together."""

import doctest
import itertools
import random
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that

from tests.transforms import pipeline
from transforms.records.errors import ConfigurationError
from transforms.records.records import Record, Request
from transforms.requests import order
from transforms.requests.batch import BatchLimits, BatchRequests
from transforms.requests.order import OrderByPrefix, group_of, prefix_text


def _request(body: dict[str, Any], name: str = "1") -> Request:
    return Request(Record(name, {}), body, {}, name, 1)


def _texts(count: int) -> list[Request]:
    """Texts of three prefixes, shuffled."""
    texts = [f"{'abc'[n % 3] * 40} {n:03}" for n in range(count)]
    random.Random(1).shuffle(texts)
    return [_request({"text": text}, text) for text in texts]


def test_examples() -> None:
    """The docstring's example runs as written."""
    assert doctest.testmod(order).failed == 0


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"text": "embed me"}, "embed me"),
        ({"request": {"model": "m", "prompt": "p"}}, "p"),
        ({"request": {"max_tokens": 3, "messages": [{"role": "user", "content": "c"}]}}, "c"),
        ({"request": {"contents": [{"role": "user", "parts": [{"text": "g"}]}]}}, "g"),
        ({"request": {"b": 1, "a": 2}}, '{"a":2,"b":1}'),
        ({"instance": 7}, "7"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "t"}, "u"]}]},
            "t\nu",
        ),
        ({"messages": [{"role": "user", "content": None}]}, '{"content":null,"role":"user"}'),
    ],
)
def test_text(body: dict[str, Any], text: str) -> None:
    """The text is read from chats, prompts, embeddings, whole requests and instances."""
    assert prefix_text(_request(body)) == text


def test_groups() -> None:
    """Common beginnings share few groups, the same in every process; others share none."""
    requests = _texts(300)
    groups = {
        letter: {group_of(one, 40, 4) for one in requests if prefix_text(one)[0] == letter}
        for letter in "abc"
    }
    assert [len(found) for found in groups.values()] == [4, 4, 4]
    assert len(set().union(*groups.values())) == 12
    assert group_of(_request({"text": "x\ud800"}), 10, 8) == group_of(
        _request({"text": "x\ud800"}), 10, 8
    )


def test_a_batch_in_order() -> None:
    """Each batch is ordered by itself, and stays in order of arrival by default."""
    requests = _texts(20)
    limits = BatchLimits(max_batch_size=10)
    plain = requests | BatchRequests(limits=limits)
    assert list(itertools.chain(*plain)) == requests
    ordered = requests | BatchRequests(limits=limits, order_by_prefix=True)
    assert [sorted(batch, key=prefix_text) for batch in plain] == ordered


def _runs(requests: list[Request]) -> int:
    """The number of changes of the prefix."""
    return sum(1 for _ in itertools.groupby(requests, key=lambda one: prefix_text(one)[0]))


def test_a_data_set_in_order() -> None:
    """A data set keeps all requests in few runs of a prefix and full batches across groups."""
    requests = _texts(300)

    def check(batches: list[list[Request]]) -> None:
        found = list(itertools.chain(*batches))
        assert sorted(found, key=prefix_text) == sorted(requests, key=prefix_text)
        assert _runs(found) < 30 < _runs(requests)

    with pipeline() as root:
        batches = (
            root
            | beam.Create(requests)
            | OrderByPrefix(prefix_chars=40, shards=2)
            | BatchRequests(limits=BatchLimits(max_batch_size=50), order_by_prefix=True)
        )
        assert_that(batches, check)


@pytest.mark.parametrize("name", ["prefix_chars", "shards"])
def test_values_out_of_range(name: str) -> None:
    """A value out of range is rejected with the value."""
    with pytest.raises(ConfigurationError, match=f"{name} is 0, but must be at least 1"):
        OrderByPrefix(**{name: 0})
