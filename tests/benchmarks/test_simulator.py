"""The load simulator: dialects, luck, slots, quotas, faults, outages and the analysis of its log.

This does not prove that a real service answers like this; no real endpoint was called.
"""

import asyncio
import contextlib
import doctest
import importlib
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types
from google.oauth2.credentials import Credentials

from benchmarks.simulator import log as logs
from benchmarks.simulator import luck
from benchmarks.simulator.__main__ import parse
from benchmarks.simulator.dialects import vector_of
from benchmarks.simulator.log import Call
from benchmarks.simulator.quota import Bucket, Quota
from benchmarks.simulator.server import Server, running
from benchmarks.simulator.settings import Change, Distribution, Settings

GEMINI = "/v1/projects/p/locations/l/publishers/google/models/gemini-2.5-flash:generateContent"
CHAT = "/v1/chat/completions"


class Client:
    """A bare client of one simulator."""

    def __init__(self, server: Server, session: aiohttp.ClientSession, name: str) -> None:
        self.server, self.session, self.name = server, session, name

    async def chat(self, record: object, **headers: str) -> int | str:
        """The status of one call, or ``reset``."""
        text = f"Classify record {record}: hello"
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        try:
            return (await self.post(CHAT, body, headers))[0]
        except aiohttp.ClientConnectorError:
            return "refused"
        except (ConnectionResetError, aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            return "reset"

    async def post(
        self, path: str, body: Any, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, Any]:
        """Status, headers and text of one call."""
        sent = {"x-simulated-client": self.name, **(headers or {})}
        async with self.session.post(self.server.url + path, json=body, headers=sent) as answer:
            return answer.status, answer.headers, await answer.text()


@contextlib.asynccontextmanager
async def simulator(name: str = "a", **settings: Any) -> AsyncIterator[Client]:
    """A simulator without delay before refusals, and a client with a connection per call."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with (
        running(Settings.parse({"reject_latency_s": 0, **settings})) as server,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        yield Client(server, session, name)


async def until(condition: Callable[[], bool]) -> None:
    """Runs the loop until the condition holds."""
    while not condition():  # noqa: ASYNC110 - what is waited for happens in sockets
        await asyncio.sleep(0.001)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Runs a test, which fails instead of waiting for ever."""

    async def limited() -> None:
        await asyncio.wait_for(test(), 30)

    asyncio.run(limited())


def call(
    record: str, arrival_s: float, start_s: float | None, end_s: float | None, **more: Any
) -> Call:
    """A handwritten row of a log."""
    values = {"client": "a", "attempt": 1, "status": 200, "cause": None, **more}
    return Call(id=record, arrival_s=arrival_s, start_s=start_s, end_s=end_s, **values)


@pytest.mark.parametrize("name", ["settings", "luck", "quota", "dialects", "log"])
def test_examples(name: str) -> None:
    """The examples of the docstrings run as written."""
    module = importlib.import_module(f"benchmarks.simulator.{name}")
    done = doctest.testmod(module)
    assert done.attempted
    assert not done.failed


# Dialects


def test_google_genai_reads_answers_and_errors() -> None:
    """The SDK reads text, usage, traffic type and the status of an error in its own types."""

    async def test() -> None:
        async with simulator(api_key="k", models="gemini-2.5-flash") as bare:
            options = types.HttpOptions(base_url=bare.server.url, api_version="v1")
            client = genai.Client(
                vertexai=True,
                project="p",
                location="us-central1",
                credentials=Credentials(token="k"),
                http_options=options,
            )
            config = types.GenerateContentConfig(system_instruction="Short.", temperature=0.0)
            async with client.aio as sdk:
                answer = await sdk.models.generate_content(
                    model="gemini-2.5-flash", contents="record 12: hello", config=config
                )
                with pytest.raises(genai_errors.ClientError) as unknown:
                    await sdk.models.generate_content(model="other", contents="record 12")
                media = types.Part.from_uri(file_uri="gs://forbidden/a.png", mime_type="image/png")
                with pytest.raises(genai_errors.ClientError) as forbidden:
                    await sdk.models.generate_content(
                        model="gemini-2.5-flash", contents=["record 13", media]
                    )
            assert answer.text == "answer to record 12"
            assert answer.model_version == "gemini-2.5-flash"
            assert answer.candidates
            assert answer.candidates[0].finish_reason is types.FinishReason.STOP
            usage = answer.usage_metadata
            assert usage
            counted = (usage.prompt_token_count, usage.candidates_token_count)
            assert (*counted, usage.total_token_count) == (6, 8, 14)
            assert usage.traffic_type is types.TrafficType.ON_DEMAND
            assert (unknown.value.code, unknown.value.status) == (404, "NOT_FOUND")
            assert (forbidden.value.code, forbidden.value.status) == (403, "PERMISSION_DENIED")
            assert (await bare.post(GEMINI, {"contents": {"parts": "14"}}))[0] == 400
            assert (await bare.post(GEMINI, {"contents": {"parts": {"text": "14"}}}))[0] == 401
            rows = [(c.id, c.attempt, c.status, c.cause) for c in bare.server.log]
            assert rows == [
                ("12", 1, 200, None),
                ("12", 2, 404, "request"),
                ("13", 1, 403, "request"),
                ("", 0, 400, "request"),
                ("14", 1, 401, "request"),
            ]
            assert bare.server.log[0].client == "k"

    run(test)


def test_openai_reads_answers_and_errors() -> None:
    """The openai SDK reads answers and errors of chats and plain completions."""

    async def test() -> None:
        async with simulator(api_key="k", models="m", answer='{"id": "{id}"}') as bare:
            base = f"{bare.server.url}/v1"
            async with openai.AsyncOpenAI(base_url=base, api_key="k", max_retries=0) as client:
                chat = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "record 12: hello"}]
                )
                text = await client.completions.create(model="m", prompt="record 13")
                assert [model.id async for model in client.models.list()] == ["m"]
                with pytest.raises(openai.NotFoundError, match="404"):
                    await client.completions.create(model="other", prompt="record 13")
                with pytest.raises(openai.PermissionDeniedError):
                    image: Any = {"type": "image_url", "image_url": {"url": "https://x/forbidden"}}
                    await client.chat.completions.create(
                        model="m", messages=[{"role": "user", "content": [image]}]
                    )
            async with openai.AsyncOpenAI(base_url=base, api_key="x", max_retries=0) as client:
                with pytest.raises(openai.AuthenticationError):
                    await client.completions.create(model="m", prompt="record 13")
            assert chat.choices[0].message.content == '{"id": "12"}'
            assert chat.choices[0].finish_reason == "stop"
            assert (chat.id, chat.model) == ("chatcmpl-12", "m")
            assert chat.usage
            assert chat.usage.prompt_tokens == 4
            assert chat.usage.completion_tokens == 8
            assert chat.usage.total_tokens == 12
            assert text.choices[0].text == '{"id": "13"}'

    run(test)


PREDICT = GEMINI.replace("gemini-2.5-flash:generateContent", "text-embedding-005:predict")
EMBEDDINGS = "/v1/embeddings"


def test_the_sdks_read_embeddings_of_several_texts() -> None:
    """The SDKs read each text's vector in both dialects, without answer tokens."""

    async def test() -> None:
        async with simulator(tokens_per_minute=60 * 24, burst_s=1) as bare:
            texts = ["record 1: the parcel", "record 2: never", "record 3: arrived"]
            base = f"{bare.server.url}/v1"
            async with openai.AsyncOpenAI(base_url=base, api_key="k", max_retries=0) as client:
                answer = await client.embeddings.create(
                    model="m", input=texts, dimensions=4, encoding_format="float"
                )
            options = types.HttpOptions(base_url=bare.server.url, api_version="v1")
            google = genai.Client(
                vertexai=True,
                project="p",
                location="us-central1",
                credentials=Credentials(token="k"),
                http_options=options,
            )
            contents: list[Any] = [texts[2]]
            async with google.aio as sdk:
                embedded = await sdk.models.embed_content(
                    model="text-embedding-005",
                    contents=contents,
                    config=types.EmbedContentConfig(output_dimensionality=4),
                )
            assert [item.embedding for item in answer.data] == [vector_of(t, 4) for t in texts]
            assert [item.index for item in answer.data] == [0, 1, 2]
            assert answer.usage.prompt_tokens == 14
            assert [item.values for item in embedded.embeddings or ()] == [vector_of(texts[2], 4)]
            assert bare.server.stats["texts"] == 4
            rows = [(c.id, c.attempt, c.texts, c.status) for c in bare.server.log]
            assert rows == [("1", 1, 3, 200), ("3", 2, 1, 200)]

    run(test)


@pytest.mark.parametrize(
    ("path", "texts", "message"),
    [
        (EMBEDDINGS, ["a"] * 2049, "array too long"),
        (EMBEDDINGS, ["a" * 20_000] * 61, "Requested 305000 tokens, max 300000"),
        (EMBEDDINGS, ["a", "b" * 32_769], "maximum input length is 8192 tokens"),
        (EMBEDDINGS, ["a", ""], "'$.input' is invalid"),
        (PREDICT, ["a"] * 251, "250 instance(s) is allowed per prediction. Actual: 251"),
        (PREDICT, ["a" * 804] * 100, "token count is 20100 but the model supports up to 20000"),
        (PREDICT, ["a", ""], "The text content is empty"),
        (PREDICT.replace("text-", "gemini-"), ["a", "b"], "batchSize must be 1"),
    ],
)
def test_refused_embeddings(path: str, texts: list[str], message: str) -> None:
    """A call of more texts than the provider documents is refused as a whole."""

    async def test() -> None:
        async with simulator() as client:
            body = {"model": "m", "input": texts, "instances": [{"content": t} for t in texts]}
            status, _, text = await client.post(path, body)
            assert status == 400
            assert message in text
            assert client.server.stats["texts"] == 0

    run(test)


def test_one_poisoned_text_refuses_its_call() -> None:
    """One poisoned text refuses its call, as at a service; without it the others are served."""

    async def test() -> None:
        async with simulator(faults="poison:0.1") as client:
            poisoned = [i for i in range(40) if luck.is_poison(client.server._settings, str(i))]
            texts = [f"record {number}" for number in range(40)]
            good = [text for number, text in enumerate(texts) if number not in poisoned]
            assert 0 < len(poisoned) < 20
            first = await client.post(EMBEDDINGS, {"model": "m", "input": texts})
            second = await client.post(EMBEDDINGS, {"model": "m", "input": good})
            assert (first[0], second[0]) == (400, 200)
            assert [call.cause for call in client.server.log] == ["poison", None]

    run(test)


def test_unreadable_requests_are_refused() -> None:
    """Broken JSON, a missing field and streaming are 400 in both dialects; other paths are 404."""

    async def test() -> None:
        async with simulator() as client:
            for path in (GEMINI, CHAT):
                bodies: list[Any] = [{}, [], {"stream": True}, {"contents": [], "messages": []}]
                for body in bodies:
                    assert (await client.post(path, body))[0] == 400
            assert (await client.post("/v1/elsewhere", {}))[0] == 404
            assert logs.counts_by_status(client.server.log) == {"400": 8}

    run(test)


def test_chunked_pipelined_and_expected_bodies() -> None:
    """Bodies in chunks, after 100 Continue and sent in one go are answered in order."""

    async def test() -> None:
        async with running(Settings()) as server:
            port = int(server.url.rsplit(":", 1)[1])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = b"POST /_control HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head + b'5\r\n{"slo\r\n6\r\nts": 4\r\n1\r\n}\r\n0\r\n\r\n')
            writer.write(b"GET /nowhere HTTP/1.1\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n{}")).startswith(b"HTTP/1.1 200")
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 404")
            writer.write(
                b"POST /_control HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
            )
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"{}")
            assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200")
            writer.close()

    run(test)


# Luck


def test_two_clients_meet_the_same_luck() -> None:
    """Each call of a record has the same outcome for two clients, in any order."""
    faults = "503:0.2,reset:0.1,malformed:0.1,poison:0.1,429:0.1"

    async def outcomes(records: list[int]) -> dict[tuple[str, int], tuple[int | str, str | None]]:
        async with simulator(faults=faults, seed=3) as client:
            for _ in range(2):
                await asyncio.gather(*(client.chat(record) for record in records))
            return {(c.id, c.attempt): (c.status, c.cause) for c in client.server.log}

    async def test() -> None:
        first = await outcomes(list(range(60)))
        assert first == await outcomes(list(reversed(range(60))))
        assert {cause for _, cause in first.values()} == {
            None, "503", "reset", "malformed", "poison", "429"
        }  # fmt: skip
        settings = Settings.parse({"faults": faults, "seed": 3})
        for (record, attempt), (_, cause) in first.items():
            assert cause == luck.fault_of(settings, record, attempt)

    run(test)


def test_poison_follows_the_hash() -> None:
    """Exactly the predicted records are answered 400, at every attempt."""

    async def test() -> None:
        settings = Settings.parse({"faults": {"poison": 0.2}})
        async with simulator(faults={"poison": 0.2}) as client:
            for record in range(50):
                expected = 400 if luck.is_poison(settings, str(record)) else 200
                assert [await client.chat(record), await client.chat(record)] == [expected] * 2
            assert "poison" in logs.counts_by_cause(client.server.log)

    run(test)


def test_luck_follows_the_rates() -> None:
    """Shares of faults and quantiles of service times follow the settings over many records."""
    settings = Settings.parse(
        {"faults": "503:0.2,reset:0.1", "latency": "lognormal:1,5", "output_tokens": "uniform:1,9"}
    )
    ids = [str(number) for number in range(4000)]
    found = [luck.fault_of(settings, record, 1) for record in ids]
    assert math.isclose(found.count("503") / 4000, 0.2, abs_tol=0.02)
    assert math.isclose(found.count("reset") / 4000, 0.1, abs_tol=0.02)
    times = sorted(luck.service_time_s(settings, record) for record in ids)
    assert math.isclose(times[2000], 1, abs_tol=0.1)
    assert math.isclose(times[3960], 5, abs_tol=0.8)
    lengths = [luck.output_tokens(settings, record) for record in ids]
    assert (min(lengths), max(lengths)) == (1, 9)


# Slots and quotas


def test_slots_are_respected() -> None:
    """No more calls are in service than slots; the others wait in order of arrival."""

    async def test() -> None:
        async with simulator(slots=3, latency="uniform:0.001,0.004") as client:
            assert set(await asyncio.gather(*(client.chat(n) for n in range(30)))) == {200}
            log = client.server.log
            assert logs.peak_busy_slots(log) == 3
            by_arrival = sorted(log, key=lambda c: c.arrival_s)
            starts = [c.start_s for c in by_arrival if c.start_s is not None]
            assert len(starts) == 30
            assert starts == sorted(starts)

    run(test)


@pytest.mark.parametrize("status", [429, 503])
def test_overflow(status: int) -> None:
    """A call beyond the queue is refused at once, and those before it are served."""

    async def test() -> None:
        async with simulator(slots=1, max_queue=1, overflow=status, latency=60) as client:
            held = [asyncio.create_task(client.chat(n)) for n in range(2)]
            await until(lambda: client.server.stats["queued"] == 1)
            assert await client.chat(2) == status
            client.server.change({"slots": 2})
            assert client.server.stats["in_service"] == 2
            for task in held:
                task.cancel()
            await until(lambda: client.server.stats["open"] == 0)
            assert client.server.stats["in_service"] == 0
            assert [c.status for c in client.server.log] == [status, "abandoned", "abandoned"]
            assert client.server.log[0].cause == "overflow"

    run(test)


def test_a_queued_client_that_leaves_frees_its_place() -> None:
    """When a queued client leaves, the next one is served in its place."""

    async def test() -> None:
        async with simulator(slots=1, latency=60) as client:
            tasks = []
            for number in range(3):
                tasks.append(asyncio.create_task(client.chat(number)))
                await until(lambda: client.server.stats["open"] == len(tasks))
            tasks[1].cancel()
            await until(lambda: client.server.stats["queued"] == 1)
            tasks[0].cancel()
            await until(lambda: client.server.stats["queued"] == 0)
            assert client.server.stats["in_service"] == 1
            log = {c.id: c for c in client.server.log}
            assert [log[i].status for i in "012"] == ["abandoned", "abandoned", "open"]
            assert [log[i].start_s is None for i in "012"] == [False, True, False]
            tasks[2].cancel()
            await until(lambda: client.server.stats["open"] == 0)

    run(test)


def test_bucket_arithmetic() -> None:
    """A bucket refills, waits, goes into debt for larger amounts, and changes its rate."""
    bucket = Bucket(rate_per_s=10, capacity=5, now=100)
    assert [bucket.take(1, 100) for _ in range(6)] == [True] * 5 + [False]
    assert bucket.wait_s(1, 100) == pytest.approx(0.1)
    assert bucket.take(1, 100.1)
    assert [bucket.take(1, 200) for _ in range(6)] == [True] * 5 + [False]
    assert not bucket.take(20, 200.4)
    assert bucket.take(20, 200.5)
    assert bucket.wait_s(1, 200.5) == pytest.approx(1.6)
    bucket.change(rate_per_s=1, capacity=2, now=202.5)
    assert bucket.wait_s(2, 202.5) == 0
    assert bucket.take(2, 202.5)
    assert bucket.wait_s(1, 203) == pytest.approx(0.5)


def test_quota_takes_both_or_neither() -> None:
    """A call without tokens left takes no request; the longer wait is reported."""
    quota = Quota()
    assert quota.take(10**9, 0) == 0
    quota.change(requests_per_s=2, tokens_per_minute=6000, burst_s=1, now=0)
    assert quota.take(100, 0) == 0
    assert quota.take(50, 0) == pytest.approx(0.5)
    assert quota.take(0, 0) == 0
    assert quota.take(0, 0) == pytest.approx(0.5)
    quota.change(requests_per_s=0, tokens_per_minute=0, burst_s=1, now=0)
    assert quota.take(10**9, 0) == 0


@pytest.mark.parametrize(
    ("given", "expected"), [(None, None), ("auto", "10"), ("7", "7"), ("0.5", "0.5")]
)
def test_refusals_of_the_quota(given: str | None, expected: str | None) -> None:
    """The call after the burst is a 429, with a Retry-After only if it is configured."""

    async def test() -> None:
        async with simulator(requests_per_s=0.1, retry_after=given) as client:
            body = {"contents": [{"role": "user", "parts": [{"text": "record 1"}]}]}
            assert (await client.post(GEMINI, body))[0] == 200
            status, headers, text = await client.post(GEMINI, body)
            assert status == 429
            assert headers.get("Retry-After") == expected
            assert '"RESOURCE_EXHAUSTED"' in text
            assert ("retryDelay" in text) == (given is not None)
            assert client.server.log[1].cause == "quota"

    run(test)


# Faults and outages


def test_reset_and_malformed() -> None:
    """A reset is an RST before any byte; a malformed answer is half of one with status 200."""

    async def test() -> None:
        async with simulator(faults="reset:1", latency=0.002) as client:
            port = int(client.server.url.rsplit(":", 1)[1])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = b'{"model":"m","prompt":"record 1"}'
            head = b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(body) + body)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert [(c.status, c.cause) for c in client.server.log] == [("reset", "reset")]
            assert client.server.stats["in_service"] == 0
            client.server.change({"faults": "malformed:1"})
            status, _, text = await client.post("/v1/completions", {"model": "m", "prompt": "x"})
            assert (status, text[:2], text[-1] == "}") == (200, '{"', False)
            assert not client.server.log[1].succeeded

    run(test)


def test_hang_lasts_until_the_client_leaves() -> None:
    """A hanging call has no slot, is logged as hanging, and as abandoned once the client leaves."""

    async def test() -> None:
        async with simulator(faults="hang:1", slots=1) as client:
            task = asyncio.create_task(client.chat(1))
            await until(lambda: client.server.stats["open"] == 1)
            assert client.server.stats["in_service"] == 0
            assert [(c.status, c.end_s) for c in client.server.log] == [("hang", None)]
            task.cancel()
            await until(lambda: client.server.stats["open"] == 0)
            assert [(c.status, c.cause) for c in client.server.log] == [("abandoned", "hang")]

    run(test)


def test_outage_that_refuses_ends_on_the_same_port() -> None:
    """An outage resets open calls and refuses connections; then the same port answers again."""

    async def test() -> None:
        async with simulator(latency=60, outage_kind="refuse") as client:
            task = asyncio.create_task(client.chat(1))
            await until(lambda: client.server.stats["in_service"] == 1)
            client.server.change({"outage": 60, "latency": 0})
            assert await task == "reset"
            assert await client.chat(2) == "refused"
            client.server.change({"outage": 0})
            while await client.chat(3) == "refused":
                pass
            statuses = [(c.id, c.status, c.cause) for c in client.server.log]
            assert statuses == [("1", "reset", "outage"), ("3", 200, None)]

    run(test)


@pytest.mark.parametrize(("kind", "outcome"), [("503", 503), ("reset", "reset")])
def test_outages_of_the_schedule(kind: str, outcome: int | str) -> None:
    """A scheduled outage ends by itself, and the schedule's other change stays."""

    async def test() -> None:
        schedule = '[{"at_s": 0, "faults": "500:1"}]'
        async with simulator(outage="0,0.05", outage_kind=kind, schedule=schedule) as client:
            assert await client.chat(1) == outcome
            await until(lambda: not client.server.stats["outage"])
            assert await client.chat(1) == 500
            assert [c.cause for c in client.server.log] == ["outage", "500"]

    run(test)


def test_outage_that_hangs() -> None:
    """An outage that hangs never answers its calls, but control requests still work."""

    async def test() -> None:
        async with simulator(outage_kind="hang") as client:
            assert (await client.post("/_control", {"outage": 60}))[0] == 200
            task = asyncio.create_task(client.chat(1))
            await until(lambda: client.server.stats["open"] == 1)
            assert (await client.post("/_control", {"outage": 0}))[0] == 200
            assert await client.chat(2) == 200
            task.cancel()
            await until(lambda: client.server.stats["open"] == 0)
            assert [(c.id, c.status) for c in client.server.log] == [("2", 200), ("1", "abandoned")]

    run(test)


# Control and command line


def test_control_stats_log_and_reset() -> None:
    """Settings change at run time, the log comes as JSON lines, and a reset clears everything."""

    async def test() -> None:
        async with simulator("b") as client:
            url = client.server.url
            assert await client.chat(1) == 200
            assert (await client.post("/_control", {"faults": {"503": 1}, "slots": 2}))[0] == 200
            assert await client.chat(1) == 503
            status, _, text = await client.post("/_control", {"port": 1})
            assert (status, "'port' cannot change" in text) == (400, True)
            async with client.session.get(f"{url}/_stats") as answer:
                stats = await answer.json()
            assert stats.pop("seconds") > 0
            assert stats == {
                "calls": 2, "texts": 2, "records": 1, "open": 0, "in_service": 0, "queued": 0,
                "outage": False, "by_status": {"200": 1, "503": 1},
            }  # fmt: skip
            async with client.session.get(f"{url}/_log") as answer:
                log = logs.parse(await answer.read())
            assert log == client.server.log
            rows = [(c.id, c.client, c.attempt, c.status) for c in log]
            assert rows == [("1", "b", 1, 200), ("1", "b", 2, 503)]
            assert (await client.post("/_reset", {}))[0] == 200
            assert client.server.log == []
            assert await client.chat(1) == 200
            async with client.session.get(f"{url}/health") as answer:
                assert answer.status == 200

    run(test)


def test_command_line() -> None:
    """Flags become settings; an invalid one is rejected with the value."""
    settings, options = parse(
        [
            *("--latency", "constant:0.5", "--slots", "4", "--outage", "3,2", "--port", "0"),
            *("--retry_after", "auto", "--models", "a,b", "--faults", "503:0.5,hang:0.1"),
        ]
    )
    assert settings == Settings(
        latency=Distribution("constant", 0.5, 0.5),
        slots=4,
        schedule=(Change(3.0, {"outage": 2.0}),),
        retry_after="auto",
        models=("a", "b"),
        faults=(("503", 0.5), ("hang", 0.1)),
    )
    assert (options.port, options.log) == (0, None)


@pytest.mark.parametrize(
    "given",
    [
        {"latency": "normal:1"},
        {"latency": "lognormal:5,1"},
        {"latency": "lognormal:0,1"},
        {"faults": "200:0.1"},
        {"faults": "503:0.7,hang:0.4"},
        {"slots": "-1"},
        {"overflow": "500"},
        {"outage_kind": "slow"},
        {"schedule": [{"at_s": 1, "seed": 2}]},
        {"unknown": 1},
    ],
)
def test_invalid_settings(given: dict[str, Any]) -> None:
    """Invalid settings fail before the server listens."""
    with pytest.raises(ValueError):
        Settings.parse(given)


def test_process_writes_its_log(tmp_path: Path) -> None:
    """The process announces its URL once it listens, and writes its log when it is told to end."""
    ready, log = tmp_path / "url", tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "benchmarks.simulator", "--latency", "0"]
    command += ["--ready_file", str(ready), "--log", str(log)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:

        async def test() -> None:
            await until(lambda: ready.exists() or process.poll() is not None)
            async with (
                aiohttp.ClientSession() as session,
                session.post(
                    ready.read_text().strip() + "/v1/completions",
                    json={"model": "m", "prompt": "record 5"},
                    headers={"Authorization": "Bearer me"},
                ) as answer,
            ):
                assert answer.status == 200

        try:
            run(test)
        finally:
            process.terminate()
    assert [(c.id, c.client, c.status) for c in logs.read(str(log))] == [("5", "me", 200)]


# The analysis of logs

LOG = [
    call("1", 0.0, 0.0, 2.0),
    call("2", 0.0, 0.5, 1.5, status="reset", cause="reset"),
    call("3", 1.0, None, 1.0, status=429, cause="quota"),
    call("2", 2.0, 2.0, 4.0, attempt=2, client="b"),
    call("3", 2.5, None, 3.5, attempt=2, status="abandoned"),
    call("3", 3.5, 3.5, None, attempt=3, status="open"),
]


def test_analysis() -> None:
    """Sums of a handwritten log are exact."""
    assert logs.busy_slots(LOG, 0, 4) == pytest.approx(5.5 / 4)
    assert logs.peak_busy_slots(LOG) == 2
    assert logs.last_first_send_s(LOG) == 1.0
    assert logs.goodput(LOG, 0, 4) == 0.25
    assert logs.goodput(LOG, 2, 5) == pytest.approx(2 / 3)
    assert logs.calls_per_record(LOG) == 2.0
    assert logs.wasted_calls(LOG) == 4
    statuses = {"200": 2, "reset": 1, "429": 1, "abandoned": 1, "open": 1}
    assert logs.counts_by_status(LOG) == statuses
    assert logs.counts_by_cause(LOG) == {"reset": 1, "quota": 1}
    assert logs.share_of_status(LOG, 429) == pytest.approx(1 / 6)
    assert logs.shares_of_success(LOG) == {"a": 0.5, "b": 0.5}
    assert logs.shares_of_success(LOG, 3) == {"a": 0.0, "b": 1.0}


def test_series() -> None:
    """A series has means of slots and queue, and counts, in steps of two seconds."""
    assert logs.series(LOG, 2.0) == [
        logs.Step(0.0, 1.5, 0.25, 3, 0, 1),
        logs.Step(2.0, 1.25, 0.5, 3, 1, 0),
        logs.Step(4.0, 0.0, 0.0, 0, 1, 0),
    ]


def test_analysis_of_nothing() -> None:
    """An empty log has no steps and no shares."""
    assert logs.series([], 1.0) == []
    assert (logs.calls_per_record([]), logs.wasted_calls([]), logs.end_s([])) == (0.0, 0, 0.0)
    assert (logs.last_first_send_s([]), logs.share_of_status([], 429)) == (0.0, 0.0)
    assert (logs.shares_of_success([]), logs.peak_busy_slots([])) == ({}, 0)
