"""CPU per request of a provider's SDK, of our client and of bare aiohttp.

    python -m benchmarks.client_cost [--requests 2000] [--concurrency 64] [--rounds 3]

All clients call the simulated model server, which runs in its own process. The benchmark counts the
user and system time of this process alone (getrusage). The clients take turns, and the table shows
each one's median. The simulated server answers short texts over loopback without TLS, so the
comparison covers the cost of the client code and nothing else.
"""

import argparse
import asyncio
import contextlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import machine, write_section
from transforms.backends.gemini import GeminiBackend
from transforms.backends.openai import OpenAIBackend
from transforms.records.records import Record, Request

_ROOT = Path(__file__).resolve().parents[1]

PROMPT = "Classify this ticket: the parcel never arrived and I want my money back. Number %d."
MODEL = "gemini-2.5-flash"
WARM_UP = 100

Ask = Callable[[str], Awaitable[Any]]


def main() -> None:
    """Measures every client in turn and prints a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000, help="per client and round")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with _model_server() as url:
        figures = asyncio.run(_measure(url, options))
    base = figures["bare aiohttp, OpenAI dialect"][0]
    lines = [
        (
            f"{options.requests:,} requests, concurrency {options.concurrency}, medians of "
            f"{options.rounds} rounds in turn, with a simulated server on the same cores ({machine()})."
        ),
        "",
        "| client | CPU ms per request | against bare aiohttp | requests/s |",
        "|---|---|---|---|",
    ]
    for name, (cpu_ms, rate) in figures.items():
        lines.append(f"| {name} | {cpu_ms:.2f} | {cpu_ms / base:.1f}× | {rate:,.0f} |")
    write_section("CPU per request", "python -m benchmarks.client_cost", lines)


async def _measure(url: str, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    clients: dict[str, Callable[[str], contextlib.AbstractAsyncContextManager[Ask]]] = {
        "google-genai": _google_genai,
        "ours, Gemini": _our_gemini,
        "openai": _openai,
        "ours, OpenAI dialect": _our_openai,
        "bare aiohttp, OpenAI dialect": _bare_aiohttp,
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
    for _ in range(options.rounds):
        for name, opened in clients.items():
            async with opened(url) as ask:
                await _drive(ask, WARM_UP, options.concurrency)
                cpu_s, wall_s = _cpu_s(), time.perf_counter()
                await _drive(ask, options.requests, options.concurrency)
                cpu_s, wall_s = _cpu_s() - cpu_s, time.perf_counter() - wall_s
                taken[name].append((1000 * cpu_s / options.requests, options.requests / wall_s))
    return {
        name: (statistics.median(cpu for cpu, _ in some), statistics.median(r for _, r in some))
        for name, some in taken.items()
    }


async def _drive(ask: Ask, count: int, concurrency: int) -> None:
    """Makes `count` calls, at most `concurrency` at once."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await ask(PROMPT % number)

    await asyncio.gather(*(worker() for _ in range(concurrency)))


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _model_server() -> Iterator[str]:
    """Runs the simulated model server in its own process; yields its base URL."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "url"
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.emulators.model_server",
                "--strict",
                "--ready_file",
                ready,
            ],
            cwd=_ROOT,
            stdout=subprocess.DEVNULL,
        )
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit("the model server did not start")
                time.sleep(0.05)
            yield ready.read_text().strip()
        finally:
            process.terminate()
            process.wait()


def _request(text: str) -> Request:
    body = {"messages": [{"role": "user", "content": text}]}
    return Request(Record("1", {}), body, {"generation_config": {"temperature": 0}}, "f", 20)


@contextlib.asynccontextmanager
async def _google_genai(url: str) -> AsyncIterator[Ask]:
    from google import genai
    from google.genai import types
    from google.oauth2.credentials import Credentials

    client = genai.Client(
        vertexai=True,
        project="p",
        location="us-central1",
        credentials=Credentials(token="none"),
        http_options=types.HttpOptions(base_url=url, api_version="v1"),
    )
    config = types.GenerateContentConfig(temperature=0)

    async def ask(text: str) -> Any:
        answer = await client.aio.models.generate_content(model=MODEL, contents=text, config=config)
        return answer.text

    async with client.aio:
        yield ask


@contextlib.asynccontextmanager
async def _openai(url: str) -> AsyncIterator[Ask]:
    import openai

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def ask(text: str) -> Any:
            answer = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": text}], temperature=0
            )
            return answer.choices[0].message.content

        yield ask


@contextlib.asynccontextmanager
async def _bare_aiohttp(url: str) -> AsyncIterator[Ask]:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(text: str) -> Any:
            messages = [{"role": "user", "content": text}]
            body = {"model": MODEL, "messages": messages, "temperature": 0}
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                return (await response.json())["choices"][0]["message"]["content"]

        yield ask


@contextlib.asynccontextmanager
async def _our_gemini(url: str) -> AsyncIterator[Ask]:
    backend = GeminiBackend(model=MODEL, project="p", location="us-central1", endpoint=url)
    client = await backend.open()

    async def ask(text: str) -> Any:
        return (await client.generate(_request(text))).output

    try:
        yield ask
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def _our_openai(url: str) -> AsyncIterator[Ask]:
    client = await OpenAIBackend(model=MODEL, endpoint=f"{url}/v1").open()

    async def ask(text: str) -> Any:
        return (await client.generate(_request(text))).output

    try:
        yield ask
    finally:
        await client.close()


if __name__ == "__main__":
    main()
