"""The requests that vLLM gets, and the outcomes of records when its server crashes.

The server is the stand-in of `tests.transforms.backends.vllm`; `tests/vllm` tests the real one.
"""

import asyncio
import dataclasses
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from apache_beam.ml.inference.base import RunInference

from tests.transforms.backends import opened, prompt, request_of
from tests.transforms.backends.vllm.servers import FAKE_VLLM, eventually, processes_of, starts
from transforms.backends.base import BatchClient, CallLimits
from transforms.backends.vllm import lease
from transforms.backends.vllm.backend import VLLMBackend, VLLMClient, _ready, body_of
from transforms.clients.openai_dialect import answer_of
from transforms.dispatch import loop
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits, Failure, Outcome
from transforms.inference.handler import InferenceHandler
from transforms.records.errors import BackendUnusable, InvalidRequest, Unavailable
from transforms.records.records import Answer, Completion, Record, Request

MODEL = VLLMBackend(model="tiny")
EMBED = VLLMBackend(model="tiny", task="embed")
BASE = VLLMBackend(model="tiny", api="completions")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of one server, all of whose processes have ended after the test."""
    folder = tmp_path_factory.mktemp("s")
    yield folder
    (folder / "release").touch()
    lease.end_all()
    eventually(lambda: not processes_of(folder))


def _backend(folder: Path, **fields: Any) -> VLLMBackend:
    variables = {
        "PYTHONPATH": FAKE_VLLM,
        "CUDA_VISIBLE_DEVICES": fields.pop("gpus", ""),
        "FAKE_STARTS": str(folder / "starts"),
        "FAKE_RELEASE": str(folder / "release"),
    }
    return VLLMBackend(
        model="tiny",
        python=sys.executable,
        folder=str(folder),
        environment=tuple(variables.items()),
        **fields,
    )


def _requests(*texts: str) -> list[Request]:
    return [
        Request(
            Record(str(number), {}),
            {"messages": [{"role": "user", "content": text}]},
            {},
            f"{number:064x}",
            1,
        )
        for number, text in enumerate(texts)
    ]


def _outcomes(
    backend: VLLMBackend,
    requests: Sequence[Request],
    meanwhile: Callable[[VLLMClient], None] = lambda _: None,
    **limits: Any,
) -> list[Outcome]:
    """The outcomes of requests through a dispatcher, as in a pipeline."""
    client = loop.run(backend.open())
    dispatcher = Dispatcher(client, DispatchLimits(first_backoff_s=0.05, **limits))
    thread = threading.Thread(target=meanwhile, args=(client,))
    thread.start()
    try:
        return dispatcher.answer(requests)
    finally:
        thread.join()


def _kill_full(server: Any, generation: int) -> None:
    """Kills a server once it is ready and has 32 of our requests."""

    def full() -> Any:
        state = server.lease.state
        there = (state.status, state.generation) == ("ready", generation)
        return state if there and server.in_flight == 32 else None

    os.kill(eventually(full).pid, signal.SIGKILL)


# Requests


def test_chat() -> None:
    """Parameters get vLLM's names; unknown ones pass through."""
    config = {"max_output_tokens": 5, "temperature": 0, "stop": ["x"], "seed": 1, "top_k": 3}
    path, body = body_of(prompt("hi", generation_config=config), MODEL)
    assert path == "chat/completions"
    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "temperature": 0,
        "stop": ["x"],
        "seed": 1,
        "top_k": 3,
    }


def test_structured_output_by_the_current_field() -> None:
    """Structured output is requested by ``response_format``, never by ``guided_json``."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    for backend in (MODEL, BASE):
        body = body_of(prompt("hi", output_schema=schema), backend)[1]
        assert body["response_format"]["json_schema"]["schema"] == schema
        assert not [name for name in body if name.startswith("guided")]


def test_ignored_fields_are_refused() -> None:
    """Fields that vLLM ignores are rejected, since the answer would lack the constraint."""
    with pytest.raises(InvalidRequest, match="vLLM silently ignores guided_json: use"):
        body_of(prompt("hi", request_options={"guided_json": {}}), MODEL)


def test_a_base_model_continues_text() -> None:
    """A base model gets the messages' texts without a chat template."""
    request = request_of({"messages": [{"content": "one"}, {"content": "two"}]})
    assert body_of(request, BASE) == ("completions", {"model": "tiny", "prompt": "one\n\ntwo"})
    with pytest.raises(InvalidRequest, match="whose content is text"):
        body_of(request_of({"messages": [{"content": [{"type": "text"}]}]}), BASE)


def test_embeddings() -> None:
    """Each embedding request has one text."""
    path, body = body_of(request_of({"text": "hi"}), EMBED)
    assert (path, body["input"]) == ("embeddings", "hi")


def test_only_embeddings_share_a_call(folder: Path) -> None:
    """Embeddings share a call of up to 32 texts by default, since vLLM has no limit of its own."""

    async def limits(**fields: Any) -> Any:
        async with opened(_backend(folder, **fields)) as client:
            return client.call_limits if isinstance(client, BatchClient) else None

    assert asyncio.run(limits()) is None
    lease.end_all()
    assert asyncio.run(limits(task="embed")) == CallLimits(max_requests=32)
    assert asyncio.run(limits(task="embed", max_texts_per_call=5)) == CallLimits(max_requests=5)


def test_many_texts_in_one_request(folder: Path) -> None:
    """Each text has its own vector; a bad text fails the call but lowers no limit alone."""
    backend = _backend(folder, task="embed")

    async def ask() -> Any:
        async with opened(backend) as client:
            texts = [request_of({"text": "x" * size}) for size in range(1, 33)]
            outcomes = await client.generate_many(texts)
            with pytest.raises(InvalidRequest, match="HTTP 400"):
                await client.generate_many([*texts[:3], request_of({"text": "POISON"})])
            odd = request_of({"text": "x"}, request_options={"guided_json": {}})
            with pytest.raises(InvalidRequest, match="vLLM silently ignores guided_json"):
                await client.generate_many([odd, odd])
            assert client._servers[0].in_flight == 0
            return outcomes, client.call_limits, client.wanted_in_flight()

    outcomes, limits, wanted = asyncio.run(ask())
    assert [one.embedding for one in outcomes] == [(0.5, float(size)) for size in range(1, 33)]
    assert (limits.max_requests, wanted) == (32, 0)


def test_a_text_that_kills_the_server(folder: Path) -> None:
    """A text that kills servers is found alone at last; the others go to the next server."""

    async def ask() -> Any:
        async with opened(_backend(folder, task="embed")) as client:
            texts = [
                dataclasses.replace(request_of({"text": text}), fingerprint=text)
                for text in ("a", "DIE", "b")
            ]
            for _ in range(4):
                client._suspects.crashed(f"DIE {texts[1].record.record_id}")
            return await client.generate_many(texts)

    first, killer, last = asyncio.run(ask())
    assert isinstance(killer, InvalidRequest)
    assert isinstance(first, Unavailable)
    assert first is last
    assert str(first) == "the vLLM server crashed (start 1) and is being restarted"


@pytest.mark.parametrize(
    ("whole", "path"),
    [
        ({"messages": [], "max_tokens": 7}, "chat/completions"),
        ({"prompt": "x", "max_tokens": 7}, "completions"),
    ],
)
def test_a_whole_request_has_parameters_of_its_own(whole: dict[str, Any], path: str) -> None:
    """A whole request's content decides the path, and only the model is filled in."""
    assert body_of(request_of({"request": whole}), MODEL) == (path, {"model": "tiny", **whole})


@pytest.mark.parametrize("whole", ["x", {"input": "x"}, {"max_tokens": 1}])
def test_a_request_that_does_not_fit_the_task(whole: Any) -> None:
    """An unfit request fails its record; the message says what is missing."""
    with pytest.raises(InvalidRequest, match="request"):
        body_of(request_of({"request": whole}), MODEL)


def test_logprobs_are_in_the_json_output() -> None:
    """Logprobs are in the JSON output if the request asks for them."""
    logprobs = {"content": [{"token": "a", "logprob": -0.5}]}
    choice = {"message": {"content": "a"}, "finish_reason": "stop", "logprobs": logprobs}
    completion = answer_of({"choices": [choice]}, "chat/completions", accept_truncated=False)
    assert completion.output == "a"
    assert completion.output_json == ('{"logprobs":{"content":[{"token":"a","logprob":-0.5}]}}')


def test_a_backend_can_be_pickled() -> None:
    """The backend can be pickled as part of a pipeline."""
    assert pickle.loads(pickle.dumps(MODEL)) == MODEL
    assert MODEL.family == "vllm"


# The server


def test_answers(folder: Path) -> None:
    """One server answers chats and completions and reports gauges."""

    async def ask() -> tuple[Completion, Completion, dict[str, int]]:
        async with opened(_backend(folder)) as client:
            chat = await client.generate(prompt("hello"))
            whole = await client.generate(request_of({"request": {"prompt": "hello"}}))
            return chat, whole, client.gauges()

    chat, whole, gauges = asyncio.run(ask())
    assert '"role": "user"' in chat.output
    assert '"prompt": "hello"' in whole.output
    assert gauges == {"vllm_load_s": gauges["vllm_load_s"], "vllm_restarts": 0}


def test_it_serves_run_inference(folder: Path) -> None:
    """As a `ModelHandler` in RunInference, one server answers each request."""
    handler = InferenceHandler(_backend(folder), max_batch_size=4)
    answers = _requests("a", "b", "c") | RunInference(handler)
    assert sorted(answer.record.record_id for answer in answers) == ["0", "1", "2"]
    assert all(isinstance(answer, Answer) for answer in answers)
    assert starts(folder) == 1


def test_a_server_per_group_of_accelerators(folder: Path) -> None:
    """Of four GPUs in groups of two, both servers get requests and see only their own GPUs."""

    async def ask() -> list[Completion]:
        backend = _backend(folder, gpus="0,1,2,3", args=("--tensor-parallel-size=2",))
        async with opened(backend) as client:
            answers = asyncio.gather(*(client.generate(one) for one in _requests(*["SLOW"] * 8)))
            await asyncio.sleep(0)
            (folder / "release").touch()
            return await answers

    pids = [answer.output.split()[0] for answer in asyncio.run(ask())]
    assert sorted(map(pids.count, set(pids))) == [4, 4]
    assert starts(folder) == 2


def test_an_interpreter_without_vllm_is_named(folder: Path) -> None:
    """A missing vLLM is reported with the interpreter and the flag that sets another one."""
    backend = VLLMBackend(model="tiny", python=sys.executable, folder=str(folder))
    with pytest.raises(BackendUnusable, match=r"no module named vllm.*`python`"):
        loop.run(backend.open())


def test_a_killed_server_costs_no_record_and_no_attempt(folder: Path) -> None:
    """Of 100 requests, the 32 in flight go to the restarted server, at the cost of no attempt."""

    def kill(client: VLLMClient) -> None:
        server = client._servers[0]
        eventually(lambda: server.in_flight == 32)
        (folder / "release").touch()
        os.kill(server.lease.state.pid, signal.SIGKILL)

    requests = _requests(*["SLOW"] * 100)
    outcomes = _outcomes(_backend(folder), requests, kill, max_attempts=1)
    assert [type(outcome) for outcome in outcomes] == [Completion] * 100
    assert starts(folder) == 2


def test_a_restarted_server_is_full_immediately(folder: Path) -> None:
    """A restarted server gets all requests at once, without probes."""

    def kill(client: VLLMClient) -> None:
        server = client._servers[0]
        _kill_full(server, 1)
        eventually(lambda: server.lease.state.generation == 2)
        eventually(lambda: _ready(server) and server.in_flight == 32)
        (folder / "release").touch()

    outcomes = _outcomes(_backend(folder), _requests(*["SLOW"] * 60), kill)
    assert [type(outcome) for outcome in outcomes] == [Completion] * 60
    assert starts(folder) == 2


def test_two_kills_without_a_poison_request(folder: Path) -> None:
    """Requests in flight at two crashes are suspects and get answers; no attempt counts."""

    def kill(client: VLLMClient) -> None:
        server = client._servers[0]
        for generation in (1, 2):
            _kill_full(server, generation)
        eventually(lambda: server.lease.state.generation == 3)
        (folder / "release").touch()

    outcomes = _outcomes(_backend(folder), _requests(*["SLOW"] * 32), kill, max_attempts=1)
    assert [type(outcome) for outcome in outcomes] == [Completion] * 32
    assert starts(folder) == 3


def test_a_server_that_fails_for_good_ends_the_run(folder: Path) -> None:
    """A server that cannot be restarted ends the run, and held requests do not wait for ever."""

    async def ask() -> None:
        async with opened(_backend(folder)) as client:
            server = client._servers[0]
            state = dataclasses.replace(server.lease.state, status="failed", error="gone")
            server.lease._set(state)
            with pytest.raises(BackendUnusable, match="gone"):
                client.held(prompt("hello"))

    asyncio.run(ask())


def test_a_request_that_kills_the_server_is_found(folder: Path) -> None:
    """A request that kills servers is one dead letter after five crashes; others get answers."""
    requests = _requests(*["x"] * 20, "DIE", *["x"] * 20)
    outcomes = _outcomes(_backend(folder), requests)
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert outcomes[20] in failures
    assert isinstance(failures[0].error, InvalidRequest)
    assert "crashed each time it processed this request" in str(failures[0].error)
    assert len(failures) == 1
    assert starts(folder) in (5, 6)  # the sixth may not have started when the last record ended


def test_a_failure_of_a_healthy_server_is_the_records_own(folder: Path) -> None:
    """A failure of a healthy server counts as an attempt and causes no restart."""
    outcomes = _outcomes(_backend(folder), _requests("x", "FAIL"), max_attempts=2)
    assert isinstance(outcomes[0], Completion)
    assert isinstance(outcomes[1], Failure)
    assert isinstance(outcomes[1].error, Unavailable)
    assert outcomes[1].attempts == 2
    assert starts(folder) == 1
