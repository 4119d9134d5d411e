"""The real vLLM, from the backend to the engine: answers, parameters, poison and crashes.

The module has one server; tests kill it, and its successor serves the next tests.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.transforms.backends import prompt, request_of
from tests.transforms.backends.vllm.servers import ROOT, eventually
from transforms.backends.vllm import lease, processes
from transforms.backends.vllm.backend import VLLMBackend, VLLMClient
from transforms.dispatch import loop
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits, Failure, Outcome
from transforms.records.errors import InvalidRequest, RecordError, TooLarge
from transforms.records.records import Completion, Record, Request

ARGS = ("--enforce-eager", "--max-num-seqs=32", "--max-model-len=1024")
ENVIRONMENT = (
    ("VLLM_CPU_KVCACHE_SPACE", "1"),
    ("CUDA_VISIBLE_DEVICES", ""),
    ("HF_HUB_OFFLINE", "1"),
)
USER = """
import asyncio, pickle, sys
backend = pickle.loads(bytes.fromhex(sys.argv[1]))
async def use():
    client = await backend.open()
    print("ready", flush=True)
    await asyncio.sleep(3600)
asyncio.run(use())
"""


@pytest.fixture(scope="module")
def backend(
    vllm_python: str, tiny_model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VLLMBackend]:
    """The tiny model, with its own server folder."""
    yield VLLMBackend(
        model=tiny_model,
        python=vllm_python,
        args=ARGS,
        environment=ENVIRONMENT,
        folder=str(tmp_path_factory.mktemp("v")),
        accept_truncated=True,
    )
    lease.end_all()


@pytest.fixture(scope="module")
def client(backend: VLLMBackend) -> Iterator[VLLMClient]:
    """A client of one server, like a worker process has."""
    client = loop.run(backend.open())
    yield client
    loop.run(client.close())


def _ask(client: VLLMClient, request: Request) -> Completion:
    return loop.run(client.generate(request))


def _chats(count: int, **config: Any) -> list[Request]:
    return [
        Request(
            Record(str(n), {}),
            {"messages": [{"role": "user", "content": f"question {n}"}]},
            {"generation_config": config},
            f"{n:064x}",
            5,
        )
        for n in range(count)
    ]


_KEPT: list[Dispatcher] = []
"""A dispatcher closes its client when it is dropped, and all tests share one client."""


def _outcomes(
    client: VLLMClient, requests: Sequence[Request], meanwhile: Callable[[], None]
) -> list[Outcome]:
    dispatcher = Dispatcher(client, DispatchLimits(first_backoff_s=0.1, max_attempts=1))
    _KEPT.append(dispatcher)
    thread = threading.Thread(target=meanwhile)
    thread.start()
    try:
        return dispatcher.answer(requests)
    finally:
        thread.join()


def test_parameters_are_each_records_own(client: VLLMClient) -> None:
    """Length, temperature, seed and stop are each record's own; a seed repeats its answer."""
    one = _ask(
        client, prompt("hello", generation_config={"max_output_tokens": 3, "temperature": 0})
    )
    assert (one.usage.output_tokens, one.finish_reason) == (3, "length")
    config = {"max_output_tokens": 12, "temperature": 1.0, "ignore_eos": True}
    texts = [
        _ask(client, prompt("hello", generation_config={**config, "seed": seed})).output
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    stop = texts[0].strip()[4:6]
    stopped = _ask(client, prompt("hello", generation_config={**config, "seed": 1, "stop": [stop]}))
    assert stopped.finish_reason == "stop"
    assert stop not in stopped.output


def test_whole_requests(client: VLLMClient) -> None:
    """Whole requests reach completions, with a choice and with logprobs."""
    whole = {"prompt": "hi", "structured_outputs": {"choice": ["aa", "bb"]}, "logprobs": 1}
    completion = _ask(client, request_of({"request": whole}))
    assert completion.output in ("aa", "bb")
    assert '"token_logprobs"' in completion.output_json


def test_structured_output(client: VLLMClient) -> None:
    """The schema constrains even a model that generates nonsense."""
    schema = {
        "type": "object",
        "properties": {"label": {"enum": ["x", "y"]}},
        "required": ["label"],
        "additionalProperties": False,
    }
    config = {"max_output_tokens": 60, "temperature": 0}
    completion = _ask(client, prompt("hi", output_schema=schema, generation_config=config))
    compact = "".join(completion.output.split())  # the model may fill its tokens with white space
    assert compact
    assert any(f'{{"label":"{label}"}}'.startswith(compact) for label in "xy")


def test_cached_tokens_are_counted(client: VLLMClient) -> None:
    """A repeated prefix is counted as cached."""
    text = "the same words again " * 40
    first = _ask(client, prompt(text, generation_config={"max_output_tokens": 1}))
    second = _ask(client, prompt(text, generation_config={"max_output_tokens": 1}))
    assert first.usage.input_tokens == second.usage.input_tokens
    assert second.usage.cached_input_tokens >= 0.8 * second.usage.input_tokens


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (prompt("word " * 3000), TooLarge),
        (prompt("x7 " * 1500), TooLarge),
        (request_of({"messages": []}), InvalidRequest),
        (request_of({"request": {"prompt": ""}}), InvalidRequest),
        (prompt("x", generation_config={"temperature": -3}), InvalidRequest),
    ],
)
def test_poison_costs_its_record(
    client: VLLMClient, request_: Request, error: type[RecordError]
) -> None:
    """Poison fails its own record; vLLM's refusal is classified by its fields, not its text."""
    with pytest.raises(error):
        _ask(client, request_)


@pytest.mark.parametrize("victim", ["server", "engine"])
def test_a_kill_in_the_middle_of_a_run(client: VLLMClient, victim: str) -> None:
    """After a kill every record gets an answer without another attempt, from one restart."""
    server = client._servers[0]
    before = server.lease.state

    def kill() -> None:
        eventually(lambda: server.in_flight >= 32)
        pid = before.pid
        if victim == "engine":
            below = [one for one in processes.descendants(pid) if one.parent == pid]
            pid = next(one.pid for one in below if processes.descendants(one.pid))
        os.kill(pid, signal.SIGKILL)

    requests = _chats(150, max_output_tokens=40, ignore_eos=True)
    outcomes = _outcomes(client, requests, kill)
    assert [one for one in outcomes if isinstance(one, Failure)] == []
    assert len(outcomes) == 150
    after = server.lease.state
    assert (after.restarts, after.generation) == (before.restarts + 1, before.generation + 1)


def test_nothing_is_left_of_a_killed_user(client: VLLMClient, backend: VLLMBackend) -> None:
    """All processes end within ten seconds of a SIGKILL to the server's last user."""
    state = client._servers[0].lease.state
    guard = processes.process(state.pid).parent
    mine = [state.keeper_pid, guard, state.pid]
    mine += [one.pid for one in processes.descendants(state.pid)]
    assert len(mine) >= 4
    script = [sys.executable, "-c", USER, pickle.dumps(backend).hex()]
    user = subprocess.Popen(script, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert user.stdout.readline() == "ready\n"
        lease.end_all()
        assert processes.process(state.pid) is not None
    finally:
        user.kill()
        user.communicate()

    def left() -> list[int]:
        found = (processes.process(pid) for pid in mine)
        return [one.pid for one in found if one is not None and not one.zombie]

    eventually(lambda: not left(), 10.0)


def test_embeddings(vllm_python: str, tiny_model: str, tmp_path: Path) -> None:
    """The same model embeds as a pooling one; a text beyond its context refuses all of its call."""
    embed = VLLMBackend(
        model=tiny_model,
        task="embed",
        python=vllm_python,
        args=ARGS,
        environment=ENVIRONMENT,
        folder=str(tmp_path),
    )
    client = loop.run(embed.open())
    try:
        completion = _ask(client, request_of({"text": "hello"}))
        assert len(completion.embedding) == 128
        assert completion.usage.input_tokens > 0
        with pytest.raises(TooLarge):
            _ask(client, request_of({"text": "word " * 3000}))
        texts = ["hello", "a", "several words in one text", "hello"]
        requests = [request_of({"text": text}) for text in texts]
        together = loop.run(client.generate_many(requests))
        alone = [_ask(client, request) for request in requests]
        for one, other in zip(together, alone, strict=True):
            assert one.embedding == pytest.approx(other.embedding, abs=1e-4)
        used = [one.usage.input_tokens for one in together]
        assert sum(used) == sum(one.usage.input_tokens for one in alone)
        assert client.call_limits.max_requests == 32
        with pytest.raises(TooLarge):
            loop.run(client.generate_many([*requests, request_of({"text": "word " * 3000})]))
    finally:
        loop.run(client.close())
        lease.end_all()
