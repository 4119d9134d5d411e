"""The processes of a scenario: the simulator, the pipeline, and the programs to compare with."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.simulator import log as logs
from benchmarks.simulator.log import Call

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Classify record {{ id }}: the parcel never arrived and I want my money back."
LONGEST_S = 900.0


def prompt_of(record_id: str) -> str:
    """The prompt of a record, as the pipeline renders it."""
    return PROMPT.replace("{{ id }}", record_id)


def allow_connections() -> None:
    """Raises the limit of open files to what the system allows; children inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def write_records(path: Path, ids: Iterable[str]) -> list[str]:
    """Writes a file with a record for each id; returns the ids."""
    kept = list(ids)
    path.write_text("".join(json.dumps({"id": one}) + "\n" for one in kept), encoding="utf-8")
    return kept


@dataclass(frozen=True, slots=True)
class Simulator:
    """A running simulator.

    Attributes:
        url: Its base URL.
    """

    url: str

    def log(self) -> list[Call]:
        """All calls so far."""
        return logs.parse(self._get("/_log"))

    def origin_s(self) -> float:
        """The arrival of the first call, on the system's monotonic clock."""
        return time.monotonic() - float(json.loads(self._get("/_stats"))["seconds"])

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return bytes(answer.read())


@contextlib.contextmanager
def simulator(folder: Path, **settings: Any) -> Iterator[Simulator]:
    """Runs a simulator with these settings; ends it afterwards."""
    ready = folder / "url"
    ready.unlink(missing_ok=True)
    words = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "benchmarks.simulator", f"--ready_file={ready}", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise SystemExit(f"the simulator did not start with {settings}")
            time.sleep(0.05)
        yield Simulator(ready.read_text().strip())
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True, slots=True)
class Ended:
    """The outcome of a run of the pipeline.

    Attributes:
        code: Its exit code.
        wall_s: The time from its start to its end.
        output: Its output.
        results: The ids of its result rows.
        letters: The ids of its dead letters.
        summary: ``run.json``; empty without one.
    """

    code: int
    wall_s: float
    output: str
    results: list[str]
    letters: list[str]
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ours:
    """A running pipeline, started as by a user: ``python -m pipeline`` with its default flags.

    Attributes:
        folder: The folder for everything that it writes.
        process: The process.
        started_s: Its start, on the monotonic clock.
    """

    folder: Path
    process: "subprocess.Popen[bytes]"
    started_s: float

    @classmethod
    def start(
        cls,
        url: str,
        records: Path,
        folder: Path,
        *,
        key: str = "ours",
        flags: Sequence[str] = (),
        samples: Path | None = None,
    ) -> "Ours":
        """Starts it.

        Args:
            url: The simulator's URL.
            records: The input file.
            folder: The folder for its output; created here.
            key: The API key, by which the simulator tells clients apart.
            flags: Further flags of the scenario.
            samples: The file for its gauges, twice a second.
        """
        folder.mkdir()
        program = ["pipeline"] if samples is None else ["benchmarks.dispatch.sampled", str(samples)]
        with (folder / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", *program),
                    f"--input_files={records}",
                    f"--prompt={PROMPT}",
                    "--backend=openai",
                    f"--endpoint={url}/v1",
                    "--model=simulated",
                    f"--output_path={folder / 'out'}",
                    *flags,
                ],
                cwd=ROOT,
                env={**os.environ, "OPENAI_API_KEY": key, "COLUMNS": "200"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return cls(folder, process, time.monotonic())

    def wait(self) -> Ended:
        """Waits for its end and reads its output."""
        try:
            code = self.process.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise SystemExit(f"the pipeline has not ended in {LONGEST_S:g} s") from None
        wall_s = time.monotonic() - self.started_s
        out = self.folder / "out"
        summary = out / "run.json"
        return Ended(
            code=code,
            wall_s=wall_s,
            output=(self.folder / "output.txt").read_text(errors="replace"),
            results=_ids(out / "results"),
            letters=_ids(out / "dead_letters"),
            summary=json.loads(summary.read_text()) if summary.exists() else {},
        )


def _ids(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_bytes().splitlines()]
    return [json.loads(line)["record_id"] for line in lines]


def run_module(name: str, *arguments: object) -> str:
    """Runs another program of this package to its end; returns its output."""
    command = [sys.executable, "-m", f"benchmarks.dispatch.{name}", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LONGEST_S
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return done.stdout
