"""A call of one or more requests, and how many requests fit into one."""

from collections.abc import Iterator, Sequence

from transforms.backends.base import CallLimits
from transforms.dispatch.job import Job
from transforms.dispatch.pace import Permit
from transforms.records import json_values
from transforms.records.causes import Verdict
from transforms.records.errors import RecordError
from transforms.records.records import Completion, Request, Usage

Response = Completion | Exception
"""How one request of a call ended."""


class Call:
    """One call in flight.

    Attributes:
      jobs: Its requests.
      sent_at: When it was sent.
      outage_s: How long the backend had been down in total by then, in seconds.
      permit: Its place among the calls in flight; None for a call computed in this process.
    """

    __slots__ = ("jobs", "outage_s", "permit", "sent_at")

    def __init__(
        self, jobs: Sequence[Job], sent_at: float, outage_s: float, permit: Permit | None
    ) -> None:
        self.jobs = jobs
        self.sent_at = sent_at
        self.outage_s = outage_s
        self.permit = permit

    @property
    def shared(self) -> bool:
        """Whether it carries several requests."""
        return len(self.jobs) > 1

    @property
    def blamed(self) -> bool:
        """Whether one of its requests has failed while others succeeded."""
        return any(job.blamed for job in self.jobs)


class CallSize:
    """How much of a call its requests fill so far.

    Args:
      limits: How much it may carry. Its first request always fits.
    """

    def __init__(self, limits: CallLimits) -> None:
        self._limits = limits
        self._requests = self._tokens = self._bytes = 0

    def take(self, request: Request) -> bool:
        """Whether the request fits into the call; counts it if so."""
        limits = self._limits
        tokens, size = self._tokens, self._bytes
        if limits.max_tokens is not None:
            tokens += request.estimated_tokens
        if limits.max_bytes is not None:
            size += len(json_values.dumps(request.body))
        fits = (
            (limits.max_requests is None or self._requests < limits.max_requests)
            and (limits.max_tokens is None or tokens <= limits.max_tokens)
            and (limits.max_bytes is None or size <= limits.max_bytes)
        )
        if self._requests and not fits:
            return False
        self._requests += 1
        self._tokens, self._bytes = tokens, size
        return True


def grouped(jobs: Sequence[Job], limits: CallLimits) -> Iterator[Sequence[Job]]:
    """Splits requests, in order, into calls within the limits."""
    if limits.max_requests is limits.max_tokens is limits.max_bytes is None:
        yield jobs
        return
    size, first = CallSize(limits), 0
    for index, job in enumerate(jobs):
        if not size.take(job.request):
            yield jobs[first:index]
            size, first = CallSize(limits), index
            size.take(job.request)
    yield jobs[first:]


def verdict(responses: Sequence[Response]) -> Verdict:
    """The verdict of a call's responses on the backend: it works if one of them says so.

    An unforeseen exception says nothing against it.
    """
    said = None
    for response in responses:
        if not isinstance(response, RecordError):
            return Verdict.SERVED
        one = response.consequence.verdict
        said = one if said is None or one is Verdict.SERVED else said
    return said or Verdict.SERVED


class TokenEstimate:
    """Tokens of calls, for a quota: how many a call is expected to use, and how many it used."""

    def __init__(self) -> None:
        self._output = 0.0

    def of_requests(self, jobs: Sequence[Job]) -> float:
        """The requests' own tokens, plus for each request the recent average of an answer."""
        return sum(job.request.estimated_tokens for job in jobs) + len(jobs) * self._output

    def of_responses(self, responses: Sequence[Response]) -> float | None:
        """How many tokens a call used; None when the server did not say."""
        total = 0.0
        for response in responses:
            taken = self._of_response(response)
            if taken is None:
                return None
            total += taken
        return total

    def _of_response(self, response: Response) -> float | None:
        usage = (
            response.usage if isinstance(response, Completion) else getattr(response, "usage", None)
        )
        if not isinstance(usage, Usage) or usage.input_tokens is None:
            return None if isinstance(response, Completion) else 0.0
        output = (usage.output_tokens or 0) + (usage.reasoning_tokens or 0)
        self._output += (output - self._output) / 16
        return usage.input_tokens + output
