"""One stream against a scripted server: real gRPC, invented answers."""

import itertools
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from google.cloud import bigquery_storage_v1
from google.cloud.bigquery_storage_v1 import types
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import (
    BigQueryWriteGrpcTransport,
)
from google.protobuf import any_pb2
from google.rpc import status_pb2

from transforms.clients.bigquery import TableName, TableSpec
from transforms.records.errors import RunError
from transforms.results.rows import Column
from transforms.sinks.bigquery import append as append_module
from transforms.sinks.bigquery.append import DefaultStreamWriter
from transforms.sinks.bigquery.append_stream import Append, AppendStream, Patience
from transforms.sinks.bigquery.proto_rows import row_descriptor

NAME = "projects/p/datasets/d/tables/t/streams/_default"
DESCRIPTOR = row_descriptor((Column("a", "STRING"),))
OK = types.AppendRowsResponse(append_result=types.AppendRowsResponse.AppendResult())


def error(code: grpc.StatusCode, storage_code: int = 0, **more: Any) -> types.AppendRowsResponse:
    """An answer with an error that leaves the connection open."""
    status = status_pb2.Status(code=code.value[0], message="no")
    if storage_code:
        detail = any_pb2.Any()
        detail.Pack(types.StorageError.pb(types.StorageError(code=storage_code)))
        status.details.append(detail)
    return types.AppendRowsResponse(error=status, **more)


class Server:
    """Answers requests by a script of responses, statuses that end the call, or None to end it.

    Attributes:
      calls: The requests of each connection.
    """

    def __init__(self, script: list[Any]) -> None:
        self.calls: list[list[types.AppendRowsRequest]] = []
        self._script = iter(script)
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    "google.cloud.bigquery.storage.v1.BigQueryWrite",
                    {
                        "AppendRows": grpc.stream_stream_rpc_method_handler(
                            self._append,
                            request_deserializer=types.AppendRowsRequest.deserialize,
                            response_serializer=types.AppendRowsResponse.serialize,
                        )
                    },
                )
            ]
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        transport = BigQueryWriteGrpcTransport(channel=self._channel)
        self.client = bigquery_storage_v1.BigQueryWriteClient(transport=transport)

    def _append(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        call: list[types.AppendRowsRequest] = []
        self.calls.append(call)
        assert ("x-goog-request-params", f"write_stream={NAME}") in context.invocation_metadata()
        for request in requests:
            call.append(request)
            answer = next(self._script, OK)
            if answer is None:
                return
            if isinstance(answer, grpc.StatusCode):
                context.abort(answer, "script")
            yield answer

    def stop(self) -> None:
        """Ends the server and its channel."""
        self._channel.close()
        self._server.stop(None)


@pytest.fixture
def scripted() -> Iterator[Callable[..., Server]]:
    """Makes a server with a script."""
    made: list[Server] = []

    def make(*script: Any) -> Server:
        made.append(Server(list(script)))
        return made[-1]

    yield make
    for server in made:
        server.stop()


class Clock:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, 0

    def sleep(self, seconds: float) -> None:
        """Moves the clock."""
        self.now += seconds
        self.pauses += 1


def stream_of(server: Server, clock: Clock | None = None, **more: Any) -> AppendStream:
    """A stream on this server."""
    clock = clock or Clock()
    return AppendStream(
        server.client, NAME, DESCRIPTOR, sleep=clock.sleep, clock=lambda: clock.now, **more
    )


def rows_of(call: list[types.AppendRowsRequest]) -> list[list[bytes]]:
    """The rows of each request of a connection."""
    return [list(request.proto_rows.rows.serialized_rows) for request in call]


def test_appends_are_pipelined_on_one_connection(scripted: Callable[..., Server]) -> None:
    """Several appends are in flight and answered in order; only the first holds the schema."""
    server = scripted()
    stream = stream_of(server, window=3)
    done = [stream.send(Append([b"%d" % n], tag=n)) for n in range(5)]
    assert [[append.tag for append, _ in ended] for ended in done] == [[], [], [0], [1], [2]]
    assert [append.tag for append, refusals in stream.drain() if not refusals] == [3, 4]
    (call,) = server.calls
    assert rows_of(call) == [[b"0"], [b"1"], [b"2"], [b"3"], [b"4"]]
    schemas = [bool(request.proto_rows.writer_schema.proto_descriptor.field) for request in call]
    assert schemas == [True, False, False, False, False]
    stream.close()


@pytest.mark.parametrize(
    "failure",
    [
        None,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        error(grpc.StatusCode.RESOURCE_EXHAUSTED),
        error(grpc.StatusCode.INTERNAL),
        error(grpc.StatusCode.INVALID_ARGUMENT, storage_code=7),
        error(grpc.StatusCode.NOT_FOUND),
    ],
    ids=str,
)
def test_unanswered_appends_are_sent_again(scripted: Callable[..., Server], failure: Any) -> None:
    """A new connection gets all unanswered appends again, in order, with the schema."""
    server, clock = scripted(OK, failure), Clock()
    stream = stream_of(server, clock, window=9)
    for n in range(3):
        assert stream.send(Append([b"%d" % n])) == []
    assert [refusals for _, refusals in stream.drain()] == [{}, {}, {}]
    assert rows_of(server.calls[-1]) == [[b"1"], [b"2"]]
    assert server.calls[-1][0].proto_rows.writer_schema.proto_descriptor.field
    assert clock.pauses == 1
    stream.close()


def test_an_existing_offset_was_written(scripted: Callable[..., Server]) -> None:
    """An existing offset shows that an earlier attempt arrived; a default stream has none."""
    exists = error(grpc.StatusCode.ALREADY_EXISTS)
    server = scripted(exists, exists)
    stream = stream_of(server)
    assert stream.append([b"a"], 7) == {}
    assert server.calls[0][0].offset == 7
    with pytest.raises(RunError, match=r"_default: no \(code 6\)"):
        stream.append([b"a"])


def test_rejected_rows_are_named(scripted: Callable[..., Server]) -> None:
    """Rejected rows are named by index with the server's message; the connection stays open."""
    row_errors = [types.RowError(index=2, message="too long"), types.RowError(index=0, message="b")]
    server = scripted(error(grpc.StatusCode.INVALID_ARGUMENT, row_errors=row_errors))
    stream = stream_of(server)
    assert stream.append([b"a", b"b", b"c"]) == {2: "too long", 0: "b"}
    assert stream.append([b"b"]) == {}
    assert len(server.calls) == 1
    stream.close()


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (error(grpc.StatusCode.PERMISSION_DENIED), 0),
        (grpc.StatusCode.PERMISSION_DENIED, 0),
        (error(grpc.StatusCode.OUT_OF_RANGE), 0),
        (error(grpc.StatusCode.INVALID_ARGUMENT), 0),
        (grpc.StatusCode.NOT_FOUND, 60),
        (grpc.StatusCode.UNAVAILABLE, 600),
    ],
    ids=str,
)
def test_patience_ends(scripted: Callable[..., Server], answer: Any, seconds: int) -> None:
    """A definite error stops at once, a missing table after a minute, an outage after ten."""
    clock = Clock()
    stream = stream_of(scripted(*itertools.repeat(answer, 200)), clock)
    with pytest.raises(RunError, match=f"does not take rows on {NAME}"):
        stream.append([b"a"])
    assert seconds <= clock.now <= seconds + 10
    stream.close()


def test_an_old_connection_is_replaced_between_appends(scripted: Callable[..., Server]) -> None:
    """A connection is replaced between appends before the server would end it."""
    server, clock = scripted(), Clock()
    stream = stream_of(server, clock, patience=Patience(answer_s=100))
    for now in (0, 50, 51, 52):
        clock.now = now
        assert stream.append([b"%d" % now]) == {}
    assert [len(call) for call in server.calls] == [3, 1]
    stream.close()


def test_a_failed_bundle_leaves_nothing(scripted: Callable[..., Server]) -> None:
    """A failed bundle's answers are never taken for the next bundle's."""
    server = scripted()
    stream = stream_of(server, window=9)
    stream.send(Append([b"old"]))
    stream.reset()
    assert list(stream.drain()) == []
    assert stream.append([b"new"]) == {}
    stream.close()


def test_a_writer_continues_after_a_failed_bundle(
    scripted: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed bundle a writer keeps its client and opens a new connection."""
    monkeypatch.setattr(append_module, "make_write_client", lambda: scripted().client)
    spec = TableSpec(
        name=TableName("p", "d", "t"),
        columns=(Column("a", "STRING"),),
        partition_by="a",
        cluster_by=("a",),
    )
    writer = DefaultStreamWriter(spec)
    writer.send(Append([b"old"]))
    writer.reset()
    assert writer.append([b"new"]) == {}
    writer.close()
