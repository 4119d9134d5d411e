"""Embeddings from a model in the worker, with the sentence-transformers library.

The model's own modules compute them, so they equal those of `SentenceTransformer.encode`; only the
batches differ. All texts of a call are tokenized once, sorted by their real length (`encode` sorts
by characters and tokenizes batch by batch), and cut into batches by a budget of *padded tokens*:
for long texts, batches of fewer than its default of 32 are faster on a CPU.
"""

import asyncio
import concurrent.futures
import dataclasses
import importlib
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from transforms.backends.base import CallLimits, Capabilities
from transforms.records.errors import BackendUnusable, InvalidRequest, RecordError
from transforms.records.records import Completion, Request, Usage

CPU_TOKENS = 1024
"""Padded tokens per batch on a CPU: measured with MiniLM on two cores and texts of 12 and of 56
tokens on average; 512 and 2,048 are close, 4,096 and more are slower."""
ACCELERATOR_TOKENS = 32_768
"""Padded tokens per batch elsewhere: four times 32 texts of 256 tokens. Not measured."""
TEXTS_AT_ONCE = 2048
"""How many texts are tokenized together; limits the memory of one call."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SentenceTransformersBackend:
    """An embedding model that runs in the worker.

    Attributes:
      model: A name on the Hugging Face hub, or a local directory.
      batch_size: Texts per forward pass; None chooses by tokens.

    The model silently cuts a text beyond its ``max_seq_length``; `Usage.input_tokens` counts the
    tokens it used.
    """

    model: str
    batch_size: int | None = None

    @property
    def family(self) -> str:
        """The registered name; part of every fingerprint."""
        return "sentence_transformers"

    @property
    def capabilities(self) -> Capabilities:
        """Embeddings of texts."""
        return Capabilities(tasks=("embed",), media_schemes=(), request_options=False)

    async def open(self) -> "SentenceTransformersClient":
        """Loads the model, once per process, however often it is opened.

        Raises:
          BackendUnusable: The library is missing, or the model cannot be loaded.
        """
        return SentenceTransformersClient(await asyncio.to_thread(_load, self.model), self)


class _Loaded:
    """A model in memory, and the one thread that uses it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="embed")


_loading = threading.Lock()
_loaded: "weakref.WeakValueDictionary[str, _Loaded]" = weakref.WeakValueDictionary()


def _load(name: str) -> _Loaded:
    with _loading:
        present = _loaded.get(name)
        if present is not None:
            return present
        try:
            library = importlib.import_module("sentence_transformers")
        except ImportError as error:
            raise BackendUnusable(
                f"the sentence_transformers backend needs the extra 'embed': {error}"
            ) from error
        _hide_loading_bar()
        try:
            model = library.SentenceTransformer(name)
        except (OSError, ValueError, RuntimeError) as error:
            raise BackendUnusable(
                f"the model {name!r} cannot be loaded ({type(error).__name__}: {error}); use a "
                "name on the Hugging Face hub that the workers can reach, or a local directory"
            ) from error
        model.eval()
        _loaded[name] = loaded = _Loaded(model)
        return loaded


def _hide_loading_bar() -> None:
    """Hides the library's progress bar, which would disturb ours."""
    importlib.import_module("transformers.utils.logging").disable_progress_bar()


class SentenceTransformersClient:
    """A loaded model; calls of all bundles take turns in its one thread."""

    def __init__(self, loaded: _Loaded, backend: SentenceTransformersBackend) -> None:
        self._loaded: _Loaded | None = loaded
        self._batch_size = backend.batch_size

    async def generate(self, request: Request) -> Completion:
        """Embeds one text; embedding many together is several times cheaper."""
        (outcome,) = await self.generate_many([request])
        if isinstance(outcome, RecordError):
            raise outcome
        return outcome

    @property
    def call_limits(self) -> CallLimits:
        """A whole workload batch: the model computes in this process."""
        return CallLimits(max_requests=None, in_process=True)

    async def generate_many(
        self, requests: Sequence[Request]
    ) -> Sequence[Completion | RecordError]:
        """Embeds many texts; a request without a text fails alone."""
        loaded = self._loaded
        if loaded is None:
            raise RuntimeError("the client is closed")
        loop = asyncio.get_running_loop()
        texts = [request.body.get("text") for request in requests]
        embedded = iter(
            await loop.run_in_executor(
                loaded.thread,
                embed,
                loaded.model,
                [text for text in texts if isinstance(text, str)],
                self._batch_size,
            )
        )
        return [
            next(embedded) if isinstance(text, str) else _no_text(request)
            for text, request in zip(texts, requests, strict=True)
        ]

    async def close(self) -> None:
        """Releases the model; its memory is freed when its last client has closed."""
        self._loaded = None


def _no_text(request: Request) -> InvalidRequest:
    return InvalidRequest(f"an embedding request with {sorted(request.body)} has no text")


def embed(model: Any, texts: Sequence[str], batch_size: int | None = None) -> list[Completion]:
    """One completion per text, in order.

    Args:
      model: A `SentenceTransformer`.
      texts: Any number of them.
      batch_size: Texts per forward pass; None chooses by tokens.
    """
    torch = importlib.import_module("torch")
    completions: list[Completion] = []
    with torch.inference_mode():
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            some = list(texts[start : start + TEXTS_AT_ONCE])
            completions += _embed_some(model, some, batch_size)
    return completions


def _embed_some(model: Any, texts: list[str], batch_size: int | None) -> list[Completion]:
    tokenize = model.preprocess if hasattr(model, "preprocess") else model.tokenize
    features = tokenize(texts)
    mask = features.get("attention_mask")
    if mask is None or mask.ndim != 2 or model.default_prompt_name is not None:
        # No padding to save, or a prompt that the pooling must know about: leave it to the library.
        rows = model.encode(texts, batch_size=batch_size or 32, show_progress_bar=False).tolist()
        return [Completion(embedding=tuple(row)) for row in rows]
    lengths: list[int] = mask.sum(1).tolist()
    budget = CPU_TOKENS if model.device.type == "cpu" else ACCELERATOR_TOKENS
    left = getattr(model.tokenizer, "padding_side", "right") == "left"
    found: list[Any] = [None] * len(texts)
    for batch in batches(lengths, budget, batch_size):
        width = lengths[batch[-1]]
        columns = slice(mask.shape[1] - width, None) if left else slice(0, width)
        padded = {
            name: value[batch, columns].to(model.device)
            if getattr(value, "shape", ())[:2] == mask.shape
            else value
            for name, value in features.items()
        }
        vectors = model(padded)["sentence_embedding"]
        if model.truncate_dim is not None:
            vectors = vectors[:, : model.truncate_dim]
        for place, vector in zip(batch, vectors.float().tolist(), strict=True):
            found[place] = Completion(
                embedding=tuple(vector), usage=Usage(input_tokens=lengths[place])
            )
    return found


def batches(
    lengths: Sequence[int], budget: int, batch_size: int | None = None
) -> Iterator[list[int]]:
    """Cuts texts into batches of similar length; every text is in exactly one.

    Args:
      lengths: Tokens of each text.
      budget: The most tokens in a batch, padding included; a longer text is alone in its batch.
      batch_size: A fixed number of texts per batch instead.

    Yields:
      The indexes of a batch's texts, the longest last.

    >>> list(batches([5, 1, 4, 2], budget=8))
    [[1, 3], [2], [0]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batch: list[int] = []
    for place in order:
        full = (
            len(batch) == batch_size if batch_size else lengths[place] * (len(batch) + 1) > budget
        )
        if batch and full:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
