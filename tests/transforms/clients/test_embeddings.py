"""Several texts in one call, as clients of remote embedding models share it."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.backends import request_of
from transforms.clients.embeddings import EmbedOutcome, SharedCalls, share_tokens
from transforms.records.errors import InvalidRequest, RecordError, TooLarge, Unavailable
from transforms.records.records import Completion, Request

Refuses = Callable[[Sequence[str]], RecordError | None]


class Server:
    """A server with scripted refusals; an answer is the text itself."""

    def __init__(self, refuses: Refuses) -> None:
        self.refuses = refuses
        self.sizes: list[int] = []

    async def one(self, request: Request) -> Completion:
        (answer,) = await self.many([request])
        assert isinstance(answer, Completion)
        return answer

    async def many(self, requests: Sequence[Request]) -> Sequence[EmbedOutcome]:
        texts = [request.body.get("text", "") for request in requests]
        self.sizes.append(len(texts))
        if error := self.refuses(texts):
            raise error
        return [Completion(output=text) for text in texts]


def more_than(most: int) -> Refuses:
    """Refuses a call of more than this many texts."""
    return lambda texts: TooLarge("too many") if len(texts) > most else None


def holding(bad: str) -> Refuses:
    """Refuses a call with this text."""
    return lambda texts: InvalidRequest("bad") if bad in texts else None


def requests_of(texts: Sequence[str]) -> list[Request]:
    """A request for each text."""
    return [request_of({"text": text}) for text in texts]


async def embed_all(
    shared: SharedCalls, server: Server, texts: Sequence[str]
) -> list[Completion | RecordError]:
    """Calls as large as the limit allows; a refused call is halved down to single texts."""
    outcomes: list[Completion | RecordError] = []
    while len(outcomes) < len(texts):
        some = texts[len(outcomes) : len(outcomes) + shared.texts]
        outcomes += await _halving(shared, server, some)
    return outcomes


async def _halving(
    shared: SharedCalls, server: Server, texts: Sequence[str]
) -> Sequence[EmbedOutcome]:
    try:
        return await shared.outcomes(requests_of(texts), server.one, server.many)
    except RecordError as error:
        if len(texts) == 1:
            return [error]
    half = len(texts) // 2
    return [
        *await _halving(shared, server, texts[:half]),
        *await _halving(shared, server, texts[half:]),
    ]


@given(
    st.integers(0, 2**40),
    st.lists(st.integers(0, 10_000), min_size=1, max_size=50),
)
def test_shares_of_tokens_add_up(total: int, weights: list[int]) -> None:
    """Shares of tokens add up exactly, each rounded down or up."""
    shares = share_tokens(total, weights)
    assert sum(shares) == total
    weights = weights if any(weights) else [1] * len(weights)
    for share, weight in zip(shares, weights, strict=True):
        assert 0 <= share * sum(weights) - total * weight + sum(weights) <= 2 * sum(weights)


@pytest.mark.parametrize(("server_takes", "learnt"), [(10, 8), (32, 32), (1, 1), (31, 16)])
def test_a_lower_limit_of_the_server_is_learnt(server_takes: int, learnt: int) -> None:
    """A lower limit is learnt from a few refused calls of each size, without losing a text."""
    shared, server = SharedCalls(32), Server(more_than(server_takes))
    texts = [str(number) for number in range(320)]
    outcomes = asyncio.run(embed_all(shared, server, texts))
    assert [one.output for one in outcomes if isinstance(one, Completion)] == texts
    assert shared.texts == learnt
    server.sizes.clear()
    asyncio.run(embed_all(shared, server, texts))
    assert len(server.sizes) == len(texts) // learnt


def test_refusals_of_larger_calls_say_nothing_new(caplog: pytest.LogCaptureFixture) -> None:
    """Calls that were in flight when the number fell lower it no further, and nothing is logged."""
    shared, server = SharedCalls(4), Server(more_than(1))

    async def refused(texts: int) -> None:
        with contextlib.suppress(TooLarge):
            await shared.outcomes(requests_of(["text"] * texts), server.one, server.many)

    for _ in range(30):
        asyncio.run(refused(4))
    assert (shared.texts, len(caplog.messages)) == (2, 1)
    for _ in range(30):
        asyncio.run(refused(2))
    assert (shared.texts, len(caplog.messages)) == (1, 2)


def test_a_bad_text_lowers_nothing() -> None:
    """A bad text lowers no limit if a call of its size was accepted; it is refused alone."""
    shared, server = SharedCalls(32), Server(holding("bad"))
    texts = ["fine"] * 32 + (["fine"] * 20 + ["bad"] + ["fine"] * 11) * 10
    outcomes = asyncio.run(embed_all(shared, server, texts))
    assert [isinstance(one, InvalidRequest) for one in outcomes] == [t == "bad" for t in texts]
    assert shared.texts == 32


def test_bad_texts_at_the_very_start() -> None:
    """Bad texts before any accepted call halve the limit once."""
    shared, server = SharedCalls(32), Server(holding("bad"))
    texts = (["bad"] + ["fine"] * 31) * 20
    outcomes = asyncio.run(embed_all(shared, server, texts))
    assert sum(isinstance(one, InvalidRequest) for one in outcomes) == 20
    assert shared.texts == 16


def test_a_large_call_that_is_accepted_late() -> None:
    """A large call accepted later restores a limit that quick refusals have halved."""
    shared, server = SharedCalls(32), Server(holding("bad"))
    sizes = []
    for texts in (*[["bad"] * 32] * 3, ["fine"] * 30):
        with contextlib.suppress(InvalidRequest):
            asyncio.run(shared.outcomes(requests_of(texts), server.one, server.many))
        sizes.append(shared.texts)
    assert sizes == [32, 32, 16, 30]


def test_an_outage_lowers_nothing() -> None:
    """An outage lowers no limit, since it is unrelated to a call's size."""
    shared = SharedCalls(32)
    server = Server(lambda texts: Unavailable("down"))
    for _ in range(10):
        with pytest.raises(Unavailable):
            asyncio.run(shared.outcomes(requests_of(["a", "b"]), server.one, server.many))
    assert shared.texts == 32


def test_an_empty_text_costs_no_call_where_it_would_be_refused() -> None:
    """An empty text that would be refused is not sent; other texts keep their places and call."""
    texts = requests_of(["a", "", "b", ""])
    for refuses_empty in (True, False):
        shared = SharedCalls(32, refuses_empty=refuses_empty)
        server = Server(lambda texts: None)
        outcomes = asyncio.run(shared.outcomes(texts, server.one, server.many))
        assert [isinstance(one, InvalidRequest) for one in outcomes] == [
            False,
            refuses_empty,
            False,
            refuses_empty,
        ]
        assert server.sizes == [2 if refuses_empty else 4]
    assert [
        str(one)
        for one in asyncio.run(
            SharedCalls(1, refuses_empty=True).outcomes(requests_of([""]), server.one, server.many)
        )
    ] == ["the text to embed is empty, and the provider refuses empty texts"]


def test_whole_requests_go_alone() -> None:
    """Whole requests are sent alone and lower no limit."""
    shared, server = SharedCalls(32, refuses_empty=True), Server(holding("bad"))
    whole = request_of({"request": {"input": "a"}})
    (outcome,) = asyncio.run(shared.outcomes([whole], server.one, server.many))
    assert isinstance(outcome, Completion)
    assert server.sizes == [1]
    assert shared.texts == 32


def test_calls_that_a_server_can_use() -> None:
    """A server's queue counts texts, from which the number of calls follows."""
    shared = SharedCalls(32)
    assert [shared.calls(texts) for texts in (0, 1, 32, 33)] == [0, 1, 1, 2]
