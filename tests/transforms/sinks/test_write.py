"""Answers and dead letters as rows: the same bytes in every sink, each record in one place."""

import dataclasses
import decimal
import json
import pathlib
from typing import Any, ClassVar

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.accounting.counts import Counts
from transforms.accounting.sink_report import SinkReport
from transforms.records.errors import ERROR_TYPES
from transforms.records.records import STAGES, Answer, Completion, DeadLetter, Record, Usage
from transforms.results.prices import TokenPrices
from transforms.results.rows import (
    DEAD_LETTER_COLUMNS,
    RESULT_COLUMNS,
    RunInfo,
    cut_payload,
    dead_letter_row,
    encode_row,
)
from transforms.sinks.base import EncodedRow, RejectedRow, Rejection, Written
from transforms.sinks.files import WriteFiles
from transforms.sinks.write import (
    WriteDeadLetters,
    WriteResults,
    _ResultRowsDoFn,
    encode_dead_letter,
    encode_result,
    rejected_dead_letter,
    shorten_dead_letter,
)

RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
RUN = RunInfo(run_id="r", backend="openai", model="gpt-4o-mini")
FREE = TokenPrices(None, "m")
MIB = 1 << 20


def _no_price(_: Usage, __: str | None) -> None:
    return None


def _answer(n: int, **given: Any) -> Answer:
    known = {"output": f"answer {n}", "usage": Usage(10, 2, 5, 1), "attempts": 3, **given}
    return Answer(Record(f"{n}", {"n": n}), f"f{n}", Completion(**known))


def _rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    lines = b"".join(path.read_bytes() for path in folder.glob("*.jsonl")).splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda row: str(row["record_id"]))


def _totals(counted: list[Counts]) -> tuple[dict[str, int], dict[str, int], Any]:
    total = Counts.total(counted)
    counts = {name: count for name, count in total.by_name.items() if count}
    return counts, dict(total.error_types), total.cost_usd


# Results


def test_encode_result() -> None:
    """The values and the line of a result agree; its context is the answer."""
    encoded = encode_result(_answer(1), RUN, lambda usage, _: f"0.{usage.output_tokens}")
    row = encoded.values
    assert json.loads(encoded.line) == row
    assert encoded.context == _answer(1)
    assert row == {
        "record_id": "1",
        "run_id": "r",
        "fingerprint": "f1",
        "backend": "openai",
        "model": "gpt-4o-mini",
        "model_version": None,
        "service_tier": None,
        "output": "answer 1",
        "output_json": None,
        "embedding": [],
        "finish_reason": None,
        "input_tokens": 10,
        "cached_input_tokens": 2,
        "output_tokens": 5,
        "reasoning_tokens": 1,
        "cost_usd": "0.5",
        "latency_ms": None,
        "attempts": 3,
        "from_ledger": False,
        "created_at": row["created_at"],
        "record": '{"n":1}',
    }


def test_write_results(tmp_path: pathlib.Path) -> None:
    """Each sink has one row per result with the same bytes; the counts hold the costs."""
    folders = [tmp_path / "a", tmp_path / "b"]
    with beam.Pipeline(RUNNER) as root:
        unwritten, reports, counted = (
            root
            | beam.Create([_answer(n, throttled_ms=100) for n in range(5)])
            | WriteResults(
                run=RUN,
                price=FREE,
                sinks=[(f.name, WriteFiles(folder=str(f), run_id="r", columns=RESULT_COLUMNS))
                       for f in folders],
            )
        )  # fmt: skip
        assert_that(unwritten, equal_to([]), "Unwritten")
        expected = [SinkReport("results", "files", str(folder), 5) for folder in folders]
        assert_that(reports, equal_to(expected), "Reports")
        totals = (
            {
                "results": 5,
                "requests_sent": 15,
                "retries": 10,
                "throttled_ms": 500,
                "input_tokens": 50,
                "cached_input_tokens": 10,
                "output_tokens": 25,
                "reasoning_tokens": 5,
            },
            {},
            None,
        )
        summed = counted | beam.combiners.ToList() | beam.Map(_totals)
        assert_that(summed, equal_to([totals]), "Counts")
    first, second = (_rows(folder) for folder in folders)
    assert first == second
    assert [(row["record_id"], row["output"]) for row in first] == [
        (f"{n}", f"answer {n}") for n in range(5)
    ]


_REJECTED: list[tuple[dict[str, Any], str]] = [
    ({"embedding": (0.5, float("nan"))}, "column 'embedding' (FLOAT64) cannot hold nan"),
    ({"embedding": (float("inf"),)}, "column 'embedding' (FLOAT64) cannot hold inf"),
    ({"attempts": 2**63}, "column 'attempts' (INT64) cannot hold 9223372036854775808"),
    ({"latency_ms": 1.5}, "column 'latency_ms' (INT64) cannot hold 1.5"),
    ({"output": 5}, "column 'output' (STRING) cannot hold 5"),
    ({"output": "x" * 100_000_001}, "the row has 100,000,"),
]


@pytest.mark.parametrize(("given", "message"), _REJECTED)
def test_a_rejected_result_keeps_its_answer(given: dict[str, Any], message: str) -> None:
    """A rejected result is a dead letter of stage ``write`` with output, tokens and attempts."""
    paid = {"finish_reason": "STOP", "model_version": "v", "throttled_ms": 7, **given}
    bad = _answer(1, **paid)
    written: list[EncodedRow] = []
    unwritten = []
    dofn = _ResultRowsDoFn(RUN, _no_price)
    for answer in (_answer(0), bad, _answer(2)):
        for item in dofn.process(answer):
            (unwritten if isinstance(item, beam.pvalue.TaggedOutput) else written).append(item)
    assert [row.values["record_id"] for row in written] == ["0", "2"]
    (tagged,) = unwritten
    dead = tagged.value
    assert tagged.tag == "unwritten"
    assert dead.error_message.startswith(message)
    assert dead == DeadLetter(
        stage="write",
        error_type="write_rejected",
        error_message=dead.error_message,
        record_id="1",
        attempts=bad.completion.attempts,
        throttled_ms=7,
        fingerprint="f1",
        finish_reason="STOP",
        output=bad.completion.output,
        usage=Usage(10, 2, 5, 1),
        model_version="v",
        fields={"n": 1},
    )
    row = encode_dead_letter(dead_letter_row(dead, RUN, _no_price))
    assert row.values["input_tokens"] == 10


def test_rejected_through_the_transform(tmp_path: pathlib.Path) -> None:
    """The reconciliation's sum holds: written plus unwritten rows are all results."""
    answers = [_answer(n, embedding=(float("nan"),) if n % 3 == 1 else None) for n in range(7)]
    with beam.Pipeline(RUNNER) as root:
        sink = WriteFiles(folder=str(tmp_path), run_id="r", columns=RESULT_COLUMNS)
        unwritten, reports, _ = (
            root | beam.Create(answers) | WriteResults(run=RUN, price=FREE, sinks=[("Files", sink)])
        )
        dead = unwritten | beam.Map(lambda d: (d.record_id, d.stage, d.error_type, d.usage))
        expected = [(n, "write", "write_rejected", Usage(10, 2, 5, 1)) for n in ("1", "4")]
        assert_that(dead, equal_to(expected), "Dead")
        assert_that(
            reports, equal_to([SinkReport("results", "files", str(tmp_path), 5)]), "Reports"
        )
    assert [row["record_id"] for row in _rows(tmp_path)] == ["0", "2", "3", "5", "6"]


@dataclasses.dataclass(kw_only=True, eq=False)
class _RejectOdd(beam.PTransform):
    """A sink that accepts rows of even record ids only, and reports their number per bundle."""

    can_reject: ClassVar[bool] = True
    whole_payloads: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, rows: beam.PCollection[EncodedRow]) -> Written:
        def odd(row: EncodedRow) -> bool:
            return bool(int(row.values["record_id"]) % 2)

        return Written(
            rows | "Even" >> beam.Filter(lambda row: not odd(row)).with_output_types(EncodedRow),
            rows
            | "Odd" >> beam.Filter(odd)
            | "Reject" >> beam.Map(lambda row: RejectedRow(row, Rejection("too_large", "odd"))),
            rows
            | "Kept" >> beam.Filter(lambda row: not odd(row))
            | "Report" >> beam.Map(lambda _: SinkReport("results", "test", "here", 1)),
        )


@pytest.mark.parametrize("first", [False, True])
def test_a_row_that_one_sink_rejects_is_in_no_other(tmp_path: pathlib.Path, first: bool) -> None:
    """A row that one sink rejects is a dead letter and in no other sink, in any order of sinks."""
    files = ("Files", WriteFiles(folder=str(tmp_path), run_id="r", columns=RESULT_COLUMNS))
    sinks = [("Reject", _RejectOdd()), files]
    with beam.Pipeline(RUNNER) as root:
        unwritten, reports, counted = (
            root
            | beam.Create([_answer(n) for n in range(5)])
            | WriteResults(run=RUN, price=FREE, sinks=sinks if first else sinks[::-1])
        )
        dead = unwritten | beam.Map(lambda d: (d.record_id, d.stage, d.error_type, d.fields))
        expected = [(f"{n}", "write", "too_large", {"n": n}) for n in (1, 3)]
        assert_that(dead, equal_to(expected), "Dead")
        held = reports | "Held" >> beam.Map(lambda report: (report.sink, report.rows))
        assert_that(held, equal_to([("files", 3), *[("test", 1)] * 3]), "Reports")
        counted = counted | "Results" >> beam.Map(lambda counts: counts.by_name["results"])
        assert_that(counted | beam.CombineGlobally(sum), equal_to([3]), "Counts")
    assert [row["record_id"] for row in _rows(tmp_path)] == ["0", "2", "4"]


def test_only_one_sink_may_reject() -> None:
    """Only one sink may reject rows: a row rejected by a second would be a result in the first."""
    with pytest.raises(ValueError, match="sinks a and b can reject rows, but only one sink may"):
        WriteResults(run=RUN, price=FREE, sinks=[("a", _RejectOdd()), ("b", _RejectOdd())])


def test_a_sink_of_dead_letters_must_not_reject() -> None:
    """A sink of dead letters must accept every row, since a rejected one would be lost."""
    with pytest.raises(ValueError, match="sink a can reject dead letters, which would be lost"):
        WriteDeadLetters(run=RUN, price=FREE, sinks=[("a", _RejectOdd())])


def test_a_rejected_result_keeps_the_whole_record() -> None:
    """A rejected result's dead letter has the whole record, the output and the tokens."""
    answer = _answer(7, finish_reason="STOP")
    row = encode_result(answer, RUN, _no_price)
    dead = rejected_dead_letter(RejectedRow(row, Rejection("write_rejected", "no such column")))
    assert dead == DeadLetter(
        stage="write",
        error_type="write_rejected",
        error_message="no such column",
        record_id="7",
        attempts=3,
        fingerprint="f7",
        finish_reason="STOP",
        output="answer 7",
        usage=Usage(10, 2, 5, 1),
        fields={"n": 7},
    )


# Dead letters

_text = st.text(st.characters() | st.sampled_from("\ud83d\0"), max_size=20)
_nonsense = st.none() | _text | st.integers() | st.floats() | st.lists(st.integers(), max_size=2)
_count = st.none() | st.integers()


@settings(deadline=None)
@given(
    st.builds(
        DeadLetter,
        stage=st.sampled_from(STAGES),
        error_type=st.sampled_from(ERROR_TYPES),
        error_message=_text,
        retryable=st.booleans(),
        record_id=st.none() | _text,
        attempts=_count,
        fingerprint=st.none() | _text,
        finish_reason=_nonsense,
        output=_nonsense,
        usage=st.builds(Usage, _nonsense, _nonsense, _nonsense, _nonsense),
        model_version=_nonsense,
        payload=st.none() | _text,
        payload_bytes=st.none() | st.binary(),
        attributes=st.dictionaries(_text, _text, max_size=2),
        stacktrace=st.none() | _text,
        fields=st.none() | st.dictionaries(_text, _nonsense, max_size=2),
    )
)
def test_dead_letter_is_never_rejected(letter: DeadLetter) -> None:
    """Any failure's row fits the columns and names its record."""
    row = dead_letter_row(letter, RUN, TokenPrices("openai", "gpt-4o-mini"))
    encoded = encode_dead_letter(row)
    line = encoded.line
    assert encode_dead_letter(cut_payload(row)).line == line
    held = json.loads(line)
    assert encoded.values == held
    assert encode_row(held, DEAD_LETTER_COLUMNS) == line
    assert list(held) == [column.name for column in DEAD_LETTER_COLUMNS]
    for name in ("stage", "error_type", "retryable", "run_id"):
        assert held[name] == row[name]
    assert (held["record_id"] is None) == (letter.record_id is None)
    assert Counts().add_dead_letter(row, letter) is None


def test_dead_letter_that_does_not_fit() -> None:
    """Values that the columns cannot hold are left out, and the message names them."""
    letter = DeadLetter("infer", "blocked", "no", attempts=2**70, record_id="1", fields={"n": 1})
    row = dead_letter_row(letter, RUN, _no_price)
    held = encode_dead_letter(row).values
    assert held == {
        **dict.fromkeys(held),
        "timestamp": row["timestamp"],
        "record_id": "1",
        "run_id": "r",
        "stage": "infer",
        "error_type": "blocked",
        "error_message": "no (row cut: column 'attempts' (INT64) cannot hold "
        "1180591620717411303424)",
        "retryable": False,
        "backend": "openai",
        "model": "gpt-4o-mini",
        "payload": '{"n":1}',
        "payload_truncated": False,
        "attributes": [],
    }


@pytest.mark.parametrize("name", ["payload", "output", "stacktrace", "error_message", "record_id"])
def test_dead_letter_beyond_the_longest_row(name: str) -> None:
    """A row of more than 100 MB is cut in its long column."""
    given = {"error_message": "no", name: "\x01" * 40_000_000}
    letter = DeadLetter("infer", "blocked", **given)
    row = encode_dead_letter(dead_letter_row(letter, RUN, _no_price))
    assert len(row.line) < 100_000_000
    held = row.values
    assert (held["stage"], held["error_type"], held["run_id"]) == ("infer", "blocked", "r")


class _ShortFiles(WriteFiles):
    """A file sink that gets payloads cut like a table's."""

    whole_payloads: ClassVar[bool] = False


def test_write_dead_letters(tmp_path: pathlib.Path) -> None:
    """Files hold whole payloads, tables up to 1 MiB; each letter is one row in each."""
    whole, short = tmp_path / "whole", tmp_path / "short"
    letters = [
        DeadLetter("read", "parse_error", "m", payload="é" * MIB, record_id="1"),
        DeadLetter(
            "infer",
            "truncated",
            "m",
            record_id="2",
            attempts=2,
            throttled_ms=9,
            usage=Usage(4, None, 6, 1),
            fields={"a": 1},
        ),
        DeadLetter("infer", "truncated", "m", record_id="3", payload_bytes=b"\xff" * MIB),
    ]

    known = {"run_id": "r", "columns": DEAD_LETTER_COLUMNS, "kind": "dead_letters"}
    sinks = [
        ("Whole", WriteFiles(folder=str(whole), **known)),
        ("Short", _ShortFiles(folder=str(short), **known)),
    ]

    with beam.Pipeline(RUNNER) as root:
        reports, counted = (
            root
            | beam.Create(letters)
            | WriteDeadLetters(run=RUN, price=TokenPrices("openai", "gpt-4o-mini"), sinks=sinks)
        )
        expected = [SinkReport("dead_letters", "files", str(path), 3) for path in (whole, short)]
        assert_that(reports, equal_to(expected), "Reports")
        totals = (
            {
                "dead_letters": 3,
                "requests_sent": 2,
                "retries": 1,
                "throttled_ms": 9,
                "input_tokens": 4,
                "output_tokens": 6,
                "reasoning_tokens": 1,
            },
            {"parse_error": 1, "truncated": 2},
            decimal.Decimal("0.000004800"),
        )
        summed = counted | beam.combiners.ToList() | beam.Map(_totals)
        assert_that(summed, equal_to([totals]), "Counts")
    first, second, third = _rows(whole)
    assert (first["payload"], first["payload_truncated"]) == ("é" * MIB, False)
    assert (first["backend"], first["model"]) == (None, None)
    assert (second["backend"], second["model"], second["payload"]) == (
        "openai",
        "gpt-4o-mini",
        '{"a":1}',
    )
    assert (second["output_tokens"], second["cost_usd"]) == (7, "0.000004800")
    assert len(third["payload_bytes"]) == -(-MIB // 3) * 4
    cut_first, same, cut_third = _rows(short)
    assert (cut_first["payload"], cut_first["payload_truncated"]) == ("é" * (MIB // 2), True)
    assert same == {**second, "timestamp": same["timestamp"]}
    assert (len(cut_third["payload_bytes"]), cut_third["payload_truncated"]) == (MIB, True)


def test_long_text_with_a_lone_surrogate() -> None:
    """A text with a lone surrogate can be cut."""
    letter = DeadLetter("infer", "internal", "m", output="a\ud83d" * MIB, stacktrace="\ud83d" * MIB)
    held = encode_dead_letter(cut_payload(dead_letter_row(letter, RUN, _no_price))).values
    assert len(held["output"]) == len(held["stacktrace"]) == MIB


def test_a_dead_letter_that_a_table_rejects_is_shortened() -> None:
    """Long texts are cut and the message says why; a short letter is unchanged."""
    letter = DeadLetter(
        stage="infer",
        error_type="internal",
        error_message="m" * 5_000,
        retryable=False,
        record_id="1",
        payload="p" * 200_000,
        attributes={"a": "b"},
        stacktrace="s" * 5_000,
    )
    counts = (5, Counts())
    long = encode_dead_letter(dead_letter_row(letter, RUN, FREE), counts)

    short = shorten_dead_letter(long, Rejection("write_rejected", "too long"))

    row = short.values
    assert json.loads(short.line) == row
    assert short.context is counts
    assert (len(row["payload"]), row["payload_truncated"], row["attributes"]) == (100_000, True, [])
    assert row["error_message"] == "m" * 2_000 + " (row cut: too long)"
    assert (row["record_id"], row["stage"], len(row["stacktrace"])) == ("1", "infer", 4_000)
    assert shorten_dead_letter(short, Rejection("write_rejected", "again")) is short
