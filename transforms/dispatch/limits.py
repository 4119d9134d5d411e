"""How much load a backend gets, and when a record or the run is given up."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """Limits per worker process. Below them, the pace adapts to the backend.

    A call is one request, or several where the client takes them together.

    Attributes:
      max_concurrency: The most calls in flight at once.
      requests_per_minute: This process's share of a known quota, in calls; None for none.
      tokens_per_minute: The same share in input and output tokens.
      max_attempts: Calls per record that may fail retryably. A record whose last such call was
        shared with others gets one more, of its own.
      request_timeout_s: The timeout of one call, in seconds.
      record_deadline_s: The deadline of one record after its first call, in seconds; waiting
        counts, outages do not.
      give_up_after_s: A batch run stops after this many seconds without a success.
      patience_s: The last few records, which have no others to be compared with, are given up after
        this many seconds without a success; longer than a server takes to restart.
      hold: A streaming run never stops: it holds its messages and keeps retrying.
      max_dead_letter_ratio: When more than this share of at least 1,000 records has failed, the
        run stops, and the remaining records are ``not_attempted``; 1 for never.
      first_backoff_s: The longest wait before the second attempt, in seconds; doubles with each
        further attempt.
      max_backoff_s: The longest wait before any attempt, in seconds.
    """

    max_concurrency: int = 2048
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_attempts: int = 5
    request_timeout_s: float = 120.0
    record_deadline_s: float = 3600.0
    give_up_after_s: float = 900.0
    patience_s: float = 120.0
    hold: bool = False
    max_dead_letter_ratio: float = 0.2
    first_backoff_s: float = 1.0
    max_backoff_s: float = 20.0
