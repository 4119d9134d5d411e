"""Rows inserted as they arrive by BigQuery's streaming inserts (``tabledata.insertAll``).

BigQuery's older way of appending: at least once only, and more expensive than the Storage Write
API of `transforms.sinks.bigquery.append`.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, ClassVar

import apache_beam as beam
import orjson

from transforms.clients.bigquery import TableSpec
from transforms.records.errors import RunError
from transforms.sinks.base import EncodedRow, Written
from transforms.sinks.bigquery.append_stream import Append, Done
from transforms.sinks.bigquery.at_least_once import append_at_least_once
from transforms.sinks.bigquery.row_batches import Fallback
from transforms.sinks.bigquery.run_table import Appended, RunTable, append_to_table, prepare_table


class InsertAllWriter:
    """A `TableWriter` on ``tabledata.insertAll``: each row at least once.

    The client gives each row an insert id, by which BigQuery drops most of the rows that the client
    sends twice (best effort: BigQuery, "Streaming data"). A bundle that Beam repeats has other ids:
    an id made of the row's content would lose one of two records that are equal.
    """

    def __init__(self, spec: TableSpec) -> None:
        self._client, self._table = spec.client(), str(spec.name)

    def encode(self, row: EncodedRow) -> bytes:
        """The row's JSON line."""
        return row.line

    def send(self, append: Append) -> list[Done]:
        """Inserts; the client retries failures that are BigQuery's own.

        Raises:
          RunError: BigQuery refuses the whole request, or failed for ten minutes.
        """
        from google.api_core.exceptions import GoogleAPICallError, RetryError

        rows = [orjson.loads(row) for row in append.rows]
        try:
            errors = self._client.insert_rows_json(self._table, rows)
        except (GoogleAPICallError, RetryError) as error:
            raise RunError(f"BigQuery does not take rows on {self._table}: {error}") from error
        return [(append, _insert_rejections(errors))]

    def drain(self) -> Iterable[Done]:
        """No append is ever in flight."""
        return ()

    def reset(self) -> None:
        """No append is ever in flight."""

    def close(self) -> None:
        """Closes the client."""
        self._client.close()


def _insert_rejections(errors: Iterable[Any]) -> dict[int, str]:
    """The faults by row index; ``stopped`` marks the good rows of a request with a bad one."""
    rejections = {}
    for row in errors:
        reasons = [error for error in row["errors"] if error.get("reason") != "stopped"]
        if reasons:
            rejections[row["index"]] = "; ".join(
                f"{error.get('location') or 'row'}: {error.get('message')}" for error in reasons
            )
    return rejections


def open_inserts(spec: TableSpec) -> InsertAllWriter:
    """A writer of streaming inserts into a table, which is created when it is missing."""
    client = spec.client()
    prepare_table(spec, client)
    client.close()
    return InsertAllWriter(spec)


@dataclasses.dataclass(kw_only=True, eq=False)
class InsertRows(beam.PTransform):
    """Inserts encoded rows by streaming inserts, at least once; bounded or unbounded; a `Sink`.

    In all else like `transforms.sinks.bigquery.append.AppendRows` with
    ``Delivery.AT_LEAST_ONCE``: see there.

    Args:
      table: The table.
      fallback: Makes a smaller row that takes a rejected one's place, so that none is lost.
      count_when_drained: Whether an unbounded input, too, is counted when it ends.

    Returns:
      `Written`.
    """

    table: RunTable
    fallback: Fallback | None = None
    count_when_drained: bool = False

    whole_payloads: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def can_reject(self) -> bool:
        """Not with a fallback."""
        return self.fallback is None

    def expand(self, rows: beam.PCollection[EncodedRow]) -> Written:
        return append_to_table(
            rows, self.table, self._insert, count_when_drained=self.count_when_drained
        )

    def _insert(self, rows: beam.PCollection[EncodedRow]) -> Appended:
        open_writer = functools.partial(open_inserts, self.table.spec)
        return append_at_least_once(rows, open_writer, self.fallback)
