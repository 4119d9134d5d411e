"""One request on its way, and what a reply to it says of the backend and of its tokens."""

import math
from typing import Any

from transforms.dispatch.completion_queue import Failure, Inbox
from transforms.dispatch.pace import Reply
from transforms.records.errors import RecordError, RequestTimeout
from transforms.records.records import Completion, Request, Usage


class Job:
    """One request on its way."""

    __slots__ = (
        "attempts",
        "batch",
        "charged",
        "congested",
        "error",
        "failed_at",
        "failures",
        "first_sent_at",
        "held_at",
        "inbox",
        "index",
        "number",
        "outage_before_s",
        "place",
        "refused_at",
        "request",
        "throttled_s",
        "timed_out",
    )

    def __init__(self, number: int, request: Request, index: int, batch: Any, inbox: Inbox) -> None:
        self.number = self.place = number
        self.request = request
        self.index = index
        self.batch = batch
        self.inbox = inbox
        self.error: Exception | None = None
        self.attempts = 0
        self.charged = 0
        """Failures that count against ``max_attempts``."""
        self.failures = 0
        """All but refusals for the backend's load."""
        self.failed_at = math.nan
        self.congested = 0
        self.first_sent_at = math.nan
        self.outage_before_s = 0.0
        self.refused_at: float | None = None
        self.held_at: float | None = None
        """Since when its client holds it back."""
        self.throttled_s = 0.0
        self.timed_out = False

    @property
    def blamed(self) -> bool:
        """Whether it has failed while others succeeded."""
        return self.charged > 0

    def failure(self, error: Exception) -> Failure:
        """Its outcome when it is given up."""
        return Failure(error, self.attempts, round(self.throttled_s * 1000))

    def cancelled(self, timeout_s: float) -> Exception:
        """What a cancelled call is: out of time, or its client's own doing."""
        if not self.timed_out:
            return RuntimeError("the client cancelled its own call")
        self.timed_out = False
        return RequestTimeout(f"no answer within {timeout_s:g} s (`request_timeout_s`)")


def verdict(reply: Completion | Exception) -> Reply:
    """What a reply says about the backend."""
    if not isinstance(reply, RecordError) or not reply.retryable:
        return Reply.SERVED
    if reply.restarting:
        return Reply.RESTARTING
    if reply.error_type == "rate_limited":
        return Reply.LIMITED
    if reply.error_type == "timeout" or (reply.congestion and not reply.fatal_at_start):
        return Reply.OVERLOADED
    return Reply.BROKEN


class TokenEstimate:
    """Tokens of calls, for a quota: what a request will take, and what it took."""

    def __init__(self) -> None:
        self._output = 0.0

    def of_request(self, request: Request) -> float:
        """Its own, and as many as answers took lately."""
        return request.estimated_tokens + self._output

    def of_reply(self, reply: Completion | Exception) -> float | None:
        """What a call took; None when the server did not say."""
        usage = reply.usage if isinstance(reply, Completion) else getattr(reply, "usage", None)
        if not isinstance(usage, Usage) or usage.input_tokens is None:
            return None if isinstance(reply, Completion) else 0.0
        output = (usage.output_tokens or 0) + (usage.reasoning_tokens or 0)
        self._output += (output - self._output) / 16
        return usage.input_tokens + output
