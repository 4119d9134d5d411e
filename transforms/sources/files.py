"""Files by glob, local or ``gs://``: JSON lines, CSV, Parquet, Avro, plain text, whole objects.

Large uncompressed text is read in ranges and Parquet by row group, in parallel by all workers.
A damaged file yields the records before the damage and one ``parse_error`` dead letter for the
rest; an error of the storage service says nothing about the file and is raised, so that the runner
tries again.
"""

import dataclasses
import gzip
import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, ClassVar, Literal, Protocol, TypeAlias, get_args

import apache_beam as beam
import fastavro
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import TaggedOutput

from transforms.accounting import metrics
from transforms.records.errors import ConfigurationError, ParseError
from transforms.records.media import guess_mime_type
from transforms.records.records import DeadLetter, Record
from transforms.sources import columnar, lines
from transforms.sources.base import IdRule, ReadResult, make_record

InputFormat = Literal["jsonl", "csv", "parquet", "avro", "txt", "objects"]
FORMATS: tuple[InputFormat, ...] = get_args(InputFormat)
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".avro": "avro",
    ".txt": "txt",
}
_SPLITTABLE = ("jsonl", "txt")
_RANGE_BYTES = 64 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_DAMAGE = (
    ParseError,
    EOFError,
    gzip.BadGzipFile,
    zlib.error,
    pa.ArrowInvalid,
    pa.ArrowNotImplementedError,
    struct.error,
    fastavro.schema.SchemaParseException,
    OverflowError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
)

Unread: TypeAlias = TaggedOutput[Literal["unread"], DeadLetter]


class _Reader(Protocol):
    def __call__(
        self, file: BinaryIO, path: str, id_rule: IdRule, start: int = 0, stop: int | None = None
    ) -> Iterator[Record | DeadLetter]: ...


_READERS: dict[str, _Reader] = {
    "jsonl": lines.read_json_lines,
    "txt": lines.read_text_lines,
    "csv": lines.read_csv,
    "parquet": columnar.read_parquet,
    "avro": columnar.read_avro,
}


def format_of(path: str, given: str | None = None) -> str:
    """The format of a file: the given one, else the one that its name implies.

    Raises:
      ConfigurationError: The name implies none.
    """
    if given:
        return given
    name = path.lower().removesuffix(".gz")
    for suffix, kind in _SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    raise ConfigurationError(
        f"the name of {path!r} does not tell its format: set `format`, one of {', '.join(FORMATS)}"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class FilePart:
    """A part of a file that one worker reads.

    Attributes:
      path: The file.
      format: One of `FORMATS`.
      start, stop: A range of bytes in text, of row groups in Parquet; ``stop`` None is the end.
    """

    path: str
    format: str
    start: int = 0
    stop: int | None = None


class _Unzipped(gzip.GzipFile):
    """Returns all data before a damage; closes the underlying file."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(fileobj=file)
        self.myfileobj = file  # type: ignore[assignment] # `close` closes it

    def readinto(self, buffer: Any) -> int:
        data = self.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def open_file(path: str) -> BinaryIO:
    """Opens a file for reading, decompressed if its content is gzip, whatever its name says."""
    raw = FileSystems.open(path, "application/octet-stream", CompressionTypes.UNCOMPRESSED)
    file = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, 1 << 20)
    if file.peek(2)[:2] == _GZIP_MAGIC:
        return io.BufferedReader(_Unzipped(file), 1 << 20)
    return file


def plan_parts(path: str, size_bytes: int, given_format: str | None = None) -> list[FilePart]:
    """The parts in which a file is read: ranges if its format allows it, else one part."""
    kind = format_of(path, given_format)
    if kind == "parquet":
        with open_file(path) as file:
            return [
                FilePart(path, kind, group, group + 1) for group in range(columnar.row_groups(file))
            ]
    if kind not in _SPLITTABLE or size_bytes <= _RANGE_BYTES:
        return [FilePart(path, kind)]
    with open_file(path) as file:
        if isinstance(getattr(file, "raw", None), gzip.GzipFile):
            return [FilePart(path, kind)]
    starts = range(0, size_bytes, _RANGE_BYTES)
    return [
        FilePart(path, kind, start, None if start == starts[-1] else start + _RANGE_BYTES)
        for start in starts
    ]


def read_part(part: FilePart, id_rule: IdRule) -> Iterator[Record | DeadLetter]:
    """The records of one part; damage ends them with one dead letter for the rest.

    Raises:
      OSError: The storage failed, or the file has been deleted.
    """
    if part.format == "objects":
        mime_type = guess_mime_type(part.path) or "application/octet-stream"
        yield make_record({"uri": part.path, "mime_type": mime_type}, part.path, id_rule)
        return
    records = 0
    try:
        with open_file(part.path) as file:
            reader = _READERS[part.format]
            for item in reader(file, part.path, id_rule, part.start, part.stop):
                yield item
                records += 1
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        yield _damaged(part.path, part.format, f"after {records:,} records: {reason}")


def _damaged(path: str, kind: str, reason: str) -> DeadLetter:
    message = reason if path in reason else f"{path}: {reason}"
    return DeadLetter.of(
        ParseError(f"the rest of a damaged {kind} file is lost: {message}"),
        stage="read",
        payload=path,
    )


class _PlanPartsDoFn(beam.DoFn):
    def __init__(self, given_format: str | None) -> None:
        self._given_format = given_format

    def process(self, file: FileMetadata) -> Iterator[FilePart | Unread]:
        for part in _parts_or_damage(file, self._given_format):
            yield part if isinstance(part, FilePart) else TaggedOutput("unread", part)


def _parts_or_damage(file: FileMetadata, given_format: str | None) -> list[FilePart | DeadLetter]:
    try:
        return list(plan_parts(file.path, file.size_in_bytes, given_format))
    except _DAMAGE as error:
        return [_damaged(file.path, format_of(file.path, given_format), str(error))]


class _ReadPartDoFn(beam.DoFn):
    def __init__(self, id_rule: IdRule) -> None:
        self._id_rule = id_rule

    def process(self, part: FilePart) -> Iterator[Record | Unread]:
        yield from _tagged(read_part(part, self._id_rule))


class _ReadFirstDoFn(beam.DoFn):
    """Reads the first records, in the order of the files' names, in one worker."""

    def __init__(self, given_format: str | None, id_rule: IdRule, limit: int) -> None:
        self._given_format = given_format
        self._id_rule = id_rule
        self._limit = limit

    def process(self, pattern: str) -> Iterator[Record | Unread]:
        yield from _tagged(read_first(pattern, self._given_format, self._id_rule, self._limit))


def read_first(
    pattern: str, given_format: str | None, id_rule: IdRule, limit: int
) -> Iterator[Record | DeadLetter]:
    """The first ``limit`` inputs of a pattern, in the order of the files' names."""
    return itertools.islice(_read_in_order(pattern, given_format, id_rule), limit)


def _read_in_order(
    pattern: str, given_format: str | None, id_rule: IdRule
) -> Iterator[Record | DeadLetter]:
    for file in sorted(match(pattern), key=lambda file: file.path):
        for part in _parts_or_damage(file, given_format):
            if isinstance(part, FilePart):
                yield from read_part(part, id_rule)
            else:
                yield part


def match(pattern: str) -> list[FileMetadata]:
    """The files that a pattern matches, without folders and their markers."""
    found = FileSystems.match([pattern])[0].metadata_list
    return [file for file in found if not file.path.endswith("/")]


def _tagged(items: Iterator[Record | DeadLetter]) -> Iterator[Record | Unread]:
    read = 0
    for item in items:
        read += 1
        if not read % 1000:
            metrics.LIVE.add("read", 1000)
        yield item if isinstance(item, Record) else TaggedOutput("unread", item)
    metrics.LIVE.add("read", read % 1000)


@dataclasses.dataclass(kw_only=True, eq=False)
class ReadFiles(beam.PTransform):
    """Reads the files of a glob; bounded, every input once, in no order.

    Args:
      pattern: A glob, local or ``gs://``.
      format: One of `FORMATS`; None for the one that each file's name implies.
      id_rule: The field that holds a record's id.
      limit: The number of inputs to read, unreadable ones included, in the order of the files'
        names; None for all.

    Returns:
      ``(records, unread)``: PCollections of `Record` and of `DeadLetter` (stage ``read``).
    """

    pattern: str
    format: str | None = None
    id_rule: IdRule = IdRule()
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: beam.Pipeline) -> ReadResult:
        pattern = root | "Pattern" >> beam.Create([self.pattern])
        if self.limit is not None:
            first = _ReadFirstDoFn(self.format, self.id_rule, self.limit)
            read = pattern | "ReadFirst" >> beam.ParDo(first).with_outputs("unread", main="records")
            return read.records, read.unread
        planned = (
            pattern
            | "MatchFiles" >> beam.FlatMap(match)
            | "PlanParts"
            >> beam.ParDo(_PlanPartsDoFn(self.format)).with_outputs("unread", main="parts")
        )
        read = (
            planned.parts
            | "SpreadParts" >> beam.Reshuffle()
            | "ReadParts"
            >> beam.ParDo(_ReadPartDoFn(self.id_rule)).with_outputs("unread", main="records")
        )
        unread = (planned.unread, read.unread) | "Unread" >> beam.Flatten()
        return read.records, unread


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """Files, local or in a bucket: see `ReadFiles`.

    Attributes:
      pattern: A path or glob.
      format: The format of all files; None for the one that each file's name implies.
      limit: The number of inputs to read; None for all.
      bounded: True, because files end.
    """

    bounded: ClassVar[bool] = True

    pattern: str
    format: InputFormat | None = None
    limit: int | None = None

    def transform(self, id_rule: IdRule) -> beam.PTransform:
        """The transform that reads the files."""
        return ReadFiles(
            pattern=self.pattern, format=self.format, id_rule=id_rule, limit=self.limit
        )

    def first(self, id_rule: IdRule, count: int) -> Iterator[Record | DeadLetter]:
        """The first inputs, read in this process."""
        limit = count if self.limit is None else min(count, self.limit)
        return read_first(self.pattern, self.format, id_rule, limit)
