"""The benchmark of remote embeddings: the errors that it counts, and one tiny run.

Nothing here measures speed, so no published figure is proved.
"""

import json
from pathlib import Path

import pytest

from benchmarks.dispatch.runs import simulator
from benchmarks.remote_embeddings import PROVIDERS, Provider, Ran, failures, run, wrong_rows
from benchmarks.simulator.dialects import vector_of

_, VERTEX = PROVIDERS
TEXTS = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ([0, 1, 2], ""),
        ([2, 0, 1], ""),
        ([0, 2], "1 lost"),
        ([0, 1, 1, 2], "1 doubled"),
        ([], "3 lost"),
    ],
)
def test_texts_that_did_not_end_once(rows: list[int], wrong: str) -> None:
    """Lost and doubled texts are counted."""
    found = [{"record_id": str(n), "embedding": vector_of(TEXTS[n], 4)} for n in rows]
    assert wrong_rows(found, TEXTS, 4) == wrong


@pytest.mark.parametrize("vector", [vector_of("b", 4), vector_of("a", 3), []])
def test_another_vector(vector: list[float]) -> None:
    """The vector of another text, or of another size, is counted."""
    found = [{"record_id": str(n), "embedding": vector_of(TEXTS[n], 4)} for n in (1, 2)]
    found.append({"record_id": "0", "embedding": vector})
    assert wrong_rows(found, TEXTS, 4) == "1 with another vector"


def test_goals() -> None:
    """The goals for 10,000 texts are 5 requests to OpenAI or 40 to Vertex AI, and tenfold speed."""
    assert [provider.most_requests(10_000) for provider in PROVIDERS] == [5, 40]
    many, one = Ran(40, 1.0, 9.0, ""), Ran(10_000, 10.0, 20.0, "")
    assert failures(VERTEX, 10_000, [many], [one]) == []
    assert failures(VERTEX, 10_000, [Ran(41, 2.0, 9.0, "1 lost")], [one]) == [
        "Vertex AI: 1 lost",
        "Vertex AI: 41 requests, more than 40",
        "Vertex AI: 5.0 times as fast, not 10",
    ]


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_a_tiny_run(tmp_path: Path, provider: Provider) -> None:
    """A tiny run of the whole command gives every text its vector, with shared requests."""
    texts = [f"text {number}" for number in range(40)]
    source = tmp_path / "texts.jsonl"
    source.write_text(
        "".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts))
    )
    with simulator(tmp_path) as server:
        ran = run(provider, server, source, texts, texts_per_call=250, dimensions=4)
    assert ran.wrong == ""
    assert 1 <= ran.requests < 20
