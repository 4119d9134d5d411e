"""The capabilities that each backend declares, as data."""

import dataclasses
from typing import Any

import pytest

from transforms import (
    FakeBackend,
    GeminiBackend,
    OpenAIBackend,
    SentenceTransformersBackend,
    VertexEndpointBackend,
    VLLMBackend,
)
from transforms.backends.base import Capabilities, CapableBackend, capabilities_of

BUCKETS_AND_WEB, WEB = ("gs", "https"), ("https",)


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        (
            GeminiBackend(model="m", project="p", location="l"),
            Capabilities(media_schemes=BUCKETS_AND_WEB, price_provider="google"),
        ),
        (
            VertexEndpointBackend(endpoint="projects/p/locations/l/endpoints/1"),
            Capabilities(tasks=("generate",), media_schemes=(), instances=True),
        ),
        (OpenAIBackend(model="m"), Capabilities(media_schemes=WEB, price_provider="openai")),
        (
            OpenAIBackend(model="m", endpoint="http://h/v1"),
            Capabilities(media_schemes=WEB),
        ),
        (VLLMBackend(model="m"), Capabilities(media_schemes=WEB)),
        (
            SentenceTransformersBackend(model="m"),
            Capabilities(tasks=("embed",), media_schemes=(), request_options=False),
        ),
        (FakeBackend(), Capabilities(media_schemes=BUCKETS_AND_WEB, request_options=False)),
    ],
    ids=lambda each: getattr(each, "family", ""),
)
def test_capabilities(backend: Any, expected: Capabilities) -> None:
    """Each backend declares these capabilities, and list prices where its calls have any."""
    assert isinstance(backend, CapableBackend)
    assert capabilities_of(backend) == expected


def test_a_backend_that_does_not_say() -> None:
    """A backend that declares nothing has the defaults: every capability and no list prices."""

    @dataclasses.dataclass(frozen=True)
    class Plain:
        family: str = "plain"
        model: str = "m"

        async def open(self) -> Any:
            raise AssertionError

    assert not isinstance(Plain(), CapableBackend)
    assert capabilities_of(Plain()) == Capabilities(
        tasks=("generate", "embed"),
        media_schemes=BUCKETS_AND_WEB,
        instances=False,
        request_options=True,
        price_provider=None,
    )
