"""What travels: frozen, slotted, and dead letters that keep what is known."""

import ast
import dataclasses
import pickle
import sys
from pathlib import Path

import pytest

from transforms.records import errors, records
from transforms.records.records import (
    NO_USAGE,
    STAGES,
    Answer,
    Completion,
    DeadLetter,
    Record,
    Request,
    Usage,
)

TYPES = (Record, Request, Usage, Completion, Answer, DeadLetter)
RECORD = Record("7", {"text": "hello"}, {"key": "value"}, "gs://b/f.jsonl", 29_000_000)


@pytest.mark.parametrize("kind", TYPES)
def test_frozen_and_slotted(kind: type) -> None:
    """Nothing downstream can change a record, and none carries a dictionary of its own."""
    assert dataclasses.is_dataclass(kind)
    assert "__slots__" in vars(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(object.__new__(kind), dataclasses.fields(kind)[0].name, "8")


@pytest.mark.parametrize("module", [records, errors])
def test_imports_nothing_but_the_standard_library(module: object) -> None:
    """`records` and `errors` stand at the bottom: the contract lets them import nothing else."""
    path = getattr(module, "__file__", None)
    assert path is not None
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names | {"transforms"}


def test_stages() -> None:
    """The contract's five, in the order of the flow."""
    assert STAGES == ("read", "render", "infer", "validate", "write")


def test_exported_names() -> None:
    """What other modules may build on."""
    assert records.__all__ == [
        "NO_USAGE",
        "STAGES",
        "Answer",
        "Completion",
        "DeadLetter",
        "Json",
        "MissingField",
        "Record",
        "Request",
        "Stage",
        "Usage",
    ]


def test_defaults() -> None:
    """A record needs an id and fields, a completion nothing; defaults are not shared."""
    record = Record("1", {})
    assert record == Record("1", {}, {}, "", None)
    assert record.attributes is not Record("2", {}).attributes
    assert Completion() == Completion(
        None, None, None, None, NO_USAGE, None, None, None, 1, 0, from_ledger=False
    )
    assert Usage(None, None, None, None) == NO_USAGE


def test_dead_letter_of_a_classified_error() -> None:
    """Type, message and retryability from the error; identity and contents from the record."""
    letter = DeadLetter.of(
        errors.RateLimited("still 429"), stage="infer", record=RECORD, attempts=3
    )
    assert letter == DeadLetter(
        stage="infer",
        error_type="rate_limited",
        error_message="still 429",
        retryable=True,
        record_id="7",
        attempts=3,
        attributes={"key": "value"},
        read_minute=29_000_000,
        fields={"text": "hello"},
    )


def test_dead_letter_keeps_what_was_billed() -> None:
    """Output, tokens, finish reason and model version travel with the error."""
    usage = Usage(10, 2, 3, 4)
    error = errors.Truncated(
        "ended at a limit",
        finish_reason="MAX_TOKENS",
        output="half an ans",
        usage=usage,
        model_version="model-002",
    )
    letter = DeadLetter.of(error, stage="infer", record=RECORD)
    assert (letter.finish_reason, letter.output) == ("MAX_TOKENS", "half an ans")
    assert (letter.usage, letter.model_version) == (usage, "model-002")
    assert letter.retryable is False
    assert letter.stacktrace is None


def test_what_the_caller_knows_goes_first() -> None:
    """An explicit value beats the error's and the record's."""
    error = errors.Truncated("cut", output="of the error", finish_reason="LENGTH")
    letter = DeadLetter.of(
        error, stage="validate", record=RECORD, output="known", record_id="8", usage=Usage(1)
    )
    assert (letter.output, letter.record_id, letter.usage) == ("known", "8", Usage(1))
    assert letter.finish_reason == "LENGTH"


def test_dead_letter_without_a_record() -> None:
    """What could not be read has no id and no fields, but its raw line."""
    letter = DeadLetter.of(errors.ParseError("no JSON"), stage="read", payload="{oops")
    assert letter == DeadLetter("read", "parse_error", "no JSON", payload="{oops")
    assert (letter.record_id, letter.fields, letter.usage) == (None, None, NO_USAGE)


def test_dead_letter_of_the_unforeseen() -> None:
    """Anything but a `RecordError` is internal, not retryable, and keeps its stack trace."""

    def fails() -> None:
        raise ZeroDivisionError("by nothing")

    with pytest.raises(ZeroDivisionError) as caught:
        fails()
    letter = DeadLetter.of(caught.value, stage="render", record=RECORD)
    assert letter.error_type == "internal"
    assert letter.error_message == "ZeroDivisionError: by nothing"
    assert letter.retryable is False
    assert letter.stacktrace is not None
    assert letter.stacktrace.startswith("Traceback (most recent call last):")
    assert "in fails" in letter.stacktrace
    assert letter.stacktrace.endswith("ZeroDivisionError: by nothing\n")


@pytest.mark.parametrize("error", errors.RECORD_ERRORS)
def test_every_error_makes_a_dead_letter_of_its_type(error: type[errors.RecordError]) -> None:
    """No kind is lost or renamed on the way."""
    letter = DeadLetter.of(error("why"), stage="infer")
    assert (letter.error_type, letter.retryable) == (error.error_type, error.retryable)
    assert letter.error_message == "why"


def test_pickles_within_one_release() -> None:
    """Beam may still pickle a record inside a closure."""
    letter = DeadLetter.of(errors.Blocked("no"), stage="infer", record=RECORD)
    assert pickle.loads(pickle.dumps(letter)) == letter
