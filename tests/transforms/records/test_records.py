"""Records and results between stages: frozen, slotted, and complete in dead letters."""

import ast
import dataclasses
import hashlib
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from transforms.records import errors, records
from transforms.records.records import (
    NO_USAGE,
    STAGES,
    Answer,
    Completion,
    DeadLetter,
    Params,
    Record,
    Request,
    Usage,
)

TYPES = (Record, Request, Usage, Completion, Answer, DeadLetter)
RECORD = Record("7", {"text": "hello"}, {"key": "value"}, "gs://b/f.jsonl", 29_000_000)


@pytest.mark.parametrize("kind", TYPES)
def test_frozen_and_slotted(kind: type) -> None:
    """No later stage can change a record, and none has a dictionary of its own."""
    assert dataclasses.is_dataclass(kind)
    assert "__slots__" in vars(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(object.__new__(kind), dataclasses.fields(kind)[0].name, "8")


@pytest.mark.parametrize("module", [records, errors])
def test_imports_nothing_but_the_standard_library(module: object) -> None:
    """`records` and `errors` import only the standard library, as the contract requires."""
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
    """The stages are the contract's five, in the order of the flow."""
    assert STAGES == ("read", "render", "infer", "validate", "write")


def test_exported_names() -> None:
    """Other modules may use these names."""
    assert records.__all__ == [
        "NO_USAGE",
        "STAGES",
        "Answer",
        "Completion",
        "DeadLetter",
        "Json",
        "MissingField",
        "Params",
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


PARAMS = {"generation_config": {"temperature": 0}, "output_schema": {"type": "object"}}
KEY = "b6a2097be35f"


def _request(params: Params | dict[str, Any]) -> Request:
    return Request(RECORD, {"text": "a"}, params, "f", 1)


def test_params_are_a_mapping() -> None:
    """Params are read like a dictionary, and changes to the source dictionary do not reach them."""
    values: dict[str, Any] = dict(PARAMS)
    params = Params(values)
    values["seed"] = 1
    assert dict(params) == PARAMS
    assert params == PARAMS
    assert params == PARAMS
    assert (params.get("output_schema"), params.get("seed")) == ({"type": "object"}, None)
    assert repr(params) == f"Params({PARAMS})"
    assert Params.of(params) is params
    assert Params.of(PARAMS) == params
    assert not Params()


def test_the_key_of_params() -> None:
    """The key of params is the same in every process and order; empty params need none."""
    reordered = dict(reversed(PARAMS.items()))
    assert Params(PARAMS).key == Params(reordered).key == Params.key_of(PARAMS) == KEY
    assert hash(Params(PARAMS)) == hash(Params(reordered))
    assert Params().key == Params({}).key == Params.key_of({}) == ""
    assert Params({"a": 1}) != Params({"a": 2})
    assert Params({"a": 1}) != "a"


def test_sealed_params_cannot_be_read() -> None:
    """Sealed params raise an error with the remedy instead of seeming empty."""
    sealed = Params.from_key(KEY)
    assert sealed.is_sealed
    assert sealed == Params(PARAMS)
    assert sealed == PARAMS
    assert repr(sealed) == f"Params(sealed, key='{KEY}')"
    for read in (dict, len, bool, lambda params: params.get("seed")):
        with pytest.raises(
            errors.RunError,
            match=rf"^the params with key {KEY} are sealed: .*; read them after Params\.restore, "
            r"which Infer\(params=spec\.params\) and InferenceHandler call$",
        ):
            read(sealed)
    assert Params.from_key("") == {}
    assert not Params.from_key("").is_sealed


@pytest.mark.parametrize("params", [Params(PARAMS), Params.from_key(KEY), Params()])
def test_params_survive_a_pickle(params: Params) -> None:
    """Params survive a pickle sealed or not, as parts of steps and of requests."""
    again = pickle.loads(pickle.dumps(params))
    assert again == params
    assert again.is_sealed is params.is_sealed
    assert repr(again) == repr(params)


def test_restore() -> None:
    """Sealed params are replaced; requests that hold the values stay the same objects."""
    params = Params(PARAMS)
    sealed, known, plain = [
        _request(held) for held in (Params.from_key(KEY), Params(PARAMS), dict(PARAMS))
    ]
    restored = params.restore([sealed, known, plain])
    assert restored[0] == sealed
    assert restored[0].params is params
    assert restored[1] is known
    assert restored[2] is plain
    empty = [_request({}), _request(Params())]
    assert Params().restore(empty) == empty


@pytest.mark.parametrize(
    ("rendered", "given", "message"),
    [
        (Params.from_key(KEY), {}, f"params {KEY}, but would be sent with empty params"),
        (PARAMS, {}, f"params {KEY}, but would be sent with empty params"),
        ({}, PARAMS, f"empty params, but would be sent with params {KEY}"),
        (
            Params({"seed": 1}),
            PARAMS,
            f"params fbe47f6d82b4, but would be sent with params {KEY}",
        ),
    ],
)
def test_restore_checks_every_request(rendered: Any, given: Any, message: str) -> None:
    """A mismatch shows at the first record, also for requests that were never encoded."""
    with pytest.raises(
        errors.RunError,
        match=rf"^request '7' was rendered with {message}: RenderRequests and Infer "
        r"\(or InferenceHandler\) have different params; pass the same to both, such as "
        r"Infer\(params=spec\.params\) with the spec of RenderRequests; if an update of a streaming "
        r"job changed them, set allow_earlier_params$",
    ):
        Params(given).restore([_request(rendered)])


@pytest.mark.parametrize("rendered", [Params.from_key(KEY), Params(PARAMS), Params()])
def test_requests_of_an_earlier_job_get_the_new_params(rendered: Params) -> None:
    """An earlier job's requests get the new params and fingerprint: the call is new."""
    params = Params({"seed": 1})
    (restored,) = params.restore([_request(rendered)], allow_earlier=True)
    digest = hashlib.sha256(b"f fbe47f6d82b4").hexdigest()
    assert restored == Request(RECORD, {"text": "a"}, params, digest, 1)
    assert dict(restored.params) == {"seed": 1}
    same = _request(params)
    assert params.restore([same], allow_earlier=True)[0] is same


def test_dead_letter_of_a_classified_error() -> None:
    """Type, message and retryability come from the error, identity and contents from the record."""
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


def test_dead_letter_keeps_the_billed_answer() -> None:
    """Output, tokens, finish reason and model version are kept with the error."""
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


def test_explicit_values_take_precedence() -> None:
    """An explicit value precedes the error's and the record's."""
    error = errors.Truncated("cut", output="of the error", finish_reason="LENGTH")
    letter = DeadLetter.of(
        error, stage="validate", record=RECORD, output="known", record_id="8", usage=Usage(1)
    )
    assert (letter.output, letter.record_id, letter.usage) == ("known", "8", Usage(1))
    assert letter.finish_reason == "LENGTH"


def test_dead_letter_without_a_record() -> None:
    """An unreadable record's dead letter has no id and no fields, but the raw line."""
    letter = DeadLetter.of(errors.ParseError("no JSON"), stage="read", payload="{oops")
    assert letter == DeadLetter("read", "parse_error", "no JSON", payload="{oops")
    assert (letter.record_id, letter.fields, letter.usage) == (None, None, NO_USAGE)


def test_dead_letter_of_an_unexpected_error() -> None:
    """Any error but a `RecordError` is internal, not retryable, and keeps its stack trace."""

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
    """Every kind of error makes a dead letter of its own type."""
    letter = DeadLetter.of(error("why"), stage="infer")
    assert (letter.error_type, letter.retryable) == (error.error_type, error.retryable)
    assert letter.error_message == "why"


def test_pickles_within_one_release() -> None:
    """A record can be pickled within one release, as Beam may do inside a closure."""
    letter = DeadLetter.of(errors.Blocked("no"), stage="infer", record=RECORD)
    assert pickle.loads(pickle.dumps(letter)) == letter
