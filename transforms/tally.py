"""What each stage counts, element by element, for the reconciliation.

A `Tally` is summed within a bundle and leaves it as one element: counting costs a record about a
microsecond and no shuffle. It travels with the bundle's output, so a bundle that is retried counts
once, which Beam's metrics do not promise.
"""

import collections
import dataclasses
import decimal
from collections.abc import Iterable
from typing import Any

from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.records import DeadLetter
from transforms.rows import Row

_SUMS = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")


@dataclasses.dataclass(slots=True)
class Tally:
    """Sums over records.

    Attributes:
      counts: ``records``, ``results``, ``dead_letters``, ``duplicate_ids``, ``requests_sent``,
        ``retries``, ``throttled_ms``, ``from_ledger`` and the token sums.
      error_types: Dead letters by error type.
      cost_usd: Sum of the known list prices; None while none is known.
    """

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    error_types: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    cost_usd: decimal.Decimal | None = None

    def add_result(self, row: Row, throttled_ms: int) -> None:
        """Counts one result row."""
        counts = self.counts
        counts["results"] += 1
        counts["from_ledger"] += row["from_ledger"]
        self._add_call(row, row["attempts"], throttled_ms)
        self._add_tokens(row)

    def add_dead_letter(self, row: Row, letter: DeadLetter) -> None:
        """Counts one dead-letter row, with the calls and tokens that it cost."""
        self.counts["dead_letters"] += 1
        self.error_types[letter.error_type] += 1
        self._add_call(row, letter.attempts or 0, letter.throttled_ms)
        self._add_tokens(dataclasses.asdict(letter.usage))

    def _add_call(self, row: Row, attempts: int, throttled_ms: int) -> None:
        counts = self.counts
        counts["requests_sent"] += attempts
        if attempts > 1:
            counts["retries"] += attempts - 1
        if throttled_ms:
            counts["throttled_ms"] += throttled_ms
        if row["cost_usd"] is not None:
            self._add_cost(decimal.Decimal(row["cost_usd"]))

    def _add_cost(self, cost_usd: decimal.Decimal | None) -> None:
        if cost_usd is not None:
            self.cost_usd = cost_usd + (self.cost_usd or 0)

    def _add_tokens(self, values: dict[str, Any]) -> None:
        for name in _SUMS:
            if type(values[name]) is int:  # a server may report anything
                self.counts[name] += values[name]

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        """The sum of tallies."""
        total = cls()
        for tally in tallies:
            total.counts.update(tally.counts)
            total.error_types.update(tally.error_types)
            total._add_cost(tally.cost_usd)
        return total


def emit_tally(tally: Tally) -> TaggedOutput:
    """A bundle's tally, as ``finish_bundle`` emits it."""
    window = GlobalWindow()
    return TaggedOutput("tally", WindowedValue(tally, window.max_timestamp(), [window]))
