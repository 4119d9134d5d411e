"""Every error of the pipeline, as one tree.

.. code-block:: text

    PipelineError
    ├── ConfigurationError        wrong use, found before anything is launched     (exit code 2)
    ├── RunError                  the run cannot go on                             (exit code 1)
    │   ├── BackendUnusable       no call has ever succeeded, and none will
    │   ├── NotReconciled         records != results + dead letters
    │   ├── StoppedEarly          too much failed: the rest was not attempted
    │   └── Interrupted           somebody asked the run to stop
    └── RecordError               costs one record, never its batch: a dead letter
        ├── ParseError  MissingField  RenderError                      before the model
        ├── InvalidRequest  TooLarge  Forbidden                        the model refused the request
        ├── RateLimited  Unavailable  RequestTimeout                   retryable
        ├── Blocked  EmptyOutput  Truncated                            answered, but not usable
        ├── SchemaViolation  WriteRejected                             after the model
        └── NotAttempted  Internal

The ``error_type`` of a dead letter is the class attribute of the `RecordError` that made it.
"""

from typing import Any


class PipelineError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigurationError(PipelineError):
    """Wrong use: the message holds the value that was wrong and the remedy."""


class RunError(PipelineError):
    """The run cannot go on; everything already written stays, but nothing says it is whole."""


class BackendUnusable(RunError):
    """No call has succeeded, and several records failed alike: credentials, model or address."""


class NotReconciled(RunError):
    """The sinks do not hold exactly one row per record."""


class StoppedEarly(RunError):
    """The run gave up in good order: what was paid for is written, the rest is not attempted."""


class Interrupted(RunError):
    """Somebody asked the run to stop."""


class RecordError(PipelineError):
    """One record's failure, classified.

    Args:
      message: What was wrong, with the value; no prompt, response or secret in it.
      retry_after_s: What the server asked for, in seconds.
      finish_reason: The model's own word for how it ended, as sent.
      output: The text that there was, for a failure behind an answer.
      usage: The tokens that were billed for it (a `transforms.records.records.Usage`).
      model_version: What the server says answered.
      service_tier: What the server says it charged for.
      fatal_at_start: True for what would fail every record alike (401, 403, 404, no connection)
        while nothing has succeeded yet.
      congestion: True for a refusal that says nothing of the record itself (429, 503, an
        outage): retried until the record's deadline, at the cost of no attempt.
      unanswered: True for a connection that was lost before any byte of the answer: the next call
        need not wait.
      restarting: True where the server is being started again and the client holds requests until
        it is back: nobody need wait longer, and it says nothing of the server's load.
    """

    error_type = "internal"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        finish_reason: str | None = None,
        output: str | None = None,
        usage: Any = None,
        model_version: str | None = None,
        service_tier: str | None = None,
        fatal_at_start: bool = False,
        congestion: bool = False,
        unanswered: bool = False,
        restarting: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.finish_reason = finish_reason
        self.output = output
        self.usage = usage
        self.model_version = model_version
        self.service_tier = service_tier
        self.fatal_at_start = fatal_at_start
        self.congestion = congestion
        self.unanswered = unanswered
        self.restarting = restarting


class ParseError(RecordError):
    """A line, row, message or file that is not what its format says."""

    error_type = "parse_error"


class MissingField(RecordError):
    """A field that the template or an option uses is absent or NULL."""

    error_type = "missing_field"


class RenderError(RecordError):
    """The template failed for this record for any other reason."""

    error_type = "render_error"


class InvalidRequest(RecordError):
    """The model server refuses this request, and would refuse it again (400, 404, 422)."""

    error_type = "invalid_request"


class TooLarge(RecordError):
    """Beyond a limit of the model server or of a sink (413)."""

    error_type = "too_large"


class Forbidden(RecordError):
    """Not allowed (401, 403)."""

    error_type = "forbidden"


class RateLimited(RecordError):
    """Still throttled (429) at the record's deadline."""

    error_type = "rate_limited"
    retryable = True


class Unavailable(RecordError):
    """The server failed or could not be reached (5xx, connection errors, unreadable answers)."""

    error_type = "unavailable"
    retryable = True


class RequestTimeout(RecordError):
    """No answer within the request's time (or 408, 504)."""

    error_type = "timeout"
    retryable = True


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
    """The answer is not JSON, not unambiguously, or does not satisfy the output schema."""

    error_type = "schema_violation"


class WriteRejected(RecordError):
    """A result that the sink's schema cannot hold."""

    error_type = "write_rejected"


class NotAttempted(RecordError):
    """Never sent, because the run stopped first."""

    error_type = "not_attempted"
    retryable = True


class Internal(RecordError):
    """An exception that nobody foresaw; the dead letter carries its stack trace."""

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
"""Every kind of dead letter, in the order of the contract."""

ERROR_TYPES: tuple[str, ...] = tuple(error.error_type for error in RECORD_ERRORS)
