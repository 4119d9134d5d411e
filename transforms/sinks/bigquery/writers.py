"""Opens a table for appending: the Storage Write API, or ``insertAll``, behind one `RowWriter`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import orjson

from transforms.clients.bigquery import TableName, TableSpec, bigquery_schema
from transforms.records.errors import RunError
from transforms.sinks.bigquery.append_stream import Append, AppendStream, Done, Patience
from transforms.sinks.bigquery.proto_rows import ProtoRows
from transforms.sinks.bigquery.row_batches import RowWriter

if TYPE_CHECKING:
    from google.cloud import bigquery, bigquery_storage_v1

AppendMethod = Literal["storage_write", "streaming_inserts"]


def table_path(name: TableName) -> str:
    """A table as the Storage Write API names it.

    >>> table_path(TableName("p", "d", "t"))
    'projects/p/datasets/d/tables/t'
    """
    return f"projects/{name.project}/datasets/{name.dataset}/tables/{name.table}"


def make_write_client() -> "bigquery_storage_v1.BigQueryWriteClient":
    """Google's client, with the environment's credentials."""
    from google.cloud import bigquery_storage_v1

    return bigquery_storage_v1.BigQueryWriteClient()


def prepare_table(spec: TableSpec, client: "bigquery.Client") -> None:
    """Makes the table when it is missing, and adds the columns that an older release did not know.

    Idempotent, and safe for many workers at once.
    """
    spec.create(client)
    table = client.get_table(str(spec.name))
    known = {field.name.lower() for field in table.schema}
    added = [field for field in bigquery_schema(spec.columns) if field.name.lower() not in known]
    if added:
        table.schema = [*table.schema, *added]
        client.update_table(table, ["schema"])


class DefaultStreamWriter(AppendStream):
    """A `RowWriter` on the table's default stream: each row at least once."""

    def __init__(self, spec: TableSpec, patience: Patience | None = None) -> None:
        self._proto = ProtoRows(spec.columns)
        name = f"{table_path(spec.name)}/streams/_default"
        super().__init__(make_write_client(), name, self._proto.descriptor, patience=patience)

    def encode(self, line: bytes) -> bytes:
        """A JSON row as a message.

        Raises:
          WriteRejected: A value does not fit its column.
        """
        return self._proto.encode(line)

    def close(self) -> None:
        """Closes the connection and the client's channel."""
        super().close()
        self._client.transport.close()


class InsertAllWriter:
    """A `RowWriter` on ``tabledata.insertAll``: each row at least once.

    The client gives each row an insert id, by which BigQuery drops most of what the client sends
    twice (best effort: BigQuery, "Streaming data"). A bundle that Beam repeats has other ids: an id
    made of the row's content would lose one of two records that are equal.
    """

    def __init__(self, spec: TableSpec) -> None:
        self._client, self._table = spec.client(), str(spec.name)

    def encode(self, line: bytes) -> bytes:
        """The row as it is."""
        return line

    def send(self, append: Append) -> list[Done]:
        """Inserts; the client tries again what failed for BigQuery's own reasons.

        Raises:
          RunError: BigQuery refuses the whole request, or failed for ten minutes.
        """
        from google.api_core.exceptions import GoogleAPICallError, RetryError

        rows = [orjson.loads(row) for row in append.rows]
        try:
            errors = self._client.insert_rows_json(self._table, rows)
        except (GoogleAPICallError, RetryError) as error:
            raise RunError(f"BigQuery does not take rows on {self._table}: {error}") from error
        return [(append, _insert_refusals(errors))]

    def drain(self) -> Iterable[Done]:
        """Nothing is ever in flight."""
        return ()

    def reset(self) -> None:
        """Nothing is ever in flight."""

    def close(self) -> None:
        """Closes the client."""
        self._client.close()


def _insert_refusals(errors: Iterable[Any]) -> dict[int, str]:
    """What was wrong with which row; ``stopped`` is said of the good rows of such a request."""
    refusals = {}
    for row in errors:
        reasons = [error for error in row["errors"] if error.get("reason") != "stopped"]
        if reasons:
            refusals[row["index"]] = "; ".join(
                f"{error.get('location') or 'row'}: {error.get('message')}" for error in reasons
            )
    return refusals


def open_writer(spec: TableSpec, method: AppendMethod) -> RowWriter:
    """A writer on a table that is made when it is missing; each row at least once."""
    client = spec.client()
    prepare_table(spec, client)
    client.close()
    return InsertAllWriter(spec) if method == "streaming_inserts" else DefaultStreamWriter(spec)
