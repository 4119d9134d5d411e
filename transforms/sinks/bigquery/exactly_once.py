"""Appends that put each row into the table exactly once, however often Beam repeats work.

.. code-block:: text

    rows → gather batches → number them in a stream → Reshuffle → append in the order of the numbers
           (any worker)     (keyed by shard, state)   (commits)   (keyed by stream, state)

Why no row is doubled or lost:

1. The step that creates a write stream and assigns a batch its place in it appends nothing. After
   the Reshuffle the stream, number and content of every batch are committed: each later attempt, on
   whatever worker, sees the same.
2. The batches of a stream are appended in the order of their numbers, so the offset of each follows
   from the batches before it. A repeated attempt sends the same rows to the same offset, and
   BigQuery answers ``ALREADY_EXISTS`` if an earlier attempt, of a worker killed since, had arrived
   (also to two attempts at the same time).
3. An append with a row that BigQuery rejects changes nothing in the table. The rows to append in
   its place become state, and are not sent before that state is committed: a timer continues in a
   later bundle. So there is never a doubt which of two contents is at an offset.

A row that has not been emitted as written has not been committed, and is sent again.
"""

import dataclasses
import random
import time
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import apache_beam as beam
import orjson
from apache_beam.coders import (
    BooleanCoder,
    BytesCoder,
    StrUtf8Coder,
    TupleCoder,
    VarIntCoder,
)
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    ReadModifyWriteStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from transforms.clients.bigquery import TableSpec
from transforms.sinks.base import (
    EncodedRow,
    Packed,
    RejectedRow,
    Rejection,
    pack_row,
    unpack_row,
)
from transforms.sinks.bigquery.append_stream import AppendStream, make_write_client, table_path
from transforms.sinks.bigquery.ordered_batches import ROWS_CODER, Numbered, StreamPosition, advance
from transforms.sinks.bigquery.proto_rows import ProtoRows
from transforms.sinks.bigquery.row_batches import Batch, Fallback, encode_or_reject, replacement
from transforms.sinks.bigquery.run_table import Appended, prepare_table

SHARDS = 16
"""Streams written side by side."""

STREAM_BYTES = 256 << 20
"""A stream of this size is followed by another, which bounds the batches that wait their turn."""

STREAM_AGE_S = 3600.0
"""A stream of this age is followed by another."""

Ended: TypeAlias = EncodedRow | TaggedOutput[Literal["rejected"], RejectedRow]
"""A row that the table holds, or one that it rejected."""

_OPEN_STREAMS = 32
"""Connections that a worker thread keeps open."""


class _GatherDoFn(beam.DoFn):
    """Gathers the rows of one bundle into batches, each for a random shard."""

    def __init__(self, spec: TableSpec, fallback: Fallback | None) -> None:
        self._columns, self._fallback = spec.columns, fallback

    def setup(self) -> None:
        self._proto = ProtoRows(self._columns)

    def start_bundle(self) -> None:
        self._batch: Batch[Packed] = Batch()
        self._timestamp: Any = None

    def process(
        self, row: EncodedRow, timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[tuple[int, bytes] | TaggedOutput[Literal["rejected"], RejectedRow]]:
        encoded = encode_or_reject(self._encode, row)
        while isinstance(encoded, Rejection) and self._fallback is not None:
            row = replacement(row, encoded, self._fallback)
            encoded = encode_or_reject(self._encode, row)
        if isinstance(encoded, Rejection):
            yield TaggedOutput("rejected", RejectedRow(row, encoded))
            return
        if not self._batch.has_room(encoded):
            yield self._take()
        if not self._batch.items:
            self._timestamp = timestamp
        self._batch.add(pack_row(row), encoded)

    def finish_bundle(self) -> Iterator[Any]:
        if self._batch.items:
            yield self._take()

    def _encode(self, row: EncodedRow) -> bytes:
        return self._proto.encode(row.values)

    def _take(self) -> Any:
        """The batch, with the timestamp of its first row."""
        items, self._batch = self._batch.items, Batch()
        batch = random.randrange(SHARDS), ROWS_CODER.encode(items)
        return WindowedValue(batch, self._timestamp, (GlobalWindow(),))


class _NumberDoFn(beam.DoFn):
    """Assigns each batch its stream and its number there; appends nothing.

    A stream that an attempt has created but not committed stays empty.
    """

    STREAM = ReadModifyWriteStateSpec(
        "stream", TupleCoder((StrUtf8Coder(), VarIntCoder(), VarIntCoder(), VarIntCoder()))
    )
    CURRENT = beam.DoFn.StateParam(STREAM)

    def __init__(self, spec: TableSpec) -> None:
        self._spec = spec
        self._client: Any = None

    def process(
        self, batch: tuple[int, bytes], stream: Any = CURRENT
    ) -> Iterator[tuple[str, Numbered]]:
        _, rows = batch
        name, number, size, made_at = stream.read() or (self._make(), 0, 0, int(time.time()))
        size += len(rows)
        last = size >= STREAM_BYTES or time.time() - made_at >= STREAM_AGE_S
        if last:
            stream.clear()
        else:
            stream.write((name, number + 1, size, made_at))
        yield name, (number, last, rows)

    def teardown(self) -> None:
        if self._client is not None:
            self._client.transport.close()
            self._client = None

    def _make(self) -> str:
        from google.cloud.bigquery_storage_v1 import types

        if self._client is None:
            tables = self._spec.client()
            prepare_table(self._spec, tables)
            tables.close()
            self._client = make_write_client()
        committed = types.WriteStream(type_=types.WriteStream.Type.COMMITTED)
        made = self._client.create_write_stream(
            parent=table_path(self._spec.name), write_stream=committed
        )
        return str(made.name)


class _AppendInOrderDoFn(beam.DoFn):
    """Appends the batches of a stream in the order of their numbers."""

    POSITION = ReadModifyWriteStateSpec(
        "position", TupleCoder((VarIntCoder(), VarIntCoder(), VarIntCoder()))
    )
    WAITING = BagStateSpec("waiting", TupleCoder((VarIntCoder(), BooleanCoder(), BytesCoder())))
    SOON = TimerSpec("soon", TimeDomain.REAL_TIME)
    AT_THE_END = TimerSpec("at_the_end", TimeDomain.WATERMARK)
    """The end of a bounded input, and a drain, do not wait for timers of the other kind."""

    HERE, LATER = beam.DoFn.StateParam(POSITION), beam.DoFn.StateParam(WAITING)
    WAKE_SOON = beam.DoFn.TimerParam(SOON)
    WAKE_AT_THE_END = beam.DoFn.TimerParam(AT_THE_END)

    def __init__(self, spec: TableSpec, fallback: Fallback | None, *, bounded: bool) -> None:
        self._columns, self._fallback, self._bounded = spec.columns, fallback, bounded
        self._streams: dict[str, AppendStream] = {}
        self._client: Any = None

    def setup(self) -> None:
        self._proto = ProtoRows(self._columns)

    def start_bundle(self) -> None:
        self._halted: set[str] = set()

    def process(
        self,
        batch: tuple[str, Numbered],
        position: Any = HERE,
        waiting: Any = LATER,
        soon: Any = WAKE_SOON,
        at_the_end: Any = WAKE_AT_THE_END,
    ) -> Iterator[Ended]:
        name, numbered = batch
        here = StreamPosition(*(position.read() or ()))
        if name in self._halted or numbered[0] != here.number:
            waiting.add(numbered)
            position.write((here.number, here.offset, here.waiting + 1))
            return
        yield from self._go_on(name, [numbered], position, waiting, (soon, at_the_end))

    @on_timer(SOON)  # type: ignore[untyped-decorator]
    def go_on_soon(
        self,
        name: str = beam.DoFn.KeyParam,
        position: Any = HERE,
        waiting: Any = LATER,
        soon: Any = WAKE_SOON,
        at_the_end: Any = WAKE_AT_THE_END,
    ) -> Iterator[Ended]:
        """Continues after a rejection that has been committed."""
        yield from self._go_on(name, [], position, waiting, (soon, at_the_end))

    @on_timer(AT_THE_END)  # type: ignore[untyped-decorator]
    def go_on_at_the_end(
        self,
        name: str = beam.DoFn.KeyParam,
        position: Any = HERE,
        waiting: Any = LATER,
        soon: Any = WAKE_SOON,
        at_the_end: Any = WAKE_AT_THE_END,
    ) -> Iterator[Ended]:
        """Continues after a rejection that has been committed."""
        yield from self._go_on(name, [], position, waiting, (soon, at_the_end))

    def teardown(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        if self._client is not None:
            self._client.transport.close()
            self._client = None

    def _go_on(
        self,
        name: str,
        arrived: list[Numbered],
        position: Any,
        waiting: Any,
        timers: tuple[Any, Any],
    ) -> Iterator[Any]:
        if name in self._halted:
            self._wake(timers)
            return
        here = StreamPosition(*(position.read() or ()))
        before = {batch[0]: batch for batch in waiting.read()} if here.waiting else {}
        todo = before | {batch[0]: batch for batch in arrived}
        if not todo:  # the other timer has done the work
            return
        stream = self._stream(name)
        result = advance(here, todo, stream.append, self._encode_line, self._fallback)
        if result.halted:
            self._halted.add(name)
            self._wake(timers)
        if result.waiting != before:
            waiting.clear()
            for batch in result.waiting.values():
                waiting.add(batch)
        now = result.position
        if result.ended:
            position.clear()
            self._streams.pop(name).close()
        else:
            position.write((now.number, now.offset, now.waiting))
        for packed in result.written:
            yield unpack_row(packed)
        for rejected in result.rejected:
            yield TaggedOutput("rejected", rejected)

    def _encode_line(self, line: bytes) -> bytes:
        return self._proto.encode(orjson.loads(line))

    def _wake(self, timers: tuple[Any, Any]) -> None:
        soon, at_the_end = timers
        if not self._bounded:  # FnApiRunner never fires one set by a row at the end of time
            soon.set(Timestamp.now())
        at_the_end.set(GlobalWindow().max_timestamp())

    def _stream(self, name: str) -> AppendStream:
        stream = self._streams.pop(name, None)
        if stream is None:
            if self._client is None:
                self._client = make_write_client()
            stream = AppendStream(self._client, name, self._proto.descriptor)
        self._streams[name] = stream  # ordered by last use
        if len(self._streams) > _OPEN_STREAMS:
            self._streams.pop(next(iter(self._streams))).close()
        return stream


@dataclasses.dataclass(kw_only=True, eq=False)
class AppendExactlyOnce(beam.PTransform):
    """Appends encoded rows to a table exactly once; in the global window, bounded or not.

    Args:
      spec: The table.
      fallback: Makes a smaller row that takes a rejected one's place.

    Returns:
      ``(written, rejected)``: see `transforms.sinks.base.Written`.
    """

    spec: TableSpec
    fallback: Fallback | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, rows: beam.PCollection[EncodedRow]) -> Appended:
        if rows.windowing.windowfn != GlobalWindows():
            raise ValueError(
                f"exactly-once rows must be in the global window, not {rows.windowing.windowfn}"
            )
        gather = _GatherDoFn(self.spec, self.fallback)
        gathered = rows | "GatherRows" >> beam.ParDo(gather).with_outputs(
            "rejected", main="batches"
        )
        in_order = _AppendInOrderDoFn(self.spec, self.fallback, bounded=rows.is_bounded)
        ended = (
            gathered.batches
            | "NumberBatches" >> beam.ParDo(_NumberDoFn(self.spec))
            | "CommitNumbers" >> beam.Reshuffle()
            | "AppendInOrder" >> beam.ParDo(in_order).with_outputs("rejected", main="written")
        )
        rejected = (gathered.rejected, ended.rejected) | "Rejected" >> beam.Flatten()
        return ended.written, rejected
