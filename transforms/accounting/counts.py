"""The counts of each stage, element by element, for the reconciliation.

A `Counts` sums up a bundle and leaves it as one element: counting costs about a microsecond per
record and no shuffle. It travels with the bundle's output, so a retried bundle counts once, which
Beam's metrics do not promise.
"""

import collections
import dataclasses
import decimal
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.accounting import metrics
from transforms.records.records import DeadLetter, Record
from transforms.results.rows import Row

_SUMS = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")


@dataclasses.dataclass(slots=True)
class Counts:
    """Sums over records.

    Attributes:
      by_name: ``records``, ``results``, ``dead_letters``, ``duplicate_ids``, ``requests_sent``,
        ``retries``, ``throttled_ms``, ``from_ledger`` and the token sums.
      error_types: Dead letters by error type.
      cost_usd: Sum of the known list prices; None if none is known.
    """

    by_name: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    error_types: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    cost_usd: decimal.Decimal | None = None

    def add_result(self, row: Row, throttled_ms: int) -> None:
        """Counts one result row."""
        counts = self.by_name
        counts["results"] += 1
        counts["from_ledger"] += row["from_ledger"]
        self._add_call(row, row["attempts"], throttled_ms)
        self._add_tokens(row)

    def add_dead_letter(self, row: Row, letter: DeadLetter) -> None:
        """Counts one dead-letter row, with the calls and tokens that it cost."""
        self.by_name["dead_letters"] += 1
        self.error_types[letter.error_type] += 1
        self._add_call(row, letter.attempts or 0, letter.throttled_ms)
        self._add_tokens(dataclasses.asdict(letter.usage))

    def _add_call(self, row: Row, attempts: int, throttled_ms: int) -> None:
        counts = self.by_name
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
            if type(values[name]) is int:  # servers may report anything
                self.by_name[name] += values[name]

    def add(self, other: "Counts") -> None:
        """Adds other counts to these."""
        self.by_name.update(other.by_name)
        self.error_types.update(other.error_types)
        self._add_cost(other.cost_usd)

    @classmethod
    def total(cls, counted: Iterable["Counts"]) -> "Counts":
        """The sum of several counts."""
        total = cls()
        for counts in counted:
            total.add(counts)
        return total


def emit_counts(counts: Counts) -> TaggedOutput:
    """A bundle's counts as an output of ``finish_bundle``."""
    window = GlobalWindow()
    return TaggedOutput("counts", WindowedValue(counts, window.max_timestamp(), [window]))


_PARTITIONS = 64
IdHashes = tuple[int, bytes]
"""A partition of the hash space, and the 8-byte hashes of the ids in it."""


class _CountRecordsDoFn(beam.DoFn):
    """Counts records and collects 64-bit hashes of ids; one element per partition and bundle."""

    def start_bundle(self) -> None:
        self._count = 0
        self._hashes: list[bytes] = []

    def process(self, record: Record) -> None:
        self._count += 1
        self._hashes.append(hashlib.blake2b(record.record_id.encode(), digest_size=8).digest())

    def finish_bundle(
        self,
    ) -> Iterator[IdHashes | TaggedOutput[Literal["counts"], Counts]]:
        metrics.beam_counter("records").inc(self._count)
        counts = Counts()
        counts.by_name["records"] = self._count
        yield emit_counts(counts)
        partitions: dict[int, list[bytes]] = {}
        for digest in self._hashes:
            partitions.setdefault(digest[0] % _PARTITIONS, []).append(digest)
        window = GlobalWindow()
        for partition, hashes in partitions.items():
            yield WindowedValue((partition, b"".join(hashes)), window.max_timestamp(), [window])


class _CountUnreadDoFn(beam.DoFn):
    def start_bundle(self) -> None:
        self._counts = Counts()

    def process(self, _: DeadLetter) -> None:
        self._counts.by_name["records"] += 1

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield emit_counts(self._counts).value


def count_duplicates(hashes: Sequence[bytes]) -> int:
    """The number of ids that repeat an earlier one, from their packed 8-byte hashes.

    Two different ids share a hash with probability n²/2⁶⁵: 3 in a million for ten million records.
    """
    values = np.frombuffer(b"".join(hashes), np.uint64)
    return int(values.size - np.unique(values).size)


def _duplicate_counts(partition: tuple[int, Iterable[bytes]]) -> Counts:
    counts = Counts()
    counts.by_name["duplicate_ids"] = count_duplicates(list(partition[1]))
    return counts


@dataclasses.dataclass(kw_only=True, eq=False)
class CountRecords(beam.PTransform):
    """Counts the inputs read, and ids that occur more than once; bounded.

    `transforms.accounting.minute_counts.CountReadMinutes` does it for unbounded inputs. Takes
    ``(records, unread)``, returns a PCollection of `Counts`. Only hashes are shuffled, eight bytes
    per record, in 64 groups: ten million records with the same id do no harm.
    """

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, read: tuple[beam.PCollection[Record], beam.PCollection[DeadLetter]]
    ) -> beam.PCollection[Counts]:
        records, unread = read
        counted = records | "CountRecords" >> beam.ParDo(_CountRecordsDoFn()).with_outputs(
            "counts", main="hashes"
        )
        duplicates = (
            counted.hashes
            | "GroupHashes" >> beam.GroupByKey()
            | "CountDuplicates" >> beam.Map(_duplicate_counts)
        )
        unreadable = unread | "CountUnread" >> beam.ParDo(_CountUnreadDoFn())
        return (counted.counts, unreadable, duplicates) | "Counts" >> beam.Flatten()
