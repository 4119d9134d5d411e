"""How full our pipeline keeps a real vLLM: beside a sliding window, the limit, and stock Beam.

One vLLM 0.32 on a CPU with a tiny model, whose step takes the time of a GPU's (`gpushape`): who
sends badly drains the batch, as on a GPU. All lines ask the same server for the same prompts, made
unlike for each line, so that no line finds another's prefixes in the cache.

``ours`` is the whole command at default flags; its time runs from the first request to the last
answer, as the others' does. Never take the absolute figures for a GPU's: the ratios are the point.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.results import machine, write_section
from tests.vllm import environment
from transforms.backends.vllm import VLLMBackend, VLLMClient
from transforms.dispatch import loop
from transforms.vllm_server import processes
from transforms.vllm_server.gauges import read_metrics
from transforms.vllm_server.lease import Lease, end_all

GPUSHAPE = "60,0.1,0.15"
SLOTS = 256
ARGS = ("--enforce-eager", f"--max-num-seqs={SLOTS}", "--max-model-len=2048")
POISON_TOKENS = 4000
NATURAL: dict[str, Any] = {"max_tokens": 128, "min_tokens": 2, "logit_bias": {"2": 3.9}}


@dataclasses.dataclass(frozen=True)
class Line:
    """One row of the table."""

    name: str
    seconds: float
    tokens: float
    running: float
    note: str = ""


def requests_of(tag: str, count: int, lengths: str, poison: float = 0.0) -> list[dict[str, Any]]:
    """Whole requests; ``natural`` ones end by themselves, ``uniform`` ones after 4 to 128 tokens.

    A model of random weights would hardly ever end: a bias makes it end after 40 tokens on average.
    """
    chance = random.Random(0)
    made: list[dict[str, Any]] = []
    for number in range(count):
        prompt = f"{tag} {number}: classify the review of product {chance.randrange(10**6)}"
        request: dict[str, Any] = {"prompt": prompt, **NATURAL}
        if lengths == "uniform":
            request = {"prompt": prompt, "max_tokens": chance.randint(4, 128), "ignore_eos": True}
        if chance.random() < poison:
            request["prompt"] = "word " * POISON_TOKENS if number % 2 else ""
        made.append(request)
    return made


def prefixed(tag: str, count: int) -> list[dict[str, Any]]:
    """Ten prefixes of about 400 tokens, shuffled."""
    chance = random.Random(1)
    words = ["product", "review", "price", "total", "name", "city", "label", "date"]
    heads = [f"{tag} {n} " + " ".join(chance.choices(words, k=400)) for n in range(10)]
    asks = [f"{heads[n % 10]} question {n}" for n in range(count)]
    chance.shuffle(asks)
    return [{"prompt": ask, "max_tokens": 16, "ignore_eos": True} for ask in asks]


class Watch:
    """The server's own figures while a line runs."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._over = threading.Event()
        self._running: list[float] = []
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Watch":
        self._before = self._read().get("output_tokens", 0.0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.tokens = self._read().get("output_tokens", 0.0) - self._before
        self.running = statistics.mean(self._running or [0.0])

    def _read(self) -> dict[str, float]:
        try:
            with urllib.request.urlopen(f"{self._lease.state.url}/metrics", timeout=10) as page:
                return read_metrics(page.read().decode())
        except OSError:
            return {}

    def _sample(self) -> None:
        while not self._over.wait(0.5):
            if found := self._read().get("running"):
                self._running.append(found)


def window(url: str, model: str, requests: list[dict[str, Any]]) -> float:
    """A sliding window of as many requests as the server has slots: what can be had."""
    import aiohttp

    async def run() -> float:
        waiting = iter(requests)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
        endless = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=endless) as session:

            async def worker() -> None:
                for request in waiting:
                    body = {"model": model, **request}
                    for _ in range(10):  # a connection that the server has just closed
                        with contextlib.suppress(aiohttp.ClientConnectionError):
                            async with session.post(f"{url}/v1/completions", json=body) as reply:
                                await reply.read()
                            break

            began = time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(SLOTS)))
            return time.perf_counter() - began

    return asyncio.run(run())


class Stopwatch:
    """The time from the first request of our backend to the end of the last."""

    def __enter__(self) -> "Stopwatch":
        self._plain = plain = VLLMClient.generate
        self.first = self.last = 0.0

        async def timed(client: VLLMClient, request: Any) -> Any:
            self.first = self.first or time.perf_counter()
            try:
                return await plain(client, request)
            finally:
                self.last = time.perf_counter()

        VLLMClient.generate = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        VLLMClient.generate = self._plain  # type: ignore[method-assign]


def ours(
    backend: VLLMBackend, requests: list[dict[str, Any]], *flags: str
) -> tuple[float, dict[str, Any]]:
    """The whole command at default flags: seconds of the model's step, and the run's summary."""
    from pipeline.main import main

    with tempfile.TemporaryDirectory() as folder:
        records = pathlib.Path(folder, "records.jsonl")
        lines = (json.dumps({"id": str(n), "request": r}) for n, r in enumerate(requests))
        records.write_text("\n".join(lines), encoding="utf-8")
        argv = [
            *(f"--input_files={records}", "--request_field=request", "--backend=vllm"),
            *(f"--model={backend.model}", f"--vllm_python={backend.python}"),
            f"--vllm_args={' '.join(backend.args)}",
            *("--accept_truncated=true", f"--output_path={folder}/out", *flags),
        ]
        with Stopwatch() as watch:
            status = main(argv)
        summary: dict[str, Any] = json.loads(pathlib.Path(folder, "out/run.json").read_text())
        letters = [
            json.loads(line)
            for path in pathlib.Path(folder, "out/dead_letters").glob("*")
            for line in path.read_text().splitlines()
        ]
        summary["exit"], summary["letters"] = status, letters
        return watch.last - watch.first, summary


def stock(url: str, model: str, requests: list[dict[str, Any]], *, tuned: bool) -> float:
    """Beam's own handler, given the running server: it cannot start one in another environment."""
    import apache_beam as beam
    from apache_beam.ml.inference.base import RunInference
    from apache_beam.ml.inference.vllm_inference import VLLMCompletionsModelHandler
    from apache_beam.options.pipeline_options import PipelineOptions

    port = int(url.rpartition(":")[2])

    class Running:
        def get_server_port(self) -> int:
            return port

        def check_connectivity(self) -> None:
            return None

    class Handler(VLLMCompletionsModelHandler):  # type: ignore[misc]
        def load_model(self) -> Any:
            return Running()

        def share_model_across_processes(self) -> bool:
            return False

    sizes = {"min_batch_size": SLOTS, "max_batch_size": SLOTS} if tuned else {}
    threads = 4 if tuned else 1
    options = PipelineOptions(
        [f"--direct_num_workers={threads}", "--direct_running_mode=multi_threading"]
    )
    prompts = [request["prompt"] for request in requests]
    began = time.perf_counter()
    runner = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
    with beam.Pipeline(runner=runner, options=options) as pipeline:
        _ = (
            pipeline
            | beam.Create(prompts)
            | beam.Reshuffle()
            | RunInference(Handler(model, **sizes), inference_args=NATURAL)
        )
    return time.perf_counter() - began


@contextlib.contextmanager
def killing(lease: Lease, times: int) -> Iterator[None]:
    """SIGKILL to the server, so often, once it has worked for a while on what it was given."""
    over = threading.Event()

    def kill() -> None:
        for _ in range(times):
            while not over.is_set() and lease.state.status != "ready":
                over.wait(0.2)
            if over.wait(15.0):
                return
            os.kill(lease.state.pid, signal.SIGKILL)
            generation = lease.state.generation
            while not over.is_set() and lease.state.generation == generation:
                over.wait(0.1)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def main() -> None:
    """Starts one server and runs the lines that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--lines", default="natural,beam,beam_defaults,uniform,poison,kill,prefix")
    parser.add_argument("--dry", action="store_true", help="print, and leave RESULTS.md alone")
    given = parser.parse_args()
    wanted = given.lines.split(",")
    python = environment.vllm_python()
    shape = str(pathlib.Path(__file__).with_name("gpushape"))
    found = subprocess.run([python, "-c", "import vllm_gpushape"], capture_output=True)
    if found.returncode:
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--no-build-isolation", shape], check=True
        )
    os.environ |= {"GPUSHAPE": GPUSHAPE, "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        model = environment.tiny_model(pathlib.Path(folder) / "tiny")
        backend = VLLMBackend(model=model, python=python, args=ARGS, accept_truncated=True)
        client = loop.run(backend.open())
        lease = client._servers[0].lease
        lines = _lines(wanted, given.prompts, backend, lease)
        pids = [lease.state.keeper_pid, lease.state.pid]
        pids += [one.pid for one in processes.descendants(lease.state.pid)]
        loop.run(client.close())
        began = time.perf_counter()
        end_all()  # what the end of the process does
        ended = time.perf_counter() - began
        left = [pid for pid in pids if processes.process(pid)]
    about = (
        f"{machine()}; vLLM 0.32 on the CPU, GPUSHAPE={GPUSHAPE}, --max-num-seqs={SLOTS}, "
        f"{given.prompts:,} prompts a line; load at the end {os.getloadavg()[0]:.1f}."
    )
    text = [
        about,
        "",
        "| Client | s | tok/s | mean running | |",
        "|---|---|---|---|---|",
        *(
            f"| {line.name} | {line.seconds:.1f} "
            f"| {f'{line.tokens / line.seconds:.0f}' if line.tokens > 0 else 'restarted'} "
            f"| {line.running:.0f} | {line.note} |"
            for line in lines
        ),
        "",
        f"At the end of the process {ended:.1f} s until the server is gone; processes left: {len(left)}.",
    ]
    command = f"python -m benchmarks.vllm --prompts={given.prompts} --lines={given.lines}"
    if given.dry:
        print("\n".join(text))
    else:
        write_section("A vLLM server kept full", command, text)


def _lines(wanted: list[str], count: int, backend: VLLMBackend, lease: Lease) -> list[Line]:
    lines: list[Line] = []

    def add(name: str, run: Callable[[], float], against: float | None = None) -> float:
        with Watch(lease) as watch:
            seconds = run()
        note = f"{seconds / against:.2f} of the window" if against else ""
        lines.append(Line(name, seconds, watch.tokens, watch.running, note))
        print(lines[-1], flush=True)
        return seconds

    def remark(text: str) -> None:
        lines[-1] = dataclasses.replace(lines[-1], note=f"{lines[-1].note}; {text}".strip("; "))
        print(text, flush=True)

    model = backend.model
    add("(warm-up)", lambda: window(lease.state.url, model, requests_of("warm", 64, "natural")))
    lines.clear()
    summary: dict[str, Any] = {}

    def run_ours(requests: list[dict[str, Any]], *flags: str) -> float:
        seconds, found = ours(backend, requests, *flags)
        summary.clear()
        summary.update(found)
        return seconds

    limits: dict[str, float] = {}
    plain: float | None = None
    for lengths in ("natural", "uniform"):
        if lengths in wanted:
            asked = requests_of(f"w {lengths}", count, lengths)
            limits[lengths] = add(
                f"window of {SLOTS}, {lengths} lengths",
                lambda asked=asked: window(lease.state.url, model, asked),  # type: ignore[misc]
            )
            asked = requests_of(f"o {lengths}", count, lengths)
            seconds = add(
                f"ours, default flags, {lengths} lengths",
                lambda asked=asked: run_ours(asked),  # type: ignore[misc]
                limits[lengths],
            )
            remark(f"{summary['results']:,} results, {summary['dead_letters']} dead letters")
            plain = seconds if lengths == "natural" else plain
    for flag, name in (("beam", "tuned: 256 × 4 threads"), ("beam_defaults", "defaults")):
        if flag in wanted:
            tuned = flag == "beam"
            asked = requests_of(f"b {name}", count, "natural")
            add(
                f"stock Beam, {name}, natural lengths",
                lambda asked=asked, tuned=tuned: stock(  # type: ignore[misc]
                    lease.state.url, model, asked, tuned=tuned
                ),
                limits.get("natural"),
            )
    if "poison" in wanted:
        asked = requests_of("p", count, "natural", poison=0.01)
        bad = {str(n) for n, r in enumerate(asked) if not r["prompt"] or len(r["prompt"]) > 10_000}
        seconds = add("ours, 1 % poison prompts", lambda: run_ours(asked))
        if plain:
            remark(f"{seconds / plain:.2f} of the time without")
        exact = {letter["record_id"] for letter in summary["letters"]} == bad
        remark(f"{len(bad)} dead letters, {'exactly those' if exact else 'NOT those'}")
    if "kill" in wanted:
        before = lease.state.restarts
        asked = requests_of("k", count, "natural")
        with killing(lease, 2):
            add("ours, SIGKILL to the server twice", lambda: run_ours(asked))
        remark(
            f"{summary['results']:,} results, {summary['dead_letters']} dead letters, "
            f"{lease.state.restarts - before} restarts"
        )
    if "prefix" in wanted:
        asked = prefixed("x", count)
        add("ours, ten shared prefixes, shuffled", lambda: run_ours(asked))
        ordered = sorted(prefixed("y", count), key=lambda request: request["prompt"])
        add("ours, ten shared prefixes, in order", lambda: run_ours(ordered))
    return lines


if __name__ == "__main__":
    main()
