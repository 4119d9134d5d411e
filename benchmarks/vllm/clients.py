"""The clients: a sliding window, our command, Beam's own handler."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import pathlib
import statistics
import tempfile
import threading
import time
import urllib.request
from typing import Any

from benchmarks.vllm.prompts import NATURAL
from transforms.backends.vllm.backend import VLLMBackend, VLLMClient
from transforms.backends.vllm.lease import ServerLease
from transforms.clients.server_metrics import read_metrics

SLOTS = 256
Requests = list[dict[str, Any]]


def server_figures(url: str) -> dict[str, float]:
    """A server's own metrics; empty while it is unavailable."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:
            return read_metrics(page.read().decode())
    except OSError:
        return {}


class Watch:
    """The server's own metrics while a line runs."""

    def __init__(self, lease: ServerLease) -> None:
        self._lease = lease
        self._over = threading.Event()
        self._running: list[float] = []
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Watch":
        self._generation = self._lease.state.generation
        self._before = server_figures(self._lease.state.url)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        after = server_figures(self._lease.state.url)
        if self._lease.state.generation != self._generation:
            after = {}  # its counters restarted
        self._made = {name: after[name] - self._before.get(name, 0.0) for name in after}
        self.tokens = self._made.get("output_tokens", 0.0)
        self.running = statistics.mean(self._running or [0.0])

    def cache_hits(self) -> float:
        """The share of the prompts' tokens that were in the server's cache."""
        return self._made.get("cache_hits", 0.0) / (self._made.get("cache_queries") or 1.0)

    def _sample(self) -> None:
        while not self._over.wait(0.5):
            if found := server_figures(self._lease.state.url).get("running"):
                self._running.append(found)


def window(url: str, model: str, requests: Requests) -> float:
    """A sliding window of as many requests as the server has slots: the best possible client."""
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
    """The answers, and the time from our backend's first request to the end of its last."""

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self.answered = 0

    def __enter__(self) -> "Stopwatch":
        self._plain = plain = VLLMClient.generate

        async def timed(client: VLLMClient, request: Any) -> Any:
            self.first = self.first or time.perf_counter()
            try:
                answer = await plain(client, request)
                self.answered += 1
                return answer
            finally:
                self.last = time.perf_counter()

        VLLMClient.generate = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        VLLMClient.generate = self._plain  # type: ignore[method-assign]


@dataclasses.dataclass(frozen=True)
class Ran:
    """The output of a run of our command.

    Attributes:
      status: The command's exit code.
      reconciled: Whether its summary reconciles.
      results: The ids of the result rows, with duplicates.
      letters: The ids of the dead letters.
      errors: The error types of the dead letters, by the ids.
    """

    status: int
    reconciled: bool
    results: list[str]
    letters: list[str]
    errors: dict[str, str] = dataclasses.field(default_factory=dict)

    def wrong(self, count: int, poison: set[str]) -> str:
        """The mistakes in the output for records ``0`` to ``count - 1``; empty if it is right."""
        ended = collections.Counter([*self.results, *self.letters])
        wanted = {str(number) for number in range(count)}
        found = {
            "lost": len(wanted - ended.keys()),
            "doubled": sum(times > 1 for times in ended.values()),
            "unknown": len(ended.keys() - wanted),
            "dead letters of good records": len(set(self.letters) - poison),
            "results of poisoned records": len(set(self.results) & poison),
        }
        said = [f"{number} {name}" for name, number in found.items() if number]
        said += sorted({error for one, error in self.errors.items() if one not in poison})
        if not self.reconciled or self.status:
            said.append(f"status {self.status}, reconciled: {self.reconciled}")
        return ", ".join(said)


def write_records(folder: str, requests: Requests) -> None:
    """Writes the input of a run to a folder."""
    lines = (json.dumps({"id": str(n), "request": r}) for n, r in enumerate(requests))
    pathlib.Path(folder, "records.jsonl").write_text("\n".join(lines), encoding="utf-8")


def flags_of(backend: VLLMBackend, folder: str, *more: str) -> list[str]:
    """The flags of our command, all others at their defaults."""
    return [
        *(f"--input_files={folder}/records.jsonl", "--request_field=request", "--backend=vllm"),
        *(f"--model={backend.model}", f"--vllm_python={backend.python}"),
        f"--vllm_args={' '.join(backend.args)}",
        *("--accept_truncated=true", f"--output_path={folder}/out", *more),
    ]


def ran(folder: str, status: int) -> Ran:
    """Reads the output of a run."""

    def rows(kind: str) -> list[dict[str, Any]]:
        paths = pathlib.Path(folder, "out", kind).glob("*.jsonl")
        return [json.loads(line) for path in paths for line in path.open(encoding="utf-8")]

    summary = json.loads(pathlib.Path(folder, "out/run.json").read_text(encoding="utf-8"))
    letters = rows("dead_letters")
    return Ran(
        status,
        summary["reconciled"],
        [row["record_id"] for row in rows("results")],
        [row["record_id"] for row in letters],
        {row["record_id"]: row["error_type"] for row in letters},
    )


def ours(
    backend: VLLMBackend, requests: Requests, *flags: str, watch: Stopwatch
) -> tuple[float, Ran]:
    """Runs the whole command; returns the seconds of the model's step, and the output."""
    from pipeline.main import main

    with tempfile.TemporaryDirectory() as folder:
        write_records(folder, requests)
        with watch:
            status = main(flags_of(backend, folder, *flags))
        return watch.last - watch.first, ran(folder, status)


def stock(url: str, model: str, requests: Requests, *, tuned: bool) -> float:
    """Beam's own handler with the running server: it cannot start one in another environment."""
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
    options = PipelineOptions([f"--direct_num_workers={4 if tuned else 1}"])
    prompts = [request["prompt"] for request in requests]
    known = {name: value for name, value in NATURAL.items() if name != "min_tokens"}
    given = {**known, "extra_body": {"min_tokens": NATURAL["min_tokens"]}}  # not an OpenAI name
    began = time.perf_counter()
    runner = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
    with beam.Pipeline(runner=runner, options=options) as pipeline:
        _ = (
            pipeline
            | beam.Create(prompts)
            | beam.Reshuffle()
            | RunInference(Handler(model, **sizes), inference_args=given)
        )
    return time.perf_counter() - began
