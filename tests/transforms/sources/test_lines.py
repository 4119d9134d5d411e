"""Text, line by line: every line is one record or one dead letter, whatever its neighbours hold."""

import csv
import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transforms.records.errors import ParseError
from transforms.records.records import DeadLetter, Record
from transforms.sources import lines
from transforms.sources.base import IdRule, make_record
from transforms.sources.lines import read_csv, read_json_lines, read_lines, read_text_lines

BOM = b"\xef\xbb\xbf"
PATH = "dir/f"
Item = Record | DeadLetter
DEFAULT = IdRule()


def _json(data: bytes, rule: IdRule = DEFAULT, **place: Any) -> list[Item]:
    return list(read_json_lines(io.BytesIO(data), PATH, rule, **place))


def _text(data: bytes, rule: IdRule = DEFAULT, **place: Any) -> list[Item]:
    return list(read_text_lines(io.BytesIO(data), PATH, rule, **place))


def _csv(data: bytes, rule: IdRule = DEFAULT) -> list[Item]:
    return list(read_csv(io.BytesIO(data), PATH, rule))


def _fields(items: list[Item]) -> list[Any]:
    """The fields of records; the payloads of dead letters."""
    return [item.fields if isinstance(item, Record) else item.payload for item in items]


def _dead(message: str, payload: str, error_type: str = "parse_error") -> DeadLetter:
    return DeadLetter("read", error_type, message, payload=payload)


# Ids


def test_default_id_golden() -> None:
    """The id is the id field as text, else the first 128 bits of the canonical JSON's SHA-256."""
    data = b'{"id":"a","n":1}\n{"id":7}\r\n{"b":2,"a":"\xc3\xa9"}\n{"a":"\\u00e9","b":2}'
    by_hash = "06c264c46ad5ada9493abd3aa2383fb2"
    assert _json(data) == [
        Record("a", {"id": "a", "n": 1}, {}, PATH),
        Record("7", {"id": 7}, {}, PATH),
        Record(by_hash, {"b": 2, "a": "é"}, {}, PATH),
        Record(by_hash, {"a": "é", "b": 2}, {}, PATH),
    ]


@pytest.mark.parametrize(
    ("value", "record_id"),
    [
        ("x y", "x y"),
        (0, "0"),
        (-7, "-7"),
        (2**70, "1180591620717411303424"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
        ([1, "a"], '[1,"a"]'),
        ({"b": 1, "a": None}, '{"a":null,"b":1}'),
    ],
)
def test_ids_of_any_type(value: Any, record_id: str) -> None:
    """An id that is not a string becomes its canonical JSON: equal ids are equal text."""
    assert make_record({"k": value}, PATH, IdRule("k", required=True)) == Record(
        record_id, {"k": value}, {}, PATH
    )


@pytest.mark.parametrize(
    ("fields", "state"),
    [({"id": 1}, "missing"), ({"k": None}, "NULL or empty"), ({"k": ""}, "NULL or empty")],
)
def test_required_id_is_missing(fields: dict[str, Any], state: str) -> None:
    """A hash never replaces an id that the user named; the dead letter holds the record."""
    assert make_record(fields, PATH, IdRule("k", required=True)) == DeadLetter(
        "read", "missing_field", f"id field 'k' is {state}", fields=fields
    )


@pytest.mark.parametrize("fields", [{"n": 1}, {"id": None}, {"id": ""}])
def test_default_id_is_missing(fields: dict[str, Any]) -> None:
    """A record without the default id field gets its hash, so equal records have equal ids."""
    first, again = make_record(fields, "a", IdRule()), make_record(dict(fields), "b", IdRule())
    assert isinstance(first, Record)
    assert isinstance(again, Record)
    assert first.record_id == again.record_id
    assert len(first.record_id) == 32
    assert set(first.record_id) <= set("0123456789abcdef")


# JSON lines


def test_json_blank_lines_are_skipped() -> None:
    """Blank lines are skipped but still count in the line numbers of errors."""
    assert _json(b'\n\r\n{"id":1}\n\n\nx\n\n') == [
        Record("1", {"id": 1}, {}, PATH),
        _dead(f"{PATH}, line 6: not JSON: Expecting value: line 1 column 1 (char 0)", "x"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 "),
        ('{"a":1} {"a":2}', "not JSON: Extra data: line 1 column 9 (char 8)"),
        ("[1]", "a JSON array, not an object"),
        ('"é"', "a JSON string, not an object"),
        ("1", "a JSON number, not an object"),
        ("1.5", "a JSON number, not an object"),
        ("NaN", "a JSON string, not an object"),
        ("true", "a JSON boolean, not an object"),
        ("null", "a JSON null, not an object"),
        ("[" * 5000, "not JSON: "),
        ('{"a":' * 500 + "1" + "}" * 500, "not JSON: nested too deeply"),
    ],
)  # fmt: skip
def test_json_bad_line_costs_itself(line: str, message: str) -> None:
    """A bad line is one dead letter with its bytes; its neighbours are read."""
    before, dead, after = _json(b'{"id":1}\n' + line.encode() + b'\n{"id":2}\n')
    assert isinstance(dead, DeadLetter)
    assert dead.error_message.startswith(f"{PATH}, line 2: {message}")
    assert dead == _dead(dead.error_message, line)
    assert [before, after] == [
        Record("1", {"id": 1}, {}, PATH),
        Record("2", {"id": 2}, {}, PATH),
    ]


@pytest.mark.parametrize("read", [_json, _text])
def test_not_utf8(read: Callable[[bytes], list[Item]]) -> None:
    """Bytes that are not text are kept as bytes."""
    (dead,) = read(b'{"a":"\xff"}\n')
    assert dead == DeadLetter(
        "read",
        "parse_error",
        f"{PATH}, line 1: not UTF-8: byte 7 is 0xff",
        payload_bytes=b'{"a":"\xff"}',
    )


def test_json_odd_values() -> None:
    """Values outside common JSON are escaped; digits are never lost."""
    data = rb'{"id":1,"n":NaN,"s":"\ud83d","big":123456789012345678901234567890,"e":"\ud83d\ude00"}'
    assert _fields(_json(data)) == [
        {"id": 1, "n": "NaN", "s": "\\ud83d", "big": 123456789012345678901234567890, "e": "😀"}
    ]


def test_json_missing_id_in_file() -> None:
    """With an explicit id field, only the record that lacks it is a dead letter."""
    assert _json(b'{"k":1}\n{"k":null}\n{"k":3}', IdRule("k", required=True)) == [
        Record("1", {"k": 1}, {}, PATH),
        DeadLetter(
            "read", "missing_field", "id field 'k' is NULL or empty", fields={"k": None}
        ),
        Record("3", {"k": 3}, {}, PATH),
    ]  # fmt: skip


# Text


def test_text() -> None:
    """A line of text is one field; blank lines are skipped, other white space is kept."""
    assert _fields(_text(b" a \r\n\nb\tc\n  \nd")) == [
        {"text": " a "},
        {"text": "b\tc"},
        {"text": "  "},
        {"text": "d"},
    ]


@pytest.mark.parametrize("read", [_json, _text, _csv])
@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n\r\n", BOM, BOM + b"\n"])
def test_empty_input(read: Callable[[bytes], list[Item]], data: bytes) -> None:
    """An empty file is not an error."""
    assert read(data) == []


def test_bom_is_not_text() -> None:
    """A byte-order mark is dropped at the start of the file, and kept elsewhere."""
    assert _fields(_text(BOM + b"a\n" + BOM + b"b")) == [{"text": "a"}, {"text": "\ufeffb"}]
    assert _fields(_json(BOM + b'{"id":1}')) == [{"id": 1}]
    assert _fields(_csv(BOM + b"id,a\r\n1,2")) == [{"id": "1", "a": "2"}]
    assert _fields(_csv(BOM + b'"id"\n1')) == [{"id": "1"}]


# Long lines


@pytest.fixture
def short_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits lines to 15 bytes."""
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 16)


@pytest.mark.usefixtures("short_lines")
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("length", [16, 17, 40])
def test_long_line(length: int, end: bytes) -> None:
    """A long line is a dead letter with its first bytes; the next line is read."""
    long = _dead(f"{PATH}, line 2: the line is longer than 0 MiB", "x" * 16, "too_large")
    after = b"b" if end else b""
    items = _text(b"a\n" + b"x" * length + end + after)
    assert items[1:] == [long, *_text(after)]
    assert _fields(items[:1]) == [{"text": "a"}]


@pytest.mark.usefixtures("short_lines")
def test_longest_line() -> None:
    """A line one byte below the limit is read."""
    assert _fields(_text(b"x" * 15 + b"\n" + b"y" * 15)) == [
        {"text": "x" * 15},
        {"text": "y" * 15},
    ]


@pytest.mark.usefixtures("short_lines")
def test_long_line_cut_at_a_carriage_return() -> None:
    """A cut line is never taken for a whole one."""
    assert _text(b"x" * 15 + b"\ryyy\nb")[0] == _dead(
        f"{PATH}, line 1: the line is longer than 0 MiB", "x" * 15 + "\r", "too_large"
    )


@pytest.mark.usefixtures("short_lines")
def test_long_csv_rows() -> None:
    """A long row is a dead letter and not silently cut, also over several lines."""
    items = _csv(b"id,a\n1," + b"x" * 30 + b'\n2,"xxxxxxx\nyyyyyyy"\n3,y\n')
    assert items[:2] == [
        _dead(f"{PATH}, line 2: the line is longer than 0 MiB", "1," + "x" * 14, "too_large"),
        _dead(f"{PATH}, line 3: the line is longer than 0 MiB", '2,"xxxxxxx\nyyyyyyy"', "too_large"),
    ]  # fmt: skip
    assert _fields(items[2:]) == [{"id": "3", "a": "y"}]


# Ranges

_pieces = st.sampled_from([b"\n", b"\r\n", b"\r", b"a", b"bc", b" ", BOM, "é😀".encode(), b"x" * 9])
_content = st.lists(_pieces, max_size=40).map(b"".join) | st.text(max_size=60).map(
    lambda text: text.encode("utf-8", "ignore")
)


def _expected_lines(data: bytes) -> list[bytes]:
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    if expected:
        expected[0] = expected[0].removeprefix(BOM)
    return [line.rstrip(b"\r") for line in expected]


@settings(deadline=None)
@given(_content, st.lists(st.integers(1, 200), max_size=6))
@example(b"a\nb\nc", [2, 4])
@example(b"a\nb\nc", [1, 3])
@example(b"ab", [1])
def test_each_line_is_in_one_range(data: bytes, cuts: list[int]) -> None:
    """Whatever the content and the cuts, each line is read exactly once, in order."""
    places = [0, *sorted({cut for cut in cuts if cut < len(data)}), None]
    found = [
        line
        for start, stop in pairwise(places)
        for _, line in read_lines(io.BytesIO(data), start or 0, stop)
    ]
    assert found == _expected_lines(data)


@settings(deadline=None)
@given(_content, st.lists(st.integers(1, 200), max_size=6))
def test_long_lines_are_in_one_range(data: bytes, cuts: list[int]) -> None:
    """Lines above the limit are in exactly one range, too."""
    places = [0, *sorted({cut for cut in cuts if cut < len(data)}), None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "MAX_LINE_BYTES", 8)
        whole = [line for _, line in read_lines(io.BytesIO(data))]
        found = [
            line
            for start, stop in pairwise(places)
            for _, line in read_lines(io.BytesIO(data), start or 0, stop)
        ]
    assert found == whole
    assert len(whole) == len(_expected_lines(data))


def test_positions_in_a_later_range() -> None:
    """In a later range line numbers are unknown, so messages name the byte."""
    data = b'{"id":1}\n{"id":2}\nx\n{"id":3}\n'
    assert _fields(_json(data, stop=5)) == [{"id": 1}]
    dead, last = _json(data, start=10)
    assert isinstance(dead, DeadLetter)
    assert dead.error_message.startswith(f"{PATH}, byte 18: not JSON: ")
    assert last == Record("3", {"id": 3}, {}, PATH)


def test_range_after_a_very_long_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A range that begins inside a long line skips it in bounded memory."""
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 8)
    data = b"x" * (3 << 20) + b"\nb"

    class Bounded(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert 0 < size <= 1 << 20
            return super().readline(size)

    assert list(read_lines(Bounded(data), 100)) == [(len(data) - 1, b"b")]
    assert list(read_lines(Bounded(data))) == [(1, b"x" * 8), (2, b"b")]


# CSV


def test_csv_rfc_4180() -> None:
    """CSV may have quotes, doubled or around commas and line breaks, CRLF, and no last newline."""
    data = (
        b'id,"a ""b""",c\r\n'
        b'1,"x, y","say ""hi"""\r\n'
        b"\r\n"
        b'2,"two\r\n\r\nlines",\r\n'
        b'3, spaces ,"" \r\n'
        b"4,\xc3\xa9'"
    )
    assert _csv(data) == [
        Record("1", {"id": "1", 'a "b"': "x, y", "c": 'say "hi"'}, {}, PATH),
        Record("2", {"id": "2", 'a "b"': "two\n\nlines", "c": ""}, {}, PATH),
        _dead(f"{PATH}, line 7: not CSV: ',' expected after '\"'", '3, spaces ,"" '),
        _dead(f"{PATH}, line 8: 2 values, but the header has 3", "4,é'"),
    ]


def test_csv_header_only() -> None:
    """A header without rows is not an error."""
    assert _csv(b"id,a\n") == _csv(b"id,a") == _csv(b"\r\nid,a\r\n\r\n") == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2", "1 values, but the header has 2"),
        ("2,b,c", "3 values, but the header has 2"),
        ('2,"b"c', "not CSV: ',' expected after '\"'"),
        ('2,"b', "not CSV: unexpected end of data"),
        ('"2,b', "not CSV: unexpected end of data"),
    ],
)
def test_csv_bad_row_costs_itself(row: str, message: str) -> None:
    """After a bad row, even with an unclosed quote, reading continues with the next line."""
    before, dead, *after = _csv(f"id,a\n1,x\n{row}\n3,y\n4,z\n".encode())
    assert dead == _dead(f"{PATH}, line 3: {message}", row)
    assert [before, *after] == [
        Record(name, {"id": name, "a": value}, {}, PATH)
        for name, value in (("1", "x"), ("3", "y"), ("4", "z"))
    ]


def test_csv_two_unclosed_quotes() -> None:
    """Two unclosed quotes do not swallow the rows between them."""
    items = _csv(b'id,a\n1,"x\n2,ok\n3,"y\n4,"two\nlines"\n5,z\n')
    assert _fields(items) == [
        '1,"x',
        {"id": "2", "a": "ok"},
        '3,"y',
        {"id": "4", "a": "two\nlines"},
        {"id": "5", "a": "z"},
    ]


def test_csv_quotes_that_are_text() -> None:
    """A quote inside an unquoted value is literal: inches, not the start of a value."""
    items = _csv(b'id,a\n1,5" pipe\n2,ok\n3,6" pipe\n4,7" pipe\n')
    assert _fields(items) == [
        {"id": "1", "a": '5" pipe'},
        {"id": "2", "a": "ok"},
        {"id": "3", "a": '6" pipe'},
        {"id": "4", "a": '7" pipe'},
    ]


def test_csv_unclosed_quote_far_from_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for a closing quote is bounded, and so is memory."""
    monkeypatch.setattr(lines, "MAX_ROW_LINES", 3)
    rows = "".join(f"{n},x\n" for n in range(10))
    items = _csv(f'id,a\nbad,"x\n{rows}10,"two\nlines"\n'.encode())
    assert _fields(items) == [
        'bad,"x',
        *({"id": str(n), "a": "x"} for n in range(10)),
        {"id": "10", "a": "two\nlines"},
    ]


def test_csv_row_that_is_not_utf8() -> None:
    """A row that is not UTF-8 fails alone."""
    before, dead, after = _csv(b"id,a\n1,x\n2,\xff\n3,y")
    assert dead == DeadLetter(
        "read",
        "parse_error",
        f"{PATH}, line 3: not UTF-8: byte 3 is 0xff",
        payload_bytes=b"2,\xff",
    )
    assert _fields([before, after]) == [{"id": "1", "a": "x"}, {"id": "3", "a": "y"}]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"id,a,id", "names the column 'id' twice"),
        (b"id,,b", "has a column without a name"),
        (b"id, ", "has a column without a name"),
        (b'id,"a', "not CSV: unexpected end of data"),
        (b"id,\xff", "not UTF-8: byte 4 is 0xff"),
    ],
)
def test_csv_bad_header(header: bytes, message: str) -> None:
    """Without a header no row can be read: the file counts as damaged."""
    with pytest.raises(ParseError) as raised:
        _csv(header + b"\n1,2,3\n")
    assert str(raised.value) == f"{PATH}: the header {message}"


_value = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\0") | st.sampled_from('",\n'),
    max_size=8,
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(_value, _value), max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_csv_round_trip(rows: list[tuple[str, str]], end: str, quoting: Any) -> None:
    """Everything that the standard library writes is read back, value by value."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator=end, quoting=quoting)
    writer.writerow(("a", "b"))
    writer.writerows(rows)
    assert _fields(_csv(file.getvalue().encode())) == [{"a": a, "b": b} for a, b in rows]
