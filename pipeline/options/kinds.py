"""The kinds of values that flags have.

Every value is one string, because a template's parameter cannot be anything else: booleans are
``true`` or ``false``, lists are separated by commas, JSON is inline or in a file.
"""

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pipeline.options.flag import Form, Kind
from pipeline.options.messages import read_text, suggestion
from transforms.records.errors import ConfigurationError

T = TypeVar("T")

_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_ANY = "(.|[[:space:]])*"
_PROJECT = "([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"
_PUBSUB_NAME = "[A-Za-z][A-Za-z0-9._~%+-]{2,254}"
_OBJECT = "gs://[^/[:space:]]+/[^[:space:]].*"
_BOOLEAN = ("true", "false")

LIST_PATTERN = "^[^,]+(,[^,]+)*$"


# Text


def as_text(text: str, flag: str) -> str:  # noqa: ARG001 - every kind parses (text, flag)
    """The text, unchanged."""
    return text


def text_kind(metavar: str, param_type: str, pattern: str, example: str) -> Kind[str]:
    """A kind of text with its own form in the console; a run takes it unchanged."""
    return Kind(as_text, metavar, Form(param_type, pattern, example))


TEXT: Kind[str] = Kind(as_text)
SQL = text_kind("SQL", "TEXT", "", "SELECT id, text FROM `p.d.t`")
NAME = text_kind("NAME", "TEXT", "^[^[:space:]]+$", "key")
URI = text_kind("URI", "GCS_READ_FILE", f"^{_OBJECT}$", "gs://bucket/prompts/classify.jinja")
GLOB = text_kind("GLOB", "GCS_READ_FILE", f"^{_OBJECT}$", "gs://bucket/tickets/*.jsonl")
TABLE = text_kind(
    "PROJECT:DATASET.TABLE",
    "BIGQUERY_TABLE",
    "^([^[:space:]]+[:.])?[^[:space:]:.]+[.][^[:space:]:.]+$",
    "my-project:support.answers",
)
DATASET = text_kind(
    "PROJECT:DATASET", "TEXT", "^([^[:space:]]+[:.])?[^[:space:]:.]+$", "my-project:temporary"
)
TABLE_OR_GLOB = text_kind(
    "TABLE_OR_GLOB", "TEXT", "^[^[:space:]]+$", "my-project:support.answers_dead_letters"
)
SUBSCRIPTION = text_kind(
    "projects/P/subscriptions/S",
    "PUBSUB_SUBSCRIPTION",
    f"^projects/{_PROJECT}/subscriptions/{_PUBSUB_NAME}$",
    "projects/my-project/subscriptions/tickets",
)
TOPIC = text_kind(
    "projects/P/topics/T",
    "PUBSUB_TOPIC",
    f"^projects/{_PROJECT}/topics/{_PUBSUB_NAME}$",
    "projects/my-project/topics/tickets-failed",
)


# Choices


def one_of(choices: Any) -> Kind[Any]:
    """One of the values of a ``Literal``, or of a tuple of names."""
    names = tuple(map(str, choices if isinstance(choices, tuple) else get_args(choices)))

    def parse(text: str, flag: str) -> str:
        if text not in names:
            raise ConfigurationError(
                f"{flag} is {text!r}, but must be one of: {', '.join(names)}"
                f"{suggestion(text, names)}"
            )
        return text

    return Kind(parse, choices=names)


def one_of_field(owner: type, field: str) -> Kind[Any]:
    """One of the values that a dataclass's field can have: its annotation is a ``Literal``."""
    hint = get_type_hints(owner)[field]
    literal = [
        part for part in (hint, *get_args(hint)) if str(get_origin(part)).endswith("Literal")
    ]
    return one_of(literal[0])


def _boolean(text: str, flag: str) -> bool:
    return bool(one_of(_BOOLEAN).parse(text, flag) == "true")


def _boolean_text(value: bool | None) -> str:
    return "" if value is None else str(value).lower()


BOOLEAN: Kind[bool] = Kind(
    _boolean, form=Form("BOOLEAN", "^(true|false)$", "true"), choices=_BOOLEAN, text=_boolean_text
)


# Numbers


def _number_text(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _in_range(read: Callable[[str], Any], wanted: str, minimum: float) -> Callable[[str, str], Any]:
    def parse(text: str, flag: str) -> Any:
        try:
            number = read(text)
        except ValueError:
            raise ConfigurationError(f"{flag} is {text!r}, but must be {wanted}") from None
        if not minimum <= number < float("inf"):
            raise ConfigurationError(f"{flag} is {text}, but must be at least {minimum:g}")
        return number

    return parse


def decimal(metavar: str = "X", minimum: float = 0.0) -> Kind[float]:
    """A number of at least ``minimum``."""
    form = Form("NUMBER", "^[0-9]+([.][0-9]+)?$", "0.5")
    return Kind(_in_range(float, "a number", minimum), metavar, form, text=_number_text)


COUNT: Kind[int] = Kind(
    _in_range(int, "a whole number", 1), "N", Form("NUMBER", "^[0-9]+$", "100"), text=_number_text
)
"""A whole number of at least 1."""
DECIMAL = decimal()
SECONDS = decimal("S", 0.001)
WAIT_SECONDS = decimal("S")
"""Seconds, which may be 0."""
RATE: Kind[float] = Kind(
    _in_range(float, "a number", 0.001), "N", Form("NUMBER", "^[0-9]+$", "100"), text=_number_text
)
"""A number per minute."""


def _share(text: str, flag: str) -> float:
    share = DECIMAL.parse(text, flag)
    if share > 1:
        raise ConfigurationError(f"{flag} is {share:g}, but must be at most 1: 0.2 is one in five")
    return share


SHARE: Kind[float] = Kind(
    _share, "X", Form("NUMBER", "^(1|0([.][0-9]+)?)$", "0.2"), text=_number_text
)
"""A share of all, from 0 to 1."""


# Lists


def items(text: str) -> tuple[str, ...]:
    """A list, separated by commas; blank items are ignored."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _names(text: str, flag: str) -> tuple[str, ...]:  # noqa: ARG001 - every kind parses (text, flag)
    return items(text)


def list_text(value: tuple[str, ...] | None) -> str:
    """A list as a user writes it."""
    return ",".join(map(str, value or ()))


NAMES: Kind[tuple[str, ...]] = Kind(
    _names, "A,B", Form("TEXT", LIST_PATTERN, "subject,body"), text=list_text
)


def _labels(text: str, flag: str) -> dict[str, str]:
    found = {}
    for item in items(text):
        key, equals, value = item.partition("=")
        if not equals or not _LABEL.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ConfigurationError(
                f"{flag}: {item!r} is not a label: write key=value, in lower-case letters, digits, "
                "- and _ (63 at most)"
            )
        found[key] = value
    return found


LABELS: Kind[dict[str, str]] = Kind(
    _labels,
    "K=V,K=V",
    Form(
        "TEXT",
        "^[a-z][a-z0-9_-]*=[a-z0-9_-]*(,[a-z][a-z0-9_-]*=[a-z0-9_-]*)*$",
        "team=support,env=prod",
    ),
    text=lambda value: ",".join(f"{key}={label}" for key, label in (value or {}).items()),
)
"""Labels, as Google Cloud takes them."""


# JSON


def _json_object(text: str, flag: str) -> dict[str, Any]:
    content = text if text.startswith(("{", "[")) else read_text(text, flag)
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise ConfigurationError(f"{flag} is not JSON: {error}: {text[:80]!r}") from None
    if not isinstance(parsed, dict):
        raise ConfigurationError(f"{flag} must be a JSON object, not {text[:80]!r}")
    return parsed


def json_object(metavar: str, example: str) -> Kind[dict[str, Any]]:
    """A JSON object, inline or in a file."""
    form = Form("TEXT", f"^([{{]{_ANY}|{_OBJECT})$", example)
    return Kind(_json_object, metavar, form, text=lambda value: json.dumps(value) if value else "")


JSON_OBJECT = json_object("JSON", '{"top_p": 0.9}')
