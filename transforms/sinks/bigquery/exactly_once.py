"""Appends of which each is in the table exactly once, whatever Beam repeats and however often.

.. code-block:: text

    rows → gather batches → number them in a stream → Reshuffle → append in the order of the numbers
           (any worker)     (keyed by shard, state)   (commits)   (keyed by stream, state)

Why a row cannot be doubled or lost:

1. A write stream is made, and a batch gets its place in it, by a step that appends nothing. Behind
   the Reshuffle stream, number and content of every batch are committed: each later attempt, on
   whatever worker, sees the same.
2. The batches of a stream are appended in the order of their numbers, so the offset of each follows
   from those before it. An attempt that is repeated sends the same rows to the same offset, and
   BigQuery answers ``ALREADY_EXISTS`` if an earlier one, of a worker that was killed since, had
   arrived (also to two attempts at the same time).
3. An append with a row that BigQuery refuses changes nothing in the table. What is to be appended
   in its place becomes state, and is not sent before that state is committed: a timer goes on in a
   later bundle. So there is never a doubt which of two contents stands at an offset.

What is not emitted as written has not been committed, and is sent again.
"""

import dataclasses
import random
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import apache_beam as beam
from apache_beam.coders import (
    BooleanCoder,
    BytesCoder,
    Coder,
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
from transforms.sinks.bigquery.append_stream import AppendStream
from transforms.sinks.bigquery.ordered_batches import ROWS_CODER, Numbered, Place, advance
from transforms.sinks.bigquery.proto_rows import ProtoRows
from transforms.sinks.bigquery.row_batches import Batch, Refit, Refusal, encode_or_refuse, refitted
from transforms.sinks.bigquery.writers import make_write_client, prepare_table, table_path

SHARDS = 16
"""Streams that are written side by side."""

STREAM_BYTES = 256 << 20
"""A stream takes so much and is followed by another, which bounds what may wait for its turn."""

STREAM_AGE_S = 3600.0
"""Likewise, so many seconds."""

_OPEN_STREAMS = 32
"""Connections that a worker's thread keeps open."""


class _GatherDoFn(beam.DoFn):
    """Rows to batches, of the rows of one bundle each, for a random shard."""

    def __init__(self, spec: TableSpec, owner_coder: Coder, refit: Refit | None) -> None:
        self._columns, self._owner_coder, self._refit = spec.columns, owner_coder, refit

    def setup(self) -> None:
        self._encode = ProtoRows(self._columns).encode

    def start_bundle(self) -> None:
        self._batch: Batch[tuple[bytes, bytes]] = Batch()
        self._timestamp: Any = None

    def process(
        self, row: tuple[bytes, Any], timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[tuple[int, bytes] | TaggedOutput[Literal["refused"], Any]]:
        line, owner = row
        encoded = encode_or_refuse(self._encode, line)
        while isinstance(encoded, Refusal) and self._refit is not None:
            line = refitted(line, encoded, self._refit)
            encoded = encode_or_refuse(self._encode, line)
        if isinstance(encoded, Refusal):
            yield TaggedOutput("refused", (row, encoded))
            return
        if not self._batch.has_room(encoded):
            yield self._take()
        if not self._batch.items:
            self._timestamp = timestamp
        self._batch.add((line, self._owner_coder.encode(owner)), encoded)

    def finish_bundle(self) -> Iterator[Any]:
        if self._batch.items:
            yield self._take()

    def _take(self) -> Any:
        """The batch, where its first row was in time."""
        items, self._batch = self._batch.items, Batch()
        batch = random.randrange(SHARDS), ROWS_CODER.encode(items)
        return WindowedValue(batch, self._timestamp, (GlobalWindow(),))


class _NumberDoFn(beam.DoFn):
    """Gives each batch its stream and its number there; appends nothing.

    A stream that an attempt has made and not committed stays empty.
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

    PLACE = ReadModifyWriteStateSpec(
        "place", TupleCoder((VarIntCoder(), VarIntCoder(), VarIntCoder()))
    )
    WAITING = BagStateSpec("waiting", TupleCoder((VarIntCoder(), BooleanCoder(), BytesCoder())))
    SOON = TimerSpec("soon", TimeDomain.REAL_TIME)
    AT_THE_END = TimerSpec("at_the_end", TimeDomain.WATERMARK)
    """The end of a bounded input, and a drain, do not wait for timers of the other kind."""

    HERE, LATER = beam.DoFn.StateParam(PLACE), beam.DoFn.StateParam(WAITING)
    WAKE_SOON = beam.DoFn.TimerParam(SOON)
    WAKE_AT_THE_END = beam.DoFn.TimerParam(AT_THE_END)

    def __init__(
        self, spec: TableSpec, owner_coder: Coder, refit: Refit | None, *, bounded: bool
    ) -> None:
        self._columns, self._owner_coder, self._refit = spec.columns, owner_coder, refit
        self._bounded = bounded
        self._streams: dict[str, AppendStream] = {}
        self._client: Any = None

    def setup(self) -> None:
        self._proto = ProtoRows(self._columns)

    def start_bundle(self) -> None:
        self._halted: set[str] = set()

    def process(
        self,
        batch: tuple[str, Numbered],
        place: Any = HERE,
        waiting: Any = LATER,
        soon: Any = WAKE_SOON,
        at_the_end: Any = WAKE_AT_THE_END,
    ) -> Iterator[Any]:
        name, numbered = batch
        here = Place(*(place.read() or ()))
        if name in self._halted or numbered[0] != here.number:
            waiting.add(numbered)
            place.write((here.number, here.offset, here.waiting + 1))
            return
        yield from self._go_on(name, here, [numbered], place, waiting, (soon, at_the_end))

    @on_timer(SOON)  # type: ignore[untyped-decorator]
    def go_on_soon(
        self,
        name: str = beam.DoFn.KeyParam,
        place: Any = HERE,
        waiting: Any = LATER,
        soon: Any = WAKE_SOON,
        at_the_end: Any = WAKE_AT_THE_END,
    ) -> Iterator[Any]:
        """Goes on behind a refusal that has been committed."""
        here = Place(*(place.read() or ()))
        yield from self._go_on(name, here, [], place, waiting, (soon, at_the_end))

    @on_timer(AT_THE_END)  # type: ignore[untyped-decorator]
    def go_on_at_the_end(
        self,
        name: str = beam.DoFn.KeyParam,
        place: Any = HERE,
        waiting: Any = LATER,
        soon: Any = WAKE_SOON,
        at_the_end: Any = WAKE_AT_THE_END,
    ) -> Iterator[Any]:
        """Likewise."""
        here = Place(*(place.read() or ()))
        yield from self._go_on(name, here, [], place, waiting, (soon, at_the_end))

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
        here: Place,
        arrived: Iterable[Numbered],
        place: Any,
        waiting: Any,
        timers: tuple[Any, Any],
    ) -> Iterator[Any]:
        if name in self._halted:
            self._wake(timers)
            return
        before = {batch[0]: batch for batch in waiting.read()} if here.waiting else {}
        todo = before | {batch[0]: batch for batch in arrived}
        if not todo:  # a timer whose work another has done
            return
        stream = self._stream(name)
        result = advance(here, todo, stream.append, self._proto.encode, self._refit)
        if result.halted:
            self._halted.add(name)
            self._wake(timers)
        if result.waiting != before:
            waiting.clear()
            for batch in result.waiting.values():
                waiting.add(batch)
        now = result.place
        if result.ended:
            place.clear()
            self._streams.pop(name).close()
        else:
            place.write((now.number, now.offset, now.waiting))
        decode = self._owner_coder.decode
        for line, owner in result.written:
            yield line, decode(owner)
        for (line, owner), refusal in result.refused:
            yield TaggedOutput("refused", ((line, decode(owner)), refusal))

    def _wake(self, timers: tuple[Any, Any]) -> None:
        soon, at_the_end = timers
        if not self._bounded:  # FnApiRunner never fires one that a row at the end of time has set
            soon.set(Timestamp.now())
        at_the_end.set(GlobalWindow().max_timestamp())

    def _stream(self, name: str) -> AppendStream:
        stream = self._streams.pop(name, None)
        if stream is None:
            if self._client is None:
                self._client = make_write_client()
            stream = AppendStream(self._client, name, self._proto.descriptor)
        self._streams[name] = stream  # the one used last is the last
        if len(self._streams) > _OPEN_STREAMS:
            self._streams.pop(next(iter(self._streams))).close()
        return stream


@dataclasses.dataclass(kw_only=True, eq=False)
class AppendExactlyOnce(beam.PTransform):
    """Appends ``(row, owner)`` to a table exactly once; in the global window, bounded or not.

    Args:
      spec: The table.
      owner_coder: How an owner travels between workers.
      refit: Makes of a refused row one that takes its place.

    Returns:
      ``(written, refused)``: see `transforms.sinks.bigquery.append.AppendRows`.
    """

    spec: TableSpec
    owner_coder: Coder
    refit: Refit | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, rows: beam.PCollection[tuple[bytes, Any]]
    ) -> tuple[beam.PCollection[tuple[bytes, Any]], beam.PCollection[Any]]:
        if rows.windowing.windowfn != GlobalWindows():
            raise ValueError(
                f"exactly-once rows must be in the global window, not {rows.windowing.windowfn}"
            )
        gather = _GatherDoFn(self.spec, self.owner_coder, self.refit)
        gathered = rows | "GatherRows" >> beam.ParDo(gather).with_outputs("refused", main="batches")
        in_order = _AppendInOrderDoFn(
            self.spec, self.owner_coder, self.refit, bounded=rows.is_bounded
        )
        ended = (
            gathered.batches
            | "NumberBatches" >> beam.ParDo(_NumberDoFn(self.spec))
            | "CommitNumbers" >> beam.Reshuffle()
            | "AppendInOrder" >> beam.ParDo(in_order).with_outputs("refused", main="written")
        )
        refused = (gathered.refused, ended.refused) | "Refused" >> beam.Flatten()
        return ended.written, refused
