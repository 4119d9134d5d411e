"""Inference: RunInference with a backend yields one typed outcome per request."""

import collections
import dataclasses
import hashlib
import pickle
import zlib
from typing import Any, get_args

import apache_beam as beam
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.backends.fake import FakeBackend
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits
from transforms.inference.handler import InferenceHandler
from transforms.inference.infer import Infer
from transforms.records.causes import Cause
from transforms.records.errors import BackendUnusable, Blocked, Forbidden
from transforms.records.records import Answer, Completion, DeadLetter, Record, Request, Usage
from transforms.requests.batch import BatchLimits, BatchRequests

RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
QUICK = DispatchLimits(max_attempts=2, first_backoff_s=0.001, max_backoff_s=0.001, patience_s=0)


def _requests(count: int, text: str = "hello") -> list[Request]:
    return [
        Request(
            Record(f"{n}", {"n": n}, {"key": "value"}, "file", 7),
            {"messages": [{"role": "user", "content": f"{text} {n}"}]},
            {},
            hashlib.sha256(b"%d" % n).hexdigest(),
            10,
        )
        for n in range(count)
    ]


@dataclasses.dataclass(frozen=True)
class ScriptedBackend:
    """Answers record ``n`` as ``script`` says: an exception to raise, else an output."""

    script: tuple[Any, ...]
    family: str = "scripted"
    model: str = "m"

    async def open(self) -> "ScriptedClient":
        return ScriptedClient(self.script)


class ScriptedClient:
    """The client of a `ScriptedBackend`."""

    def __init__(self, script: tuple[Any, ...]) -> None:
        self.script = script

    async def generate(self, request: Request) -> Completion:
        reply = self.script[request.record.fields["n"]]
        if isinstance(reply, Exception):
            raise reply
        return Completion(reply)

    async def close(self) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class ClosedBackend:
    """A backend that cannot be opened."""

    family: str = "closed"
    model: str = "m"

    async def open(self) -> Any:
        raise BackendUnusable("model weights are missing: give --model")


# The handler


def test_handler_outcomes() -> None:
    """Each request has one outcome in order; dead letters keep record and paid answer."""
    refused = Blocked(
        "blocked: SAFETY", finish_reason="SAFETY", output="part", usage=Usage(3), model_version="v"
    )
    handler = InferenceHandler(ScriptedBackend(("a", refused, "c")), QUICK)
    requests = _requests(3)
    first, dead, last = handler.run_inference(requests, handler.load_model())
    for request, outcome, output in ((requests[0], first, "a"), (requests[2], last, "c")):
        assert isinstance(outcome, Answer)
        assert (outcome.record, outcome.fingerprint) == (request.record, request.fingerprint)
        assert (outcome.completion.output, outcome.completion.attempts) == (output, 1)
    assert dead == DeadLetter(
        stage="infer",
        error_type="blocked",
        error_message="blocked: SAFETY",
        record_id="1",
        attempts=1,
        fingerprint=requests[1].fingerprint,
        finish_reason="SAFETY",
        output="part",
        usage=Usage(3),
        model_version="v",
        attributes={"key": "value"},
        read_minute=7,
        fields={"n": 1},
    )


def test_handler_unexpected() -> None:
    """An unexpected exception is ``internal``, with a stack trace to the line that raised."""
    handler = InferenceHandler(ScriptedBackend((ZeroDivisionError("boom"), "b")), QUICK)
    dead, answer = handler.run_inference(_requests(2), handler.load_model())
    assert isinstance(answer, Answer)
    assert isinstance(dead, DeadLetter)
    assert (dead.error_type, dead.error_message) == ("internal", "ZeroDivisionError: boom")
    assert (dead.retryable, dead.attempts) == (False, 1)
    assert dead.stacktrace is not None
    assert dead.stacktrace.startswith("Traceback (most recent call last):\n")
    assert "raise reply\n" in dead.stacktrace
    assert dead.stacktrace.endswith("ZeroDivisionError: boom\n")


def test_handler_is_small_and_picklable() -> None:
    """The handler can be pickled, and sizing a batch costs nothing."""
    handler = InferenceHandler(FakeBackend(), QUICK, max_batch_size=7)
    copy = pickle.loads(pickle.dumps(handler))
    assert copy.batch_elements_kwargs()["max_batch_size"] == 7
    assert copy.get_num_bytes(_requests(3)) == 3 * 10 * 4
    assert copy.get_metrics_namespace() == "batch_inference"
    assert isinstance(copy.load_model(), Dispatcher)


def test_backend_that_cannot_be_opened() -> None:
    """The run stops with the backend's message, and no record counts as failed."""
    with pytest.raises(BackendUnusable, match=r"^model weights are missing: give --model$"):
        InferenceHandler(ClosedBackend()).load_model()
    with pytest.raises(Exception, match="model weights are missing: give --model"):
        _ = [_requests(2)] | Infer(backend=ClosedBackend())


@pytest.mark.filterwarnings("ignore:Polyfit may be poorly conditioned")  # Beam's estimator
@pytest.mark.parametrize("max_batch_size", [1, 3, 256])
def test_handler_in_plain_run_inference(max_batch_size: int) -> None:
    """Plain RunInference may use the handler with Beam's own batching and lose no record."""
    script = tuple(Blocked("no") if n % 7 == 3 else f"answer {n}" for n in range(100))
    handler = InferenceHandler(ScriptedBackend(script), QUICK, max_batch_size=max_batch_size)
    with beam.Pipeline(RUNNER) as root:
        outcomes = root | beam.Create(_requests(100)) | RunInference(handler)
        found = outcomes | beam.Map(
            lambda o: (
                (o.record.record_id, o.completion.output)
                if isinstance(o, Answer)
                else (o.record_id, o.error_type)
            )
        )
        expected = [
            (f"{n}", "blocked" if n % 7 == 3 else f"answer {n}") for n in range(100)
        ]  # fmt: skip
        assert_that(found, equal_to(expected))


# The transform


def _infer(backend: Any, batches: list[list[Request]], limits: DispatchLimits = QUICK) -> Any:
    """The answers and the dead letters, as lists."""
    return batches | Infer(backend=backend, limits=limits)


def test_infer_outputs() -> None:
    """Answers and failures are separate outputs with their own types."""
    answered, unserved = _infer(
        ScriptedBackend(("a", Blocked("no"), "c")), [_requests(3)[:2], _requests(3)[2:]]
    )
    assert sorted((a.record.record_id, a.completion.output) for a in answered) == [
        ("0", "a"),
        ("2", "c"),
    ]
    assert {type(answer) for answer in answered} == {Answer}
    assert [(d.stage, d.record_id, d.error_type) for d in unserved] == [("infer", "1", "blocked")]


def test_infer_types() -> None:
    """Beam knows the output types, and so uses our coders."""
    root = beam.Pipeline(RUNNER)
    answered, unserved = (
        root | beam.Create([_requests(1)]) | Infer(backend=FakeBackend(), limits=QUICK)
    )
    assert answered.element_type is Answer
    assert unserved.element_type is DeadLetter


def test_infer_fatal() -> None:
    """Rejected credentials stop the run, also with a client that answers batch calls."""
    for backend in (
        ScriptedBackend((Forbidden("403: no permission", cause=Cause.CREDENTIALS),) * 3),
        FakeBackend(faults={"forbidden": 1}),
    ):
        with pytest.raises(Exception, match=r"403: no permission|fake backend: forbidden"):
            _infer(backend, [_requests(3)])


_FAULTS = {
    "invalid_request": 0.03,
    "too_large": 0.02,
    "unavailable": 0.03,
    "timeout": 0.02,
    "forbidden": 0.01,
    "blocked": 0.05,
    "empty_output": 0.04,
    "truncated": 0.03,
    "transient:unavailable": 0.05,
    "transient:rate_limited": 0.05,
}


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("latency_ms", [0, 0.001])
def test_thousand_records(size: int, latency_ms: float) -> None:
    """Each of a thousand records has one outcome with the error type of its own fault."""
    requests = _requests(1000)
    backend = FakeBackend(faults=_FAULTS, latency_ms=latency_ms)
    batches = requests | BatchRequests(limits=BatchLimits(max_batch_size=size))
    assert max(map(len, batches)) == size
    answered, unserved = _infer(backend, batches)
    outcomes = {a.record.record_id: "fine" for a in answered}
    outcomes |= {d.record_id: d.error_type for d in unserved}
    assert len(answered) + len(unserved) == len(outcomes) == 1000
    assert outcomes == {request.record.record_id: _fault(request) for request in requests}
    assert collections.Counter(d.error_type for d in unserved if d.retryable) == {
        error_type: count
        for error_type, count in collections.Counter(outcomes.values()).items()
        if error_type in ("unavailable", "timeout")
    }


def _fault(request: Request) -> str:
    """The fake's fault for a request, computed independently: a CRC draws from the shares."""
    draw, below = zlib.crc32(request.fingerprint.encode()) / 2**32, 0.0
    for name, share in _FAULTS.items():
        below += share
        if draw < below:
            return "fine" if name.startswith("transient:") else name
    return "fine"


def test_internal_costs_its_record_alone() -> None:
    """A request that crashes the whole batch is one dead letter among 1,000 records."""
    requests = _requests(999)
    requests.insert(500, _requests(1, "[[fake:internal]]")[0])
    answered, unserved = _infer(FakeBackend(), [requests])
    assert len(answered) == 999
    assert [(d.error_type, d.error_message) for d in unserved] == [
        ("internal", "RuntimeError: an unforeseen crash")
    ]


@given(st.lists(st.sampled_from(["fine", "blocked", "timeout", "internal"]), max_size=12))
@settings(max_examples=20, deadline=None)
def test_any_mixture_has_one_outcome_each(kinds: list[str]) -> None:
    """For any faults and batches, the handler gives one outcome per request, in order."""
    requests = []
    for n, kind in enumerate(kinds):
        text = "hello" if kind == "fine" else f"[[fake:{kind}]]"
        requests.append(dataclasses.replace(_requests(1, text)[0], fingerprint=f"{n:064x}"))
    handler = InferenceHandler(FakeBackend(), QUICK)
    outcomes = list(handler.run_inference(requests, handler.load_model()))
    assert [o.fingerprint for o in outcomes] == [r.fingerprint for r in requests]
    assert ["fine" if isinstance(o, Answer) else o.error_type for o in outcomes] == kinds


def test_handler_type() -> None:
    """RunInference learns the types of the handler."""
    (base,) = InferenceHandler.__orig_bases__  # type: ignore[attr-defined]
    assert get_args(base) == (Request, Answer | DeadLetter, Dispatcher)
