"""Calls between arrival and answer: refusals, the queue, slots, faults and outages.

A call meets these in order, and the first that applies decides:

1. an outage: the call is answered 503, reset, or never answered;
2. its content: a wrong key 401, an unknown model 404, a forbidden file 403, poison 400;
3. a fault that is a status (a random 429 takes no quota);
4. the quota: 429;
5. the fault ``hang``: no slot, no answer;
6. the queue's length, then a slot; ``reset`` ends it after half of its service time, ``malformed``
   cuts the answer.

Refusals (1 to 4, and the queue's) are answered after ``reject_latency_s``. A client that
disconnects frees its place at once.
"""

import asyncio
import collections
import math
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.simulator import dialects, luck
from benchmarks.simulator.dialects import Asked
from benchmarks.simulator.http import Connection
from benchmarks.simulator.log import Call
from benchmarks.simulator.quota import Quota
from benchmarks.simulator.settings import Settings

_REFUSED, _HANGING, _WAITING, _SERVED, _DONE = range(5)


class _OpenCall:
    """A call that has not ended."""

    __slots__ = (
        "arrival_s",
        "asked",
        "attempt",
        "cause",
        "client",
        "connection",
        "place",
        "start_s",
        "timer",
    )

    def __init__(
        self, asked: Asked, client: str, attempt: int, arrival_s: float, connection: Connection
    ) -> None:
        self.asked = asked
        self.client = client
        self.attempt = attempt
        self.arrival_s = arrival_s
        self.connection = connection
        self.start_s: float | None = None
        self.cause: str | None = None
        self.place = _REFUSED
        self.timer: asyncio.TimerHandle | None = None


class Service:
    """One run: begins with the first call and logs all calls.

    Attributes:
        settings: The current settings.
        outage: Whether there is an outage now.
        in_service: Calls that have a slot now.
        queued: Calls that wait for one now.
    """

    def __init__(self, settings: Settings, on_outage: Callable[[bool], None]) -> None:
        """Starts before the first call.

        Args:
            settings: The settings at the start of the run.
            on_outage: Called when an outage begins (True) and ends (False).
        """
        self.settings = settings
        self.outage = False
        self.in_service = self.queued = 0
        self._on_outage = on_outage
        self._loop = asyncio.get_running_loop()
        self._origin: float | None = None
        self._attempts: dict[str, int] = {}
        self._texts = 0
        self._by_status: collections.Counter[int | str] = collections.Counter()
        self._log: list[Call] = []
        self._open: dict[_OpenCall, None] = {}  # in order of arrival
        self._waiting: collections.deque[_OpenCall] = collections.deque()
        self._starting = False
        self._quota = Quota()
        self._set_quota()
        self._timers: list[asyncio.TimerHandle] = []
        self._outage_end: asyncio.TimerHandle | None = None

    # Control from outside

    def arrive(
        self, connection: Connection, asked: Asked, client: str, refusal: int | None
    ) -> None:
        """Accepts a call.

        Args:
            connection: The connection of the call and its answer.
            asked: The content of the call.
            client: The caller.
            refusal: The status with which its content is refused, if any.
        """
        if self._origin is None:
            self._begin()
        ids = asked.record_ids
        attempt = self._attempts.get(asked.record_id, 0) + 1
        for one in ids:
            self._attempts[one] = self._attempts.get(one, 0) + 1
        self._texts += len(ids)
        call = _OpenCall(asked, client, attempt, self._now(), connection)
        self._open[call] = None
        connection.on_gone = lambda: self._abandon(call)
        if self.outage:
            call.cause = "outage"
            self._fail(call)
            return
        fault = luck.fault_of(self.settings, asked.record_id, attempt)
        if len(ids) > 1 and any(luck.is_poison(self.settings, one) for one in ids):
            fault = "poison"
        if refusal is not None:
            self._refuse(call, refusal, "request")
        elif fault is not None and (fault == "poison" or fault.isdecimal()):
            self._refuse(call, 400 if fault == "poison" else int(fault), fault)
        elif wait_s := self._quota.take(asked.prompt_tokens + self._tokens(asked), self._now()):
            self._refuse(call, 429, "quota", wait_s)
        else:
            call.cause = fault
            self._admit(call)

    def refuse_unread(
        self, connection: Connection, form: str, client: str, error: dialects.Refused
    ) -> None:
        """Answers a request that could not be read, and logs it under an empty id."""
        if self._origin is None:
            self._begin()
        call = _OpenCall(Asked(form, "", "", 0, False), client, 0, self._now(), connection)
        call.cause = "request"
        self._finish(call, error.status, dialects.error(form, error.status, error.message, None))

    def change(self, values: Mapping[str, Any]) -> None:
        """Applies parsed settings (``settings.parse_change``) from now on."""
        self.settings = self.settings.changed(values)
        if {"requests_per_s", "tokens_per_minute", "burst_s"} & values.keys():
            self._set_quota()
        if "outage" in values:
            self._set_outage(values["outage"])
        self._start_waiting()

    def log(self) -> list[Call]:
        """All calls: the ended ones in the order of their ends, then the open ones."""
        waiting = ("open", "hang", "open", "open")
        return self._log + [self._row(call, None, waiting[call.place]) for call in self._open]

    def stats(self) -> dict[str, Any]:
        """Counts, as ``GET /_stats`` shows them."""
        return {
            "seconds": 0.0 if self._origin is None else self._now(),
            "calls": len(self._log) + len(self._open),
            "texts": self._texts,
            "records": len(self._attempts),
            "open": len(self._open),
            "in_service": self.in_service,
            "queued": self.queued,
            "outage": self.outage,
            "by_status": {str(status): count for status, count in self._by_status.items()},
        }

    def stop(self) -> None:
        """Drops the scheduled changes and ends an outage; open calls go on."""
        for timer in self._timers:
            timer.cancel()
        self._set_outage(0)

    def drop_all(self) -> None:
        """Resets the connections of all open calls."""
        for call in list(self._open):
            call.cause = "outage"
            self._reset(call)

    # The run as a whole

    def _now(self) -> float:
        return self._loop.time() - (self._origin or 0.0)

    def _begin(self) -> None:
        self._origin = self._loop.time()
        self._quota = Quota()
        self._set_quota()
        for change in self.settings.schedule:
            if change.at_s <= 0:
                self.change(change.values)
            else:
                at = self._origin + change.at_s
                self._timers.append(self._loop.call_at(at, self.change, change.values))

    def _set_quota(self) -> None:
        now, some = self._now(), self.settings
        self._quota.change(some.requests_per_s, some.tokens_per_minute, some.burst_s, now)

    def _set_outage(self, duration_s: float) -> None:
        if self._outage_end is not None:
            self._outage_end.cancel()
            self._outage_end = None
        began, self.outage = not self.outage and duration_s > 0, duration_s > 0
        if self.outage:
            self._outage_end = self._loop.call_later(duration_s, self._set_outage, 0)
        if began:
            self._on_outage(True)
        elif not self.outage:
            self._on_outage(False)

    # One call

    def _tokens(self, asked: Asked) -> int:
        if asked.texts:  # a vector has no tokens
            return 0
        return luck.output_tokens(self.settings, asked.record_id)

    def _fail(self, call: _OpenCall) -> None:
        """Applies the current outage to a call that arrives in it."""
        if self.settings.outage_kind == "503":
            self._refuse(call, 503, "outage")
        elif self.settings.outage_kind == "hang":
            call.place = _HANGING
        else:
            self._reset(call)

    def _refuse(self, call: _OpenCall, status: int, cause: str, wait_s: float = 0.0) -> None:
        call.cause = cause
        after_s: float | None = None
        if status in (429, 503) and self.settings.retry_after is not None:
            after_s = max(1.0, math.ceil(wait_s))
            if not isinstance(self.settings.retry_after, str):
                after_s = self.settings.retry_after
        body = dialects.error(call.asked.form, status, None, after_s)
        headers = b"" if after_s is None else b"Retry-After: %s\r\n" % f"{after_s:g}".encode()
        self._later(call, self.settings.reject_latency_s, self._finish, status, body, headers)

    def _later(
        self, call: _OpenCall, delay_s: float, function: Callable[..., None], *more: Any
    ) -> None:
        if delay_s > 0:
            call.timer = self._loop.call_later(delay_s, function, call, *more)
        else:
            function(call, *more)

    def _admit(self, call: _OpenCall) -> None:
        settings = self.settings
        if call.cause == "hang":
            call.place = _HANGING
        elif settings.slots == 0 or self.in_service < settings.slots:
            self._serve(call)
        elif 0 <= settings.max_queue <= self.queued:
            self._refuse(call, settings.overflow, "overflow")
        else:
            call.place = _WAITING
            self.queued += 1
            self._waiting.append(call)

    def _serve(self, call: _OpenCall) -> None:
        call.place, call.start_s = _SERVED, self._now()
        self.in_service += 1
        duration_s = luck.service_time_s(self.settings, call.asked.record_id)
        if call.cause == "reset":
            self._later(call, duration_s / 2, self._reset)
        else:
            self._later(call, duration_s, self._answer)

    def _answer(self, call: _OpenCall) -> None:
        asked = call.asked
        text = self.settings.answer.replace("{id}", asked.record_id)
        body = dialects.answer(asked, text, self._tokens(asked))
        self._finish(call, 200, body[: len(body) // 2] if call.cause == "malformed" else body)

    def _finish(self, call: _OpenCall, status: int, body: bytes, headers: bytes = b"") -> None:
        connection = call.connection
        self._end(call, status)
        connection.respond(status, body, headers)

    def _reset(self, call: _OpenCall) -> None:
        connection = call.connection
        self._end(call, "reset")
        connection.reset()

    def _abandon(self, call: _OpenCall) -> None:
        self._end(call, "abandoned")

    def _end(self, call: _OpenCall, status: int | str) -> None:
        """Logs the call and passes its place to the next."""
        place, call.place = call.place, _DONE
        if call.timer is not None:
            call.timer.cancel()
        self._open.pop(call, None)
        self._by_status[status] += 1
        self._log.append(self._row(call, self._now(), status))
        if place == _WAITING:
            self.queued -= 1
        elif place == _SERVED:
            self.in_service -= 1
            if self.queued:
                self._start_waiting()

    def _start_waiting(self) -> None:
        if self._starting:  # a call that takes no time ends while it is started
            return
        self._starting = True
        while self._waiting and (self.settings.slots == 0 or self.in_service < self.settings.slots):
            call = self._waiting.popleft()
            if call.place == _WAITING:
                self.queued -= 1
                self._serve(call)
        self._starting = False

    @staticmethod
    def _row(call: _OpenCall, end_s: float | None, status: int | str) -> Call:
        return Call(
            call.asked.record_id,
            call.client,
            call.attempt,
            call.arrival_s,
            call.start_s,
            end_s,
            status,
            call.cause,
            len(call.asked.texts) or 1,
        )
