"""Remote embeddings: many texts in one request against one text a request.

The whole command embeds the same texts against simulated OpenAI and Vertex AI servers on the same
cores, alternately with as many texts per call as the provider accepts and with one. The server
counts requests and texts, and derives each vector from its text, so that every vector is checked.

Texts per second are those of the embedding step: from the first call that the server gets to the
end of its last, by the server's log. The whole command also includes a start of about two seconds.

It fails if a text is lost or has another text's vector, if the requests are more than one percent
above the fewest possible, or if the step is not ten times as fast.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.dispatch.runs import LONGEST_S, ROOT, Simulator, allow_connections, simulator
from benchmarks.results import machine, write_section
from benchmarks.simulator.dialects import vector_of
from benchmarks.simulator.log import Log
from benchmarks.texts import packages

GOAL_RATIO = 10.0
GOAL_EXCESS = 0.01


@dataclasses.dataclass(frozen=True, slots=True)
class Provider:
    """A simulated provider.

    Attributes:
        name: Its name in the table.
        texts_per_call: The most texts it accepts in a request.
        flags: The pipeline's flags, in which ``URL`` is replaced.
    """

    name: str
    texts_per_call: int
    flags: tuple[str, ...]

    def most_requests(self, texts: int) -> int:
        """The goal: the requests that the texts fill, and one percent more."""
        return int(math.ceil(texts / self.texts_per_call) * (1 + GOAL_EXCESS))


PROVIDERS = (
    Provider(
        "OpenAI",
        2048,
        ("--backend=openai", "--endpoint=URL/v1", "--model=text-embedding-3-small"),
    ),
    Provider(
        "Vertex AI",
        250,
        (
            "--backend=gemini",
            "--endpoint=URL",
            "--model=text-embedding-005",
            "--model_project=p",
            "--model_location=us-central1",
        ),
    ),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Ran:
    """The measurements of one run.

    Attributes:
        requests: HTTP requests that the server got.
        step_s: The time from the first of them to the end of the last.
        whole_s: The time of the whole command.
        wrong: Its errors; empty if there are none.
    """

    requests: int
    step_s: float
    whole_s: float
    wrong: str


def run(
    provider: Provider,
    server: Simulator,
    source: Path,
    texts: Sequence[str],
    *,
    texts_per_call: int,
    dimensions: int,
) -> Ran:
    """Embeds all texts with this many per call, and checks every row."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [
            *(sys.executable, "-m", "pipeline"),
            f"--input_files={source}",
            "--prompt={{ text }}",
            "--task=embed",
            f'--generation_config={{"output_dimensionality": {dimensions}}}',
            f"--embedding_batch_size={texts_per_call}",
            f"--output_path={out}",
            *(flag.replace("URL", server.url) for flag in provider.flags),
        ]
        environment = {**os.environ, "OPENAI_API_KEY": "k"}
        started = time.perf_counter()
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONGEST_S
        )
        whole_s = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(f"{provider.name}: exit code {done.returncode}\n{done.stderr[-3000:]}")
        wrong = wrong_rows(_rows(out / "results"), texts, dimensions)
    log = server.log()
    return Ran(len(log), step_s(log), whole_s, wrong)


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in folder.glob("*.jsonl"):
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def wrong_rows(rows: Iterable[dict[str, Any]], texts: Sequence[str], dimensions: int) -> str:
    """The errors in the rows of a run: lost, doubled, or another text's vector."""
    seen = [0] * len(texts)
    mixed = 0
    for row in rows:
        number = int(row["record_id"])
        seen[number] += 1
        mixed += row["embedding"] != vector_of(texts[number], dimensions)
    found = {
        "lost": seen.count(0),
        "doubled": sum(count > 1 for count in seen),
        "with another vector": mixed,
    }
    return ", ".join(f"{count} {what}" for what, count in found.items() if count)


def step_s(log: Log) -> float:
    """The time from the first call's arrival to the end of the last."""
    return max(call.end_s or 0.0 for call in log) - min(call.arrival_s for call in log)


def line(provider: Provider, name: str, texts: int, runs: Sequence[Ran]) -> str:
    """A row of the table, with medians."""
    step, whole = (
        statistics.median(texts / seconds for seconds in column)
        for column in ([ran.step_s for ran in runs], [ran.whole_s for ran in runs])
    )
    requests = "–".join(f"{one:,}" for one in sorted({ran.requests for ran in runs}))
    return f"| {provider.name} | {name} | {requests} | {step:,.0f} | {whole:,.0f} |"


def failures(provider: Provider, texts: int, many: Sequence[Ran], one: Sequence[Ran]) -> list[str]:
    """The goals that a provider misses."""
    found = [ran.wrong for ran in (*many, *one) if ran.wrong]
    most = provider.most_requests(texts)
    found += [f"{ran.requests} requests, more than {most}" for ran in many if ran.requests > most]
    if (ratio := ratio_of(many, one)) < GOAL_RATIO:
        found.append(f"{ratio:.1f} times as fast, not {GOAL_RATIO:g}")
    return [f"{provider.name}: {what}" for what in found]


def ratio_of(many: Sequence[Ran], one: Sequence[Ran]) -> float:
    """The median ratio of the pairs' embedding steps."""
    return statistics.median(b.step_s / a.step_s for a, b in zip(many, one, strict=True))


def main() -> None:
    """Measures both providers alternately; writes the section, and fails if a goal is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--latency", default="0.05", help="seconds a call, whatever it carries")
    options = parser.parse_args()
    allow_connections()
    texts = [f"{number}: {package['text']}"[:200] for number, package in enumerate(packages())]
    texts = texts[: options.texts]
    rows, ratios, missed = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.jsonl"
        source.write_text(
            "".join(json.dumps({"id": str(n), "text": t}) + "\n" for n, t in enumerate(texts)),
            encoding="utf-8",
        )
        for provider in PROVIDERS:
            ran: dict[int, list[Ran]] = {provider.texts_per_call: [], 1: []}
            for _ in range(options.pairs):
                for size, runs in ran.items():
                    with simulator(Path(folder), latency=options.latency) as server:
                        runs.append(
                            run(
                                provider,
                                server,
                                source,
                                texts,
                                texts_per_call=size,
                                dimensions=options.dimensions,
                            )
                        )
                        print(provider.name, size, runs[-1], flush=True)
            many, one = ran.values()
            rows.append(line(provider, f"{provider.texts_per_call:,}", len(texts), many))
            rows.append(line(provider, "1", len(texts), one))
            ratios.append(f"{provider.name} **{ratio_of(many, one):.1f}**")
            missed += failures(provider, len(texts), many, one)
    lines = [
        (
            f"{len(texts):,} package descriptions ({sum(map(len, texts)) / len(texts):.0f} "
            f"characters on average), vectors of {options.dimensions} numbers, {options.latency} s a "
            f"call whatever it carries, server and pipeline on the same cores; medians of "
            f"{options.pairs} pairs in turn ({machine()}). Every text has one row, with the vector "
            "of its own text."
        ),
        "",
        "| provider | texts a request | requests | texts/s, the step | texts/s, the command |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"Times as fast, the step: {', '.join(ratios)}.",
        *(f"\n**WRONG: {what}**" for what in missed),
    ]
    write_section("Remote embeddings", "python -m benchmarks.remote_embeddings", lines)
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
