"""Scripted clients, and what tests of a dispatcher read from it."""

import asyncio
import collections
import queue
from collections.abc import Callable, Sequence
from typing import Any

from transforms.backends.base import CallLimits
from transforms.dispatch import loop
from transforms.dispatch.completion_queue import CompletionQueue, Ended
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits, Failure, Outcome
from transforms.records.records import Completion, Record, Request, Usage

HANG = object()
"""A reply that never comes."""


def make_requests(count: int, first: int = 0) -> list[Request]:
    """Requests whose bodies hold their numbers."""
    return [
        Request(Record(str(n), {}), {"n": n}, {}, f"{n:064x}", 1)
        for n in range(first, first + count)
    ]


def numbers(requests: Sequence[Request]) -> list[int]:
    """The numbers of requests."""
    return [request.body["n"] for request in requests]


class Client:
    """Answers by a function of the request's number and the number of its earlier calls.

    The function returns an output, a completion, an exception to raise, or `HANG`. Calls take
    `seconds`, which is a number or such a function.
    """

    def __init__(self, reply: Callable[[int, int], Any], seconds: Any = 0.0) -> None:
        self.reply = reply
        self.seconds = seconds if callable(seconds) else lambda n, before: seconds
        self.asked: collections.Counter[int] = collections.Counter()
        self.calls: list[tuple[float, int]] = []
        """When each call was made, and for which request."""
        self.cancelled: list[int] = []
        self.flying = self.highest = self.closed = 0

    async def generate(self, request: Request) -> Completion:
        n = request.body["n"]
        before = self.asked[n]
        self.asked[n] += 1
        self.calls.append((virtual_now(), n))
        self.flying += 1
        self.highest = max(self.highest, self.flying)
        try:
            reply = self.reply(n, before)
            await asyncio.sleep(self.seconds(n, before))
            if reply is HANG:
                await asyncio.Future()
        except asyncio.CancelledError:
            self.cancelled.append(n)
            raise
        finally:
            self.flying -= 1
        if isinstance(reply, BaseException):
            raise reply
        return reply if isinstance(reply, Completion) else Completion(output=reply)

    async def close(self) -> None:
        self.closed += 1

    @property
    def times(self) -> list[float]:
        """When each call was made."""
        return [at for at, _ in self.calls]

    @property
    def order(self) -> list[int]:
        """For which request each call was made."""
        return [n for _, n in self.calls]


class MeasuredClient(Client):
    """A `Client` that also says how many calls its server can use."""

    wanted = 0

    def wanted_in_flight(self) -> int:
        return self.wanted

    def gauges(self) -> dict[str, int]:
        return {"server_queue": 7}


class HoldingClient(Client):
    """A `Client` that holds requests back by number: a function says for how long, on each try."""

    def __init__(
        self, reply: Callable[[int, int], Any], seconds: Any, hold: Callable[[int], float]
    ) -> None:
        super().__init__(reply, seconds)
        self.hold = hold

    def held(self, request: Request) -> "asyncio.Future[None] | None":
        seconds = self.hold(request.body["n"])
        return asyncio.ensure_future(asyncio.sleep(seconds)) if seconds else None


class ManyClient(Client):
    """A `Client` that also answers batch calls by a function of the requests."""

    def __init__(
        self,
        many: Callable[[Sequence[Request]], Any],
        reply: Callable[[int, int], Any] = lambda n, _: f"alone {n}",
        seconds: Any = 0.0,
        many_seconds: float = 0.0,
    ) -> None:
        super().__init__(reply, seconds)
        self.many = many
        self.many_seconds = many_seconds
        self.batches: list[int] = []

    call_limits = CallLimits(max_requests=None, in_process=True)

    async def generate_many(self, requests: Sequence[Request]) -> Any:
        self.batches.append(len(requests))
        replies = self.many(requests)
        await asyncio.sleep(self.many_seconds)
        if isinstance(replies, BaseException):
            raise replies
        return replies


class RemoteClient(Client):
    """Answers calls of several requests over a network, with a function of their numbers.

    The function returns a list of replies, one exception for the whole call, or `HANG`. `Client`
    handles a call of one request. `sets` holds the time and the requests of each call.
    """

    def __init__(
        self,
        many: Callable[[list[int]], Any],
        reply: Callable[[int, int], Any] = lambda n, _: f"alone {n}",
        seconds: float = 1.0,
        **limits: Any,
    ) -> None:
        super().__init__(reply, seconds)
        self.many = many
        self.call_limits = CallLimits(**{"max_requests": None, **limits})
        self.sets: list[tuple[float, list[int]]] = []

    async def generate(self, request: Request) -> Completion:
        self.sets.append((virtual_now(), numbers([request])))
        return await super().generate(request)

    async def generate_many(self, requests: Sequence[Request]) -> Any:
        self.sets.append((virtual_now(), numbers(requests)))
        replies = self.many(numbers(requests))
        await asyncio.sleep(self.seconds(0, 0))
        if replies is HANG:
            await asyncio.Future()
        if isinstance(replies, BaseException):
            raise replies
        return replies

    @property
    def sizes(self) -> list[int]:
        """The number of requests in each call."""
        return [len(asked) for _, asked in self.sets]


def completions(asked: Sequence[int]) -> list[Completion]:
    """A completion for each request, with its number as the output."""
    return [Completion(f"{n}", usage=Usage(10, None, 0)) for n in asked]


def virtual_now() -> float:
    """Seconds since the test began."""
    clock: Any = loop.event_loop()
    return float(clock.clock.now)


def answer(client: Client, count: int, **limits: Any) -> list[Outcome]:
    """The outcomes of this many requests in a dispatcher of their own."""
    return Dispatcher(client, DispatchLimits(**limits)).answer(make_requests(count))


def collect(completions: CompletionQueue) -> list[Ended]:
    """All outstanding outcomes, in the order in which they ended."""
    ended = []
    while completions.outstanding:
        item = completions.get(30.0)
        if item is not None:
            ended.append(item)
    return ended


def drain(completions: CompletionQueue) -> list[Ended | None]:
    """All items that are in the queue now."""
    items = []
    while True:
        try:
            items.append(completions.get(0.0))
        except queue.Empty:
            return items


def failures(outcomes: Sequence[Outcome]) -> list[tuple[str, str, int] | None]:
    """Class, message and attempts of each failure; None for a completion."""
    return [
        (type(outcome.error).__name__, str(outcome.error), outcome.attempts)
        if isinstance(outcome, Failure)
        else None
        for outcome in outcomes
    ]


def outputs(outcomes: Sequence[Outcome]) -> list[str | None]:
    """The output of each completion; None for a failure."""
    return [outcome.output if isinstance(outcome, Completion) else None for outcome in outcomes]


def kinds(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """The number of outcomes of each class."""
    return dict(
        collections.Counter(
            type(outcome.error if isinstance(outcome, Failure) else outcome).__name__
            for outcome in outcomes
        )
    )
