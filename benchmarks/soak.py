"""Half an hour of a stream in which everything fails now and then: no loss, and flat memory.

Messages are published at a steady rate, 1 % of them malformed and 1 % twice. ``python -m pipeline``
reads them with its default flags, calls the simulated model server of ``benchmarks.simulator`` and
writes to an emulated BigQuery. The model refuses 1 % of the records for good and fails 2 % of the
calls; for 45 seconds in every six minutes it answers every call with 503; every seven minutes
BigQuery is killed and comes back ten seconds later. At the end each id must be in its right place,
each minute must reconcile, and the pipeline's memory (the medians of five minutes each, after five
minutes) must be flat.

``python -m benchmarks.soak`` writes its figures to ``benchmarks/RESULTS.md``; ``--minutes N`` for
less.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from google.cloud import bigquery

from benchmarks.dispatch.runs import simulator
from benchmarks.results import machine, write_section
from benchmarks.simulator import luck
from benchmarks.simulator.settings import Settings
from tests.emulators.environment import REPOSITORY, emulator_python
from tests.emulators.google_cloud import LoopbackCloud
from tests.emulators.pubsub import PubSubEmulator
from tests.emulators.restartable_bigquery import RestartableBigQuery, restartable_bigquery

OUTAGE_S, OUTAGE_EVERY_S = 45, 360
KILLED_S, KILLED_EVERY_S = 10, 420
WINDOW_S = WARM_UP_S = 300
SAMPLE_EVERY_S = 5
PATIENCE_S = 900
FLAT = 1.10
TEXT = "A ticket about an invoice that came twice, and nobody answers. " * 9
PROMPT = "--prompt=Classify record {{ id }}: {{ text }}"
FAULTS = "poison:0.01,503:0.01,429:0.008,reset:0.002"


def record(n: int) -> tuple[str, str, bytes]:
    """The id, the expected outcome and the body of a message."""
    key = str(n)
    if n % 100 == 3:
        return key, "parse_error", b'{"text": "cut'
    poison = luck.is_poison(Settings.parse({"faults": FAULTS}), key)
    body = json.dumps({"id": key, "text": TEXT}).encode()
    return key, "invalid_request" if poison else "result", body


class Publisher(threading.Thread):
    """Publishes at a steady rate; `expected` counts the outcomes to expect."""

    def __init__(self, pubsub: PubSubEmulator, topic: str, rate: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self._pubsub, self._topic, self._rate, self._seconds = pubsub, topic, rate, seconds
        self.expected: collections.Counter[tuple[str, str]] = collections.Counter()
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            began = time.monotonic()
            for second in range(int(self._seconds)):
                time.sleep(max(0.0, began + second - time.monotonic()))
                self._publish(range(second * self._rate, (second + 1) * self._rate))
        except Exception as error:
            self.failure = error

    def _publish(self, numbers: range) -> None:
        messages = []
        for n in numbers:
            key, outcome, body = record(n)
            copies = 2 if n % 100 == 50 else 1
            messages += [(body, {"id": key})] * copies
            self.expected[key, outcome] += copies
        self._pubsub.publish(self._topic, messages)


@contextlib.contextmanager
def pipeline(
    folder: pathlib.Path, environment: dict[str, str], *arguments: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Starts the command as a user does."""
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def resident_mb(process: "subprocess.Popen[bytes]") -> float:
    """The current memory of a process."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


class Memory(threading.Thread):
    """Samples a process: seconds, MB."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        super().__init__(daemon=True)
        self._process, self._began = process, time.monotonic()
        self.samples: list[tuple[float, float]] = []

    def run(self) -> None:
        while self._process.poll() is None:
            with contextlib.suppress(OSError, IndexError):  # the process has just ended
                self.samples.append((time.monotonic() - self._began, resident_mb(self._process)))
            time.sleep(SAMPLE_EVERY_S)

    def windows(self, until_s: float) -> list[float]:
        """The median of each five minutes, from the start of the process until `until_s`."""
        count = max(1, int(until_s / WINDOW_S))
        return [
            statistics.median(
                [mb for at_s, mb in self.samples if n * WINDOW_S <= at_s < (n + 1) * WINDOW_S]
            )
            for n in range(count)
        ]


class Tables:
    """The tables that the stream writes; query them only while BigQuery is up."""

    def __init__(self, table: str) -> None:
        self._table = table

    def rows(self, query: str) -> list[Any]:
        """The rows of a query in which ``{}`` stands for the table."""
        with bigquery.Client() as client:
            return list(client.query(query.format(self._table)).result())

    def ended(self) -> collections.Counter[tuple[str, str]]:
        """Counts of id and outcome."""
        found = collections.Counter(
            (str(row.record_id), "result") for row in self.rows("SELECT record_id FROM `{}`")
        )
        letters = self.rows("SELECT record_id, error_type FROM `{}_dead_letters`")
        found.update((row.record_id, row.error_type) for row in letters)
        return found

    def check(self, expected: collections.Counter[tuple[str, str]]) -> int:
        """Checks that every row is in its right place; returns the number of duplicates.

        Raises:
          SystemExit: A row is missing or in the wrong place.
        """
        found = self.ended()
        missing, unexpected = expected - found, set(found) - set(expected)
        if missing or unexpected:
            raise SystemExit(
                f"{missing.total()} rows are missing, such as {list(missing)[:5]}; "
                f"{len(unexpected)} are wrong, such as {list(unexpected)[:5]}"
            )
        newest = [str(row.record_id) for row in self.rows("SELECT record_id FROM `{}_latest`")]
        if sorted(newest) != sorted(key for key, outcome in expected if outcome == "result"):
            raise SystemExit("the _latest view has not one row for each id")
        minutes = self.rows(
            "SELECT records, difference FROM `{}_runs` QUALIFY ROW_NUMBER() OVER "
            "(PARTITION BY read_minute ORDER BY revision DESC) = 1"
        )
        if any(row.difference for row in minutes):
            raise SystemExit("the summary by minute does not reconcile")
        return (found - expected).total()


def run_soak(rate: int, seconds: float, folder: pathlib.Path) -> list[str]:
    """The lines of the section.

    Raises:
      SystemExit: A message was lost, or memory was not flat.
    """
    outages = [
        {"at_s": at, "outage": OUTAGE_S}
        for at in range(OUTAGE_EVERY_S // 2, int(seconds), OUTAGE_EVERY_S)
    ]
    settings = {
        "latency": "lognormal:0.2,1",
        "faults": FAULTS,
        "schedule": json.dumps(outages),
    }
    with contextlib.ExitStack() as stack:
        cloud = stack.enter_context(LoopbackCloud.running(emulator_python(), folder))
        pubsub = stack.enter_context(PubSubEmulator.running(folder))
        tables_folder = folder / "restarted"
        tables_folder.mkdir()
        server = stack.enter_context(restartable_bigquery(tables_folder, cloud, emulator_python()))
        model = stack.enter_context(simulator(folder, **settings))
        topic = pubsub.new_topic()
        subscription = pubsub.new_subscription(topic, ack_deadline_s=60)
        table = f"{server.cloud.new_dataset()}.answers"
        process = stack.enter_context(
            pipeline(
                folder,
                server.cloud.subprocess_environment(**pubsub.environment),
                f"--input_subscription={subscription}",
                PROMPT,
                "--backend=openai",
                "--model=m",
                f"--endpoint={model.url}/v1",
                f"--output_table={table}",
            )
        )
        memory = Memory(process)
        memory.start()
        publisher = Publisher(pubsub, topic, rate, seconds)
        publisher.start()
        restarts = _restart_while(publisher, server, process)
        if publisher.failure:
            raise publisher.failure
        published_s = time.monotonic()
        tables = Tables(table)
        count = publisher.expected.total()
        while publisher.expected - tables.ended():
            if process.poll() is not None or time.monotonic() > published_s + PATIENCE_S:
                raise SystemExit((folder / "output.txt").read_text()[-3000:])
            time.sleep(2)
        behind_s = time.monotonic() - published_s
        process.send_signal(signal.SIGINT)
        code = process.wait(PATIENCE_S)
        output = (folder / "output.txt").read_text()
        if code != 130 or "NOT RECONCILED" in output:
            raise SystemExit(f"the pipeline ended with {code}:\n{output[-3000:]}")
        doubled = tables.check(publisher.expected)
    windows = memory.windows(seconds)
    steady = windows[WARM_UP_S // WINDOW_S :] or windows
    flatness = max(steady) / min(steady)
    by_outcome: collections.Counter[str] = collections.Counter()
    for (_, outcome), times in publisher.expected.items():
        by_outcome[outcome] += times
    lines = [
        (
            f"{rate} messages a second of about 600 bytes for {seconds / 60:g} minutes, at default "
            f"flags ({machine()}, all servers on the same machine): {count:,} messages ended as "
            + ", ".join(f"{times:,} {name}" for name, times in sorted(by_outcome.items()))
            + f". The model had {len(outages)} outages of {OUTAGE_S} s, and BigQuery was killed "
            f"{restarts} times for {KILLED_S} s. Each id was where it belongs, the `_latest` view "
            f"had each once, and every minute reconciled; {doubled:,} rows were duplicated. All "
            f"rows were written {behind_s:.0f} s after the last message."
        ),
        "",
        "| minutes | resident MB (median) |",
        "|---|---|",
    ]
    for n, mb in enumerate(windows):
        lines.append(f"| {n * WINDOW_S // 60}-{(n + 1) * WINDOW_S // 60} | {mb:.0f} |")
    lines += [
        "",
        f"After {WARM_UP_S // 60} minutes: highest / lowest {flatness:.3f} (goal {FLAT}).",
    ]
    if flatness > FLAT:
        print("\n".join(lines), file=sys.stderr)
        raise SystemExit(f"memory is not flat: {flatness:.3f}")
    return lines


def _restart_while(
    publisher: Publisher, server: RestartableBigQuery, process: "subprocess.Popen[bytes]"
) -> int:
    """Kills BigQuery now and then until all messages are published; returns how often."""
    restarts = 0
    while publisher.is_alive():
        publisher.join(KILLED_EVERY_S)
        if process.poll() is not None:
            break
        if publisher.is_alive():
            server.kill()
            time.sleep(KILLED_S)
            server.restart()
            restarts += 1
    return restarts


def main() -> None:
    """Runs the soak test once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = run_soak(args.rate, args.minutes * 60, pathlib.Path(folder))
    write_section("Soak", "python -m benchmarks.soak", lines)


if __name__ == "__main__":
    main()
