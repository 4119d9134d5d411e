r"""Prompt templates: sandboxed Jinja2 in which a missing or NULL field is an error, never "None".

The record's fields are the template's variables, and ``record`` holds all of them (for names that
are not identifiers: ``record['Order ID']``). A field that is absent or NULL, at any depth, raises
`MissingField` when the template prints or uses it; ``default()``, ``is defined`` and ``if`` (for
NULL) recognise it. Only ``| tojson`` prints values as JSON, with ``null`` for a NULL inside an
object or a list.

>>> PromptTemplate("Hello {{ name | default('you') }}").render({"name": None})
'Hello you'
>>> PromptTemplate("{{ title }}").render({"text": "…"})
Traceback (most recent call last):
  ...
transforms.records.errors.MissingField: field 'title' is missing
"""

from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.sandbox
from jinja2 import nodes
from jinja2.runtime import TemplateReference

from transforms.records import json_values
from transforms.records.errors import ConfigurationError, MissingField, RenderError, TooLarge

MAX_PROMPT_CHARACTERS = 64 << 20
"""More than any model accepts; the limit stops a template that multiplies its input."""


class _Missing(jinja2.StrictUndefined):
    """An absent field: any use raises."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        return self._undefined_hint or f"field {self._undefined_name!r} is missing"

    def __repr__(self) -> str:
        return str(self)  # raises: printing a list prints its items' repr

    def _fails(self, *_: Any) -> Any:
        return str(self)

    __abs__ = __round__ = __index__ = __format__ = _fails


class _Null(_Missing):
    """A field that is NULL: false in a condition, equal to none, an error when used."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        return self._undefined_hint or f"field {self._undefined_name!r} is NULL"

    def __bool__(self) -> bool:  # type: ignore[override]
        return False

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return other is None or isinstance(other, _Null)

    def __ne__(self, other: object) -> bool:  # type: ignore[override]
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(str(self))  # raises


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Attribute and item access return `_Null` for NULL, so that its use raises."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, dict) and attribute in obj:  # a field called "items" is the field
            value = obj[attribute]
        else:
            value = super().getattr(obj, attribute)
        return _Null(name=attribute) if value is None else value

    def getitem(self, obj: Any, argument: Any) -> Any:
        value = super().getitem(obj, argument)
        return _Null(name=str(argument)) if value is None else value

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        value = super().call(context, function, *args, **kwargs)
        return _Null(hint="a function returned NULL") if value is None else value


def _with_nulls(value: Any, name: str) -> Any:
    """The value with `_Null` in place of every NULL."""
    if value is None:
        return _Null(name=name)
    if isinstance(value, dict):
        return {key: _with_nulls(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nulls(item, f"{name}[{at}]") for at, item in enumerate(value)]
    return value


def _without_nulls(value: Any) -> Any:
    """The inverse of `_with_nulls`."""
    if isinstance(value, _Null):
        return None
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nulls(item) for item in value]
    return value


def _finalize(value: Any) -> Any:
    if value is None:
        raise MissingField("the template prints a value that is NULL")
    if isinstance(value, TemplateReference):
        raise RenderError("'self' is Jinja's own name: write record['self'] for the field")
    if callable(value) and not isinstance(value, jinja2.Undefined):
        name = getattr(value, "__name__", type(value).__name__)
        raise MissingField(f"the template prints the function {name!r}, which is not a field")
    return value


def _environment() -> _Environment:
    environment = _Environment(
        undefined=_Missing, finalize=_finalize, keep_trailing_newline=False, autoescape=False
    )
    del (
        environment.filters["random"],
        environment.globals["lipsum"],
    )  # a retried bundle must render the same request
    environment.tests["none"] = lambda value: value is None or isinstance(value, _Null)
    environment.policies["json.dumps_function"] = _tojson
    environment.filters["tojson"] = _tojson
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    if isinstance(value, _Missing):
        str(value)  # raises
    text = json_values.dumps(_without_nulls(value)).decode("utf-8")
    if indent is None:
        return text
    import json

    return json.dumps(json.loads(text), indent=indent, ensure_ascii=False)


def _check_names(environment: _Environment, source: str) -> None:
    """Finds mistakes that Jinja finds only on execution, such as a wrong name inside an ``if``."""
    syntax = environment.parse(source)
    for kind, known in ((nodes.Filter, environment.filters), (nodes.Test, environment.tests)):
        for node in syntax.find_all(kind):
            if node.name not in known:
                raise jinja2.TemplateAssertionError(
                    f"No {kind.__name__.lower()} named {node.name!r}.", node.lineno
                )
    loads = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)
    for loading in syntax.find_all(loads):
        raise jinja2.TemplateAssertionError("a prompt cannot load another file", loading.lineno)


class PromptTemplate:
    """One compiled template. Not picklable: keep its source, and compile in ``setup``.

    Args:
      source: The template's text.
      name: Its name in error messages: an option's name or a file's path.

    Raises:
      ConfigurationError: The template does not compile; the message names the line.
    """

    def __init__(self, source: str, name: str = "`prompt`") -> None:
        environment = _environment()
        try:
            _check_names(environment, source)
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            lines = source.splitlines() or [""]
            line = lines[min(error.lineno, len(lines)) - 1].strip()
            raise ConfigurationError(
                f"{name} is not a valid template: line {error.lineno}: {(error.message or '').rstrip('.')}: {line!r}"
            ) from None

    def render(self, fields: Mapping[str, Any]) -> str:
        """The text for one record.

        Raises:
          MissingField: The template uses a field that is absent or NULL.
          RenderError: The template fails in another way.
          TooLarge: The text has more than 64 Mi characters.
        """
        try:
            record = {name: _with_nulls(value, name) for name, value in fields.items()}
            text = self._template.render({**record, "record": record})
        except (MissingField, RenderError):
            raise
        except jinja2.UndefinedError as error:
            raise MissingField(str(error)) from None
        except (MemoryError, RecursionError) as error:
            raise RenderError(f"the template failed: {type(error).__name__}") from None
        except Exception as error:  # a template is the user's program: it may raise anything
            raise RenderError(f"the template failed: {type(error).__name__}: {error}") from error
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise TooLarge(
                f"the rendered prompt has {len(text):,} characters (limit {MAX_PROMPT_CHARACTERS:,})"
            )
        return json_values.clean_text(text)
