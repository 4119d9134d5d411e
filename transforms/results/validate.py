r"""Validation: the model's text as JSON, checked against a JSON Schema.

`extract_json` finds the JSON if there is exactly one value, in fences or in prose; anything else is
a ``schema_violation``. The ``jsonschema`` library checks it by the draft that the schema's
``$schema`` names (else 2020-12).

>>> extract_json('Sure! ```json\n{"category": "billing"}\n``` Anything else?')
{'category': 'billing'}
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import apache_beam as beam
import jsonschema
import referencing
import referencing.exceptions
from apache_beam.pvalue import TaggedOutput
from referencing.jsonschema import DRAFT202012

from transforms.records import json_values
from transforms.records.errors import ConfigurationError, SchemaViolation
from transforms.records.records import Answer, DeadLetter, Json

_FENCE = "```"
_LANGUAGE = re.compile(r"[A-Za-z0-9_-]*")
_MAX_CANDIDATES = 64


def check_schema(schema: Any, name: str = "`output_schema`") -> None:
    """Raises `ConfigurationError` if a document is not a JSON Schema."""
    if not isinstance(schema, dict):
        raise ConfigurationError(f"{name} is not a JSON object")
    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ConfigurationError(
            f"{name} is not a JSON Schema: at {error.json_path}: {error.message}"
        ) from None
    root = _NOTHING_REMOTE.resolver_with_root(
        referencing.Resource.from_contents(schema, default_specification=DRAFT202012)
    )
    for reference in _references(schema):
        try:
            root.lookup(reference)
        except referencing.exceptions.Unresolvable:
            raise ConfigurationError(
                f"{name} refers to {reference!r}, which it does not contain: move that schema into "
                "$defs; a run fetches no schemas"
            ) from None


_NOTHING_REMOTE: "referencing.Registry[Any]" = referencing.Registry()


def _references(schema: Json) -> Iterator[str]:
    """All ``$ref`` of a schema."""
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def extract_json(text: str) -> Json:
    """The one JSON value of an answer: the whole text, one fenced block, or one object or array.

    Raises:
      SchemaViolation: There is no value, or more than one.
    """
    try:
        return _strict(text.strip())
    except ValueError:
        pass
    blocks = text.split(_FENCE)[1:-1:2]
    if len(blocks) == 1:
        try:
            return _strict(_LANGUAGE.sub("", blocks[0], count=1).strip())
        except ValueError as error:
            raise SchemaViolation(f"the fenced block is not JSON: {error}") from None
    values = _embedded(text)
    if len(values) > 1:
        raise SchemaViolation(f"the answer holds {len(values)} JSON values, not one")
    if not values:
        raise SchemaViolation("the answer holds no JSON")
    return values[0]


def _strict(text: str) -> Json:
    """Parses strict JSON, without NaN."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json_values.check_depth(value)
        return json_values.to_json_value(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _embedded(text: str) -> list[Json]:
    """The outermost objects and arrays in a text.

    A bracket without JSON after it is prose; JSON that breaks off is an error, because a part of it
    is not the answer.
    """
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    values: list[Json] = []
    position = 0
    for _ in range(_MAX_CANDIDATES):
        starts = [at for at in (text.find("{", position), text.find("[", position)) if at >= 0]
        if not starts:
            return values
        start = min(starts)
        try:
            value, position = decoder.raw_decode(text, start)
            json_values.check_depth(value)
        except json.JSONDecodeError as error:
            position = error.pos
            if any(mark in text[start:position] for mark in '"]}') or text[position:][:1] == '"':
                raise SchemaViolation(
                    f"the JSON at character {start} breaks off: {error.msg}"
                ) from None
        except (ValueError, RecursionError) as error:
            raise SchemaViolation(
                f"the JSON at character {start} cannot be read: {error}"
            ) from None
        else:
            values.append(json_values.to_json_value(value))
    raise SchemaViolation("the answer holds too many brackets to find its JSON")


class OutputCheck:
    """A compiled schema; a call returns the answer with ``output_json``. Not picklable."""

    def __init__(self, schema: Mapping[str, Json]) -> None:
        kind = jsonschema.validators.validator_for(schema)
        self._validator = kind(schema, registry=_NOTHING_REMOTE)

    def __call__(self, answer: Answer) -> Answer:
        """The answer with its JSON, compact, in ``output_json``.

        Raises:
          SchemaViolation: No unambiguous JSON, or against the schema; the message says where.
        """
        completion = answer.completion
        if completion.output_json is not None:
            value = json_values.loads(completion.output_json)
        else:
            value = extract_json(completion.output or "")
        try:
            error = jsonschema.exceptions.best_match(self._validator.iter_errors(value))
        except RecursionError:
            raise SchemaViolation("the answer is nested too deeply for the schema") from None
        if error is not None:
            raise SchemaViolation(f"at {error.json_path}: {_brief(error)}")
        text = json_values.dumps(value).decode("utf-8")
        return dataclasses.replace(
            answer, completion=dataclasses.replace(completion, output_json=text)
        )


def _brief(error: jsonschema.ValidationError) -> str:
    message = error.message
    return message if len(message) <= 300 else f"{message[:300]}… ({error.validator})"


class _ValidateDoFn(beam.DoFn):
    def __init__(self, schema: Mapping[str, Json]) -> None:
        self._schema = schema

    def setup(self) -> None:
        self._check = OutputCheck(self._schema)

    def process(
        self, answer: Answer
    ) -> Iterator[Answer | TaggedOutput[Literal["invalid"], DeadLetter]]:
        try:
            valid = self._check(answer)
        except Exception as error:  # an unforeseen error is this record's `internal`
            yield TaggedOutput("invalid", answered_dead_letter(error, "validate", answer))
        else:
            yield valid


def answered_dead_letter(
    error: Exception, stage: Literal["validate", "write"], answer: Answer
) -> DeadLetter:
    """The dead letter of a record with an answer: it keeps the text, tokens and calls paid for."""
    completion = answer.completion
    output = completion.output if completion.output is not None else completion.output_json
    return DeadLetter.of(
        error,
        stage=stage,
        record=answer.record,
        fingerprint=answer.fingerprint,
        attempts=completion.attempts,
        throttled_ms=completion.throttled_ms,
        finish_reason=completion.finish_reason,
        output=output,
        usage=completion.usage,
        model_version=completion.model_version,
        service_tier=completion.service_tier,
    )


@dataclasses.dataclass(kw_only=True, eq=False)
class ValidateOutputs(beam.PTransform):
    """Checks each answer against a JSON Schema; bounded and unbounded, stateless.

    Args:
      schema: The JSON Schema; checked when the transform is constructed.

    Returns:
      ``(valid, invalid)``: PCollections of `Answer` with ``output_json``, and of `DeadLetter`
      (stage ``validate``) that keep the text, the tokens and the finish reason.
    """

    schema: Mapping[str, Json]

    def __post_init__(self) -> None:
        super().__init__()
        check_schema(self.schema)

    def expand(
        self, answers: beam.PCollection[Answer]
    ) -> tuple[beam.PCollection[Answer], beam.PCollection[DeadLetter]]:
        checked = answers | "Validate" >> beam.ParDo(_ValidateDoFn(self.schema)).with_outputs(
            "invalid", main="valid"
        )
        return checked.valid, checked.invalid
