"""Sends requests to a client: bounded concurrency, retries per record, one outcome per request.

What costs a record, and what stops the run:

* A failure that says something of the record (400, a blocked prompt) costs that record at once.
* A retryable failure costs an attempt; after ``max_attempts`` it costs the record.
* Congestion (429, 503) costs no attempt. Its ``Retry-After`` holds the whole process, and the
  record is given up only at its deadline.
* What would fail every record alike (401, 403, 404, no connection) stops the run, while no call
  has ever succeeded, as soon as a second record fails in the same way.
* Without any success for ``give_up_after_s`` the run stops.
* An exception that nobody foresaw costs its record, with the stack trace.

Backoff is exponential with full jitter (Brooker, "Exponential Backoff And Jitter", AWS
Architecture Blog, 2015). A waiting retry holds no slot.
"""

import asyncio
import concurrent.futures
import dataclasses
import random
import time
import weakref
from collections.abc import Coroutine, Sequence
from typing import Any

from transforms.backends.base import BatchClient, Client
from transforms.dispatch import loop
from transforms.errors import (
    BackendUnusable,
    Interrupted,
    RecordError,
    RequestTimeout,
)
from transforms.metrics import LIVE
from transforms.records import Completion, Request

_LONGEST_WAIT_S = 120.0
"""A ``Retry-After`` beyond this is not believed: the process asks again."""

_stopping = asyncio.Event()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """How hard a backend is driven, per worker process.

    Attributes:
      max_concurrency: Calls in flight at once.
      max_attempts: Calls per record that may fail retryably.
      request_timeout_s: Of one call, in seconds.
      record_deadline_s: Of one record from its first call, waiting included, in seconds.
      give_up_after_s: The run stops when so long nothing has succeeded, in seconds.
      first_backoff_s: The longest wait before the second attempt; it doubles with each.
      max_backoff_s: The longest wait of all.
    """

    max_concurrency: int = 64
    max_attempts: int = 5
    request_timeout_s: float = 120.0
    record_deadline_s: float = 3600.0
    give_up_after_s: float = 900.0
    first_backoff_s: float = 1.0
    max_backoff_s: float = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A request that got no completion: the last error, calls made, time throttled."""

    error: Exception
    attempts: int
    throttled_ms: int = 0


Outcome = Completion | Failure


class Dispatcher:
    """Drives one client for all threads and bundles of a process.

    Thread-safe. Live: made by `open_dispatcher` in the worker, never pickled.
    """

    def __init__(self, client: Client, limits: DispatchLimits) -> None:
        self._client = client
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.max_concurrency)
        self._succeeded = False
        self._suspects: dict[str, int] = {}
        self._closed_until = 0.0
        self._failing_since: float | None = None
        self._unusable: str | None = None
        weakref.finalize(self, _close, client)

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        """One outcome per request, in order; blocks the calling thread.

        Raises:
          BackendUnusable: Nothing has ever succeeded, and two records failed alike.
          Interrupted: `stop_all` was called.
        """
        try:
            return loop.run(self._answer(requests))
        except concurrent.futures.CancelledError:
            raise Interrupted("the run was asked to stop") from None

    async def _answer(self, requests: Sequence[Request]) -> list[Outcome]:
        _raise_if_stopping()
        if isinstance(self._client, BatchClient):
            return await self._answer_at_once(self._client, requests)
        return await _all([self._answer_one(request) for request in requests])

    async def _answer_at_once(
        self, client: BatchClient, requests: Sequence[Request]
    ) -> list[Outcome]:
        LIVE.add("sent", len(requests))
        try:
            replies = await client.generate_many(requests)
        except BackendUnusable:
            raise
        except Exception:  # one request may have broken the batch: each is tried alone
            return await _all([self._answer_one(request) for request in requests])
        if len(replies) != len(requests):
            raise BackendUnusable(
                f"{type(client).__name__}.generate_many returned {len(replies)} outcomes "
                f"for {len(requests)} requests"
            )
        completed = [reply for reply in replies if isinstance(reply, Completion)]
        if completed:
            self._succeeded = True
            self._failing_since = None
        if len(completed) == len(requests):
            return list(completed)
        outcomes: list[Any] = list(replies)
        failed = [n for n, reply in enumerate(replies) if not isinstance(reply, Completion)]
        alone = [self._answer_one(requests[n], _as_error(replies[n])) for n in failed]
        for n, outcome in zip(failed, await _all(alone), strict=True):
            outcomes[n] = outcome
        return outcomes

    async def _answer_one(self, request: Request, error: Exception | None = None) -> Outcome:
        """Calls until there is an outcome; ``error`` is how a first call, by the batch, failed."""
        limits = self._limits
        attempts = 0 if error is None else 1
        deadline = time.monotonic() + limits.record_deadline_s
        failed = congested = 0
        throttled_s = 0.0
        while True:
            if error is None:
                throttled_s += await self._wait_until_open()
                async with self._slots:
                    _raise_if_stopping()
                    if self._unusable is not None:  # another batch has found out
                        raise BackendUnusable(self._unusable)
                    if time.monotonic() < self._closed_until:  # closed while it waited for a slot
                        continue
                    attempts += 1
                    if attempts == 1:
                        deadline = time.monotonic() + limits.record_deadline_s
                    reply = await self._call(request)
                if isinstance(reply, Completion):
                    return dataclasses.replace(
                        reply, attempts=attempts, throttled_ms=round(throttled_s * 1000)
                    )
                error = reply

            failure = Failure(error, attempts, round(throttled_s * 1000))
            if not isinstance(error, RecordError):
                return failure
            self._suspect(request, error, attempts)
            if not error.retryable:
                return failure
            self._give_up_in_time(error)
            if error.congestion:
                congested += 1
                wait_s = min(error.retry_after_s or self._backoff_s(congested), _LONGEST_WAIT_S)
                if error.retry_after_s:
                    self._closed_until = max(self._closed_until, time.monotonic() + wait_s)
                throttled_s += wait_s
            else:
                failed += 1
                if failed >= limits.max_attempts:
                    return failure
                wait_s = min(error.retry_after_s or self._backoff_s(failed), _LONGEST_WAIT_S)
            if time.monotonic() + wait_s > deadline:
                return failure
            await asyncio.sleep(wait_s)
            error = None

    async def _call(self, request: Request) -> Completion | Exception:
        """One call; what it raises is its reply, unless it stops the run."""
        timeout_s = self._limits.request_timeout_s
        LIVE.add("sent", 1)
        started = time.monotonic()
        try:
            completion = await asyncio.wait_for(self._client.generate(request), timeout_s)
            latency_ms = round((time.monotonic() - started) * 1000)
            completion = dataclasses.replace(completion, latency_ms=latency_ms)
        except BackendUnusable:
            raise
        except asyncio.TimeoutError:
            return RequestTimeout(f"no answer within {timeout_s:g} s (--request_timeout_s)")
        except Exception as unforeseen:
            return unforeseen
        self._succeeded = True
        self._failing_since = None
        return completion

    async def _wait_until_open(self) -> float:
        """Waits out another record's ``Retry-After``; returns the seconds waited."""
        waited = 0.0
        while (wait_s := self._closed_until - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
            waited += wait_s
        return waited

    def _backoff_s(self, failures: int) -> float:
        limits = self._limits
        ceiling = min(limits.max_backoff_s, limits.first_backoff_s * 2.0 ** min(failures - 1, 30))
        return random.uniform(0, ceiling)

    def _suspect(self, request: Request, error: RecordError, attempts: int) -> None:
        """Stops the run when two records fail alike before any success."""
        if self._succeeded or not error.fatal_at_start:
            return
        chances = min(2, self._limits.max_attempts) if error.retryable else 1
        if attempts < chances:  # a lost connection gets its second chance first
            return
        first = self._suspects.setdefault(error.error_type, id(request))
        if first != id(request):
            self._unusable = str(error)
            raise BackendUnusable(self._unusable)

    def _give_up_in_time(self, error: RecordError) -> None:
        """Stops the run when nothing has succeeded for too long."""
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        elif time.monotonic() - self._failing_since > self._limits.give_up_after_s:
            raise BackendUnusable(
                f"nothing has succeeded for {self._limits.give_up_after_s:g} s; "
                f"the last error: {error}"
            )


def _as_error(reply: Any) -> Exception:
    if isinstance(reply, Exception):
        return reply
    return TypeError(f"generate_many gave a {type(reply).__name__} for a request")


async def _all(coroutines: Sequence[Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    """Gathers; the first error cancels the others, so that nothing is sent behind its back."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _raise_if_stopping() -> None:
    if _stopping.is_set():
        raise Interrupted("the run was asked to stop")


def _close(client: Client) -> None:
    loop.submit(client.close())


async def _stop() -> None:
    _stopping.set()
    me = asyncio.current_task()
    for task in asyncio.all_tasks():
        if task is not me:
            task.cancel()


def stop_all() -> None:
    """Cancels every call of this process, for good: the run was asked to stop."""
    loop.run(_stop())
