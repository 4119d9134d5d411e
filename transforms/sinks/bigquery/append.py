"""Rows appended to a BigQuery table by the Storage Write API, as they arrive, without Java.

Unlike a load job, an append reports which row the table rejects and why, and needs no end of the
input. It is not all or nothing: rows are visible as they are written.
"""

import dataclasses
import enum
import functools
from typing import ClassVar

import apache_beam as beam

from transforms.clients.bigquery import TableSpec
from transforms.sinks.base import EncodedRow, Written
from transforms.sinks.bigquery.append_stream import (
    AppendStream,
    Patience,
    make_write_client,
    table_path,
)
from transforms.sinks.bigquery.at_least_once import append_at_least_once
from transforms.sinks.bigquery.exactly_once import AppendExactlyOnce
from transforms.sinks.bigquery.proto_rows import ProtoRows
from transforms.sinks.bigquery.row_batches import Fallback
from transforms.sinks.bigquery.run_table import Appended, RunTable, append_to_table, prepare_table


class Delivery(enum.Enum):
    """How often an appended row is in the table.

    Attributes:
      AT_LEAST_ONCE: A bundle that Beam repeats, or an append whose answer was lost, may leave rows
        twice in the table. Read them through the ``_latest`` view.
      EXACTLY_ONCE: Every row that is not rejected is in the table once, whatever is repeated;
        `transforms.sinks.bigquery.exactly_once` says how. Costs three shuffles of the rows; for the
        global window only.
    """

    AT_LEAST_ONCE = "at_least_once"
    EXACTLY_ONCE = "exactly_once"


class DefaultStreamWriter(AppendStream):
    """A `TableWriter` on the table's default stream: each row at least once."""

    def __init__(self, spec: TableSpec, patience: Patience | None = None) -> None:
        self._proto = ProtoRows(spec.columns)
        name = f"{table_path(spec.name)}/streams/_default"
        super().__init__(make_write_client(), name, self._proto.descriptor, patience=patience)

    def encode(self, row: EncodedRow) -> bytes:
        """The row as a message.

        Raises:
          WriteRejected: A value does not fit its column.
        """
        return self._proto.encode(row.values)

    def close(self) -> None:
        """Closes the connection and the client's channel."""
        super().close()
        self._client.transport.close()


def open_default_stream(spec: TableSpec) -> DefaultStreamWriter:
    """A writer on the default stream of a table, which is created when it is missing."""
    client = spec.client()
    prepare_table(spec, client)
    client.close()
    return DefaultStreamWriter(spec)


@dataclasses.dataclass(kw_only=True, eq=False)
class AppendRows(beam.PTransform):
    """Appends encoded rows by the Storage Write API; bounded or unbounded; a `Sink`.

    The table is created when it is missing, and gets the columns that it lacks. Each row ends once:
    as written, when BigQuery has acknowledged it, or as rejected.

    A row of more than 8 MB is rejected as ``too_large``; a row that BigQuery finds fault with is
    rejected alone, as ``write_rejected``. A failure that is no row's fault (no permission, no table,
    an outage of ten minutes) raises, and Beam repeats the bundle: no row is lost.

    Args:
      table: The table.
      delivery: How often a row is in the table; see `Delivery`.
      fallback: Makes a smaller row that takes a rejected one's place, so that none is lost; a table
        that rejects that one, too, raises.
      count_when_drained: Whether an unbounded input, too, is counted when it ends: only where it is
        drained soon, as in a local stream.

    Returns:
      `Written`: its rows are those that the table holds; its one report, when the input has ended,
      is the table's own count of the run's rows.
    """

    table: RunTable
    delivery: Delivery = Delivery.AT_LEAST_ONCE
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
            rows, self.table, self._append, count_when_drained=self.count_when_drained
        )

    def _append(self, rows: beam.PCollection[EncodedRow]) -> Appended:
        spec = self.table.spec
        if self.delivery is Delivery.AT_LEAST_ONCE:
            open_writer = functools.partial(open_default_stream, spec)
            return append_at_least_once(rows, open_writer, self.fallback)
        appended: Appended = rows | "ExactlyOnce" >> AppendExactlyOnce(
            spec=spec, fallback=self.fallback
        )
        return appended
