"""The pipeline's cost against a handwritten one, without any model time.

Three programs do the same job on the same pinned local runner, each in a process of its own:

* ``ours``: the pipeline as users run it, ``fake`` backend without latency, JSON-lines output.
* ``hand``: a handwritten Beam pipeline with plain dicts that does the same parse, render, hash, row
  JSON, counts (duplicates, too) and reshuffles.
* ``bare``: read → RunInference → write, and nothing else.

``python -m benchmarks.overhead`` prints a table and writes it to ``benchmarks/RESULTS.md``.
"""

import argparse
import collections
import hashlib
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
import jinja2
import jinja2.sandbox
import orjson
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.results import machine, write_section

PROMPT = "Classify this ticket.\nSubject: {{ subject }}\n\n{{ body }}\n\nPlan: {{ customer.plan }}"
RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
LOCAL = ["--direct_num_workers=4"]
WORDS = pathlib.Path(__file__).read_text(encoding="utf-8").split()


def make_input(path: pathlib.Path, records: int) -> None:
    """Tickets of about 600 bytes, made of this file's words."""
    chance = random.Random(0)
    with path.open("wb") as file:
        for number in range(records):
            ticket = {
                "id": f"T-{number}",
                "subject": " ".join(chance.choices(WORDS, k=6)),
                "body": " ".join(chance.choices(WORDS, k=60)),
                "customer": {"name": "A. Person", "plan": "pro"},
                "tags": ["a", "b"],
                "amount": number / 7,
            }
            file.write(orjson.dumps(ticket) + b"\n")


def run_ours(source: str, target: str) -> None:
    """The pipeline as a user runs it, without the process's start."""
    from pipeline.main import main

    code = main(
        [
            f"--input_files={source}",
            f"--prompt={PROMPT}",
            "--backend=fake",
            f"--output_path={target}",
            *LOCAL,
        ]
    )
    if code:
        raise SystemExit(code)


class _EchoHandler(ModelHandler[Any, Any, Any]):
    def load_model(self) -> "_EchoHandler":
        return self

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return [{**item, "output": f"answer {item['fingerprint'][:12]}"} for item in batch]

    def get_num_bytes(self, batch: Any) -> int:
        return len(batch)


class _BareHandler(_EchoHandler):
    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return batch


class _Render(beam.DoFn):
    def setup(self) -> None:
        environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)
        self.template = environment.from_string(PROMPT)

    def process(self, record: dict[str, Any]) -> Any:
        text = self.template.render({**record, "record": record})
        body = {"messages": [{"role": "user", "content": text}]}
        key = orjson.dumps(
            {"backend": "fake", "body": body, "model": "fake", "params": {}},
            option=orjson.OPT_SORT_KEYS,
        )
        yield {
            "record": record,
            "body": body,
            "fingerprint": hashlib.sha256(key).hexdigest(),
            "tokens": len(key) // 4,
        }


def _row(item: dict[str, Any]) -> bytes:
    return orjson.dumps(
        {
            "record_id": item["record"]["id"],
            "run_id": "run",
            "fingerprint": item["fingerprint"],
            "backend": "fake",
            "model": "fake",
            "model_version": "fake",
            "service_tier": None,
            "output": item["output"],
            "output_json": None,
            "embedding": [],
            "finish_reason": "STOP",
            "input_tokens": item["tokens"],
            "cached_input_tokens": None,
            "output_tokens": 3,
            "reasoning_tokens": None,
            "cost_usd": None,
            "latency_ms": 0,
            "attempts": 1,
            "from_ledger": False,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "record": orjson.dumps(item["record"]).decode(),
        }
    )


def run_hand(source: str, target: str) -> None:
    """The same job as an engineer would write it with plain dicts."""
    pathlib.Path(target).mkdir()
    with beam.Pipeline(runner=RUNNER, options=PipelineOptions(LOCAL)) as pipeline:
        records = (
            pipeline
            | "Read" >> beam.io.ReadFromText(source)
            | "Parse" >> beam.Map(orjson.loads)
            | "Spread" >> beam.Reshuffle()
        )
        rows = (
            records
            | "Render" >> beam.ParDo(_Render())
            | "Batch" >> beam.BatchElements(min_batch_size=256, max_batch_size=256)
            | "Infer" >> RunInference(_EchoHandler().with_no_batching())
            | "Slim" >> beam.Map(lambda item: {k: v for k, v in item.items() if k != "body"})
            | "Keep" >> beam.Reshuffle()
            | "Row" >> beam.Map(_row)
        )
        written = rows | "Write" >> beam.io.WriteToText(
            f"{target}/results", file_name_suffix=".jsonl", coder=beam.coders.BytesCoder()
        )
        read = records | "CountRead" >> beam.combiners.Count.Globally()
        results = rows | "CountRows" >> beam.combiners.Count.Globally()
        ids = (
            records
            | "Ids" >> beam.Map(lambda record: record["id"])
            | "PerId" >> beam.combiners.Count.PerElement()
            | "Twice" >> beam.Filter(lambda pair: pair[1] > 1)
            | "CountTwice" >> beam.combiners.Count.Globally()
        )
        _ = (
            pipeline
            | "Once" >> beam.Create([None])
            | "Summary"
            >> beam.Map(
                lambda _, r, n, d, w: pathlib.Path(f"{target}/run.json").write_text(
                    json.dumps({"records": r, "results": n, "duplicates": d, "files": len(w)})
                ),
                beam.pvalue.AsSingleton(read),
                beam.pvalue.AsSingleton(results),
                beam.pvalue.AsSingleton(ids),
                beam.pvalue.AsList(written),
            )
        )


def run_bare(source: str, target: str) -> None:
    """Only the steps that every pipeline needs."""
    pathlib.Path(target).mkdir()
    with beam.Pipeline(runner=RUNNER, options=PipelineOptions(LOCAL)) as pipeline:
        _ = (
            pipeline
            | "Read" >> beam.io.ReadFromText(source)
            | "Batch" >> beam.BatchElements(min_batch_size=256, max_batch_size=256)
            | "Infer" >> RunInference(_BareHandler().with_no_batching())
            | "Write" >> beam.io.WriteToText(f"{target}/results")
        )


PROGRAMS = {"ours": run_ours, "hand": run_hand, "bare": run_bare}


def child(program: str, source: str, target: str) -> None:
    """Runs one program and prints its cost, imports excluded."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    before = (time.perf_counter(), used.ru_utime + used.ru_stime)
    PROGRAMS[program](source, target)
    used = resource.getrusage(resource.RUSAGE_SELF)
    wall = time.perf_counter() - before[0]
    cpu = used.ru_utime + used.ru_stime - before[1]
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_mib": used.ru_maxrss / 1024}))


def count_rows(target: pathlib.Path) -> int:
    """Counts the lines of results; ours must have as many as ``run.json`` says."""
    folder = target / "results" if (target / "results").is_dir() else target
    rows = sum(
        path.read_bytes().count(b"\n") for path in folder.iterdir() if path.name != "run.json"
    )
    if (target / "results").is_dir():
        summary = json.loads((target / "run.json").read_text())
        if not summary["reconciled"] or summary["results"] != rows:
            raise SystemExit(f"not reconciled: {summary}")
    return rows


def measure(program: str, source: pathlib.Path, records: int) -> dict[str, float]:
    """One run in a process of its own; every record is accounted for."""
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "out"
        command = [sys.executable, "-m", "benchmarks.overhead"]
        command += ["--child", program, str(source), str(target)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows = count_rows(target)
        if rows != records:
            raise SystemExit(f"{program}: {records} records, but {rows} rows")
        return json.loads(done.stdout.strip().splitlines()[-1])


def compare(records: int, repeats: int, programs: list[str]) -> dict[str, dict[str, float]]:
    """Medians of interleaved runs."""
    runs: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "tickets.jsonl"
        make_input(source, records)
        for _ in range(repeats):
            for program in programs:
                runs[program].append(measure(program, source, records))
    return {
        program: {name: statistics.median(run[name] for run in made) for name in made[0]}
        for program, made in runs.items()
    }


def main() -> None:
    """Runs the comparison, then ours at three sizes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", default="10000,30000,100000,300000")
    parser.add_argument("--child", nargs=3)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    medians = compare(args.records, args.repeats, list(PROGRAMS))
    lines = [
        (
            f"{args.records:,} records of about 600 bytes, medians of {args.repeats} interleaved "
            f"runs in separate processes ({machine()})."
        ),
        "",
        "| | wall s | CPU s | CPU µs/record | wall / hand-written | wall / barest | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for program, median in medians.items():
        lines.append(
            f"| {program} | {median['wall_s']:.1f} | {median['cpu_s']:.1f} "
            f"| {median['cpu_s'] / args.records * 1e6:.0f} "
            f"| {median['wall_s'] / medians['hand']['wall_s']:.2f} "
            f"| {median['wall_s'] / medians['bare']['wall_s']:.2f} | {median['peak_mib']:.0f} |"
        )
    sizes = [int(size) for size in args.sizes.split(",") if size]
    if sizes:
        lines += ["", "| ours, records | wall s | µs/record | peak MiB |", "|---|---|---|---|"]
        for size in sizes:
            median = compare(size, 1, ["ours"])["ours"]
            lines.append(
                f"| {size:,} | {median['wall_s']:.1f} | {median['wall_s'] / size * 1e6:.0f} "
                f"| {median['peak_mib']:.0f} |"
            )
    write_section("Overhead", "python -m benchmarks.overhead", lines)


if __name__ == "__main__":
    main()
