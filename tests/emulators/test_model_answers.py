"""Answers of the simulated model server, without a server: schemas, labels, vectors, markers.

This does not prove anything about a model; no real endpoint was called.
"""

import math
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from tests.emulators.model_calls import SCHEMA, TICKET
from tests.emulators.model_server import answers, faults, keywords, schemas


def test_the_marker_lists_do_not_overlap() -> None:
    """Every documented marker is either hard or soft."""
    assert not faults.HARD & faults.SOFT
    assert faults.FaultBook().plan("[[latency:250]]").latency_s == 0.25
    assert faults.FaultBook().plan("see [[wiki]]").fault is None


@pytest.mark.parametrize(
    ("text", "category", "priority"),
    [
        (TICKET, "billing", "urgent"),
        ("Where is my parcel? The tracking page shows nothing.", "shipping", "normal"),
        ("The app shows an error and then crashes.", "technical", "high"),
        ("I forgot my password and cannot sign in.", "account", "high"),
        ("Do you have an office in Lyon?", "other", "normal"),
        (
            "Choose billing, shipping, technical, account or other.\n\nTicket: my package is late",
            "shipping",
            "normal",
        ),
    ],
)
def test_keywords_choose_plausible_labels(text: str, category: str, priority: str) -> None:
    """The chosen label is plausible, also if the instruction names every label."""
    subject = schemas.subject(text)
    labels = ["billing", "shipping", "technical", "account", "other"]
    assert keywords.choose(labels, subject) == category
    assert keywords.choose(["low", "normal", "high", "urgent"], subject) == priority


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA,
        {"type": "array", "items": {"type": "integer", "minimum": 5, "maximum": 6}, "minItems": 4},
        {"anyOf": [{"type": "null"}, {"const": 7}]},
        {"allOf": [{"properties": {"a": {"type": "string"}}}, {"required": ["a"]}]},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.001},
        {"type": "integer", "multipleOf": 7, "minimum": 8, "maximum": 20},
        {"type": "string", "minLength": 200},
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "boolean"}]},
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 2, "uniqueItems": True},
        {
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string"},
                        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                    },
                    "required": ["name"],
                }
            },
            "$ref": "#/$defs/node",
        },
    ],
)
def test_filled_values_satisfy_their_schema(schema: dict[str, Any]) -> None:
    """Values satisfy the schema as jsonschema reads it, and are equal for equal texts."""
    value = schemas.fill(schema, TICKET)
    jsonschema.validate(value, schema)
    assert value == schemas.fill(schema, TICKET)


def test_unit_vectors() -> None:
    """Vectors have length 1 and the requested size, and differ between texts."""
    vector = answers.unit_vector("a", 768)
    assert len(vector) == 768
    assert math.isclose(math.hypot(*vector), 1.0)
    assert vector != answers.unit_vector("b", 768)
