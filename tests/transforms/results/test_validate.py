"""Validation: exactly one JSON value or a schema violation, in bounded work, with its tokens."""

import json
import logging
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.transforms import JSON_OBJECTS, JSON_VALUES, answer_of, pipeline
from transforms.records import json_values
from transforms.records.errors import (
    ConfigurationError,
    InvalidRequest,
    SchemaViolation,
    WriteRejected,
)
from transforms.records.records import Answer, Completion, DeadLetter, Record, Usage
from transforms.results import validate
from transforms.results.validate import (
    OutputCheck,
    ValidateOutputs,
    answered_dead_letter,
    check_schema,
    extract_json,
)

SCHEMA = {
    "type": "object",
    "properties": {
        "category": {"enum": ["billing", "other"]},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
    },
    "required": ["category"],
    "additionalProperties": False,
    "$defs": {
        "item": {
            "type": "object",
            "properties": {
                "price": {"type": "number"},
                "parts": {"items": {"$ref": "#/$defs/item"}},
            },
            "required": ["price"],
        }
    },
}
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
PIECES = st.sampled_from(
    ["{", "}", "[", "]", '"', ":", ",", "```", "```json\n", "\n", "a", "1", "NaN", "\\", " ", '"a"',
     '{"a": 1}', "[1, 2]", "é", "\ud83d", "null"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=25).map("".join) | st.text()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('  \n{"a": 1}\n ', {"a": 1}),
        ("[1, 2]", [1, 2]),
        ("{}", {}),
        ("[]", []),
        ("5", 5),
        ("-0.5", -0.5),
        ("true", True),
        ("null", None),
        ('"text"', "text"),
        ('"{not json}"', "{not json}"),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ('{"a": "\\ud83d"}', {"a": r"\ud83d"}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('```\n{"a": 1}\n```', {"a": 1}),
        ('```JSON {"a": 1}```', {"a": 1}),
        ('```{"a": 1}```', {"a": 1}),
        ("```json\n[1, 2]\n```", [1, 2]),
        ("```json\n5\n```", 5),
        ("```json\n\n\n  null\n\n```", None),
        ('Sure!\n```json\n{"a": 1}\n```\nAnything else?', {"a": 1}),
        ('See [1] and {x}:\n```json\n{"a": 1}\n```', {"a": 1}),
        ('```json\n{"a": 1}', {"a": 1}),
        ('{"a": 1}\n```', {"a": 1}),
        ('Here it is: {"a": 1}', {"a": 1}),
        ('{"a": 1} I hope this helps.', {"a": 1}),
        ('The answer is {"a": 1}, as you asked {really}.', {"a": 1}),
        ("It is [1, 2].", [1, 2]),
        ("It is [[1], {}].", [[1], {}]),
        ('{"a": "} ] {", "b": "[{"} ok', {"a": "} ] {", "b": "[{"}),
        ('x {"a": "\\"}", "b": {"c": [{}]}} y', {"a": '"}', "b": {"c": [{}]}}),
        ('{curly} [see] {{name}} [10 to 20] {"a": 1}', {"a": 1}),
        ('[[link]] {"a": 1}', {"a": 1}),
        ('"quoted" {"a": 1}', {"a": 1}),
        ('{"code": "```py\\nx\\n```", "n": 1}', {"code": "```py\nx\n```", "n": 1}),
        ('Sure: {"code": "a ``` b"}', {"code": "a ``` b"}),
        ('```json\n{"code": "```py\\nx\\n```"}\n```', {"code": "```py\nx\n```"}),
    ],
)
def test_extract_json(text: str, value: Any) -> None:
    """The JSON is the whole text, one fenced block, or the only object or array in it."""
    assert repr(extract_json(text)) == repr(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the answer holds no JSON"),
        ("   \n", "the answer holds no JSON"),
        ("I cannot help with that.", "the answer holds no JSON"),
        ("The answer is 5", "the answer holds no JSON"),
        ("{curly} [see] {", "the answer holds no JSON"),
        ('{"a": 1} {"a": 2}', "the answer holds 2 JSON values, not one"),
        ('{"a": 1}\n{"a": 1}', "the answer holds 2 JSON values, not one"),
        ('[1] {"a": 1} []', "the answer holds 3 JSON values, not one"),
        (
            '```json\n{"a": 1}\n```\n```json\n{"a": 2}\n```',
            "the answer holds 2 JSON values, not one",
        ),
        ("```json\n{'a': 1}\n```", "the fenced block is not JSON: "),
        ('```json\n{"a": 1}\n{"a": 2}\n```', "the fenced block is not JSON: "),
        ("```json\n```", "the fenced block is not JSON: "),
        ('```json\n{"a": NaN}\n```', "the fenced block is not JSON: NaN is not JSON"),
        ("NaN", "the answer holds no JSON"),
        ("-Infinity", "the answer holds no JSON"),
        ('{"a": NaN}', "the JSON at character 0 cannot be read: NaN is not JSON"),
        ('{"a": -Infinity, "b": {}}', "the JSON at character 0 cannot be read: -Infinity is not"),
        ("x [NaN]", "the JSON at character 2 cannot be read: NaN is not JSON"),
        ('{"items": [{"name": "x"}', "the JSON at character 0 breaks off: "),
        ('{"items": [{"name": "x"}, {"name": "y', "the JSON at character 0 breaks off: "),
        ('Sure: {"a": {"b": 1}, c}', "the JSON at character 6 breaks off: "),
        ('{"a": {"b": 1},}', "the JSON at character 0 breaks off: "),
        ('["a {"b": 1}]', "the JSON at character 0 breaks off: "),
        ('["unterminated {} ', "the JSON at character 0 breaks off: "),
        ("[[1, 2], [3, 4", "the JSON at character 0 breaks off: "),
        ('{"a": 1} and {"b": {"c": 1}', "the JSON at character 13 breaks off: "),
        ("[" + "1" * 5_000 + "]", "the JSON at character 0 cannot be read: "),
        ("{x" * 100, "the answer holds too many brackets to find its JSON"),
        ("{} " * 100, "the answer holds too many brackets to find its JSON"),
    ],
)
def test_extract_json_refuses(text: str, message: str) -> None:
    """No JSON, several values, or a broken one is a violation; a part is never the answer."""
    with pytest.raises(SchemaViolation) as caught:
        extract_json(text)
    assert str(caught.value).startswith(message)


@settings(deadline=None)
@given(TEXTS)
@example('{"a":' * 100_000)
@example("[" * 100_000 + "]" * 100_000)
@example("x " + "[" * 100_000 + "]" * 100_000)
@example("x " + "[" * 700 + "]" * 700)
@example("x " + '{"a":' * 450 + "1" + "}" * 450)
@example("```json\n" + "[" * 700 + "]" * 700 + "```")
@example("```" + "\n" * 1_000_000)
@example("```" + "a" * 1_000_000)
@example("```" + "a" * 500_000 + "\n" * 500_000)
@example("`" * 1_000_000)
@example("{" * 1_000_000)
@example('{"' * 500_000)
@example("{} " * 300_000)
@example("[1," * 300_000)
@example('"' * 1_000_000)
@example("1" * 1_000_000)
@example("x [" + "1" * 1_000_000)
def test_extract_json_is_total(text: str) -> None:
    """Any text gives a value that can be written or a violation, without quadratic work."""
    try:
        value = extract_json(text)
    except SchemaViolation:
        return
    assert repr(json_values.loads(json_values.dumps(value))) == repr(value)


@settings(deadline=None)
@given(JSON_VALUES)
def test_any_json_is_found(value: Any) -> None:
    """Any value is found alone or fenced, any object or array also in prose."""
    text = json_values.dumps(value).decode()
    assert repr(extract_json(text)) == repr(value)
    assert repr(extract_json(json.dumps(value, indent=2))) == repr(value)
    if "```" not in text:
        assert repr(extract_json(f"Sure!\n```json\n{text}\n```\nDone.")) == repr(value)
        if isinstance(value, (dict, list)):
            assert repr(extract_json(f"Sure: {text}. Done.")) == repr(value)


@settings(deadline=None)
@given(JSON_OBJECTS, st.data())
def test_a_broken_answer_is_never_partly_accepted(value: Any, data: st.DataObject) -> None:
    """No part of an object that ends early is taken for the answer."""
    text = json_values.dumps(value).decode()
    end = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(SchemaViolation):
        extract_json(text[:end])


def _checked(value: Any, schema: Any = None) -> Answer:
    return OutputCheck(SCHEMA if schema is None else schema)(answer_of(json.dumps(value)))


def test_output_json() -> None:
    """The JSON is compact with the model's order of keys; the rest of the answer is unchanged."""
    answer = answer_of('Sure: {"items": [{"price": 1.50}],\n "category": "billing"}')
    checked = OutputCheck(SCHEMA)(answer)
    assert checked.completion.output_json == '{"items":[{"price":1.5}],"category":"billing"}'
    assert checked.completion.output == answer.completion.output
    assert (checked.record, checked.fingerprint) == (answer.record, answer.fingerprint)
    assert answer.completion.output_json is None


def test_a_prediction_is_checked_too() -> None:
    """A backend's own JSON is checked, not its text."""
    check = OutputCheck({"type": "object"})
    answer = Answer(Record("1", {}), "f", Completion(output="no JSON", output_json='{ "a": 1 }'))
    assert check(answer).completion.output_json == '{"a":1}'
    with pytest.raises(SchemaViolation, match=r"^at \$: 5 is not of type 'object'$"):
        check(Answer(Record("1", {}), "f", Completion(output="{}", output_json="5")))


def test_no_output_at_all() -> None:
    """The message says that there is no JSON."""
    with pytest.raises(SchemaViolation, match=r"^the answer holds no JSON$"):
        OutputCheck({})(answer_of(None))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"category": "x"}, "at $.category: 'x' is not one of ['billing', 'other']"),
        ({}, "at $: 'category' is a required property"),
        ([], "at $: [] is not of type 'object'"),
        (
            {"category": "other", "items": [{"price": 1}, {"price": "x"}]},
            "at $.items[1].price: 'x' is not of type 'number'",
        ),
        (
            {"category": "other", "items": [{"price": 1, "parts": [{"price": 1, "parts": [{}]}]}]},
            "at $.items[0].parts[0].parts[0]: 'price' is a required property",
        ),
        (
            {"category": "other", "more": 1},
            "at $: Additional properties are not allowed ('more' was unexpected)",
        ),
    ],
)
def test_violations_name_the_path(value: Any, message: str) -> None:
    """The message says where and what is wrong, also through references."""
    with pytest.raises(SchemaViolation) as caught:
        _checked(value)
    assert str(caught.value) == message


def test_a_long_message_is_cut() -> None:
    """A long message, which repeats the value, is cut and ends with the failed keyword."""
    with pytest.raises(SchemaViolation) as caught:
        _checked({"category": "x" * 5_000})
    message = str(caught.value)
    assert message.startswith("at $.category: 'xxx")
    assert message.endswith("x… (enum)")
    assert len(message) < 350


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"$schema": DRAFT_7, "items": [{"type": "string"}]}, ["a", 1], [1]),
        ({"$schema": DRAFT_7, "definitions": {"n": {"type": "integer"}},
          "properties": {"a": {"$ref": "#/definitions/n"}}}, {"a": 1}, {"a": "x"}),
        ({"prefixItems": [{"type": "string"}]}, ["a", 1], [1]),
        ({"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"}, 1, "x"),
        ({"$defs": {"n": {"$anchor": "n", "type": "integer"}}, "$ref": "#n"}, 1, "x"),
        ({"type": "array", "items": {"$ref": "#"}}, [[], [[]]], [[1]]),
        ({"type": "integer"}, 10**30, 1.5),
        ({"type": "integer"}, 1.0, "1"),
        ({"const": None}, None, 0),
        ({}, {"anything": [1]}, ...),
    ],
)  # fmt: skip
def test_schemas(schema: Any, good: Any, bad: Any) -> None:
    """``$schema`` selects the draft, 2020-12 by default; references stay inside the document."""
    check_schema(schema)
    assert _checked(good, schema).completion.output_json == json_values.dumps(good).decode()
    if bad is not ...:
        with pytest.raises(SchemaViolation):
            _checked(bad, schema)


@pytest.mark.parametrize("depth", [150, 200, 201, 400, 5_000])
def test_deep_answers_to_a_recursive_schema(depth: int) -> None:
    """Deep answers to a recursive schema are valid or a violation, never an internal error."""
    check = OutputCheck({"type": "array", "items": {"$ref": "#"}})
    answer = answer_of("[" * depth + "]" * depth)
    try:
        text = check(answer).completion.output_json
    except SchemaViolation:
        return
    assert depth <= json_values.MAX_DEPTH
    assert text == "[" * depth + "]" * depth


@pytest.mark.parametrize("schema", [None, True, "object", [], 5])
def test_a_schema_that_is_not_an_object(schema: Any) -> None:
    """A schema that is not an object is rejected before launch with the option's name."""
    with pytest.raises(ConfigurationError, match=r"^`output_schema` is not a JSON object$"):
        check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "strnig"}, r"\$\.type"),
        ({"properties": {"a": {"minimum": "1"}}}, r"\$\.properties\.a\.minimum"),
        ({"required": "a"}, r"\$\.required"),
        ({"pattern": "["}, r"\$\.pattern"),
        ({"$schema": DRAFT_7, "definitions": []}, r"\$\.definitions"),
    ],
)
def test_an_invalid_schema(schema: Any, path: str) -> None:
    """The transform's constructor rejects an invalid schema and says where it is wrong."""
    with pytest.raises(ConfigurationError, match=rf"^s\.json is not a JSON Schema: at {path}: "):
        check_schema(schema, "s.json")
    with pytest.raises(ConfigurationError, match=r"^`output_schema` is not a JSON Schema"):
        ValidateOutputs(schema=schema)


def _full(output: str | None, output_json: str | None = None) -> Answer:
    return Answer(
        Record("7", {"text": "hi"}, {"k": "v"}, "file", 29_000_000),
        "ab" * 32,
        Completion(
            output=output,
            output_json=output_json,
            finish_reason="STOP",
            usage=Usage(1, 2, 3, 4),
            model_version="m-001",
            service_tier="ON_DEMAND",
            latency_ms=250,
            attempts=3,
            throttled_ms=40,
        ),
    )


def _letter(message: str, output: str | None, stage: Any = "validate") -> DeadLetter:
    return DeadLetter(
        stage=stage,
        error_type="schema_violation",
        error_message=message,
        record_id="7",
        attempts=3,
        throttled_ms=40,
        fingerprint="ab" * 32,
        finish_reason="STOP",
        output=output,
        usage=Usage(1, 2, 3, 4),
        model_version="m-001",
        service_tier="ON_DEMAND",
        attributes={"k": "v"},
        read_minute=29_000_000,
        fields={"text": "hi"},
    )


def test_answered_dead_letter() -> None:
    """The dead letter keeps text or prediction, tokens, calls, waiting time and model."""
    error = SchemaViolation("why")
    assert answered_dead_letter(error, "validate", _full("text")) == _letter("why", "text")
    assert answered_dead_letter(error, "validate", _full("", "{}")) == _letter("why", "")
    assert answered_dead_letter(error, "validate", _full(None, "{}")) == _letter("why", "{}")
    written = answered_dead_letter(WriteRejected("why"), "write", _full("text"))
    assert (written.stage, written.error_type) == ("write", "write_rejected")


def test_transform() -> None:
    """Each answer ends once, with its JSON or as a dead letter with its text and tokens."""
    good = _full('```json\n{"category": "other"}\n```')
    bad = _full('{"category": "x"}')
    none = _full("Sorry.")
    with pipeline() as root:
        valid, invalid = root | beam.Create([good, bad, none]) | ValidateOutputs(schema=SCHEMA)
        assert valid.element_type is Answer
        assert invalid.element_type is DeadLetter
        expected = _full(good.completion.output, '{"category":"other"}')
        assert_that(valid, equal_to([expected]))
        letters = [
            _letter("at $.category: 'x' is not one of ['billing', 'other']", '{"category": "x"}'),
            _letter("the answer holds no JSON", "Sorry."),
        ]
        assert_that(invalid, equal_to(letters), label="invalid")


def _boom(text: str) -> Any:
    raise InvalidRequest(text) if text == "known" else KeyError(text)


def test_an_unexpected_error_is_internal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected error fails its record, keeps the paid answer, and has a stacktrace."""
    monkeypatch.setattr(validate, "extract_json", _boom)
    with caplog.at_level(logging.CRITICAL), pipeline() as root:
        valid, invalid = root | beam.Create([_full("secret")]) | ValidateOutputs(schema=SCHEMA)
        assert_that(valid, equal_to([]))
        kept = invalid | beam.Map(
            lambda d: (d.error_type, d.output, d.usage, d.attempts, "_boom" in d.stacktrace)
        )
        expected = [("internal", "secret", Usage(1, 2, 3, 4), 3, True)]
        assert_that(kept, equal_to(expected), label="invalid")
