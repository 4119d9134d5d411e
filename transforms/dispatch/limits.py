"""How hard a backend is driven, and when a record or the run is given up."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """Per worker process. The pace below the ceilings adapts itself.

    A call is one request, or several where the client takes them together.

    Attributes:
      max_concurrency: The most calls in flight at once.
      requests_per_minute: This process's share of a known quota, in calls; None for none.
      tokens_per_minute: Likewise, of input and output tokens.
      max_attempts: Calls per record that may fail retryably. A record whose last such call also
        asked others gets one more, of its own.
      request_timeout_s: Of one call, in seconds.
      record_deadline_s: Of one record from its first call, waiting included but the time of an
        outage not, in seconds.
      give_up_after_s: A batch run stops when nothing has succeeded for so long, in seconds.
      patience_s: The last records, with which nothing can be compared, are given up when nothing
        has succeeded for so long; longer than a server's restart, in seconds.
      hold: A streaming run never stops: it keeps its messages and goes on asking.
      max_dead_letter_ratio: When more than this share of at least 1,000 records has failed, the
        run stops, and the remaining records are ``not_attempted``. 1 for never.
      first_backoff_s: The longest wait before the second attempt; it doubles with each.
      max_backoff_s: The longest wait of all.
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
