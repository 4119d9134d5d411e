"""Rows per second appended to the same loopback BigQuery, for each write method.

Every program appends the same result rows, made before the clock starts, to a table of its own:

* ``beam``: Beam's ``WriteToBigQuery`` with streaming inserts, as in its documentation.
* ``inserts``: our `InsertRows`, streaming inserts.
* ``default``: our `AppendRows` on the Storage Write API's default stream: at least once.
* ``exactly_once``: the same on streams with offsets: exactly once.

The server is an emulator on this machine and takes most of the time, so the ratios show the cost of
the protocols at both ends together, not the service's throughput. Each run is its own process; after
it, the benchmark counts the table's rows and compares their ids with those that were sent.

``python -m benchmarks.storage_write`` prints a table and writes it to ``benchmarks/RESULTS.md``.
"""

import argparse
import collections
import functools
import json
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import apache_beam as beam
import orjson
from apache_beam.io.gcp.bigquery import RetryStrategy, WriteToBigQuery
from apache_beam.options.pipeline_options import PipelineOptions
from google.cloud import bigquery, bigquery_storage_v1

from benchmarks.results import machine, write_section
from tests.emulators.environment import REPOSITORY, emulator_python
from tests.emulators.google_cloud import LoopbackCloud
from transforms.clients.bigquery import TableName, TableSpec
from transforms.records.records import Answer, Completion, Record, Usage
from transforms.results.prices import TokenPrices
from transforms.results.rows import RESULT_COLUMNS, RunInfo
from transforms.sinks.base import EncodedRow
from transforms.sinks.bigquery.append import AppendRows, Delivery
from transforms.sinks.bigquery.insert import InsertRows
from transforms.sinks.bigquery.run_table import RunTable
from transforms.sinks.write import encode_result

RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
WORDS = pathlib.Path(__file__).read_text(encoding="utf-8").split()
EPOCH = "2020-01-01T00:00:00Z"
BUNDLES = 64


def make_rows(count: int) -> list[bytes]:
    """Result rows of about 1 kB, as the pipeline builds them."""
    chance = random.Random(0)
    run = RunInfo(run_id="r", backend="fake", model="m")
    prices = TokenPrices(None, "m")
    rows = []
    for number in range(count):
        text = " ".join(chance.choices(WORDS, k=60))
        completion = Completion(output=text[:200], usage=Usage(120, 0, 40, None), latency_ms=250)
        answer = Answer(Record(f"T-{number}", {"id": number, "text": text}), "f" * 64, completion)
        rows.append(encode_result(answer, run, prices).line)
    return rows


def spec_of(table: str) -> TableSpec:
    """The results table."""
    return TableSpec(
        name=TableName.parse(table),
        columns=RESULT_COLUMNS,
        partition_by="created_at",
        cluster_by=("run_id", "record_id"),
    )


def append_by_beam(rows: Any, table: str) -> None:
    """Beam's own sink; the bad rows would be in ``failed_rows_with_errors``."""
    name = TableName.parse(table)
    _ = (
        rows
        | "Parse" >> beam.Map(orjson.loads)
        | WriteToBigQuery(
            f"{name.project}:{name.dataset}.{name.table}",
            method=WriteToBigQuery.Method.STREAMING_INSERTS,
            create_disposition="CREATE_NEVER",
            insert_retry_strategy=RetryStrategy.RETRY_ON_TRANSIENT_ERROR,
        )
    )


def _write_by_us(rows: Any, table: str, sink: Any, **how: Any) -> None:
    of_run = RunTable(spec=spec_of(table), run_id="r", started_at=EPOCH)
    encoded = rows | "Encoded" >> beam.Map(EncodedRow).with_output_types(EncodedRow)
    _ = encoded | sink(table=of_run, **how)


PROGRAMS = {
    "beam": append_by_beam,
    "inserts": functools.partial(_write_by_us, sink=InsertRows),
    "default": functools.partial(_write_by_us, sink=AppendRows),
    "exactly_once": functools.partial(
        _write_by_us, sink=AppendRows, delivery=Delivery.EXACTLY_ONCE
    ),
}


def child(program: str, table: str, folder: str) -> None:
    """Runs one program and prints its cost, imports excluded."""
    for kind in (bigquery.Client, bigquery_storage_v1.BigQueryWriteClient):
        kind()  # credentials and lazy imports
    used = resource.getrusage(resource.RUSAGE_SELF)
    before = (time.perf_counter(), used.ru_utime + used.ru_stime)
    options = PipelineOptions(["--direct_num_workers=4"])
    with beam.Pipeline(runner=RUNNER, options=options) as pipeline:
        source = (
            pipeline
            | beam.Create(sorted(map(str, pathlib.Path(folder).iterdir())))
            | beam.Reshuffle()
            | beam.FlatMap(read_rows).with_output_types(bytes)
        )
        PROGRAMS[program](source, table)
    used = resource.getrusage(resource.RUSAGE_SELF)
    wall = time.perf_counter() - before[0]
    print(json.dumps({"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime - before[1]}))


def write_rows(folder: pathlib.Path, count: int) -> None:
    """Writes the rows to a file for each bundle."""
    folder.mkdir()
    rows = make_rows(count)
    for number in range(BUNDLES):
        (folder / f"{number:03d}").write_bytes(b"\n".join(rows[number::BUNDLES]))


def read_rows(path: str) -> list[bytes]:
    """The rows of one file."""
    return pathlib.Path(path).read_bytes().split(b"\n")


def measure(
    cloud: LoopbackCloud, program: str, folder: pathlib.Path, count: int
) -> dict[str, float]:
    """One run, which must account for every row."""
    table = f"{cloud.new_dataset()}.results"
    with cloud.clients_redirected():
        client = spec_of(table).client()
        spec_of(table).create(client)
        command = [sys.executable, "-m", "benchmarks.storage_write"]
        done = subprocess.run(
            [*command, "--child", program, table, str(folder)],
            check=False,
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=cloud.subprocess_environment(),
        )
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        query = f"SELECT COUNT(*), COUNT(DISTINCT record_id) FROM `{table}`"
        held = tuple(next(iter(client.query(query).result())))
        if held != (count, count):
            raise SystemExit(f"{program}: {count:,} rows sent, the table holds {held}")
        client.delete_table(table)
        client.close()
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Runs the programs interleaved and writes the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    runs: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_rows(folder / "rows", args.rows)
        with LoopbackCloud.running(emulator_python(), folder) as cloud:
            for _ in range(args.repeats):
                for program in PROGRAMS:
                    runs[program].append(measure(cloud, program, folder / "rows", args.rows))
    medians = {
        program: {name: statistics.median(run[name] for run in made) for name in made[0]}
        for program, made in runs.items()
    }
    size = sum(map(len, make_rows(1000))) // 1000
    lines = [
        (
            f"{args.rows:,} result rows of about {size} bytes into an emulated BigQuery on the same "
            f"machine, medians of {args.repeats} interleaved runs in separate processes "
            f"({machine()}). Every row arrived once."
        ),
        "",
        "| | rows/s | of Beam's | wall s | CPU s of the pipeline |",
        "|---|---|---|---|---|",
    ]
    for program, median in medians.items():
        lines.append(
            f"| {program} | {args.rows / median['wall_s']:,.0f} "
            f"| {medians['beam']['wall_s'] / median['wall_s']:.1f} × "
            f"| {median['wall_s']:.1f} | {median['cpu_s']:.1f} |"
        )
    write_section("Appending to BigQuery", "python -m benchmarks.storage_write", lines)


if __name__ == "__main__":
    main()
