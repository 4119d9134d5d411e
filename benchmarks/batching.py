"""Batching across bundles: how full batches are under backlog, and how long a request waits.

Each run is its own process, on the local runner with real-time timers and state, with Pub/Sub's
client in that process:

* ``backlog``: input never runs out and comes in bundles of one size. Measures how full batches are.
* ``trickle``: one message per second. Measures the time from before `BatchRequests` until after it,
  the runner's own time included.

``GroupIntoBatches`` is Beam's own transform, with the same number of keys and the same waiting time,
between the same steps.

``python -m benchmarks.batching`` prints a table and writes it to ``benchmarks/RESULTS.md``.
"""

import argparse
import collections
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import apache_beam as beam

from benchmarks.results import machine, write_section
from tests.transforms.streams import messages_from, streaming_pipeline
from transforms.records.records import Params, Record, Request
from transforms.requests.batch import BatchLimits, BatchRequests

BODY = "A ticket about an invoice that came twice, and nobody answers. " * 9
PARAMS = Params({"generation_config": {"temperature": 0}})
IDLE_S = 0.005


def make_request(message: bytes) -> Request:
    """A request of about 1.3 kB, named by its message."""
    name = message.decode()
    record = Record(name, {"id": name, "body": BODY}, read_minute=29_000_000)
    body = {"messages": [{"role": "user", "content": BODY}]}
    return Request(record, body, PARAMS, "f" * 64, 150)


class Stopwatch:
    """The arrival times of requests and the batches; the steps find it as a module variable."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.came: dict[str, float] = {}
        self.waits_s: list[float] = []
        self.sizes: list[int] = []
        self.done = threading.Event()

    def start(self, request: Request) -> Request:
        self.came[request.record.record_id] = time.perf_counter()
        return request

    def stop(self, batch: list[Request]) -> None:
        now = time.perf_counter()
        self.sizes.append(len(batch))
        self.waits_s += [now - self.came[request.record.record_id] for request in batch]
        if len(self.waits_s) >= self.expected:
            self.done.set()


_watch = Stopwatch(0)


def start(request: Request) -> Request:
    return _watch.start(request)


def stop(batch: list[Request]) -> None:
    _watch.stop(batch)


@beam.ptransform_fn
def group_into_batches(requests: Any, limits: BatchLimits, keys: int) -> Any:
    """Beam's batching, in place of `BatchRequests`."""
    return (
        requests
        | beam.WithKeys(lambda request: hash(request.record.record_id) % keys).with_output_types(
            tuple[int, Request]
        )
        | beam.GroupIntoBatches(limits.max_batch_size, limits.max_batch_wait_s)
        | beam.MapTuple(lambda _, batch: list(batch)).with_output_types(list[Request])
        | beam.Reshuffle()
    )


def backlog(messages: int, bundle: int) -> Callable[[], list[bytes]]:
    """All messages, as fast as the runner asks for them."""
    sent = 0

    def pull() -> list[bytes]:
        nonlocal sent
        first, sent = sent, min(messages, sent + bundle)
        if first == sent:
            time.sleep(IDLE_S)
        return [str(n).encode() for n in range(first, sent)]

    return pull


def trickle(messages: int) -> Callable[[], list[bytes]]:
    """One message per second."""
    sent, began = 0, time.monotonic()

    def pull() -> list[bytes]:
        nonlocal sent
        if sent < messages and time.monotonic() >= began + sent:
            sent += 1
            return [str(sent).encode()]
        time.sleep(IDLE_S)
        return []

    return pull


def child(program: str, messages: int, bundle: int, keys: int, wait_s: int) -> dict[str, float]:
    """One run; every message is accounted for."""
    global _watch
    _watch = Stopwatch(messages)
    limits = BatchLimits(max_batch_wait_s=wait_s)
    feed = backlog(messages, bundle) if bundle else trickle(messages)
    transform = (
        BatchRequests(limits=limits, keys=keys)
        if program == "BatchRequests"
        else group_into_batches(limits, keys)
    )
    with messages_from(feed) as read:
        root = streaming_pipeline()
        requests = root | read | beam.Map(make_request).with_output_types(Request)
        _ = requests | "Start" >> beam.Map(start) | "Batch" >> transform | "Stop" >> beam.Map(stop)
        began = time.perf_counter()
        result = root.run()
        if not _watch.done.wait(600):
            raise SystemExit(f"{len(_watch.waits_s)} of {messages} messages after 600 s")
        wall_s = time.perf_counter() - began
        result.cancel()
    if sum(_watch.sizes) != messages or len(_watch.came) != messages:
        raise SystemExit(f"{messages} messages, but {sum(_watch.sizes)} in batches")
    return {
        "batches": len(_watch.sizes),
        "mean_size": statistics.mean(_watch.sizes),
        "per_s": messages / wall_s,
        "mean_wait_s": statistics.mean(_watch.waits_s),
        "max_wait_s": max(_watch.waits_s),
    }


# Not as ``__main__``, whose functions are pickled with copies of their globals.
_CHILD = """
import json, sys
from benchmarks import batching
print(json.dumps(batching.child(sys.argv[1], *map(int, sys.argv[2:]))))
"""


def measure(
    program: str, messages: int, bundle: int, keys: int, wait_s: int = 1
) -> dict[str, float]:
    """One run in its own process."""
    arguments = [program, str(messages), str(bundle), str(keys), str(wait_s)]
    command = [sys.executable, "-c", _CHILD, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measures backlogs with several bundle sizes and numbers of keys, then the trickle."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=5_000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    limits = BatchLimits()
    ours, beams = "BatchRequests", "GroupIntoBatches"
    lines = [
        (
            f"{args.messages:,} requests of about 1.3 kB, as fast as the local streaming runner accepts "
            f"them, in batches of at most {limits.max_batch_size}; medians of {args.repeats} "
            f"interleaved runs ({machine()}). The last batch holds the remainder and counts too. A "
            "bundle costs this runner some 50 ms, however small it is, so small bundles cannot fill "
            "a batch in a second: hence their longer waiting time."
        ),
        "",
        "| | keys | waiting s | bundles of | batches | mean size | of the maximum | requests/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    runs = [(ours, 1, 1, 1000), (ours, 1, 1, 100), (ours, 1, 30, 10), (ours, 1, 30, 1)]
    runs += [(ours, 4, 1, 1000), (ours, 4, 4, 100), (beams, 1, 1, 1000), (beams, 1, 1, 100)]
    made: dict[Any, list[dict[str, float]]] = collections.defaultdict(list)
    for repeat in range(args.repeats):
        for program, keys, wait_s, bundle in runs:
            messages = args.messages if bundle >= 100 else args.messages * bundle // 100 + 1024
            if (
                bundle >= 100 or not repeat
            ):  # runs with small bundles take minutes and are not compared
                run = measure(program, messages, bundle, keys, wait_s)
                made[program, keys, wait_s, bundle].append(run)
    for (program, keys, wait_s, bundle), again in made.items():
        run = {name: statistics.median(run[name] for run in again) for name in again[0]}
        lines.append(
            f"| {program} | {keys} | {wait_s} | {bundle} | {run['batches']:.0f} "
            f"| {run['mean_size']:.1f} | **{run['mean_size'] / limits.max_batch_size:.2f}** "
            f"| {run['per_s']:,.0f} |"
        )
    lines += [
        "",
        f"One message per second, {args.seconds} of them:",
        "",
        "| | keys | mean added wait s | longest s |",
        "|---|---|---|---|",
    ]
    for program, keys in ((ours, 1), (ours, 4), (beams, 1)):
        run = measure(program, args.seconds, 0, keys)
        lines.append(
            f"| {program} | {keys} | {run['mean_wait_s']:.2f} | **{run['max_wait_s']:.2f}** |"
        )
    write_section("Batching", "python -m benchmarks.batching", lines)


if __name__ == "__main__":
    main()
