"""The params of a run: requests travel without them, and the model gets them."""

import dataclasses
import json
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from tests.transforms import pipeline, record_of
from transforms.inference.handler import InferenceHandler
from transforms.inference.infer import Infer
from transforms.records.coders import RequestCoder
from transforms.records.errors import RunError
from transforms.records.records import Completion, Params, Request
from transforms.requests.batch import BatchRequests
from transforms.requests.render import RenderRequests, RequestSpec, render_request

SPEC = RequestSpec(
    prompt="Say {{ text }}",
    params={"generation_config": {"temperature": 0.5}, "output_schema": {"type": "object"}},
)
PLAIN = RequestSpec(prompt="Say {{ text }}")
RECORDS = [record_of(str(n), text=f"{n}") for n in range(3)]
MISMATCH = (
    r"request '0' was rendered with params [0-9a-f]{12}, but would be sent with empty "
    r"params: RenderRequests and Infer \(or InferenceHandler\) have different params; pass "
    r"the same to both, such as Infer\(params=spec\.params\) with the spec of RenderRequests; if an "
    r"update of a streaming job changed them, set allow_earlier_params"
)


@dataclasses.dataclass(frozen=True)
class EchoBackend:
    """Answers with the params that its client got."""

    family: str = "echo"
    model: str = "m"

    async def open(self) -> "EchoBackend":
        return self

    async def generate(self, request: Request) -> Completion:
        return Completion(json.dumps(dict(request.params)))

    async def close(self) -> None:
        pass


def _travelled(spec: RequestSpec) -> list[Request]:
    coder = RequestCoder()
    return [coder.decode(coder.encode(render_request(record, spec))) for record in RECORDS]


def _asked_with(outcomes: Any) -> list[Any]:
    return [json.loads(outcome.completion.output) for outcome in outcomes]


@pytest.mark.parametrize("across_bundles", [False, True])
def test_requests_are_encoded_without_params(across_bundles: bool) -> None:
    """The client reads the params of a request that was encoded on its way, or was not."""
    with pipeline() as root:
        requests, _ = root | beam.Create(RECORDS) | RenderRequests(spec=SPEC)
        batches = requests | beam.Reshuffle() | BatchRequests(across_bundles=across_bundles)
        answered, _ = batches | Infer(backend=EchoBackend(), params=SPEC.params)
        asked = answered | beam.Map(lambda answer: json.loads(answer.completion.output))
        assert_that(asked, equal_to([dict(SPEC.params)] * 3))


def test_only_their_key_is_encoded() -> None:
    """A request's bytes grow by 12 with an output schema of any size."""
    large = dataclasses.replace(SPEC, params={"output_schema": {"description": "x" * 10_000}})
    sizes = [
        len(RequestCoder().encode(render_request(RECORDS[0], spec))) for spec in (PLAIN, large)
    ]
    assert sizes[1] - sizes[0] == 12
    assert [request.params.is_sealed for request in _travelled(large)] == [True] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize("spec", [SPEC, PLAIN])
@pytest.mark.parametrize("travelled", [False, True])
def test_the_handler_restores_them(spec: RequestSpec, travelled: bool) -> None:
    """The handler restores params in any RunInference; they may be any mapping."""
    requests = _travelled(spec) if travelled else [render_request(r, spec) for r in RECORDS]
    handler = InferenceHandler(EchoBackend(), params=dict(spec.params))
    assert _asked_with(handler.run_inference(requests, handler.load_model())) == [spec.params] * 3


def test_empty_params_need_nothing() -> None:
    """The shortest pipeline needs no params."""
    answered, _ = [_travelled(PLAIN)] | Infer(backend=EchoBackend())
    assert _asked_with(answered) == [{}] * 3


@pytest.mark.parametrize("travelled", [False, True])
def test_a_mismatch_is_an_error_at_the_first_record(travelled: bool) -> None:
    """A mismatch is an error at the first record, on a laptop as on many workers."""
    requests = _travelled(SPEC) if travelled else [render_request(r, SPEC) for r in RECORDS]
    handler = InferenceHandler(EchoBackend())
    with pytest.raises(RunError, match=f"^{MISMATCH}$"):
        handler.run_inference(requests, handler.load_model())
    with pytest.raises(Exception, match=MISMATCH):
        _ = [requests] | Infer(backend=EchoBackend())
    with pytest.raises(Exception, match="would be sent with params"):
        _ = [requests] | Infer(backend=EchoBackend(), params=Params({"seed": 1}))


def test_an_updated_job_asks_with_its_own_params() -> None:
    """Requests in flight from the earlier job get the updated job's params, and none is lost."""
    requests = _travelled(SPEC)
    handler = InferenceHandler(
        EchoBackend(), params={"generation_config": {"seed": 1}}, allow_earlier_params=True
    )
    outcomes = handler.run_inference(requests, handler.load_model())
    assert _asked_with(outcomes) == [{"generation_config": {"seed": 1}}] * 3
    answered, unserved = [requests] | Infer(backend=EchoBackend(), allow_earlier_params=True)
    assert _asked_with(answered) == [{}] * 3
    assert unserved == []
    fingerprints = {answer.fingerprint for answer in answered}
    assert len(fingerprints | {request.fingerprint for request in requests}) == 6
