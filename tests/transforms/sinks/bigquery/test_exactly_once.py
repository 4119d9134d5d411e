"""Exactly once: repeated bundles, killed workers and killed servers."""

import dataclasses
import itertools
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, GlobalWindow, TimestampedValue
from hypothesis import given
from hypothesis import strategies as st

from tests.emulators.environment import REPOSITORY
from tests.emulators.google_cloud import LoopbackCloud
from tests.transforms import pipeline
from tests.transforms.sinks.bigquery.test_append import (
    context_of,
    create_table,
    line_of,
    numbers,
    row_of,
    spec_of,
)
from tests.transforms.sinks.keyed_bundles import Committed, Element, run_bundle
from transforms.clients.bigquery import TableName, TableSpec
from transforms.records.errors import RunError
from transforms.sinks.base import EncodedRow
from transforms.sinks.bigquery import exactly_once, row_batches
from transforms.sinks.bigquery.append_stream import make_write_client, table_path
from transforms.sinks.bigquery.exactly_once import AppendExactlyOnce, _AppendInOrderDoFn
from transforms.sinks.bigquery.ordered_batches import ROWS_CODER, StreamPosition, advance

SPEC = TableSpec(
    name=TableName("p", "d", "t"), columns=(), partition_by="created_at", cluster_by=()
)


class _Killed(BaseException):
    """The worker has died."""


@dataclasses.dataclass
class ModelStream:
    """A write stream as the service keeps it; the worker may die before or after any append."""

    bad: frozenset[bytes]
    chance: random.Random
    rows: list[bytes] = dataclasses.field(default_factory=list)
    deaths_left: int = 20

    def append(self, rows: list[bytes], offset: int) -> Mapping[int, str]:
        """Appends all rows or none, at the end of the stream only."""
        self._perhaps_die()
        rejections = {index: "bad" for index, row in enumerate(rows) if row in self.bad}
        if offset > len(self.rows):
            raise RunError(f"OUT_OF_RANGE: {offset}")
        if offset == len(self.rows) and not rejections:
            self.rows += rows
        elif offset < len(self.rows):
            rejections = {}  # ALREADY_EXISTS whatever the rows are: the worst case
        self._perhaps_die()
        return rejections

    def _perhaps_die(self) -> None:
        if self.deaths_left and self.chance.random() < 0.3:
            self.deaths_left -= 1
            raise _Killed


class _ModelDoFn(_AppendInOrderDoFn):
    def __init__(self, streams: dict[str, ModelStream]) -> None:
        super().__init__(SPEC, None, bounded=False)
        self._models = streams
        self.setup()

    def setup(self) -> None:
        """The lines are not JSON and need no message."""

    def _encode_line(self, line: bytes) -> bytes:
        return line

    def _stream(self, name: str) -> Any:
        self._streams[name] = _Closable()
        return self._models[name]


class _Closable:
    def close(self) -> None:
        pass


def _batches(name: str, sizes: list[int]) -> list[Element]:
    """Batches of numbered rows, with the last one marked."""
    count = itertools.count()
    rows = [[(f"{name}{next(count)}".encode(), b"") for _ in range(size)] for size in sizes]
    return [
        (name, (number, number == len(sizes) - 1, ROWS_CODER.encode(batch)))
        for number, batch in enumerate(rows)
    ]


def _deliver(committed: Committed, elements: list[Element], dofn: Any, chance: Any) -> Committed:
    """Runs bundles of any size, in any order and with any deaths, until everything is committed."""
    left = list(elements)
    while left or committed.due:
        chance.shuffle(left)
        size = chance.randint(0, len(left))
        due = committed.due
        try:
            committed = run_bundle(dofn, committed, left[:size], due)
        except _Killed:
            continue
        left = left[size:]
    return committed


@given(
    st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=5), min_size=1, max_size=3),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_whatever_dies_each_row_is_there_once(
    sizes: list[list[int]], seed: int, share_bad: float
) -> None:
    """Whatever dies, each good row is stored and emitted once, and each bad one rejected once."""
    chance = random.Random(seed)
    elements = [e for key, some in enumerate(sizes) for e in _batches(f"s{key}-", some)]
    rows = [line for _, (_, _, batch) in elements for line, _ in ROWS_CODER.decode(batch)]
    bad = frozenset(row for row in rows if chance.random() < share_bad)
    streams = {name: ModelStream(bad, chance) for name, _ in elements}

    committed = _deliver(Committed(), elements, _ModelDoFn(streams), chance)

    held = [row for stream in streams.values() for row in stream.rows]
    assert sorted(held) == sorted(set(rows) - bad)
    assert sorted(row.line for row in committed.written) == sorted(held)
    assert sorted(bad_row.row.line for bad_row in committed.rejected) == sorted(bad)
    assert all(state.position is None and not state.waiting for state in committed.keys.values())


def test_a_rejection_waits_for_its_commit() -> None:
    """The rows that replace a rejected batch are not sent in the bundle that rejected it."""
    stream = ModelStream(frozenset([b"s1"]), random.Random(0), deaths_left=0)
    dofn = _ModelDoFn({"s": stream})
    first, second, third = _batches("s", [2, 1, 1])

    halted = run_bundle(dofn, Committed(), [first, second, third])
    assert (stream.rows, halted.written, halted.due) == ([], [], ["s"])
    assert [bad.row.line for bad in halted.rejected] == [b"s1"]

    committed = run_bundle(dofn, halted, timers=halted.due)
    assert stream.rows == [b"s0", b"s2", b"s3"]
    assert [row.line for row in committed.written] == stream.rows
    again = run_bundle(dofn, halted, timers=halted.due)  # as a worker does that takes over
    assert (again.written, stream.rows) == (committed.written, [b"s0", b"s2", b"s3"])


def test_the_fallback_of_a_row_takes_its_place_once() -> None:
    """A fallback row takes a rejected row's place once; if it is rejected too, the run stops."""
    batch = {0: (0, True, ROWS_CODER.encode([(b"long", b"")]))}

    def fallback(row: EncodedRow, _: Any) -> EncodedRow:
        return EncodedRow(row.line[:2], row.context)

    result = advance(StreamPosition(), batch, lambda *_: {0: "bad"}, bytes, fallback)
    assert ROWS_CODER.decode(result.waiting[0][2]) == [(b"lo", b"")]
    expected = (True, [], StreamPosition(0, 0, 1))
    assert (result.halted, result.rejected, result.position) == expected
    with pytest.raises(RunError, match="cannot be shortened further: bad"):
        advance(result.position, result.waiting, lambda *_: {0: "bad"}, bytes, fallback)


def test_windows_are_refused() -> None:
    """Windows are rejected: state is per window, so exactly once needs the global window."""
    p = pipeline()
    rows = p | beam.Create([EncodedRow(b"{}")]) | beam.WindowInto(FixedWindows(60))
    with pytest.raises(ValueError, match="must be in the global window"):
        _ = rows | AppendExactlyOnce(spec=SPEC)


def test_rejections_in_every_batch(bigquery_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rejected batch waits for a commit on a real runner, also for rows at the end of time."""
    monkeypatch.setattr(exactly_once, "SHARDS", 2)
    monkeypatch.setattr(exactly_once, "STREAM_BYTES", 1000)  # a stream is full after a batch or two
    monkeypatch.setattr(row_batches, "BATCH_ROWS", 10)
    spec = spec_of(bigquery_dataset)
    create_table(spec, document="JSON")
    rows = [row_of(n, document="{bad" if n % 5 == 0 else "{}") for n in range(100)]
    at_the_end = GlobalWindow().max_timestamp()
    with pipeline() as p:
        late = (
            p
            | beam.Create(rows)
            | beam.Map(lambda row: TimestampedValue(row, at_the_end)).with_output_types(EncodedRow)
        )
        written, rejected = late | AppendExactlyOnce(spec=spec)
        good, bad = [n for n in range(100) if n % 5], list(range(0, 100, 5))
        assert_that(written | beam.Map(context_of), equal_to(good), "written")
        letters = rejected | "Bad" >> beam.Map(lambda bad: context_of(bad.row))
        assert_that(letters, equal_to(bad), "rejected")
    assert numbers(spec) == good


# Real processes, the real client and a real server.


def _make_stream(spec: TableSpec) -> str:
    from google.cloud.bigquery_storage_v1 import types

    committed = types.WriteStream(type_=types.WriteStream.Type.COMMITTED)
    client = make_write_client()
    made = client.create_write_stream(parent=table_path(spec.name), write_stream=committed)
    client.transport.close()
    return str(made.name)


def _numbered(name: str, batches: list[list[bytes]]) -> list[Element]:
    return [
        (name, (number, False, ROWS_CODER.encode([(line, b"") for line in lines])))
        for number, lines in enumerate(batches)
    ]


class Workers:
    """Worker processes, each of which runs one bundle."""

    def __init__(self, cloud: LoopbackCloud) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.transforms.sinks.bundle_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env=cloud.subprocess_environment(),
        )

    def run(
        self,
        spec: TableSpec,
        committed: Committed,
        elements: list[Element],
        *,
        die_behind: int | None = None,
    ) -> Committed:
        """Runs one bundle; returns the committed state, unchanged if the worker was killed."""
        task = pickle.dumps((spec, committed, elements, committed.due, die_behind))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(task, self._process.stdin)
        self._process.stdin.flush()
        status, result = pickle.load(self._process.stdout)
        if die_behind is not None:
            assert (os.WTERMSIG(status), result) == (signal.SIGKILL, b"")
            return committed
        assert status == 0
        after: Committed = pickle.loads(result)
        return after

    def stop(self) -> None:
        """Ends the process that forks the workers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture
def workers(redirected_clients: LoopbackCloud) -> Iterator[Workers]:
    """Workers on the loopback cloud."""
    made = Workers(redirected_clients)
    yield made
    made.stop()


def test_a_killed_worker_doubles_nothing(workers: Workers, bigquery_dataset: str) -> None:
    """Appends of a killed worker, uncommitted, are not doubled by the next one's bundles."""
    spec = spec_of(bigquery_dataset)
    create_table(spec, document="JSON")
    name = _make_stream(spec)
    lines = [line_of(n, document="{bad" if n == 25 else "{}") for n in range(60)]
    elements = _numbered(name, [lines[n : n + 10] for n in range(0, 60, 10)])

    committed = workers.run(spec, Committed(), elements[:2], die_behind=2)
    assert numbers(spec) == list(range(20))  # appended, but no bundle has committed
    committed = workers.run(spec, committed, [elements[1], elements[0], elements[5]])
    assert len(committed.written) == 20
    # The third batch has a bad row, so none of it is appended before the rejection is committed.
    committed = workers.run(spec, committed, [elements[3], elements[2]])
    assert (numbers(spec), len(committed.rejected)) == (list(range(20)), 1)
    committed = workers.run(spec, committed, [elements[4]], die_behind=2)
    assert len(numbers(spec)) == 39
    committed = workers.run(spec, committed, [elements[4]])

    good = [n for n in range(60) if n != 25]
    assert numbers(spec) == good
    assert sorted(row.line for row in committed.written) == sorted(lines[n] for n in good)
    assert [bad.row.line for bad in committed.rejected] == [lines[25]]
