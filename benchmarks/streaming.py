"""A whole stream on one machine: every message accounted for, and the cost of our steps.

Google's Pub/Sub emulator, an emulated BigQuery and the simulated model server of
``benchmarks.simulator`` run next to the pipeline, all on the same cores. Each program reads the
same backlog in its own process, from its own subscription, until every message has ended:

* ``whole``: ``python -m pipeline`` with the model and the tables. 1 % of the messages are
  malformed, the model refuses 1 %, and the table refuses 0.5 % of the rows (its ``record_id`` is a
  column of JSON: a number is JSON, other ids are not).
* ``local``: the same with the fake backend and files, so that no server but Pub/Sub takes part.
* ``pass-through``: the same number and kinds of steps (read, shuffles, state, timers), each of
  which only passes its input on: the local runner's own cost. It fuses no steps and works in one
  thread.
* ``Beam's runner``: those steps on the runner that ours is based on, with a tenth of the messages.
* ``read alone``: only the read, which shows the speed of the emulator.

This does not prove throughput on Dataflow.

``python -m benchmarks.streaming`` prints a table and writes it to ``benchmarks/RESULTS.md``;
``--messages N --repeats N`` make it shorter.
"""

import argparse
import collections
import contextlib
import functools
import json
import os
import pathlib
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from google.cloud import bigquery

from benchmarks.dispatch.runs import simulator
from benchmarks.results import machine, write_section
from benchmarks.simulator import luck
from benchmarks.simulator.settings import Settings
from pipeline.checks import bigquery as checks
from pipeline.local import runner as local_streaming
from pipeline.main import main as run_pipeline
from tests.emulators.environment import REPOSITORY, emulator_python
from tests.emulators.google_cloud import LoopbackCloud
from tests.emulators.pubsub import PubSubEmulator
from tests.end_to_end.streams import ended, make_strict_table

TEXT = "A ticket about an invoice that came twice, and nobody answers. " * 9
TIMEOUT_S = 3600
PROMPT = "--prompt=Classify record {{ id }}: {{ text }}"
SIMULATOR = {"latency": "constant:0.05", "faults": "poison:0.01"}
GOAL = 0.8


def messages(count: int) -> Iterator[tuple[str, str, bytes]]:
    """The id, the expected outcome and the body of a message."""
    settings = Settings.parse(SIMULATOR)
    for n in range(count):
        key = f"x{n}" if n % 200 == 7 else str(n)
        if n % 100 == 3:
            yield key, "parse_error", b'{"text": "cut'
            continue
        poison = luck.is_poison(settings, key)
        outcome = (
            "invalid_request" if poison else "write_rejected" if key.startswith("x") else "result"
        )
        yield key, outcome, json.dumps({"id": key, "text": TEXT}).encode()


# One run, in its own process


class Passed:
    """Counts elements at the end; the last step finds it as a module variable."""

    count = 0


def count_passed(item: Any) -> Any:
    """The last step of the pass-through graph."""
    Passed.count += 1
    return item


def same(item: Any) -> Any:
    """A step that does nothing."""
    return item


def read_alone(subscription: str, runner: str = local_streaming.RUNNER) -> beam.Pipeline:
    """A read with no steps after it."""
    root = beam.Pipeline(runner, options=PipelineOptions(["--streaming"]))
    items = root | beam.io.ReadFromPubSub(subscription=subscription)
    _ = items | "Count" >> beam.Map(count_passed)
    return root


def pass_through(subscription: str, runner: str = local_streaming.RUNNER) -> beam.Pipeline:
    """As many steps as `pipeline.build` makes for a record that becomes a result, in its order."""
    root = beam.Pipeline(runner, options=PipelineOptions(["--streaming"]))
    items = root | beam.io.ReadFromPubSub(subscription=subscription)
    items = items | "AddMetrics" >> beam.Map(same) | "Parse" >> beam.Map(same)
    _ = items | "CountRecords" >> beam.FlatMap(lambda _: ())
    items = items | "SpreadRecords" >> beam.Reshuffle() | "Render" >> beam.Map(same)
    batches = (
        items
        | "Key" >> beam.Map(lambda item: (0, item)).with_output_types(tuple[int, bytes])
        | "BatchByKey" >> beam.GroupIntoBatches(256, 1)
        | "SpreadBatches" >> beam.Reshuffle()
        | "OpenBatches" >> beam.Map(lambda batch: list(batch[1])).with_output_types(list[bytes])
    )
    items = batches | "CallModel" >> beam.FlatMap(same).with_output_types(bytes)
    items = items | "KeepAnswers" >> beam.Reshuffle()
    for label in ("MakeRows", "AppendRows", "CountRows"):
        items = items | label >> beam.Map(same)
    _ = items | "Count" >> beam.Map(count_passed)
    return root


BEAMS_RUNNER = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"
GRAPHS = {
    "read alone": read_alone,
    "pass-through": pass_through,
    "Beam's runner": functools.partial(pass_through, runner=BEAMS_RUNNER),
}


def child(program: str, count: int, *arguments: str) -> dict[str, float]:
    """Runs until every message has ended; returns the seconds from the first to the last."""
    seconds: list[float] = []
    done = (lambda: Passed.count) if program in GRAPHS else ended

    def watch() -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not done() and time.monotonic() < deadline:
            time.sleep(0.01)
        began, first = time.perf_counter(), done()
        while done() < count and time.monotonic() < deadline:
            time.sleep(0.01)
        if first < count <= done():
            seconds.append((time.perf_counter() - began) * count / (count - first))
        if program in GRAPHS:
            local_streaming.drain()
        else:
            os.kill(os.getpid(), signal.SIGINT)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    if program in GRAPHS:
        result = GRAPHS[program](arguments[0]).run()
        watching.join() if program == "Beam's runner" else result.wait_until_finish()
    else:
        checks._check_columns = lambda *_: None  # the table deliberately refuses rows
        code = run_pipeline([f"--input_subscription={arguments[0]}", PROMPT, *arguments[1:]])
        if code != 130:
            raise SystemExit(f"{program} ended with {code}")
    if not seconds:
        raise SystemExit(f"{program} gave no figure: {done():,} of {count:,} messages have ended")
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall_s": seconds[0],
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss / 1024,
    }


# Not as ``__main__``, whose functions are pickled with copies of their globals.
_CHILD = """
import json, os, sys
from benchmarks import streaming
made = streaming.child(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
print(json.dumps(made), flush=True)
os._exit(0)  # Beam's own runner cannot be stopped
"""


# Measurement


def strict_table(cloud: LoopbackCloud) -> str:
    """A results table that refuses ids that are not JSON."""
    table = f"{cloud.new_dataset()}.answers"
    with cloud.clients_redirected():
        make_strict_table(table)
    return table


def check_accounts(cloud: LoopbackCloud, table: str, count: int) -> None:
    """Checks that every id is in its right place, once, and that the minutes reconcile.

    Raises:
      SystemExit: They do not.
    """
    expected = collections.Counter((key, outcome) for key, outcome, _ in messages(count))
    with cloud.clients_redirected(), bigquery.Client() as client:

        def rows(query: str) -> list[Any]:
            return list(client.query(query.format(table)).result())

        found = collections.Counter(
            (str(row.record_id), "result") for row in rows("SELECT record_id FROM `{}`")
        )
        letters = rows("SELECT record_id, error_type FROM `{}_dead_letters`")
        found.update((row.record_id, row.error_type) for row in letters)
        minutes = rows(
            "SELECT records, difference FROM `{}_runs` QUALIFY ROW_NUMBER() OVER "
            "(PARTITION BY read_minute ORDER BY revision DESC) = 1"
        )
    if found != expected:
        missing, more = expected - found, found - expected
        raise SystemExit(f"{missing.total()} messages are missing, {more.total()} too many")
    if sum(row.records for row in minutes) != count or any(row.difference for row in minutes):
        raise SystemExit("the summary by minute does not reconcile")


def measure(
    program: str, count: int, cloud: LoopbackCloud, pubsub: PubSubEmulator, model: str
) -> dict[str, float]:
    """Measures one run over its own backlog, which must account for every message."""
    topic = pubsub.new_topic()
    subscription = pubsub.new_subscription(topic, ack_deadline_s=60)
    pubsub.publish(topic, [(body, {"id": key}) for key, _, body in messages(count)])
    arguments = [subscription]
    with tempfile.TemporaryDirectory() as folder:
        if program == "whole":
            table = strict_table(cloud)
            arguments += ["--backend=openai", "--model=m", f"--endpoint={model}"]
            arguments += [f"--output_table={table}"]
        elif program == "local":
            arguments += ["--backend=fake", f"--output_path={folder}/out"]
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, program, str(count), *arguments],
            env=cloud.subprocess_environment(**pubsub.environment),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{program}: {done.stderr[-3000:]}")
    if program == "whole":
        check_accounts(cloud, table, count)
    made: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return made


def main() -> None:
    """Runs all programs interleaved and writes the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    programs = ("read alone", "pass-through", "local", "whole", "Beam's runner")
    counts = dict.fromkeys(programs, args.messages) | {"Beam's runner": args.messages // 10}
    made: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cloud = stack.enter_context(LoopbackCloud.running(emulator_python(), folder))
        pubsub = stack.enter_context(PubSubEmulator.running(folder))
        model = stack.enter_context(simulator(folder, **SIMULATOR))
        for _ in range(args.repeats):
            for program in programs:
                count = counts[program]
                made[program].append(measure(program, count, cloud, pubsub, f"{model.url}/v1"))
    middle = {
        program: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for program, runs in made.items()
    }
    rates = {program: counts[program] / middle[program]["wall_s"] for program in programs}
    lines = [
        (
            f"{args.messages:,} messages of about 600 bytes wait in a subscription: 1 % malformed, "
            "1 % refused by the model, 0.5 % of the rows refused by the table. Medians of "
            f"{args.repeats} interleaved runs in separate processes, with the servers on the "
            f"same machine ({machine()}). In every `whole` run each message was accounted for by its "
            f"id, and the minutes reconciled. `local`, our steps, should reach {GOAL:g} of the speed "
            "of pass-through. `whole` also calls a model over HTTP and appends a row for every "
            "message, and the servers that answer share the cores."
        ),
        "",
        "| | messages/s | of pass-through | wall s | CPU s of the pipeline | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for program in programs:
        run = middle[program]
        lines.append(
            f"| {program} | {rates[program]:,.0f} | {rates[program] / rates['pass-through']:.2f} "
            f"| {run['wall_s']:.1f} | {run['cpu_s']:.1f} | {run['peak_mb']:.0f} |"
        )
    write_section("Streaming", "python -m benchmarks.streaming", lines)


if __name__ == "__main__":
    main()
