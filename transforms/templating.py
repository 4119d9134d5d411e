r"""Prompt templates: sandboxed Jinja2 in which a missing or NULL field is an error, never "None".

The record's fields are the template's variables, and all of them are also in ``record`` (for names
that are no identifiers: ``record['Order ID']``). A field that is absent or NULL raises
`MissingField` when it is printed or used; ``default()``, ``is defined`` and ``if`` (for NULL) see
that it is not there. Values print as JSON would write them only with ``| tojson``.

>>> PromptTemplate("Hello {{ name | default('you') }}").render({"name": None})
'Hello you'
>>> PromptTemplate("{{ title }}").render({"text": "…"})
Traceback (most recent call last):
  ...
transforms.errors.MissingField: field 'title' is missing
"""

from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.sandbox

from transforms import json_values
from transforms.errors import ConfigurationError, MissingField, RenderError, TooLarge

MAX_PROMPT_BYTES = 64 << 20
"""No model takes more; a template that multiplies its input stops here."""


class _Missing(jinja2.StrictUndefined):
    """An absent field: any use raises."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        return f"field {self._undefined_name!r} is missing"


class _Null(_Missing):
    """A field that is there and NULL: false in a condition, equal to none, an error when used."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        return f"field {self._undefined_name!r} is NULL"

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, _Null)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(None)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Attribute and item access yield `_Null` for NULL, so that it is caught where it is used."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, dict) and attribute in obj:  # a field called "items" is the field
            value = obj[attribute]
        else:
            value = super().getattr(obj, attribute)
        return _Null(name=attribute) if value is None else value

    def getitem(self, obj: Any, argument: Any) -> Any:
        value = super().getitem(obj, argument)
        return _Null(name=str(argument)) if value is None else value


def _finalize(value: Any) -> Any:
    if value is None:
        raise MissingField("the template prints a value that is NULL")
    return value


def _environment() -> _Environment:
    environment = _Environment(
        undefined=_Missing, finalize=_finalize, keep_trailing_newline=False, autoescape=False
    )
    environment.tests["none"] = lambda value: value is None or isinstance(value, _Null)
    environment.policies["json.dumps_function"] = _tojson
    environment.filters["tojson"] = _tojson
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    if isinstance(value, _Missing):
        str(value)  # raises
    text = json_values.dumps(value).decode("utf-8")
    if indent is None:
        return text
    import json

    return json.dumps(json.loads(text), indent=indent, ensure_ascii=False)


class PromptTemplate:
    """One compiled template. Not picklable: keep its source, and compile in ``setup``.

    Args:
      source: The template's text.
      name: What an error calls it: an option's name or a file's path.

    Raises:
      ConfigurationError: It does not compile; the message names the line.
    """

    def __init__(self, source: str, name: str = "--prompt") -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            lines = source.splitlines() or [""]
            line = lines[min(error.lineno, len(lines)) - 1].strip()
            raise ConfigurationError(
                f"{name} is not a valid template: line {error.lineno}: {error.message}: {line!r}"
            ) from None

    def render(self, fields: Mapping[str, Any]) -> str:
        """The text for one record.

        Raises:
          MissingField: It uses a field that is absent or NULL.
          RenderError: It fails in any other way.
          TooLarge: The text is beyond 64 MiB.
        """
        variables = dict(fields)
        for name, value in fields.items():
            if value is None:
                variables[name] = _Null(name=name)
        variables["record"] = fields
        try:
            text = self._template.render(variables)
        except MissingField:
            raise
        except jinja2.UndefinedError as error:
            raise MissingField(str(error)) from None
        except (MemoryError, RecursionError) as error:
            raise RenderError(f"the template failed: {type(error).__name__}") from None
        except Exception as error:  # a template may raise anything: it is the user's program
            raise RenderError(f"the template failed: {type(error).__name__}: {error}") from error
        if len(text) > MAX_PROMPT_BYTES:
            raise TooLarge(f"the rendered prompt has {len(text):,} characters (limit 64 MiB)")
        return json_values.clean_text(text)
