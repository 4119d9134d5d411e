r"""Records that try to break a run, each with its one required outcome.

Pure and seeded: `volume_cases` builds inputs for the fake backend, `served_cases` for the simulated
model server, `table_cases` the rows that a BigQuery table can hold.

>>> cases = volume_cases(10_000)
>>> len(cases), sum(case.stage == "" for case in cases) > 5_000
(10000, True)
>>> sorted({case.stage for case in cases})
['', 'infer', 'read', 'render', 'validate']
"""

import base64
import collections
import dataclasses
import datetime as dt
import decimal
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

PROMPT = """{{ text }}
{%- if kind == 'divide' %} {{ total / parts }}{% endif %}
{%- if kind == 'nested' %} {{ customer.address.city }}{% endif %}
{%- if kind == 'join' %} {{ tags | join(', ') }}{% endif %}
{%- if kind == 'spaced' %} {{ record['Order ID'] }}{% endif %}
{%- if kind == 'multiply' %} {{ text * factor }}{% endif %}
{%- if kind == 'optional' %} {{ nickname | default('nobody') }}{% endif %}
{%- if kind == 'json' %} {{ payload | tojson }}{% endif %}"""
"""The prompt of all volume records; `kind` selects the part that may fail."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"category": {"enum": ["billing", "other"]}, "score": {"type": "number"}},
    "required": ["category", "score"],
    "additionalProperties": False,
}
FAKE_JSON = '{"category":"billing","score":0}'
"""The fake backend's answer under `SCHEMA`."""

LONG_BYTES = 5 * 1000 * 1000
RESULT = ("", "")


class Outcome(NamedTuple):
    """How one input ended, from the rows of any sink.

    Attributes:
      record_id: None for unreadable input.
      content: A digest of the record's fields, or of the raw line; ``cut`` for a cut payload.
      stage: Empty for a result.
      error_type: Empty for a result.
    """

    record_id: str | None
    content: str
    stage: str
    error_type: str


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One input line and its required outcome.

    Attributes:
      line: The input line without its line end.
      fields: The record as JSON, normalised; None when the line cannot be read.
      record_id: The required id.
      stage: The stage at which it must end; empty for a result.
      error_type: The required error type; empty for a result.
    """

    line: bytes
    fields: Mapping[str, Any] | None
    record_id: str | None
    stage: str = ""
    error_type: str = ""

    def outcome(self, *, cut_at: int | None = None) -> Outcome:
        """The required outcome; a sink that cuts payloads at ``cut_at`` bytes marks them as cut."""
        content = digest(self.line) if self.fields is None else digest_of_json(self.fields)
        if self.stage and cut_at is not None and len(self.line) > cut_at:
            content = "cut"
        return Outcome(self.record_id, content, self.stage, self.error_type)


def digest(raw: bytes) -> str:
    """A short digest of bytes."""
    return hashlib.sha256(raw).hexdigest()[:16]


def digest_of_json(value: Any) -> str:
    """A short digest of a JSON value, whatever the order of its keys."""
    return digest(json.dumps(value, sort_keys=True).encode())


def content_id(fields: Mapping[str, Any]) -> str:
    """The id of a record that has none: a hash of its canonical JSON."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def expected(cases: Iterable[Case], *, cut_at: int | None = None) -> collections.Counter[Outcome]:
    """The required outcomes of a run over these cases, and their counts."""
    return collections.Counter(case.outcome(cut_at=cut_at) for case in cases)


def outcome_of_row(row: Mapping[str, Any]) -> Outcome:
    """The outcome in a result row or a dead-letter row of any sink."""
    if "stage" not in row:
        return Outcome(row["record_id"], digest_of_json(json.loads(row["record"])), "", "")
    raw = row["payload_bytes"]
    if row["payload_truncated"]:
        content = "cut"
    elif raw is not None:
        content = digest(base64.b64decode(raw) if isinstance(raw, str) else raw)
    elif row["stage"] == "read" and row["error_type"] != "missing_field":
        content = digest(row["payload"].encode())
    else:
        content = digest_of_json(json.loads(row["payload"]))
    return Outcome(row["record_id"], content, row["stage"], row["error_type"])


def write_lines(cases: Iterable[Case], chance: random.Random | None = None) -> bytes:
    """Writes a file of all lines, mixed with blank lines and both kinds of line ending."""
    chance = chance or random.Random(1)
    lines = [b"\xef\xbb\xbf"]  # a byte order mark is not content
    for case in cases:
        lines.append(case.line + chance.choice((b"\n", b"\n", b"\n", b"\r\n")))
        if not chance.randrange(200):
            lines.append(chance.choice((b"\n", b"\r\n")))
    return b"".join(lines)


def readable(fields: Mapping[str, Any], stage: str = "", error_type: str = "") -> Case:
    """A line of standard JSON that reads back unchanged."""
    line = json.dumps(fields, ensure_ascii=False).encode()
    record_id = fields.get("id")
    if record_id in (None, ""):
        text = content_id(fields)
    else:
        text = record_id if isinstance(record_id, str) else _compact(record_id)
    return Case(line, fields, text, stage, error_type)


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def unreadable(line: bytes) -> Case:
    """A line that is not a record."""
    return Case(line, None, None, "read", "parse_error")


def raw(text: str, fields: Mapping[str, Any], record_id: str | None = None) -> Case:
    """A handwritten line, and the record that it must become: a result."""
    known = record_id if record_id is not None else str(fields["id"])
    return Case(text.encode(), fields, known)


_ENGLISH = "the parcel never came and my invoice is wrong please refund me at once thank you"
WORDS = (
    *_ENGLISH.split(),
    *("café", "naïve", "日本語", "Ωμέγα", "🙂", "e\u0301", "\u2028", "\u0085", "\t", "\x7f", "\\n"),
    *("{{ 7*7 }}", "{% raw %}", "<b>bold</b>", "'; DROP TABLE x; --", "%s $1 ${HOME}"),
)
"""Words, some of them special for a template, a table or a shell."""

Maker = Callable[[int, random.Random], Case]


def _plain(number: int, chance: random.Random) -> Case:
    text = " ".join(chance.choices(WORDS, k=chance.randrange(3, 40)))
    return readable({"id": f"plain-{number}", "kind": "plain", "text": text})


def _text(number: int, kind: str = "plain", text: Any = "hello", **more: Any) -> dict[str, Any]:
    return {"id": f"{kind}-{number}", "kind": kind, "text": text, **more}


def _render_makers() -> list[Maker]:
    """Records for which the template fails, and similar records for which it works."""
    missing, broken = ("render", "missing_field"), ("render", "render_error")
    return [
        lambda n, _: readable({"id": f"no-text-{n}", "kind": "plain"}, *missing),
        lambda n, _: readable({"id": f"no-kind-{n}", "text": "hello"}, *missing),
        lambda n, _: readable(_text(n, text=None, why="null text"), *missing),
        lambda n, _: readable(_text(n, "divide", total=1, parts=0), *broken),
        lambda n, _: readable(_text(n, "divide", total="1", parts=2), *broken),
        lambda n, _: readable(_text(n, "divide", total=None, parts=2), *missing),
        lambda n, _: readable(_text(n, "divide", total=9, parts=2)),
        lambda n, _: readable(_text(n, "nested", customer=None), *missing),
        lambda n, _: readable(_text(n, "nested", customer={"address": {}}), *missing),
        lambda n, _: readable(_text(n, "nested", customer={"address": {"city": None}}), *missing),
        lambda n, _: readable(_text(n, "nested", customer="a string"), *missing),
        lambda n, _: readable(_text(n, "nested", customer={"address": {"city": "Paris"}})),
        lambda n, _: readable(_text(n, "join", tags=7), *broken),
        lambda n, _: readable(_text(n, "join", tags=["a", None]), *missing),
        lambda n, _: readable(_text(n, "join", tags=["a", "b"], unused=None)),
        lambda n, _: readable(_text(n, "spaced", **{"Order ID": 7})),
        lambda n, _: readable(_text(n, "spaced"), *missing),
        lambda n, _: readable(_text(n, "optional", nickname=None)),
        lambda n, _: readable(_text(n, "optional")),
        lambda n, _: readable(_text(n, "json", payload={"a": [1, None, {"b": "c"}]})),
        lambda n, _: readable({"n": n}, *missing),
    ]


def _unreadable_makers() -> list[Maker]:
    """Lines that are not JSON objects, or not UTF-8."""

    def made(build: Callable[[int], bytes]) -> Maker:
        return lambda number, _: unreadable(build(number))

    return [
        made(lambda n: b'{"id": "cut-%d", "text": "he' % n),
        made(lambda n: b"{'id': 'quotes-%d'}" % n),
        made(lambda n: b'{"id": "comma-%d",}' % n),
        made(lambda n: b'{"id": %d}{"id": 2}' % n),
        made(lambda n: b'["array", %d]' % n),
        made(lambda n: b'"string %d"' % n),
        made(lambda n: b"%d" % n),
        made(lambda n: b"no JSON at all, line %d" % n),
        made(lambda n: b'{"id": "deep-%d", "a": %s}' % (n, b"[" * 300 + b"]" * 300)),
        made(lambda n: b'{"id": "deeper-%d", "a": %s}' % (n, b"[" * 20_000)),
        made(lambda n: b'{"id": "tab-%d", "text": "a\tb"}' % n),
        made(lambda n: b'{"id": "nul-%d"}\x00' % n),
        made(lambda n: b'{"id": 0x%x, "text": "hexadecimal"}' % n),
        made(lambda n: b'\xef\xbb\xbf{"id": "late-mark-%d"}' % n),
        made(lambda n: '{"id": "latin-%d", "text": "caf\u00e9"}'.encode("latin-1") % n),
        made(lambda n: '{"id": "cp1252-%d", "text": "5 \u20ac"}'.encode("cp1252") % n),
        made(lambda n: f'{{"id": "utf16-{n}"}}'.encode("utf-16-le")),
        made(lambda n: f'{{"id": "utf16-{n}"}}'.encode("utf-16-be")),
        made(lambda n: b'{"id": "overlong-%d", "text": "\xc0\x80"}' % n),
        made(lambda n: b'{"id": "cesu-%d", "text": "\xed\xa0\xbd"}' % n),
        made(lambda n: b'{"id": "half-%d", "text": "\xf0\x9f\x98"}' % n),
        made(lambda n: b"\xff\xfe binary \x80\x81 %d" % n),
    ]


def _odd_value_makers() -> list[Maker]:
    """Values that JSON, a hash or a table cannot hold unchanged: they still give results."""

    def numbers(n: int, written: str, read: Any) -> Case:
        line = f'{{"id": "odd-{n}", "kind": "plain", "text": "t", "value": {written}}}'
        return raw(line, {"id": f"odd-{n}", "kind": "plain", "text": "t", "value": read})

    def made(written: str, value: Any) -> Maker:
        return lambda number, _: numbers(number, written, value)

    return [
        made("NaN", "NaN"),
        made("Infinity", "Infinity"),
        made("-Infinity", "-Infinity"),
        made("1e999", "Infinity"),
        made('[NaN, {"a": -1e999}]', ["NaN", {"a": "-Infinity"}]),
        made("123456789012345678901234567890", 123456789012345678901234567890),
        made("-9223372036854775809", -9223372036854775809),
        made("18446744073709551616", 18446744073709551616),
        made("0.1000000000000000055511151231257827", 0.1),
        made("5e-324", 5e-324),
        made('"\\ud83d"', "\\ud83d"),
        made('"\\ude00\\ud83d"', "\\ude00\\ud83d"),
        made('"\\ud83d\\ude00"', "😀"),
        made('{"\\udc00": 1}', {"\\udc00": 1}),
        made('"\\u0000\\u0001\\u001f\\u007f"', "\x00\x01\x1f\x7f"),
        made('"\\u2028\\u2029\\ufeff\\uffff"', "\u2028\u2029\ufeff\uffff"),
        made(f"{'[' * 150}{']' * 150}", _nested(150)),
        lambda n, _: readable(_text(n, "spaced", **{"Order ID": 1, "": 2, "__class__": 3})),
        lambda n, _: readable(_text(n, items=1, record=2, loop=3, range=4, self=5)),
        lambda n, _: raw(
            f'{{"id": "first", "text": "x", "kind": "plain", "text": "y", "id": "last-{n}"}}',
            {"id": f"last-{n}", "text": "y", "kind": "plain"},
        ),
        lambda n, _: raw(
            f'{{"id": "surrogate-{n}", "kind": "plain", "text": "lone \\ud83d here"}}',
            {"id": f"surrogate-{n}", "kind": "plain", "text": "lone \\ud83d here"},
        ),
    ]


def _nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def _id_makers() -> list[Maker]:
    """Ids of every kind, and missing ones; several records of kind `twin` share an id."""

    def made(build: Callable[[int], Any]) -> Maker:
        return lambda n, _: readable({"id": build(n), "kind": "plain", "text": f"text {n}"})

    return [
        made(lambda n: n),
        made(lambda n: n + 0.5),
        made(lambda n: -n),
        made(lambda n: 10**30 + n),
        made(lambda n: [n, "a"]),
        made(lambda n: {"b": n, "a": None}),
        made(lambda n: None),
        made(lambda n: ""),
        made(lambda n: bool(n % 2)),
        made(lambda n: f"line\nbreak\x00 {n}"),
        made(lambda n: f"{n}-" + "x" * 2000),
        made(lambda n: f"日本-{n}"),
        made(lambda n: "the twin"),
        made(lambda n: f"pair {n // 2}"),
        lambda n, _: readable({"kind": "plain", "text": f"no id {n}"}),
        lambda n, _: readable({"kind": "plain", "text": "no id, and the same text"}),
        lambda n, _: raw(
            f'{{"id": "\\udfff-{n}", "kind": "plain", "text": "t"}}',
            {"id": f"\\udfff-{n}", "kind": "plain", "text": "t"},
        ),
    ]


def _fault_makers() -> list[Maker]:
    """Every failure that the record itself causes, by the fake backend's markers."""

    def made(fault: str, stage: str = "infer", error_type: str | None = None) -> Maker:
        ends = (stage, fault if error_type is None else error_type)
        return lambda n, _: readable(_text(n, text=f"[[fake:{fault}]] {fault}"), *ends)

    return [
        made("invalid_request"),
        made("too_large"),
        made("forbidden"),
        made("blocked"),
        made("empty_output"),
        made("truncated"),
        made("internal"),
        made("schema_violation", "validate"),
        made("nonsense", error_type="invalid_request"),
    ]


def _retried_makers() -> list[Maker]:
    """Failures that are retried: each takes a second or two, so there are few."""

    def made(fault: str, *ends: str) -> Maker:
        return lambda n, _: readable(_text(n, text=f"[[fake:{fault}]] {n}"), *(ends or RESULT))

    return [
        made("unavailable", "infer", "unavailable"),
        made("timeout", "infer", "timeout"),
        made("rate_limited", "infer", "rate_limited"),
        made("transient:unavailable"),
        made("transient:timeout"),
        made("transient:rate_limited"),
    ]


def _long_cases() -> list[Case]:
    """Texts of 5 MB, one for each possible outcome."""
    long = "0123456789" * (LONG_BYTES // 10)
    quotes = '"\\é\n' * (LONG_BYTES // 5)
    marked = f"[[fake:blocked]] {long}"
    return [
        readable({"id": "long", "kind": "plain", "text": long}),
        readable({"id": "long-escapes", "kind": "plain", "text": quotes}),
        readable({"id": "long-blocked", "kind": "plain", "text": marked}, "infer", "blocked"),
        readable(
            {"id": "long-unused", "kind": "plain", "text": None, "note": long},
            "render",
            "missing_field",
        ),
        readable(
            {"id": "too-long", "kind": "multiply", "text": long, "factor": 14},
            "render",
            "too_large",
        ),
        unreadable(b'{"id": "long-cut", "text": "' + long.encode()),
        unreadable(b'{"id": "long-latin", "text": "\xe9' + long.encode() + b'"}'),
    ]


def volume_cases(count: int, *, seed: int = 0, long: bool = True) -> list[Case]:
    """Cases of every kind for the fake backend, in an order determined by the seed.

    About a fifth of them fail; ids and whole lines are deliberately repeated.
    """
    chance = random.Random(seed)
    rare = [*_retried_makers()]
    makers = [
        *_render_makers(),
        *_unreadable_makers(),
        *_odd_value_makers(),
        *_id_makers(),
        *_fault_makers(),
    ]
    cases = _long_cases() if long else []
    for copy in range(2):
        cases += [make(copy, chance) for make in rare]
    each = max(1, min(40, count // 3 // len(makers)))
    for make in makers:
        cases += [make(number, chance) for number in range(each)]
    cases += chance.sample([case for case in cases if len(case.line) < 1000], count // 100)
    cases += [_plain(number, chance) for number in range(count - len(cases))]
    chance.shuffle(cases)
    return cases


SERVED_PROMPT = "Classify: {{ text }}"
SERVED_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "category": {"enum": ["billing", "shipping", "other"]},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["reason", "category", "score"],
    "additionalProperties": False,
}

_ANY_DIALECT: tuple[tuple[str, str], ...] = (
    ("[[http:400]]", "invalid_request"),
    ("[[http:409]]", "invalid_request"),
    ("[[http:422]]", "invalid_request"),
    ("[[http:451]]", "invalid_request"),
    ("[[http:413]]", "too_large"),
    ("[[latency:500]][[http:401]]", "forbidden"),
    ("[[latency:500]][[http:403]]", "forbidden"),
    ("[[latency:500]][[http:404]]", "invalid_request"),
    ("[[latency:500]][[http:405]]", "invalid_request"),
    ("[[latency:500]][[http:307]]", "invalid_request"),
    ("[[blocked]]", "blocked"),
    ("[[prompt-blocked]]", "blocked"),
    ("[[empty]]", "empty_output"),
    ("[[no-candidates]]", "empty_output"),
    ("[[truncated]]", "truncated"),
    ("[[thoughts-only]]", "truncated"),
    ("[[surrogate]]", ""),
    ("[[unknown-finish]]", ""),
    ("[[fenced]]", ""),
    ("[[chatty]]", ""),
    ("[[http:429x1]]", ""),
    ("[[http:429x1]][[retry-after:0.1]]", ""),
    ("[[http:503x1]]", ""),
    ("[[http:503x1]][[retry-after:0.2]]", ""),
    ("[[http:500x1]]", ""),
    ("[[http:502x1]]", ""),
    ("[[http:408x1]]", ""),
    ("[[http:504x1]]", ""),
    ("[[malformedx1]]", ""),
    ("[[wrong-shapex1]]", ""),
    ("[[latency:500]][[resetx1]]", ""),
    ("[[http:429x1]][[http:500x1]]", ""),
)
"""Marker and error type; empty for a result. Faults that may stop a run at its start come late:
before the first success, two records with such a fault would end the run, as they should."""

_PERSISTENT: tuple[tuple[str, str], ...] = (
    ("[[http:500]]", "unavailable"),
    ("[[http:501]]", "unavailable"),
    ("[[http:408]]", "timeout"),
    ("[[http:504]]", "timeout"),
    ("[[http:429]]", "rate_limited"),
    ("[[http:503]]", "unavailable"),
    ("[[malformed]]", "unavailable"),
    ("[[wrong-shape]]", "unavailable"),
    ("[[latency:500]][[reset]]", "unavailable"),
    ("[[hang]]", "timeout"),
)
_BAD_JSON = ("[[two-json]]", "[[not-json]]", "[[schema-wrong]]", "[[nan-json]]")


def served_cases(count: int, *, schema: bool, seed: int = 0) -> list[Case]:
    """Cases for the simulated model server, with each of its faults several times.

    Args:
      count: The number of cases.
      schema: Request and validate answers by `SERVED_SCHEMA`.
      seed: Decides texts and order.
    """
    chance = random.Random(seed)
    cases: list[Case] = []

    def add(marker: str, stage: str, error_type: str) -> None:
        number = len(cases)
        text = f"record {number} {marker}"
        cases.append(readable({"id": f"s-{number}", "text": text}, stage, error_type))

    for marker, error_type in _ANY_DIALECT * 3:
        add(marker, "infer" if error_type else "", error_type)
    for marker, error_type in _PERSISTENT:
        add(marker, "infer", error_type)
    for style in ("google", "vllm"):
        add(f"[[http:400]][[{style}-error]]", "infer", "invalid_request")
        add(f"[[http:429x1]][[{style}-error]]", *RESULT)
    for marker in _BAD_JSON * 3:
        add(marker, *(("validate", "schema_violation") if schema else RESULT))
    for word in (" ".join(chance.choices(WORDS, k=12)) for _ in range(count - len(cases))):
        add(word, *RESULT)
    chance.shuffle(cases)
    return cases


TABLE_PROMPT = "{{ text }} {{ ratio }} {{ price }} {{ raw }} {{ at }} {{ tags | join(' ') }}"
TABLE_COLUMNS = (
    ("id", "STRING", "NULLABLE"),
    ("text", "STRING", "NULLABLE"),
    ("ratio", "FLOAT64", "NULLABLE"),
    ("price", "NUMERIC", "NULLABLE"),
    ("raw", "BYTES", "NULLABLE"),
    ("at", "TIMESTAMP", "NULLABLE"),
    ("tags", "STRING", "REPEATED"),
)
"""Name, type and mode of the columns that `table_cases` fills."""


def table_cases(count: int, *, seed: int = 0) -> list[tuple[dict[str, Any], Case]]:
    """Rows that a table can hold, as Python values, each with its case as a JSON line."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        row: dict[str, Any] = {
            "id": f"t-{number}",
            "text": " ".join(chance.choices(WORDS, k=8)),
            "ratio": chance.choice((0.1, -0.0, 1e300, *map(float, ("nan", "inf", "-inf")))),
            "price": decimal.Decimal(chance.choice(("12.5", "-0.000000001", "9" * 29, "0"))),
            "raw": chance.randbytes(chance.randrange(1, 9)),
            "at": dt.datetime(1, 1, 1, tzinfo=dt.timezone.utc)
            + dt.timedelta(microseconds=chance.randrange(315_537_897_599_999_999)),
            "tags": chance.choices(WORDS, k=chance.randrange(3)),
        }
        ends = RESULT
        if number % 4 == 0:
            row[chance.choice(("text", "ratio", "price", "raw", "at"))] = None
            ends = ("render", "missing_field")
        elif number % 10 == 1:
            row["text"], ends = "[[fake:internal]]", ("infer", "internal")
        elif number % 10 == 3:
            row["id"] = None
        elif number % 10 == 5:
            row["id"] = "the twin"
        made.append((row, readable({name: _from_table(row[name]) for name in row}, *ends)))
    return made


def _from_table(value: Any) -> Any:
    """A column's value as JSON: an independent version of `transforms.records.json_values`."""
    if isinstance(value, float) and not -1e308 < value < 1e308:
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if isinstance(value, decimal.Decimal):
        return f"{value:.9f}"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=None).isoformat() + "Z"
    return value
