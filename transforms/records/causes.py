"""Why a call failed, and the consequences: one table for dispatch and clients.

The code that sees a failure names its `Cause`, the fact. All consequences are in one row of
`CONSEQUENCES`; no other module decides by comparing causes.

========================  =====  =======  =============  ==========  ==============  =======
cause                     retry  attempt  next call      verdict     fatal at start  server
========================  =====  =======  =============  ==========  ==============  =======
REQUEST                          yes                     SERVED                      WORKS
CREDENTIALS                      yes                     SERVED      yes             REFUSES
ACCOUNT                          yes                     SERVED      yes             REFUSES
NOT_SERVED                       yes                     SERVED      yes             REFUSES
CONNECTION_REFUSED        yes             backs off      BROKEN      yes             GONE
LOST_BEFORE_ANSWER        yes    yes      first at once  BROKEN      yes             FAILS
LOST_DURING_ANSWER        yes    yes      backs off      BROKEN      yes             FAILS
STALE_CONNECTION          yes    yes      first at once  BROKEN                      FAILS
SERVER_ERROR              yes    yes      backs off      BROKEN                      FAILS
TIMEOUT                   yes    yes      backs off      OVERLOADED                  FAILS
RATE_LIMIT                yes             backs off      LIMITED                     RESTS
OVERLOADED                yes             backs off      OVERLOADED                  RESTS
RESTARTING                yes             at once        RESTARTING                  RESTS
========================  =====  =======  =============  ==========  ==============  =======
"""

import dataclasses
import enum
from collections.abc import Mapping


class Cause(enum.Enum):
    """Why a call failed."""

    REQUEST = "request"
    """This request, or the model's answer to it, is at fault; the server works."""
    CREDENTIALS = "credentials"
    """The server rejects the caller's credentials (401, 403)."""
    ACCOUNT = "account"
    """The account has no credit left, or is closed."""
    NOT_SERVED = "not_served"
    """The server does not serve this model or address (3xx, 404, 405)."""
    CONNECTION_REFUSED = "connection_refused"
    """No connection: nothing listens at the address, or the host is unknown."""
    LOST_BEFORE_ANSWER = "lost_before_answer"
    """The connection broke before any byte of the answer; the server may be gone."""
    LOST_DURING_ANSWER = "lost_during_answer"
    """The connection broke while the answer was being read; the server may be gone."""
    STALE_CONNECTION = "stale_connection"
    """Like `LOST_BEFORE_ANSWER`, but the model is known to be still served."""
    SERVER_ERROR = "server_error"
    """The server failed (5xx), or sent an answer that cannot be read."""
    TIMEOUT = "timeout"
    """No answer in time (408, 504, or the client's own timeout)."""
    RATE_LIMIT = "rate_limit"
    """A quota is exhausted for now (429)."""
    OVERLOADED = "overloaded"
    """The server, or one that it depends on, has no capacity for now (503)."""
    RESTARTING = "restarting"
    """The server is being restarted, and its client holds requests until it is back."""


class Verdict(enum.Enum):
    """What the end of a call says about the backend, for the pace and the breaker."""

    SERVED = "served"
    """It works: an answer, or a refusal of this request alone."""
    LIMITED = "limited"
    """It works, but a quota is exhausted."""
    OVERLOADED = "overloaded"
    """It is overloaded or slow."""
    BROKEN = "broken"
    """It cannot be reached, or fails."""
    RESTARTING = "restarting"
    """Its client holds requests until it is back: nothing to learn, nothing to probe."""


class NextCall(enum.Enum):
    """When a record is retried."""

    BACKS_OFF = "backs_off"
    """After an exponential back-off, or the server's Retry-After."""
    FIRST_AT_ONCE = "first_at_once"
    """Immediately after the record's first failure, otherwise after a back-off."""
    AT_ONCE = "at_once"
    """Immediately: the client holds the request for as long as it has to wait."""


class EndpointState(enum.Enum):
    """What a failure says about one of several servers of a model."""

    WORKS = "works"
    """It answers."""
    REFUSES = "refuses"
    """It answers, but not this caller or model: left out once another server serves them."""
    FAILS = "fails"
    """It may be broken: left out after several such failures in a row."""
    GONE = "gone"
    """It is gone: left out immediately."""
    RESTS = "rests"
    """It has no capacity for a while: used only if all the others rest, too."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Consequence:
    """The consequences of a cause.

    Attributes:
      retry: The request is retried in this run; otherwise the record fails immediately.
      attempt: The record itself may be at fault, so the failure counts against ``max_attempts``.
        A refusal that says nothing about the record is retried until its deadline.
      next_call: When the request is retried, if it is.
      verdict: What the pace and the breaker learn about the backend.
      fatal_at_start: Every record would fail alike: ends a run in which no call has succeeded.
      server: What it says about the called server, if there are several.
      still_served: The cause to use instead if the model is known to be still served; None for
        the same.
    """

    retry: bool
    attempt: bool
    verdict: Verdict
    server: EndpointState
    next_call: NextCall = NextCall.BACKS_OFF
    fatal_at_start: bool = False
    still_served: Cause | None = None

    @property
    def fails_over(self) -> bool:
        """Whether to call another server immediately: this one cannot have begun to answer."""
        return self.server in (EndpointState.REFUSES, EndpointState.GONE)


_REFUSAL = Consequence(
    retry=False,
    attempt=True,
    verdict=Verdict.SERVED,
    server=EndpointState.REFUSES,
    fatal_at_start=True,
)
_SERVER_ERROR = Consequence(
    retry=True, attempt=True, verdict=Verdict.BROKEN, server=EndpointState.FAILS
)
_STALE_CONNECTION = dataclasses.replace(_SERVER_ERROR, next_call=NextCall.FIRST_AT_ONCE)
_OVERLOADED = Consequence(
    retry=True, attempt=False, verdict=Verdict.OVERLOADED, server=EndpointState.RESTS
)

CONSEQUENCES: Mapping[Cause, Consequence] = {
    Cause.REQUEST: Consequence(
        retry=False, attempt=True, verdict=Verdict.SERVED, server=EndpointState.WORKS
    ),
    Cause.CREDENTIALS: _REFUSAL,
    Cause.ACCOUNT: _REFUSAL,
    Cause.NOT_SERVED: _REFUSAL,
    Cause.CONNECTION_REFUSED: Consequence(
        retry=True,
        attempt=False,
        verdict=Verdict.BROKEN,
        server=EndpointState.GONE,
        fatal_at_start=True,
        still_served=Cause.OVERLOADED,
    ),
    Cause.LOST_BEFORE_ANSWER: dataclasses.replace(
        _STALE_CONNECTION, fatal_at_start=True, still_served=Cause.STALE_CONNECTION
    ),
    Cause.LOST_DURING_ANSWER: dataclasses.replace(
        _SERVER_ERROR, fatal_at_start=True, still_served=Cause.SERVER_ERROR
    ),
    Cause.STALE_CONNECTION: _STALE_CONNECTION,
    Cause.SERVER_ERROR: _SERVER_ERROR,
    Cause.TIMEOUT: dataclasses.replace(_SERVER_ERROR, verdict=Verdict.OVERLOADED),
    Cause.RATE_LIMIT: dataclasses.replace(_OVERLOADED, verdict=Verdict.LIMITED),
    Cause.OVERLOADED: _OVERLOADED,
    Cause.RESTARTING: dataclasses.replace(
        _OVERLOADED, verdict=Verdict.RESTARTING, next_call=NextCall.AT_ONCE
    ),
}
"""The consequences of each cause: the table in this module's docstring."""
