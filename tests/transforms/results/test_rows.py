"""Rows: the contract's columns, and no value that would fail a load."""

import base64
import contextlib
import datetime as dt
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms import JSON_OBJECTS, JSON_VALUES
from transforms.records.errors import WriteRejected
from transforms.records.records import Answer, Completion, DeadLetter, Record, Usage
from transforms.results import rows
from transforms.results.rows import (
    DEAD_LETTER_COLUMNS,
    MAX_PAYLOAD_BYTES,
    RESULT_COLUMNS,
    SUMMARY_COLUMNS,
    Column,
    RunInfo,
    cut_payload,
    dead_letter_row,
    encode_row,
    result_row,
)

RESULT_CONTRACT = [
    ("record_id", "STRING", "REQUIRED"),
    ("run_id", "STRING", "REQUIRED"),
    ("fingerprint", "STRING", "REQUIRED"),
    ("backend", "STRING", "REQUIRED"),
    ("model", "STRING", "REQUIRED"),
    ("model_version", "STRING", "NULLABLE"),
    ("service_tier", "STRING", "NULLABLE"),
    ("output", "STRING", "NULLABLE"),
    ("output_json", "STRING", "NULLABLE"),
    ("embedding", "FLOAT64", "REPEATED"),
    ("finish_reason", "STRING", "NULLABLE"),
    ("input_tokens", "INT64", "NULLABLE"),
    ("cached_input_tokens", "INT64", "NULLABLE"),
    ("output_tokens", "INT64", "NULLABLE"),
    ("reasoning_tokens", "INT64", "NULLABLE"),
    ("cost_usd", "NUMERIC", "NULLABLE"),
    ("latency_ms", "INT64", "NULLABLE"),
    ("attempts", "INT64", "NULLABLE"),
    ("from_ledger", "BOOL", "NULLABLE"),
    ("created_at", "TIMESTAMP", "REQUIRED"),
    ("record", "STRING", "NULLABLE"),
]
DEAD_LETTER_CONTRACT = [
    ("timestamp", "TIMESTAMP", "REQUIRED"),
    ("record_id", "STRING", "NULLABLE"),
    ("run_id", "STRING", "REQUIRED"),
    ("stage", "STRING", "REQUIRED"),
    ("error_type", "STRING", "REQUIRED"),
    ("error_message", "STRING", "REQUIRED"),
    ("retryable", "BOOL", "REQUIRED"),
    ("attempts", "INT64", "NULLABLE"),
    ("backend", "STRING", "NULLABLE"),
    ("model", "STRING", "NULLABLE"),
    ("fingerprint", "STRING", "NULLABLE"),
    ("finish_reason", "STRING", "NULLABLE"),
    ("output", "STRING", "NULLABLE"),
    ("input_tokens", "INT64", "NULLABLE"),
    ("output_tokens", "INT64", "NULLABLE"),
    ("cost_usd", "NUMERIC", "NULLABLE"),
    ("payload", "STRING", "NULLABLE"),
    ("payload_truncated", "BOOL", "NULLABLE"),
    ("payload_bytes", "BYTES", "NULLABLE"),
    ("attributes", "RECORD", "REPEATED"),
    ("stacktrace", "STRING", "NULLABLE"),
]
SUMMARY_CONTRACT = [
    ("run_id", "STRING", "REQUIRED"),
    ("started_at", "TIMESTAMP", "REQUIRED"),
    ("finished_at", "TIMESTAMP", "REQUIRED"),
    ("pipeline_version", "STRING", "NULLABLE"),
    ("config", "STRING", "NULLABLE"),
    ("records", "INT64", "NULLABLE"),
    ("results", "INT64", "NULLABLE"),
    ("dead_letters", "INT64", "NULLABLE"),
    ("dead_letters_by_error_type", "STRING", "NULLABLE"),
    ("duplicate_ids", "INT64", "NULLABLE"),
    ("requests_sent", "INT64", "NULLABLE"),
    ("retries", "INT64", "NULLABLE"),
    ("throttled_ms", "INT64", "NULLABLE"),
    ("from_ledger", "INT64", "NULLABLE"),
    ("input_tokens", "INT64", "NULLABLE"),
    ("cached_input_tokens", "INT64", "NULLABLE"),
    ("output_tokens", "INT64", "NULLABLE"),
    ("reasoning_tokens", "INT64", "NULLABLE"),
    ("cost_usd", "NUMERIC", "NULLABLE"),
    ("reconciled", "BOOL", "REQUIRED"),
]
_now = rows.now
RUN = RunInfo(run_id="run-1", backend="gemini", model="m-1")
NOW = "2026-11-21T08:00:00Z"
ANSWER = Answer(
    Record("8", {"text": "grüße", "n": 1.5, "none": None}),
    "ab" * 32,
    Completion(
        output="yes",
        output_json='{"a":1}',
        embedding=(0.5, -1.25),
        finish_reason="STOP",
        usage=Usage(1, 2, 3, 4),
        model_version="m-001",
        service_tier="ON_DEMAND",
        latency_ms=250,
        attempts=2,
        throttled_ms=40,
        from_ledger=True,
    ),
)
REPORTED = JSON_VALUES | st.floats() | st.text(st.sampled_from("a\ud83dé"))


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "now", lambda: NOW)


def _price(usage: Usage, service_tier: str | None) -> str | None:
    free = usage.input_tokens is None or service_tier == "PROVISIONED_THROUGHPUT"
    return None if free else "0.000000120"


def _one(kind: str, value: Any, mode: str = "NULLABLE") -> bytes:
    return encode_row({"c": value}, (Column("c", kind, mode),))


@pytest.mark.parametrize(
    ("columns", "contract"),
    [
        (RESULT_COLUMNS, RESULT_CONTRACT),
        (DEAD_LETTER_COLUMNS, DEAD_LETTER_CONTRACT),
        (SUMMARY_COLUMNS, SUMMARY_CONTRACT),
    ],
    ids=["results", "dead letters", "summary"],
)
def test_columns(columns: tuple[Column, ...], contract: list[tuple[str, str, str]]) -> None:
    """Names, types, modes and order are the contract's; each column has a description."""
    assert [(column.name, column.type, column.mode) for column in columns] == contract
    assert all(column.help.endswith(".") for column in columns)


def test_attributes_column() -> None:
    """Attributes are repeated pairs of key and value."""
    (column,) = [column for column in DEAD_LETTER_COLUMNS if column.fields]
    assert (column.name, column.mode) == ("attributes", "REPEATED")
    assert [(field.name, field.type) for field in column.fields] == [
        ("key", "STRING"),
        ("value", "STRING"),
    ]


def test_now() -> None:
    """The time is an RFC 3339 string in UTC."""
    moment = _now()
    assert moment.endswith("Z")
    dt.datetime.fromisoformat(moment.replace("Z", "+00:00"))


def test_result_row() -> None:
    """A result's row has every column in order, from every field."""
    row = result_row(ANSWER, RUN, _price)
    assert list(row) == [column.name for column in RESULT_COLUMNS]
    assert row == {
        "record_id": "8",
        "run_id": "run-1",
        "fingerprint": "ab" * 32,
        "backend": "gemini",
        "model": "m-1",
        "model_version": "m-001",
        "service_tier": "ON_DEMAND",
        "output": "yes",
        "output_json": '{"a":1}',
        "embedding": [0.5, -1.25],
        "finish_reason": "STOP",
        "input_tokens": 1,
        "cached_input_tokens": 2,
        "output_tokens": 3,
        "reasoning_tokens": 4,
        "cost_usd": "0.000000120",
        "latency_ms": 250,
        "attempts": 2,
        "from_ledger": True,
        "created_at": NOW,
        "record": '{"text":"grüße","n":1.5,"none":null}',
    }
    assert json.loads(encode_row(row, RESULT_COLUMNS)) == row


def test_an_empty_result_row() -> None:
    """A model that reports nothing about itself leaves NULLs and an empty list."""
    row = result_row(Answer(Record("1", {}), "f", Completion()), RUN, _price)
    assert {name: value for name, value in row.items() if value is not None} == {
        "record_id": "1",
        "run_id": "run-1",
        "fingerprint": "f",
        "backend": "gemini",
        "model": "m-1",
        "embedding": [],
        "attempts": 1,
        "from_ledger": False,
        "created_at": NOW,
        "record": "{}",
    }
    assert json.loads(encode_row(row, RESULT_COLUMNS)) == row


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (None, '{"text":"grüße","n":1.5,"none":null}'),
        ((), None),
        (("none", "text"), '{"none":null,"text":"grüße"}'),
        (("text", "absent"), '{"text":"grüße"}'),
        (("absent",), "{}"),
    ],
)
def test_record_fields(kept: tuple[str, ...] | None, expected: str | None) -> None:
    """Record fields are all, none or the named ones, in the order of their naming."""
    run = RunInfo(run_id="run-1", backend="b", model="m", record_fields=kept)
    assert result_row(ANSWER, run, _price)["record"] == expected


def test_dead_letter_row() -> None:
    """A dead letter's row has every column in order; reasoning is billed as output."""
    letter = DeadLetter(
        stage="validate",
        error_type="schema_violation",
        error_message="at $.a: no \ud83d",
        retryable=True,
        record_id="8",
        attempts=2,
        throttled_ms=40,
        fingerprint="ab" * 32,
        finish_reason="STOP",
        output="nope",
        usage=Usage(1, 2, 3, 4),
        model_version="m-001",
        payload_bytes=b"\x00\xff",
        attributes={"k": "v", "l": ""},
        stacktrace="Traceback",
        fields={"text": "hi"},
    )
    row = dead_letter_row(letter, RUN, _price)
    assert list(row) == [column.name for column in DEAD_LETTER_COLUMNS]
    assert row == {
        "timestamp": NOW,
        "record_id": "8",
        "run_id": "run-1",
        "stage": "validate",
        "error_type": "schema_violation",
        "error_message": r"at $.a: no \ud83d",
        "retryable": True,
        "attempts": 2,
        "backend": "gemini",
        "model": "m-1",
        "fingerprint": "ab" * 32,
        "finish_reason": "STOP",
        "output": "nope",
        "input_tokens": 1,
        "output_tokens": 7,
        "cost_usd": "0.000000120",
        "payload": '{"text":"hi"}',
        "payload_truncated": False,
        "payload_bytes": "AP8=",
        "attributes": [{"key": "k", "value": "v"}, {"key": "l", "value": ""}],
        "stacktrace": "Traceback",
    }
    assert json.loads(encode_row(row, DEAD_LETTER_COLUMNS)) == row


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (Usage(), None),
        (Usage(output_tokens=0), 0),
        (Usage(reasoning_tokens=4), 4),
        (Usage(output_tokens=3, reasoning_tokens=4), 7),
        (Usage(output_tokens="3", reasoning_tokens=4), 4),  # type: ignore[arg-type]
    ],
)
def test_dead_letter_output_tokens(usage: Usage, expected: int | None) -> None:
    """Output tokens are the known part of the output with reasoning, or no number."""
    letter = DeadLetter("infer", "truncated", "cut", usage=usage)
    assert dead_letter_row(letter, RUN, _price)["output_tokens"] == expected


@pytest.mark.parametrize(
    ("stage", "asked"),
    [("read", False), ("render", False), ("infer", True), ("validate", True), ("write", True)],
)
def test_dead_letter_backend(stage: Any, *, asked: bool) -> None:
    """Backend and model are set only if the record reached the model's stage."""
    row = dead_letter_row(DeadLetter(stage, "internal", "m"), RUN, _price)
    assert (row["backend"], row["model"]) == (("gemini", "m-1") if asked else (None, None))


def test_cost_follows_the_tier_served() -> None:
    """The cost of results and billed failures follows the tier that served them."""
    for tier, cost in (("ON_DEMAND", "0.000000120"), ("PROVISIONED_THROUGHPUT", None)):
        completion = Completion(usage=Usage(1), service_tier=tier)
        assert result_row(Answer(Record("1", {}), "f", completion), RUN, _price)["cost_usd"] == cost
        letter = DeadLetter("infer", "blocked", "m", usage=Usage(1), service_tier=tier)
        assert dead_letter_row(letter, RUN, _price)["cost_usd"] == cost


def test_a_raw_payload_goes_first() -> None:
    """The payload is the raw line rather than the parsed fields, or NULL without both."""
    both = DeadLetter("read", "missing_field", "m", payload="{ raw", fields={"a": 1})
    assert dead_letter_row(both, RUN, _price)["payload"] == "{ raw"
    assert dead_letter_row(DeadLetter("read", "internal", "m"), RUN, _price)["payload"] is None


def _letter_row(**known: Any) -> dict[str, Any]:
    return dead_letter_row(DeadLetter("read", "parse_error", "m", **known), RUN, _price)


@pytest.mark.parametrize("text", ["x" * MAX_PAYLOAD_BYTES, "é" * (MAX_PAYLOAD_BYTES // 2), "", "x"])
def test_a_payload_up_to_the_limit_is_whole(text: str) -> None:
    """1 MiB of UTF-8 is neither cut nor marked as cut."""
    row = _letter_row(payload=text)
    assert cut_payload(row) == row


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x" * (MAX_PAYLOAD_BYTES + 1), "x" * MAX_PAYLOAD_BYTES),
        ("é" * MAX_PAYLOAD_BYTES, "é" * (MAX_PAYLOAD_BYTES // 2)),
        ("x" + "é" * MAX_PAYLOAD_BYTES, "x" + "é" * (MAX_PAYLOAD_BYTES // 2 - 1)),
        ("€" * MAX_PAYLOAD_BYTES, "€" * (MAX_PAYLOAD_BYTES // 3)),
        ("xx" + "😀" * MAX_PAYLOAD_BYTES, "xx" + "😀" * (MAX_PAYLOAD_BYTES // 4 - 1)),
    ],
)
def test_cut_payload(text: str, kept: str) -> None:
    """A cut payload has whole characters and at most 1 MiB; the original is unchanged."""
    row = _letter_row(payload=text)
    short = cut_payload(row)
    assert short == {**row, "payload": kept, "payload_truncated": True}
    assert len(short["payload"].encode()) <= MAX_PAYLOAD_BYTES
    assert row["payload"] == text
    assert row["payload_truncated"] is False


def test_cut_bytes_are_still_base64() -> None:
    """Cut base64 decodes to the start of the original."""
    raw = bytes(range(256)) * 8_192
    short = cut_payload(_letter_row(payload_bytes=raw))
    kept = base64.b64decode(short["payload_bytes"], validate=True)
    assert len(short["payload_bytes"]) == MAX_PAYLOAD_BYTES
    assert raw.startswith(kept)
    assert short["payload_truncated"] is True


@pytest.mark.parametrize("name", ["output", "stacktrace", "error_message"])
def test_other_long_texts_are_cut_too(name: str) -> None:
    """Other long texts are cut to fit the table, but only a cut payload is marked."""
    row = {**_letter_row(payload="x"), name: "é" * MAX_PAYLOAD_BYTES}
    assert cut_payload(row) == {**row, name: "é" * (MAX_PAYLOAD_BYTES // 2)}


@settings(deadline=None)
@given(st.text(st.sampled_from("aé€😀"), max_size=12), st.integers(4, 40))
def test_cut_anywhere(text: str, limit: int) -> None:
    """A cut text is the longest prefix of whole characters within the limit."""
    kept = rows._cut(text, limit)
    assert text.startswith(kept)
    assert len(kept.encode()) <= limit
    assert kept == text or len(kept.encode()) > limit - 8
    assert len(rows._cut("x" * 100, limit)) == limit // 4 * 4  # whole groups of base64


@pytest.mark.parametrize("columns", [RESULT_COLUMNS, DEAD_LETTER_COLUMNS, SUMMARY_COLUMNS])
def test_required(columns: tuple[Column, ...]) -> None:
    """The message names a required column that is missing or NULL."""
    sample: dict[str, Any] = {"STRING": "x", "TIMESTAMP": NOW, "BOOL": True}
    row = {c.name: sample[c.type] for c in columns if c.mode == "REQUIRED"}
    assert json.loads(encode_row(row, columns)) == row
    for name in row:
        message = f"^column '{name}' is required and has no value$"
        with pytest.raises(WriteRejected, match=message):
            encode_row({**row, name: None}, columns)
        with pytest.raises(WriteRejected, match=message):
            encode_row({key: row[key] for key in row if key != name}, columns)


@pytest.mark.parametrize("value", [0, -(2**63), 2**63 - 1])
def test_int64(value: int) -> None:
    """The whole range of INT64 is exact."""
    assert _one("INT64", value) == b'{"c":%d}' % value


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30, 1.0, "1", True, [1], {}, math.nan])
def test_int64_refuses(value: Any) -> None:
    """A value outside INT64 is rejected by name, because BigQuery would reject the whole load."""
    with pytest.raises(WriteRejected) as caught:
        _one("INT64", value)
    assert str(caught.value) == f"column 'c' (INT64) cannot hold {value!r}"


@pytest.mark.parametrize("kind", ["STRING", "TIMESTAMP", "BYTES"])
@pytest.mark.parametrize("value", [1, 1.5, True, b"x", ["x"], {"x": 1}, math.nan])
def test_text_refuses(kind: str, value: Any) -> None:
    """Only text fits a STRING."""
    with pytest.raises(WriteRejected, match=rf"^column 'c' \({kind}\) cannot hold "):
        _one(kind, value)


@pytest.mark.parametrize("value", [0, 1, "true", 1.0, []])
def test_bool_refuses(value: Any) -> None:
    """Only true and false fit a BOOL."""
    with pytest.raises(WriteRejected, match=r"^column 'c' \(BOOL\) cannot hold "):
        _one("BOOL", value)


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "-0",
        "1",
        "-12.5",
        "0.000000001",
        "9" * 29 + "." + "9" * 9,
        "-" + "9" * 29,
        "007",
        5,
        1.5,
    ],
)
def test_numeric(value: Any) -> None:
    """NUMERIC, like decimal128(38, 9), has 29 digits before the point and 9 after it."""
    assert json.loads(_one("NUMERIC", value)) == {"c": value}


@pytest.mark.parametrize(
    "value",
    [
        "", "-", ".", "1.", ".5", "--5", "+1", " 1", "1 ", "1\n", "1.2.3", "1,5", "1e5", "0x1", "²",
        "٣", "NaN", "Infinity", "9" * 30, "0.0000000001", True, math.nan, math.inf, 1e30, [], {},
    ],
)  # fmt: skip
def test_numeric_refuses(value: Any) -> None:
    """Values on which a load job or Parquet would fail are rejected."""
    with pytest.raises(WriteRejected, match=r"^column 'c' \(NUMERIC\) cannot hold "):
        _one("NUMERIC", value)


def test_embedding() -> None:
    """An embedding is floats and integers in order; None becomes an empty list."""
    assert _one("FLOAT64", [0.1, 1, -2.5e-300], "REPEATED") == b'{"c":[0.1,1,-2.5e-300]}'
    assert _one("FLOAT64", [], "REPEATED") == b'{"c":[]}'


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 10**400, "NaN", "1", None, True, [0.5], {}]
)
def test_embedding_refuses(value: Any) -> None:
    """The message names the one bad number among many."""
    with pytest.raises(WriteRejected) as caught:
        _one("FLOAT64", [0.5] * 1_000 + [value], "REPEATED")
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    assert str(caught.value) == f"column 'c' (FLOAT64) cannot hold {shown}"


@pytest.mark.parametrize("value", [(0.5,), "0.5", 0.5, {"a": 1}])
def test_repeated_refuses(value: Any) -> None:
    """Only a list fits a repeated column."""
    with pytest.raises(WriteRejected, match=r"^column 'c' holds a list, not "):
        _one("FLOAT64", value, "REPEATED")


def test_a_row_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row above the limit in bytes is rejected; one exactly at the limit is written."""
    assert rows.MAX_LOADED_ROW_BYTES == 100_000_000
    monkeypatch.setattr(rows, "MAX_LOADED_ROW_BYTES", 1_000)
    fits = "é" * 496
    assert len(_one("STRING", fits)) == 1_000
    with pytest.raises(WriteRejected, match=r"^the row has 1,001 bytes \(limit 1,000\)$"):
        _one("STRING", fits + "x")


def test_a_row_is_one_line() -> None:
    """Line breaks, NUL and other control characters in a text are escaped."""
    line = _one("STRING", "a\nb\r\u2028\x00\ud83d")
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {"c": "a\nb\r\u2028\x00\\ud83d"}


@settings(deadline=None)
@given(
    st.builds(
        Completion,
        output=REPORTED,
        output_json=REPORTED,
        embedding=st.none() | st.lists(REPORTED | st.floats(), max_size=4).map(tuple),
        finish_reason=REPORTED,
        usage=st.builds(Usage, REPORTED, REPORTED, REPORTED, REPORTED),
        model_version=REPORTED,
        service_tier=REPORTED,
        latency_ms=REPORTED,
    ),
    JSON_OBJECTS,
)
def test_any_answer_is_one_line(completion: Completion, fields: dict[str, Any]) -> None:
    """Any answer is one line that reads back the same, or a rejection; so is its dead letter."""
    row = result_row(Answer(Record("1", fields), "f", completion), RUN, _price)
    try:
        line = encode_row(row, RESULT_COLUMNS)
    except WriteRejected:
        pass
    else:
        assert set(json.loads(line)) == set(row)
        assert json.loads(row["record"]) == json.loads(json.loads(line)["record"])
    letter = DeadLetter("write", "write_rejected", "m", usage=completion.usage)
    row = dead_letter_row(letter, RUN, _price)
    counts = {"input_tokens": None, "output_tokens": None}
    assert encode_row({**row, **counts}, DEAD_LETTER_COLUMNS)
    with contextlib.suppress(WriteRejected):
        encode_row(row, DEAD_LETTER_COLUMNS)
