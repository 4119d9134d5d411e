"""One write stream of BigQuery's Storage Write API: appends that survive lost connections.

An append is all or nothing: either the table has all of its rows, or it has none and the answer
names the rows that are wrong. An append whose answer was lost is sent again:

* on the default stream as it is, so its rows are in the table at least once;
* with an offset at that offset: ``ALREADY_EXISTS`` then says that the first attempt had arrived, so
  its rows are in the table exactly once.

Errors are told apart by their gRPC codes (BigQuery, "Storage Write API best practices"), never by
the text of a message.
"""

import collections
import dataclasses
import logging
import queue
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from transforms.clients.bigquery import TableName
from transforms.records.errors import RunError

if TYPE_CHECKING:
    from google.cloud import bigquery_storage_v1

_OK, _ALREADY_EXISTS, _NOT_FOUND = 0, 6, 5
_RETRIED = frozenset(
    {
        1,  # CANCELLED
        2,  # UNKNOWN
        4,  # DEADLINE_EXCEEDED
        8,  # RESOURCE_EXHAUSTED: a quota
        10,  # ABORTED: also a connection that was idle for ten minutes
        13,  # INTERNAL
        14,  # UNAVAILABLE
    }
)
_UNAVAILABLE = 14
_log = logging.getLogger(__name__)
_EXTRA_FIELDS = 7
"""``StorageError.SCHEMA_MISMATCH_EXTRA_FIELDS``: BigQuery does not yet see a new column."""


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


@dataclasses.dataclass(slots=True)
class Append:
    """Rows that are appended together.

    Attributes:
      rows: As `transforms.sinks.bigquery.proto_rows` encodes them; below 10 MB in all.
      offset: Where in the stream the first belongs; None on the default stream.
      tag: The caller's own value, returned with the answer.
    """

    rows: list[bytes]
    offset: int | None = None
    tag: Any = None


Done = tuple[Append, Mapping[int, str]]
"""An answered append, and the faults of its rows, by their index.

With no row rejected the table has all rows; with any row rejected it has none.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Patience:
    """How long a failing stream is retried.

    Attributes:
      give_up_after_s: Seconds without any success, from the first failure.
      not_found_s: The same for a table that is not found: it may have been created a moment ago.
      first_pause_s: Pause before the second attempt, doubled for each further one, with jitter.
      longest_pause_s: Upper bound of a pause.
      answer_s: How long a connection may live, and so how long an answer may take. A connection
        half that old is replaced as soon as nothing is in flight.
    """

    give_up_after_s: float = 600.0
    not_found_s: float = 60.0
    first_pause_s: float = 0.1
    longest_pause_s: float = 10.0
    answer_s: float = 600.0


class _StreamError(Exception):
    """The server reported an error, in an answer or by ending the connection."""

    def __init__(self, code: int, message: str, storage_code: int = 0) -> None:
        super().__init__(message)
        self.code, self.storage_code = code, storage_code


class _Connection:
    """One bidirectional call. gRPC's own thread reads the queue until it finds None."""

    def __init__(
        self, client: "bigquery_storage_v1.BigQueryWriteClient", name: str, timeout_s: float
    ) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call = client.transport.append_rows(
            iter(self._requests.get, None),
            timeout=timeout_s,
            metadata=[("x-goog-request-params", f"write_stream={name}")],
        )

    def send(self, request: Any) -> None:
        self._requests.put(request)

    def receive(self) -> Any:
        """The next answer.

        Raises:
          _StreamError: The connection ended.
        """
        import grpc

        try:
            return next(self._call)
        except StopIteration:
            raise _StreamError(_UNAVAILABLE, "the server closed the connection") from None
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            raise _StreamError(code.value[0], f"{code.name}: {details}") from error

    def close(self) -> None:
        self._call.cancel()
        self._requests.put(None)


class AppendStream:
    """Appends to one stream, several in flight, answered in order. Not thread-safe.

    Args:
      client: Google's client.
      name: ``projects/…/streams/_default``, or a stream that was created.
      descriptor: The rows' message.
      patience: How long it retries.
      window: How many appends may be in flight.
      sleep: Waits the given number of seconds.
      clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        client: "bigquery_storage_v1.BigQueryWriteClient",
        name: str,
        descriptor: Any,
        *,
        patience: Patience | None = None,
        window: int = 4,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._client, self._descriptor = client, descriptor
        self._patience, self._window = patience or Patience(), window
        self._sleep, self._clock = sleep, clock
        self._connection: _Connection | None = None
        self._opened_at = 0.0
        self._in_flight: collections.deque[Append] = collections.deque()
        self._failures = 0
        self._failing_since: float | None = None

    def send(self, append: Append) -> list[Done]:
        """Sends one append; returns the appends that it had to wait for, at most one.

        Raises:
          RunError: The server refused for good, or the stream has failed for too long.
        """
        self._in_flight.append(append)
        if self._connection is not None:
            self._connection.send(self._request(append, first=False))
        else:
            self._open()
        return [self._next_done()] if len(self._in_flight) >= self._window else []

    def drain(self) -> Iterator[Done]:
        """Yields every append in flight, as each is answered.

        Raises:
          RunError: As for `send`.
        """
        while self._in_flight:
            yield self._next_done()
        if self._clock() - self._opened_at > self._patience.answer_s / 2:
            self._disconnect()

    def append(self, rows: list[bytes], offset: int | None = None) -> Mapping[int, str]:
        """Sends one append and waits; returns the faults of its rows, by their index.

        Raises:
          RunError: As for `send`.
        """
        self.reset()
        answered = self.send(Append(rows, offset)) or list(self.drain())
        return answered[0][1]

    def reset(self) -> None:
        """Drops the appends in flight: a failed bundle has left them, and Beam repeats it."""
        if self._in_flight:
            self._in_flight.clear()
            self._disconnect()

    def close(self) -> None:
        """Closes the connection and drops the appends in flight."""
        self._in_flight.clear()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> None:
        """Opens a connection and sends every append in flight on it, perhaps again."""
        self._connection = _Connection(self._client, self.name, self._patience.answer_s)
        self._opened_at = self._clock()
        for number, append in enumerate(self._in_flight):
            self._connection.send(self._request(append, first=number == 0))

    def _request(self, append: Append, *, first: bool) -> Any:
        """An append in the API's form; the first of a connection names stream and schema."""
        from google.cloud.bigquery_storage_v1 import types

        data = types.AppendRowsRequest.ProtoData(rows=types.ProtoRows(serialized_rows=append.rows))
        if first:
            data.writer_schema = types.ProtoSchema(proto_descriptor=self._descriptor)
        return types.AppendRowsRequest(
            write_stream=self.name, offset=append.offset, proto_rows=data
        )

    def _next_done(self) -> Done:
        while True:
            try:
                if self._connection is None:
                    self._open()
                rejections = self._answer()
            except _StreamError as error:
                self._pause_or_raise(error)
            else:
                self._failures, self._failing_since = 0, None
                return self._in_flight.popleft(), rejections

    def _answer(self) -> Mapping[int, str]:
        assert self._connection is not None
        response = self._connection.receive()
        if response.error.code == _OK:
            return {}
        if response.error.code == _ALREADY_EXISTS and self._in_flight[0].offset is not None:
            return {}
        if response.row_errors:
            return {error.index: error.message for error in response.row_errors}
        raise _StreamError(
            response.error.code, response.error.message, _storage_code(response.error.details)
        )

    def _pause_or_raise(self, error: _StreamError) -> None:
        self._disconnect()
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        patience = self._patience
        limit = 0.0
        if error.code in _RETRIED or error.storage_code == _EXTRA_FIELDS:
            limit = patience.give_up_after_s
        elif error.code == _NOT_FOUND:
            limit = patience.not_found_s
        failing_s = now - self._failing_since
        if failing_s >= limit:
            tried = f" for {failing_s:.0f} s" if limit else ""
            raise RunError(
                f"BigQuery does not take rows on {self.name}{tried}: {error} (code {error.code})"
            ) from error
        if not failing_s:
            _log.warning("%s: retrying after an error: %s (code %s)", self.name, error, error.code)
        pause_s = min(patience.first_pause_s * 2**self._failures, patience.longest_pause_s)
        self._failures = min(self._failures + 1, 20)
        self._sleep(pause_s * random.uniform(0.5, 1.0))


def _storage_code(details: Any) -> int:
    """The `StorageError` code in an error's details; 0 where there is none."""
    from google.cloud.bigquery_storage_v1 import types

    message = types.StorageError.pb()
    for detail in details:
        if detail.Is(message.DESCRIPTOR):
            found = message()
            detail.Unpack(found)
            return int(found.code)
    return 0
