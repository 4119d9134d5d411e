"""Text formats, line by line: JSON lines, CSV with a header, plain text.

Pure functions over an open binary file. They yield one `Record` or one ``parse_error`` dead letter
per input, with the raw line as its payload; blank lines are skipped. A bad line never affects the
next one.
"""

import collections
import csv
from collections.abc import Callable, Iterator
from typing import BinaryIO

from transforms.records import json_values
from transforms.records.errors import ParseError, RecordError, TooLarge
from transforms.records.records import DeadLetter, Json, Record
from transforms.sources.base import IdRule, make_record

MAX_LINE_BYTES = 96 << 20
"""BigQuery loads rows of at most 100 MB: no sink could write a longer line."""

MAX_ROW_LINES = 10_000
"""A quoted CSV value with more lines than this counts as a quote that is never closed."""

_BOM = b"\xef\xbb\xbf"
csv.field_size_limit(MAX_LINE_BYTES)

Line = tuple[int, bytes]
"""A line's position (1-based number, or byte offset in a later range) and its bytes."""


def dead_line(error: Exception, raw: bytes) -> DeadLetter:
    """The dead letter of a raw line or message: with text if it is UTF-8, else with bytes."""
    try:
        return DeadLetter.of(error, stage="read", payload=raw.decode("utf-8"))
    except UnicodeDecodeError:
        return DeadLetter.of(error, stage="read", payload_bytes=raw)


def read_lines(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[Line]:
    r"""The lines whose first byte lies in ``[start, stop)``, without their ``\r\n``.

    Ranges that cover a file yield each of its lines exactly once. A line of `MAX_LINE_BYTES` or
    more is cut to that length; no other line is as long.
    """
    if start:
        file.seek(start - 1)
        position = start - 1 + _skip_line(file)
    else:
        position = 0
    number = 0
    while stop is None or position < stop:
        raw = file.readline(MAX_LINE_BYTES)
        if not raw:
            return
        where = position if start else (number := number + 1)
        position += len(raw)
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            position += _skip_line(file)
            yield where, raw
            continue
        if position == len(raw) and raw.startswith(_BOM):
            raw = raw[len(_BOM) :]
        yield where, raw.rstrip(b"\r\n")


def _skip_line(file: BinaryIO) -> int:
    """Skips to the next line, in bounded memory; returns the number of bytes skipped."""
    skipped = 0
    while rest := file.readline(1 << 20):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def _position(path: str, where: int, start: int) -> str:
    return f"{path}, {'byte' if start else 'line'} {where}"


def read_json_lines(
    file: BinaryIO, path: str, id_rule: IdRule, start: int = 0, stop: int | None = None
) -> Iterator[Record | DeadLetter]:
    """One JSON object per line."""
    return _read_each(file, path, id_rule, start, stop, json_object)


def read_text_lines(
    file: BinaryIO, path: str, id_rule: IdRule, start: int = 0, stop: int | None = None
) -> Iterator[Record | DeadLetter]:
    """Each line is a record with one field, ``text``."""
    return _read_each(file, path, id_rule, start, stop, _text_object)


def _read_each(
    file: BinaryIO,
    path: str,
    id_rule: IdRule,
    start: int,
    stop: int | None,
    parse: Callable[[bytes], dict[str, Json]],
) -> Iterator[Record | DeadLetter]:
    for where, line in read_lines(file, start, stop):
        if not line:
            continue
        try:
            _check_length(line)
            fields = parse(line)
        except RecordError as error:
            yield dead_line(type(error)(f"{_position(path, where, start)}: {error}"), line)
        else:
            yield make_record(fields, path, id_rule)


def _check_length(line: bytes) -> None:
    if len(line) >= MAX_LINE_BYTES:
        raise TooLarge(f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")


def json_object(line: bytes) -> dict[str, Json]:
    """The JSON object in a line or a message.

    Raises:
      ParseError: It is not UTF-8, not JSON, or not an object.
    """
    try:
        fields = json_values.loads(line)
    except UnicodeDecodeError as error:
        raise ParseError(
            f"not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}"
        ) from None
    except ValueError as error:
        raise ParseError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ParseError(f"a JSON {_JSON_KINDS[type(fields)]}, not an object")
    return fields


_JSON_KINDS = {
    list: "array",
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def _text_object(line: bytes) -> dict[str, Json]:
    return {"text": _decoded(line)}


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ParseError(f"not UTF-8: byte {error.start + 1} is 0x{raw[error.start]:02x}") from None


def read_csv(
    file: BinaryIO, path: str, id_rule: IdRule, start: int = 0, stop: int | None = None
) -> Iterator[Record | DeadLetter]:
    """Comma-separated values (RFC 4180) with a header; every value is a string.

    A row with another number of values than the header is a ``parse_error``. A quote that is never
    closed costs only its own line: reading continues with the next line. A file is not split:
    ``start`` and ``stop`` only match the other readers' signature.
    """
    del start, stop
    rows = _csv_rows(read_lines(file))
    try:
        _, header = next(rows)
    except StopIteration:
        return
    try:
        names = _csv_values(header)
        _check_header(names)
    except ParseError as error:
        raise ParseError(f"{path}: the header {error}") from None
    for where, row in rows:
        try:
            _check_length(row)
            values = _csv_values(row)
            if len(values) != len(names):
                raise ParseError(f"{len(values)} values, but the header has {len(names)}")
        except RecordError as error:
            yield dead_line(type(error)(f"{_position(path, where, 0)}: {error}"), row)
        else:
            yield make_record(dict(zip(names, values, strict=True)), path, id_rule)


def _check_header(names: list[str]) -> None:
    for name in names:
        if not name.strip():
            raise ParseError("has a column without a name")
        if names.count(name) > 1:
            raise ParseError(f"names the column {name!r} twice")


def _csv_rows(lines: Iterator[Line]) -> Iterator[Line]:
    r"""Joins the lines of a quoted value with ``\n``: a row is complete if its quotes are even.

    Lines that do not form a row together had a quote that is never closed, or a stray one: the
    first of them is a row by itself, and the others are read again.
    """
    again: collections.deque[Line] = collections.deque()
    waiting: list[Line] = []
    inside = False
    while True:
        line = again.popleft() if again else next(lines, None)
        if line is not None:
            if not line[1] and not inside:
                continue
            waiting.append(line)
            inside ^= bool(line[1].count(b'"') & 1)
            if inside and len(waiting) <= MAX_ROW_LINES:
                continue
        elif not waiting:
            return
        row = b"\n".join(raw for _, raw in waiting)
        if len(waiting) > 1 and (inside or not _is_csv(row)):
            again.extendleft(reversed(waiting[1:]))
            row = waiting[0][1]
        yield waiting[0][0], row
        waiting, inside = [], False


def _is_csv(row: bytes) -> bool:
    try:
        _csv_values(row)
    except ParseError:
        return False
    return True


def _csv_values(row: bytes) -> list[str]:
    try:
        return next(csv.reader([_decoded(row)], strict=True))
    except csv.Error as error:
        raise ParseError(f"not CSV: {error}") from None
