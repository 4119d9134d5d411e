"""JSON rows against a table's schema: values that fit are converted, others are an error.

The emulator's own conversion lets unknown fields, missing REQUIRED fields and most wrong
types pass. ``insertAll`` and JSON loads both go through ``convert_row``; they differ in how a
JSON column is written (text in the one, any value in the other).
"""

import base64
import json
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Protocol


class Field(Protocol):
    """A column as the emulator's catalog describes it."""

    name: str
    type: str
    mode: str
    fields: Sequence["Field"]


class InvalidRowError(ValueError):
    """A row does not fit its table.

    Attributes:
        location: the field, with its parents; empty when a REQUIRED field is missing.
    """

    def __init__(self, location: str, message: str) -> None:
        """Keeps the location with the message."""
        super().__init__(message)
        self.location = location


def convert_row(
    fields: Sequence[Field],
    row: dict[str, Any],
    *,
    ignore_unknown: bool,
    json_as_text: bool,
    parents: str = "",
) -> dict[str, Any]:
    """Returns the row with Python values, under the schema's spelling of the names.

    Args:
        fields: the table's columns, or a RECORD's.
        row: the row as parsed JSON; names match whatever their case.
        ignore_unknown: drop fields that the schema lacks instead of failing.
        json_as_text: JSON columns hold JSON text (``insertAll``), not values (load jobs).
        parents: dotted path of the enclosing RECORD, with a final dot.

    Raises:
        InvalidRowError: at the first value that does not fit.
    """
    known = {field.name.lower() for field in fields}
    for name in row:
        if name.lower() not in known and not ignore_unknown:
            raise InvalidRowError(parents + name, f"no such field: {parents}{name}.")
    by_name = {name.lower(): value for name, value in row.items()}
    options = {"ignore_unknown": ignore_unknown, "json_as_text": json_as_text}
    return {
        field.name: _field_value(field, by_name.get(field.name.lower()), parents, options)
        for field in fields
    }


def _field_value(field: Field, value: Any, parents: str, options: dict[str, bool]) -> Any:
    location, mode = parents + field.name, field.mode.upper()
    if mode == "REPEATED":
        if value is None:
            return []
        if not isinstance(value, list):
            raise InvalidRowError(location, f"Repeated field must be an array: {location}.")
        if None in value:
            raise InvalidRowError(location, f"Only optional fields can be NULL: {location}.")
        return [_single_value(field, item, location, options) for item in value]
    if value is None:
        if mode == "REQUIRED":
            raise InvalidRowError("", f"Missing required field: {location}.")
        return None
    if isinstance(value, list) and (field.type.upper() != "JSON" or options["json_as_text"]):
        raise InvalidRowError(location, f"Array specified for non-repeated field: {location}.")
    return _single_value(field, value, location, options)


def _single_value(field: Field, value: Any, location: str, options: dict[str, bool]) -> Any:
    kind = field.type.upper()
    if kind in ("RECORD", "STRUCT"):
        if not isinstance(value, dict):
            raise InvalidRowError(location, f"Cannot convert value to record: {location}.")
        return convert_row(field.fields, value, parents=f"{location}.", **options)
    if kind == "JSON" and not options["json_as_text"]:
        return json.dumps(value)
    if isinstance(value, dict | list):
        raise InvalidRowError(location, f"This field: {location} is not a record.")
    convert = _CONVERT.get(kind)
    if convert is None:
        return value
    try:
        return convert(value)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        message = f"Cannot convert value to {kind.lower()} (bad value): {value}"
        raise InvalidRowError(location, message) from error


def _string(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("not an integer")
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError("out of range")
    return number


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("not a number")
    return float(value)


def _decimal(places: int) -> Callable[[Any], Decimal]:
    def convert(value: Any) -> Decimal:
        if isinstance(value, bool):
            raise TypeError("not a number")
        number = Decimal(str(value))
        exponent = number.as_tuple().exponent
        if not isinstance(exponent, int) or -exponent > places:
            raise ValueError(f"not finite or more than {places} decimal places")
        return number

    return convert


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}[str(value).lower()]


def _bytes(value: Any) -> bytes:
    return base64.b64decode(value, validate=True)


def _json_text(value: Any) -> str:
    json.loads(value)
    return value  # type: ignore[no-any-return]


def _timestamp(value: Any) -> datetime:
    if isinstance(value, bool):
        raise TypeError("not a timestamp")
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    parsed = datetime.fromisoformat(value.removesuffix("UTC").strip())
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed


def _datetime(value: Any) -> datetime:
    parsed = datetime.fromisoformat(value)
    if parsed.tzinfo is not None:
        raise ValueError("a DATETIME has no time zone")
    return parsed


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "STRING": _string,
    "INTEGER": _integer,
    "INT64": _integer,
    "FLOAT": _number,
    "FLOAT64": _number,
    "NUMERIC": _decimal(9),
    "BIGNUMERIC": _decimal(38),
    "BOOLEAN": _boolean,
    "BOOL": _boolean,
    "BYTES": _bytes,
    "JSON": _json_text,
    "TIMESTAMP": _timestamp,
    "DATETIME": _datetime,
    "DATE": date.fromisoformat,
    "TIME": time.fromisoformat,
}
