"""Real text through every sink: the package descriptions of this machine, classified.

Every Debian machine has tens of thousands of them (``apt-cache dumpavail``). The pipeline reads
them from Cloud Storage and from a BigQuery table of the loopback cloud, renders them, sends them
over HTTP, checks the answers against a schema, and writes both files and a table. The model is
simulated on the same machine: its answers are meaningless, and it uses part of the cores.

``python -m benchmarks.real_input`` prints a table and writes it to ``benchmarks/RESULTS.md``.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from benchmarks.results import machine, write_section
from benchmarks.texts import packages
from tests.emulators.environment import REPOSITORY, emulator_python
from tests.emulators.google_cloud import LoopbackCloud
from tests.emulators.model_fixtures import SimulatedModelServer, running_model_server

PROMPT = "What is this package about?\n\nPackage: {{ id }} ({{ section }})\n\n{{ text }}"
CATEGORIES = ("game", "library", "development", "documentation", "network", "science", "other")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "category": {"enum": list(CATEGORIES)},
        "summary": {"type": "string", "maxLength": 200},
    },
    "required": ["category", "summary"],
    "additionalProperties": False,
}


def json_lines(records: list[dict[str, str]]) -> bytes:
    """The records as a file."""
    return b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)


def make_table(name: str, records: list[dict[str, str]]) -> None:
    """A table of the records, in the cloud that this process's clients are redirected to."""
    from google.cloud import bigquery

    schema = [bigquery.SchemaField(column, "STRING") for column in ("id", "section", "text")]
    with bigquery.Client() as client:
        client.load_table_from_json(
            records, name, job_config=bigquery.LoadJobConfig(schema=schema)
        ).result()


def flags(server: SimulatedModelServer) -> list[str]:
    """The flags that all runs share."""
    return [
        f"--prompt={PROMPT}",
        f"--output_schema={json.dumps(SCHEMA)}",
        "--backend=openai",
        "--model=simulated-model",
        f"--endpoint={server.openai_url}",
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """One run.

    Attributes:
      name: The source.
      records, results, dead_letters: The numbers in its summary.
      in_files, in_table: Results and dead letters counted in each pair of sinks.
      wall_s: From launch to summary, without Python's start.
      cpu_s: The CPU time of the whole process.
      peak_mib: Its peak memory.
    """

    name: str
    records: int
    results: int
    dead_letters: int
    in_files: tuple[int, int]
    in_table: tuple[int, int]
    wall_s: float
    cpu_s: float
    peak_mib: float


def measure(
    name: str, cloud: LoopbackCloud, server: SimulatedModelServer, source: str, target: str
) -> Measured:
    """Runs the command in its own process, then counts the rows in each sink.

    Args:
      name: Its name in the table.
      cloud: The loopback cloud; clients in this process are redirected to it.
      server: The model server.
      source: A flag that names the input.
      target: A ``gs://`` folder or a local one.
    """
    table = f"{cloud.new_dataset()}.results"
    outputs = [source, f"--output_path={target}", f"--output_table={table}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *flags(server), *outputs],
        cwd=REPOSITORY,
        env=cloud.subprocess_environment(),
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name}: exit code {process.returncode}")
    (summary,) = _rows(f"SELECT * FROM `{table}_runs`")
    measured = Measured(
        name,
        summary["records"],
        summary["results"],
        summary["dead_letters"],
        (count_lines(f"{target}/results/*"), count_lines(f"{target}/dead_letters/*")),
        (count_rows(table), count_rows(f"{table}_dead_letters")),
        (summary["finished_at"] - summary["started_at"]).total_seconds(),
        used.ru_utime + used.ru_stime,
        used.ru_maxrss / 1024,
    )
    check(measured)
    return measured


def check(measured: Measured) -> None:
    """Checks that each sink holds every record once.

    Raises:
      SystemExit: A sink does not.
    """
    wanted = (measured.results, measured.dead_letters)
    if sum(wanted) != measured.records or {measured.in_files, measured.in_table} != {wanted}:
        raise SystemExit(f"a sink lacks records: {measured}")


def _rows(sql: str) -> list[Any]:
    from google.cloud import bigquery

    with bigquery.Client() as client:
        return list(client.query(sql).result())


def count_rows(table: str) -> int:
    """The number of rows in a table."""
    return int(_rows(f"SELECT COUNT(*) FROM `{table}`")[0][0])


def count_lines(pattern: str) -> int:
    """The number of lines in the files that a glob matches."""
    lines = 0
    for found in FileSystems.match([pattern])[0].metadata_list:
        with FileSystems.open(found.path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            while block := file.read(1 << 20):
                lines += block.count(b"\n")
    return lines


@contextlib.contextmanager
def services(folder: pathlib.Path) -> Iterator[tuple[LoopbackCloud, SimulatedModelServer]]:
    """A loopback cloud, with this process's clients redirected to it, and a model server."""
    (folder / "cloud").mkdir()
    with (
        LoopbackCloud.running(emulator_python(), folder / "cloud") as cloud,
        cloud.clients_redirected(),
        running_model_server(folder) as server,
    ):
        yield cloud, server


def main() -> None:
    """Runs with both sources and writes the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, help="how many; default: all")
    args = parser.parse_args()
    try:
        records = packages()[: args.records]
    except LookupError as error:
        raise SystemExit(str(error)) from None
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with services(folder) as (cloud, server):
            bucket = f"gs://{cloud.new_bucket()}"
            content = json_lines(records)
            with FileSystems.create(f"{bucket}/packages.jsonl") as file:
                file.write(content)
            table = f"{cloud.new_dataset()}.packages"
            make_table(table, records)
            runs = [
                measure(
                    "Cloud Storage",
                    cloud,
                    server,
                    f"--input_files={bucket}/packages.jsonl",
                    f"{bucket}/out",
                ),
                measure("BigQuery", cloud, server, f"--input_table={table}", str(folder / "out")),
            ]
    lines = [
        (
            f"{len(records):,} package descriptions of this machine ({len(content) / 1e6:.1f} MB), "
            "each sent over HTTP to a simulated model on the same cores, checked against a schema, "
            f"and written to both files and a BigQuery table ({machine()}; services on "
            "loopback). CPU time is that of the pipeline's process, some 4 s of start-up included."
        ),
        "",
        (
            "| from | records | results + dead letters | in files | in tables | wall s | records/s "
            "| CPU s | CPU µs/record | peak MiB |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        held = [f"{a:,} + {b:,}" for a, b in (run.in_files, run.in_table)]
        lines.append(
            f"| {run.name} | {run.records:,} | {run.results:,} + {run.dead_letters:,} "
            f"| {held[0]} | {held[1]} | {run.wall_s:.1f} | {run.records / run.wall_s:,.0f} "
            f"| {run.cpu_s:.1f} | {run.cpu_s / run.records * 1e6:.0f} | {run.peak_mib:.0f} |"
        )
    write_section("Real input", "python -m benchmarks.real_input", lines)


if __name__ == "__main__":
    main()
