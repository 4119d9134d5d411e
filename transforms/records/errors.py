"""Every error of the pipeline, as one tree.

.. code-block:: text

    PipelineError
    ├── ConfigurationError        wrong use, found before launch                   (exit code 2)
    ├── RunError                  the run cannot go on                             (exit code 1)
    │   ├── BackendUnusable       no call has ever succeeded, and none will
    │   ├── NotReconciled         records != results + dead letters
    │   ├── StoppedEarly          too many failures: the rest was not attempted
    │   └── Interrupted           the run was asked to stop
    └── RecordError               fails one record, never its batch: a dead letter
        ├── ParseError  MissingField  RenderError                      before the model
        ├── InvalidRequest  TooLarge  Forbidden                        the model refused the request
        ├── RateLimited  Unavailable  RequestTimeout                   retryable
        ├── Blocked  EmptyOutput  Truncated                            answered, but not usable
        ├── SchemaViolation  WriteRejected                             after the model
        └── NotAttempted  Internal

The ``error_type`` of a dead letter is a class attribute of its `RecordError`. A failure's
`transforms.records.causes.Cause` decides how the dispatcher treats it.
"""

import functools
from typing import Any

from transforms.records.causes import CONSEQUENCES, Cause, Consequence


class PipelineError(Exception):
    """Base of all errors that this project raises on purpose."""


class ConfigurationError(PipelineError):
    """Wrong use: the message contains the wrong value and the remedy."""


class RunError(PipelineError):
    """The run cannot go on; output already written stays, but may be incomplete."""


class BackendUnusable(RunError):
    """No call has succeeded, and several records failed alike: credentials, model or address."""


class NotReconciled(RunError):
    """The sinks do not hold exactly one row per record."""


class StoppedEarly(RunError):
    """The run stopped early: answers paid for are written, the other records not attempted."""


class Interrupted(RunError):
    """The run was asked to stop."""


class RecordError(PipelineError):
    """The classified failure of one record.

    Its class determines the ``error_type`` of the dead letter, its cause how the dispatcher treats
    it. An error is immutable: `replaced` makes a changed copy.

    Args:
      message: What was wrong, with the value; never contains a prompt, a response or a secret.
      cause: Why the call failed; None for the usual cause of the class.
      retry_after_s: How long the server asks callers to wait, in seconds.
      finish_reason: Why the model stopped, in the provider's words.
      output: The model's text, for a failure after an answer.
      usage: The tokens billed for it (a `transforms.records.records.Usage`).
      model_version: The model version that the server reports.
      service_tier: The tier that the server says it charged for.
    """

    error_type = "internal"
    retryable = False
    """Whether a later run may succeed: a column of the dead letter."""

    cause: Cause = Cause.REQUEST
    retry_after_s: float | None
    finish_reason: str | None
    output: str | None
    usage: Any
    model_version: str | None
    service_tier: str | None

    def __init__(
        self,
        message: str,
        *,
        cause: Cause | None = None,
        retry_after_s: float | None = None,
        finish_reason: str | None = None,
        output: str | None = None,
        usage: Any = None,
        model_version: str | None = None,
        service_tier: str | None = None,
    ) -> None:
        super().__init__(message)
        vars(self).update(
            cause=cause or type(self).cause,
            retry_after_s=retry_after_s,
            finish_reason=finish_reason,
            output=output,
            usage=usage,
            model_version=model_version,
            service_tier=service_tier,
        )

    @property
    def consequence(self) -> Consequence:
        """Its cause's row in `transforms.records.causes.CONSEQUENCES`."""
        return CONSEQUENCES[self.cause]

    def replaced(self, **changes: Any) -> "RecordError":
        """A copy with the same class and message, and some facts changed."""
        return type(self)(*self.args, **{**self._facts(), **changes})

    def _facts(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in _FACTS}

    def __setattr__(self, name: str, value: object) -> None:
        if name in _FACTS:
            raise AttributeError(f"{name} cannot be set: errors are immutable; use `replaced`")
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **self._facts()), self.args


_FACTS = (
    "cause",
    "retry_after_s",
    "finish_reason",
    "output",
    "usage",
    "model_version",
    "service_tier",
)


class ParseError(RecordError):
    """A line, row, message or file that does not match its format."""

    error_type = "parse_error"


class MissingField(RecordError):
    """A field that the template or an option uses is absent or NULL."""

    error_type = "missing_field"


class RenderError(RecordError):
    """The template failed for this record for another reason."""

    error_type = "render_error"


class InvalidRequest(RecordError):
    """The model server refuses this request, and would refuse it again (400, 404, 422)."""

    error_type = "invalid_request"


class TooLarge(RecordError):
    """The record exceeds a limit of the model server or of a sink (413)."""

    error_type = "too_large"


class Forbidden(RecordError):
    """Not allowed (401, 403)."""

    error_type = "forbidden"


class RateLimited(RecordError):
    """Still throttled (429) at the record's deadline."""

    error_type = "rate_limited"
    retryable = True
    cause = Cause.RATE_LIMIT


class Unavailable(RecordError):
    """The server failed or could not be reached (5xx, connection errors, unreadable answers)."""

    error_type = "unavailable"
    retryable = True
    cause = Cause.SERVER_ERROR


class RequestTimeout(RecordError):
    """No answer within the request's timeout (or 408, 504)."""

    error_type = "timeout"
    retryable = True
    cause = Cause.TIMEOUT


class Blocked(RecordError):
    """The model or its filters refused to answer: safety, recitation, blocked prompt."""

    error_type = "blocked"


class EmptyOutput(RecordError):
    """A success without any text."""

    error_type = "empty_output"


class Truncated(RecordError):
    """The answer ended at a token limit."""

    error_type = "truncated"


class SchemaViolation(RecordError):
    """The answer is not JSON, is ambiguous, or does not satisfy the output schema."""

    error_type = "schema_violation"


class WriteRejected(RecordError):
    """A result that does not fit the sink's schema."""

    error_type = "write_rejected"


class NotAttempted(RecordError):
    """Never sent, because the run stopped first."""

    error_type = "not_attempted"
    retryable = True


class Internal(RecordError):
    """An unforeseen exception; the dead letter has its stack trace."""

    error_type = "internal"


RECORD_ERRORS: tuple[type[RecordError], ...] = (
    ParseError,
    MissingField,
    RenderError,
    InvalidRequest,
    TooLarge,
    RateLimited,
    Unavailable,
    RequestTimeout,
    Forbidden,
    Blocked,
    EmptyOutput,
    Truncated,
    SchemaViolation,
    WriteRejected,
    NotAttempted,
    Internal,
)
"""All types of dead letters, in the order of the contract."""

ERROR_TYPES: tuple[str, ...] = tuple(error.error_type for error in RECORD_ERRORS)
