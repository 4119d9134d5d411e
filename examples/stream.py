"""``make stream``: tickets in, answers out, all on this machine, until Ctrl-C.

Google's Pub/Sub emulator, an emulated BigQuery and a SIMULATED model server are started, tickets are
published, and ``python -m pipeline`` runs as it would anywhere else. Ctrl-C drains it. Then a few
rows are shown. ``--seconds N`` stops by itself.
"""

import argparse
import contextlib
import itertools
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from google.cloud import bigquery  # noqa: E402 - behind the path
from rich.console import Console  # noqa: E402

from tests.emulators.environment import EnvironmentUnavailableError, emulator_python  # noqa: E402
from tests.emulators.google_cloud import LoopbackCloud  # noqa: E402
from tests.emulators.model_fixtures import running_model_server  # noqa: E402
from tests.emulators.pubsub import PubSubEmulator  # noqa: E402

PER_SECOND = 20
TICKETS = ROOT / "examples/support_tickets.jsonl"
_QUERIES = {
    "a few answers": "SELECT record_id, category, priority FROM `{0}_latest` LIMIT 5",
    "dead letters": "SELECT error_type, COUNT(*) AS letters FROM `{0}_dead_letters` GROUP BY 1",
    "minutes": """SELECT read_minute, records, results, dead_letters, difference FROM `{0}_runs`
        QUALIFY ROW_NUMBER() OVER (PARTITION BY run_id, read_minute ORDER BY revision DESC) = 1
        ORDER BY read_minute""",
}


def publish(pubsub: PubSubEmulator, topic: str, stopped: threading.Event) -> None:
    """The tickets, broken ones included, again and again."""
    lines = TICKETS.read_bytes().splitlines()
    for first in itertools.count(step=PER_SECOND):
        if stopped.wait(1):
            return
        some = [lines[n % len(lines)] for n in range(first, first + PER_SECOND)]
        pubsub.publish(topic, [(line, {"origin": "example"}) for line in some])


def show(console: Console, table: str) -> None:
    """What the tables hold."""
    with bigquery.Client() as client:
        for title, query in _QUERIES.items():
            console.print(f"\n[bold]{title}[/]")
            for row in client.query(query.format(table)).result():
                console.print(json.dumps(dict(row), default=str), highlight=False)


def main() -> int:
    """Runs until Ctrl-C; the exit code is that of the pipeline, 0 where it was only stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, help="stop after so long")
    seconds = parser.parse_args().seconds
    console = Console(width=None if sys.stdout.isatty() else 120)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            console.print("starting Pub/Sub, BigQuery and a SIMULATED model server on loopback …")
            cloud = stack.enter_context(LoopbackCloud.running(emulator_python(), folder))
            pubsub = stack.enter_context(PubSubEmulator.running(folder))
        except EnvironmentUnavailableError as error:
            console.print(str(error), style="red", markup=False)
            return 1
        model = stack.enter_context(running_model_server(folder, "--latency_ms=50"))
        topic, table = pubsub.new_topic(), f"{cloud.new_dataset()}.answers"
        command = [
            *(sys.executable, "-m", "pipeline"),
            f"--input_subscription={pubsub.new_subscription(topic)}",
            "--prompt_file=examples/classify.jinja",
            "--system_prompt_file=examples/classify_system.txt",
            "--output_schema=examples/classify_schema.json",
            *("--backend=openai", "--model=simulated", f"--endpoint={model.openai_url}"),
            f"--output_table={table}",
        ]
        shown = " \\\n  ".join(command[3:])
        console.print(f"python -m pipeline {shown}", highlight=False, markup=False)
        console.print(f"\n{PER_SECOND} tickets a second are published; [bold]Ctrl-C[/] stops\n")
        stopped = threading.Event()
        threading.Thread(target=publish, args=(pubsub, topic, stopped), daemon=True).start()
        environment = cloud.subprocess_environment(**pubsub.environment)
        pipeline = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        stack.callback(pipeline.kill)
        signal.signal(signal.SIGINT, lambda *_: pipeline.send_signal(signal.SIGINT))
        with contextlib.suppress(subprocess.TimeoutExpired):
            pipeline.wait(seconds)
        if pipeline.poll() is None:
            pipeline.send_signal(signal.SIGINT)
        code = pipeline.wait()
        stopped.set()
        if code in (0, 130):
            with cloud.clients_redirected():
                show(console, table)
        return 0 if code == 130 else code


if __name__ == "__main__":
    sys.exit(main())
