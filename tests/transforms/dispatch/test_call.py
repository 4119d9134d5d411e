"""How many requests fit into one call, and what the results of a call show."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.backends.base import CallLimits
from transforms.dispatch.call import Response, TokenEstimate, grouped, verdict
from transforms.dispatch.completion_queue import CompletionQueue
from transforms.dispatch.job import Job
from transforms.records import json_values
from transforms.records.causes import Verdict
from transforms.records.errors import Blocked, RateLimited, RequestTimeout, Unavailable
from transforms.records.records import Completion, Record, Request, Usage


def job(tokens: int = 1, text: str = "") -> Job:
    """A job whose request has this many tokens and this text."""
    request = Request(Record("1", {}), {"text": text}, {}, "f", tokens)
    return Job(0, request, 0, None, CompletionQueue())


def sizes(jobs: list[Job], limits: CallLimits) -> list[int]:
    """The number of requests in each call."""
    return [len(part) for part in grouped(jobs, limits)]


def test_no_limits() -> None:
    """Without limits all requests are one call."""
    assert sizes([job()] * 5, CallLimits(max_requests=None)) == [5]


def test_max_requests() -> None:
    """Every call but the last is full."""
    assert sizes([job()] * 7, CallLimits(max_requests=3)) == [3, 3, 1]
    assert sizes([job()] * 2, CallLimits()) == [1, 1]


def test_max_tokens() -> None:
    """A call ends before the request that would exceed the limit, which one alone may exceed."""
    jobs = [job(tokens) for tokens in (4, 6, 1, 30, 10)]
    assert sizes(jobs, CallLimits(max_requests=None, max_tokens=10)) == [2, 1, 1, 1]


def test_max_bytes() -> None:
    """The limit in bytes counts JSON in UTF-8."""
    body = len(json_values.dumps({"text": "é" * 10}))
    assert body == len('{"text":""}') + 20
    jobs = [job(text="é" * 10)] * 5
    limits = [CallLimits(max_requests=None, max_bytes=2 * body + more) for more in (-1, 0)]
    assert [sizes(jobs, limit) for limit in limits] == [[1] * 5, [2, 2, 1]]


@given(
    st.lists(st.integers(0, 20), min_size=1),
    st.none() | st.integers(1, 8),
    st.none() | st.integers(1, 40),
)
def test_calls_keep_their_limits(
    tokens: list[int], max_requests: int | None, max_tokens: int | None
) -> None:
    """Each request is in one call, in order; no call exceeds a limit or has room for another."""
    jobs = [job(each) for each in tokens]
    limits = CallLimits(max_requests=max_requests, max_tokens=max_tokens)
    parts = list(grouped(jobs, limits))
    assert [each for part in parts for each in part] == jobs

    def fits(part: list[Job]) -> bool:
        taken = sum(each.request.estimated_tokens for each in part)
        return len(part) <= (max_requests or len(jobs)) and taken <= (max_tokens or sum(tokens))

    assert all(fits(list(part)) or len(part) == 1 for part in parts)
    for part, following in itertools.pairwise(parts):
        assert not fits([*part, following[0]])


@pytest.mark.parametrize(
    ("responses", "said"),
    [
        ([Completion("")], Verdict.SERVED),
        ([RateLimited("429"), Completion("")], Verdict.SERVED),
        ([RateLimited("429"), Blocked("no")], Verdict.SERVED),
        ([RateLimited("429"), KeyError("a bug")], Verdict.SERVED),
        ([RateLimited("429"), Unavailable("500")], Verdict.LIMITED),
        ([RequestTimeout("504")], Verdict.OVERLOADED),
    ],
)
def test_verdict(responses: list[Response], said: Verdict) -> None:
    """One served request shows that the backend works."""
    assert verdict(responses) is said


def test_tokens_of_calls() -> None:
    """Prompts and recent answers predict a call's tokens; a server's count replaces them."""
    tokens = TokenEstimate()
    assert tokens.of_requests([job(5), job(6)]) == 11
    billed = Completion("", usage=Usage(4, None, 16, 16))
    assert tokens.of_responses([billed, billed]) == 72
    learnt = tokens.of_requests([job(5)]) - 5
    assert 3 < learnt < 4
    assert tokens.of_requests([job(5), job(6)]) == 11 + 2 * learnt
    assert tokens.of_responses([billed, Completion("")]) is None
    assert tokens.of_responses([billed, Unavailable("500")]) == 36
    assert tokens.of_responses([Unavailable("500", usage=Usage(7, None, 0))]) == 7
