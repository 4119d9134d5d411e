"""The fake: the same request always meets the same answer and the same fault."""

import asyncio
import hashlib
import json
import pickle
import re
from collections import Counter
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.backends import opened, prompt, request_of
from transforms.backends.base import BatchClient
from transforms.backends.fake import FAULTS, FakeBackend
from transforms.records.causes import Cause
from transforms.records.errors import (
    Blocked,
    ConfigurationError,
    EmptyOutput,
    InvalidRequest,
    RateLimited,
    RecordError,
    Truncated,
    Unavailable,
)
from transforms.records.records import Completion, Request, Usage

FINGERPRINT = hashlib.sha256(b"1").hexdigest()


def _requests(count: int, text: str = "hello") -> list[Request]:
    body = {"messages": [{"role": "user", "content": text}]}
    return [
        request_of(body, fingerprint=hashlib.sha256(b"%d" % number).hexdigest())
        for number in range(count)
    ]


def _many(backend: FakeBackend, requests: list[Request], times: int = 1) -> list[Any]:
    async def ask() -> list[Any]:
        async with opened(backend) as client:
            return [await client.generate_many(requests) for _ in range(times)]

    return asyncio.run(ask())


def _one(backend: FakeBackend, request: Request) -> Completion:
    async def ask() -> Completion:
        async with opened(backend) as client:
            completion: Completion = await client.generate(request)
            return completion

    return asyncio.run(ask())


def test_answer() -> None:
    """An answer has output, tokens, finish reason and model, the same alone and among many."""
    request = request_of({"messages": []}, fingerprint=FINGERPRINT)
    expected = Completion(
        output=f"fake answer {FINGERPRINT[:12]}",
        finish_reason="STOP",
        usage=Usage(input_tokens=7, output_tokens=3),
        model_version="fake",
    )
    assert _one(FakeBackend(), request) == expected
    assert _many(FakeBackend(), [request, request]) == [[expected, expected]]


def test_embedding() -> None:
    """An embedding depends on nothing but the fingerprint."""
    backend = FakeBackend(task="embed", embedding_dimensions=3)
    first = _one(backend, request_of({"text": "a"}, fingerprint=FINGERPRINT))
    again = _one(backend, request_of({"text": "b"}, fingerprint=FINGERPRINT))
    other = _one(backend, request_of({"text": "a"}))
    assert first == again
    assert first.embedding != other.embedding
    assert first.usage == Usage(input_tokens=7)
    assert first.embedding is not None
    assert len(first.embedding) == 3
    assert all(-1 <= value < 1 for value in first.embedding)


def test_latency_makes_it_no_batch_client() -> None:
    """With a latency, requests are answered one by one, as by a server."""

    async def kinds() -> tuple[bool, bool]:
        async with opened(FakeBackend()) as quick, opened(FakeBackend(latency_ms=1)) as slow:
            await slow.generate(prompt("a"))
            return isinstance(quick, BatchClient), isinstance(slow, BatchClient)

    assert asyncio.run(kinds()) == (True, False)


def test_shares() -> None:
    """Each fault hits its share of the records, and the same records in every run."""
    faults = {"blocked": 0.1, "truncated": 0.05, "rate_limited": 0.02}
    first, again = _many(FakeBackend(faults=faults), _requests(20_000), times=2)
    counts = Counter(type(outcome) for outcome in first)
    assert counts == Counter(type(outcome) for outcome in again)
    assert [type(outcome) for outcome in first] == [type(outcome) for outcome in again]
    assert counts == {Completion: 16615, Blocked: 1980, Truncated: 990, RateLimited: 415}


def test_soft_failures_keep_their_answers() -> None:
    """Soft failures keep tokens, text, finish reason and model, as a real backend's do."""
    (outcomes,) = _many(FakeBackend(faults={"truncated": 1}), _requests(1))
    (error,) = outcomes
    assert isinstance(error, Truncated)
    assert error.output == f"fake answer {hashlib.sha256(b'0').hexdigest()[:12]}"
    assert (error.finish_reason, error.model_version) == ("TRUNCATED", "fake")
    assert error.usage == Usage(input_tokens=7, output_tokens=3)
    (outcomes,) = _many(FakeBackend(faults={"empty_output": 1}), _requests(1))
    assert isinstance(outcomes[0], EmptyOutput)
    assert (outcomes[0].output, outcomes[0].usage) == (None, Usage(7, None, 0))


def test_transient_faults_fail_the_first_attempt_only() -> None:
    """Transient faults fail only the first attempt of a record."""
    backend = FakeBackend(faults={"transient:unavailable": 0.5})
    requests = _requests(100)
    first, second = _many(backend, requests, times=2)
    failed = [place for place, outcome in enumerate(first) if isinstance(outcome, Unavailable)]
    assert len(failed) == 51
    assert [type(second[place]) for place in failed] == [Completion] * 51


def test_internal_is_a_crash_of_the_whole_call() -> None:
    """An internal fault crashes the whole call; tried alone, only its own record fails."""

    async def ask() -> list[Any]:
        good, bad = prompt("fine"), prompt("[[fake:internal]]")
        async with opened(FakeBackend()) as client:
            with pytest.raises(RuntimeError, match=r"^an unforeseen crash$"):
                await client.generate_many([good, bad])
            alone = (client.generate(request) for request in (good, bad))
            return await asyncio.gather(*alone, return_exceptions=True)

    fine, crash = asyncio.run(ask())
    assert isinstance(fine, Completion)
    assert type(crash) is RuntimeError


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "internal"])
def test_markers(name: str) -> None:
    """A marker forces its fault for exactly its record, wherever it is in the body."""
    marker = f"[[fake:{name}]]"
    bodies: list[Any] = [
        {"messages": [{"role": "user", "content": f"a {marker} b"}]},
        {"messages": [{"role": "system", "content": marker}, {"role": "user", "content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": marker}]}]},
        {"text": marker},
        {"instance": [marker]},
        {"request": {"contents": marker}},
    ]
    requests = [request_of(body, fingerprint=f"{number}") for number, body in enumerate(bodies)]
    (outcomes,) = _many(FakeBackend(), [*requests, prompt("fine")])
    assert isinstance(outcomes.pop(), Completion)
    if name == "schema_violation":
        assert {outcome.output for outcome in outcomes} == {"not what the schema says"}
        return
    for outcome in outcomes:
        assert isinstance(outcome, RecordError)
        assert outcome.error_type == name.removeprefix("transient:")
        assert outcome.cause is type(outcome).cause


def test_unknown_marker() -> None:
    """An unknown marker is an error, so that a typo in a test shows."""
    with pytest.raises(InvalidRequest, match=r"^unknown fault 'oops'; known: invalid_request, "):
        _one(FakeBackend(), prompt("[[fake:oops]]"))


def test_forbidden_for_all_is_fatal() -> None:
    """Forbidden for all is fatal, like a missing permission; a share of records is not."""
    for share, cause in ((1, Cause.CREDENTIALS), (1.0, Cause.CREDENTIALS), (0.999, Cause.REQUEST)):
        (outcomes,) = _many(FakeBackend(faults={"forbidden": share}), _requests(1))
        assert outcomes[0].cause is cause


_SCHEMA = {
    "type": "object",
    "properties": {
        "category": {"enum": ["billing", "other"]},
        "kind": {"const": "k"},
        "summary": {"type": "string", "minLength": 2},
        "count": {"type": "integer", "minimum": 3},
        "score": {"type": ["number", "null"]},
        "urgent": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        "nested": {"$ref": "#/$defs/nested"},
        "either": {"anyOf": [{"type": "null"}, {"type": "string"}]},
    },
    "required": ["category", "nested"],
    "$defs": {"nested": {"properties": {"a": {"type": "array"}}}},
}


def test_schema() -> None:
    """With an output schema the answer is a small object that satisfies it."""
    output = _one(FakeBackend(), prompt("a", output_schema=_SCHEMA)).output or ""
    assert json.loads(output) == {
        "category": "billing",
        "kind": "k",
        "summary": "xx",
        "count": 3,
        "score": 0,
        "urgent": False,
        "tags": ["", ""],
        "nested": {"a": []},
        "either": None,
    }
    jsonschema.validate(json.loads(output), _SCHEMA)


@given(st.text(), st.text(alphabet="0123456789abcdef", min_size=1))
def test_any_prompt_has_one_outcome(text: str, fingerprint: str) -> None:
    """Any prompt has the same outcome alone and among many."""
    body = {"messages": [{"role": "user", "content": text}]}
    request = request_of(body, fingerprint=fingerprint)
    assert _many(FakeBackend(), [request]) == [[_one(FakeBackend(), request)]]


_SHARES = "it must be an object of shares from 0 to 1, together at most 1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latency_ms": -1}, "latency_ms is -1: it must be a number of milliseconds, 0 or more"),
        ({"latency_ms": "1"}, "latency_ms is '1': it must be a number of milliseconds, 0 or more"),
        (
            {"embedding_dimensions": 0},
            "embedding_dimensions is 0: it must be a whole number above 0",
        ),
        (
            {"embedding_dimensions": True},
            "embedding_dimensions is True: it must be a whole number above 0",
        ),
        ({"faults": {"oops": 1}}, f"unknown fault 'oops'; known: {', '.join(FAULTS)}"),
        ({"faults": ["blocked"]}, f"faults is ['blocked']: {_SHARES}"),
        ({"faults": 5}, f"faults is 5: {_SHARES}"),
        ({"faults": {"blocked": 2}}, f"faults is {{'blocked': 2}}: {_SHARES}"),
        (
            {"faults": {"blocked": 0.6, "timeout": 0.6}},
            f"faults is {{'blocked': 0.6, 'timeout': 0.6}}: {_SHARES}",
        ),
    ],
)
def test_wrong_options(options: Any, message: str) -> None:
    """A wrong option is rejected with the value and the remedy."""
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        FakeBackend(**options)


def test_backend_is_a_picklable_description() -> None:
    """The backend can be pickled for workers."""
    backend = FakeBackend(faults={"blocked": 0.5})
    assert pickle.loads(pickle.dumps(backend)) == backend
    assert (backend.family, backend.model) == ("fake", "fake")
