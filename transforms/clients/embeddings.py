"""Several texts to embed in one call: the code that clients of remote models share.

A call takes as many texts as the provider does. `SharedCalls` keeps that number and lowers it when
the server turns out to take fewer; `share_tokens` divides the tokens of a call among its texts. The
dispatcher groups requests into calls and halves a refused call until the bad text stands alone.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

from transforms.records.errors import InvalidRequest, RecordError, TooLarge
from transforms.records.records import Completion, Request

ESTIMATE_MARGIN = 0.75
"""The share of a provider's token limit that estimates may fill. `Request.estimated_tokens` counts
four bytes a token; dense text (source code, tables, Chinese) has about three. A call of denser text
is refused and halved."""
_REFUSALS = 3
"""Refused calls before the number of texts is halved: one or two may each hold a bad text."""

EmbedOutcome = Completion | RecordError
"""The outcome of one text."""
_log = logging.getLogger(__name__)


class SharedCalls:
    """How many texts a client sends in one call.

    The number starts at the provider's published limit. Three refusals of calls larger than half of
    it halve it, unless the server has accepted calls of that size: then a text is to blame. The
    number never falls below a size that the server has accepted.

    Args:
      texts: The provider's published limit, or the user's.
      refuses_empty: Whether the provider refuses a whole call for one empty text. If so, such a
        text fails here, before a call.

    Attributes:
      texts: The most texts in the next call.
    """

    def __init__(self, texts: int, *, refuses_empty: bool = False) -> None:
        self.texts = texts
        self._refuses_empty = refuses_empty
        self._accepted = 1
        self._refusals = 0

    def calls(self, requests: int) -> int:
        """How many full calls carry this many requests.

        >>> [SharedCalls(32).calls(requests) for requests in (0, 32, 33)]
        [0, 1, 2]
        """
        return -(-requests // self.texts)

    async def outcomes(
        self,
        requests: Sequence[Request],
        one: Callable[[Request], Awaitable[Completion]],
        many: Callable[[Sequence[Request]], Awaitable[Sequence[EmbedOutcome]]],
    ) -> Sequence[EmbedOutcome]:
        """Sends all requests in one call; returns one outcome per request, in order.

        Args:
          requests: Texts; or a single request with a body of its own.
          one: Sends a single request.
          many: Sends several texts in one call; raises InvalidRequest or TooLarge if the server
            refuses it.

        Raises:
          RecordError: The call failed as a whole.
        """
        sent = [request.body.get("text") != "" or not self._refuses_empty for request in requests]
        texts = [request for request, is_sent in zip(requests, sent, strict=True) if is_sent]
        answers = iter(await self._ask(texts, one, many))
        return [next(answers) if is_sent else _empty_text() for is_sent in sent]

    async def _ask(
        self,
        texts: Sequence[Request],
        one: Callable[[Request], Awaitable[Completion]],
        many: Callable[[Sequence[Request]], Awaitable[Sequence[EmbedOutcome]]],
    ) -> Sequence[EmbedOutcome]:
        if len(texts) < 2:
            return [await one(text) for text in texts]
        try:
            answers = await many(texts)
        except (InvalidRequest, TooLarge):
            self._refused(len(texts))
            raise
        self._accepted = max(self._accepted, len(texts))
        self.texts = max(self.texts, self._accepted)
        return answers

    def _refused(self, texts: int) -> None:
        half = max(self._accepted, self.texts // 2)
        if not half < texts <= self.texts:  # a larger call was grouped before the number fell
            return
        self._refusals += 1
        if self._refusals == _REFUSALS:
            _log.warning(
                "the server refused %d calls with up to %d texts; the next carry up to %d",
                _REFUSALS,
                self.texts,
                half,
            )
            self.texts, self._refusals = half, 0


def _empty_text() -> InvalidRequest:
    return InvalidRequest("the text to embed is empty, and the provider refuses empty texts")


def mixed_up(texts: int, found: str) -> InvalidRequest:
    """The error for an answer whose vectors cannot be matched to the texts of the call.

    It counts as a refusal, not as an outage: on a retry the server would mix them up again, while
    the vector of a single text cannot be mistaken for another's.
    """
    return InvalidRequest(f"asked for the embeddings of {texts} texts, the server answered {found}")


def share_tokens(total: int, weights: Sequence[int]) -> list[int]:
    """Divides a token count in proportion to weights; the shares add up to it exactly.

    Each share is rounded down, and the largest remainders get one more.

    >>> share_tokens(10, [1, 1, 4])
    [2, 2, 6]
    >>> share_tokens(5, [0, 0])
    [3, 2]
    """
    weights = weights if any(weights) else [1] * len(weights)
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda place: -(total * weights[place] % whole))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares
