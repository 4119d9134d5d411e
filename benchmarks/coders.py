"""Coders: bytes per value on the wire, and CPU of encoding and decoding one.

The values are those of the example: its support tickets, prompts and output schema. Pickle, which
Beam uses for types without a coder, is measured for comparison. The rounds of all are interleaved,
and the table shows medians.

``python -m benchmarks.coders`` prints a table and writes it to ``benchmarks/RESULTS.md``;
``--print_only`` leaves the file as it is.
"""

import argparse
import pickle
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import machine, write_section
from transforms.records import json_values
from transforms.records.coders import layout_of
from transforms.records.errors import SchemaViolation
from transforms.records.records import (
    Answer,
    Completion,
    DeadLetter,
    Record,
    Usage,
)
from transforms.requests.render import Renderer, RequestSpec

EXAMPLES = Path(__file__).parent.parent / "examples"
EMBEDDING_NUMBERS = 384


def spec() -> RequestSpec:
    """The example's classification."""
    return RequestSpec(
        prompt=(EXAMPLES / "classify.jinja").read_text("utf-8"),
        system_prompt=(EXAMPLES / "classify_system.txt").read_text("utf-8"),
        params={
            "output_schema": json_values.loads((EXAMPLES / "classify_schema.json").read_bytes())
        },
        backend="openai",
        model="simulated",
    )


def values() -> dict[str, list[Any]]:
    """Values of each type, from every ticket that can be rendered."""
    lines = (EXAMPLES / "support_tickets.jsonl").read_bytes().splitlines()
    render = Renderer(spec())
    records, requests = [], []
    for number, line in enumerate(lines):
        try:
            record = Record(str(number), json_values.loads(line), source="support_tickets.jsonl")
            requests.append(render(record))
        except Exception:  # the example has bad tickets on purpose
            continue
        records.append(record)
    completion = Completion(
        output='{"category": "connectivity", "urgency": "high", "language": "en"}',
        finish_reason="stop",
        usage=Usage(420, 0, 24),
        model_version="simulated",
        latency_ms=850,
    )
    vector = Completion(embedding=tuple(n / 7 for n in range(EMBEDDING_NUMBERS)))
    error = SchemaViolation("at $.category: 'other' is not one of the allowed values")
    return {
        "`Record`": records,
        "`Request`": requests,
        "`Answer`, text": [Answer(r.record, r.fingerprint, completion) for r in requests],
        f"`Answer`, {EMBEDDING_NUMBERS} numbers": [
            Answer(r.record, r.fingerprint, vector) for r in requests
        ],
        "`DeadLetter`": [
            DeadLetter.of(error, stage="validate", record=r.record, fingerprint=r.fingerprint)
            for r in requests
        ],
    }


def mean_us(function: Callable[[Any], Any], arguments: Sequence[Any]) -> float:
    """CPU microseconds per call."""
    start = time.process_time()
    for argument in arguments:
        function(argument)
    return (time.process_time() - start) / len(arguments) * 1e6


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--print_only", action="store_true")
    args = parser.parse_args()
    cases: list[tuple[str, Callable[[Any], bytes], Callable[[bytes], Any], list[Any]]] = []
    for name, items in values().items():
        layout = layout_of(type(items[0]))
        cases.append((name, layout.encode, layout.decode, items))
        cases.append((f"{name}, pickled", pickle.dumps, pickle.loads, items))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name, *_ in cases}
    sizes: dict[str, float] = {}
    for _ in range(args.rounds):
        for name, encode, decode, items in cases:
            encoded = [encode(item) for item in items]
            sizes[name] = statistics.mean(map(len, encoded))
            repeated = 1 + 2_000 // len(items)
            times[name].append(
                (mean_us(encode, items * repeated), mean_us(decode, encoded * repeated))
            )
    params = len(json_values.canonical(dict(spec().params)))
    intro = (
        f"Medians of {args.rounds} interleaved rounds; {machine()}. The params of the run, which "
        f"requests travel without, are {params} bytes of JSON."
    )
    lines = [
        intro,
        "",
        "| value | bytes | encode, µs | decode, µs |",
        "|---|---:|---:|---:|",
    ]
    for name, rounds in times.items():
        encode_us, decode_us = (statistics.median(column) for column in zip(*rounds, strict=True))
        lines.append(f"| {name} | {sizes[name]:,.0f} | {encode_us:.1f} | {decode_us:.1f} |")
    if args.print_only:
        print("\n".join(lines))
    else:
        write_section("Coders", "python -m benchmarks.coders", lines)


if __name__ == "__main__":
    main()
