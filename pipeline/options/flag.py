"""One flag, defined once: how it is parsed, its default, its help, and its place in a template.

A flag that configures a field of a dataclass names that dataclass (``of``) and takes its default
from there, so that each default is defined once. The command line, ``--help``,
``docs/parameters.md`` and the templates' forms are all made from the same `Flag`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pipeline.options.mode import Mode

T_co = TypeVar("T_co", covariant=True)

BOTH = (Mode.BATCH, Mode.STREAMING)
BATCH_ONLY = (Mode.BATCH,)
STREAMING_ONLY = (Mode.STREAMING,)


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """How a template's console form asks for a value.

    Attributes:
      param_type: A name of the API's ``ParameterType``.
      pattern: The pattern that every value must match: a POSIX extended regular expression,
        anchored at both ends; ``''`` for anything.
      example: A value that matches it.
    """

    param_type: str = "TEXT"
    pattern: str = ""
    example: str = ""


def _text(value: Any) -> str:
    return "" if value is None else str(value)


@dataclasses.dataclass(frozen=True, slots=True)
class Kind(Generic[T_co]):
    """A kind of value: how to parse it, and how the console asks for it.

    Attributes:
      parse: Parses ``(text, flag)``; the text is never empty, the flag is for messages. Raises
        `ConfigurationError` with the value and the remedy.
      metavar: The placeholder for the value in the help.
      form: Its form in the console.
      choices: The valid values, if there is a list of them.
      text: Writes a value as a user would: a default, in the help.
    """

    parse: Callable[[str, str], T_co]
    metavar: str = "TEXT"
    form: Form = Form()
    choices: tuple[str, ...] = ()
    text: Callable[[Any], str] = _text


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A flag's place in the templates' forms, and when it is shown.

    Attributes:
      templates: The templates that have it; () for none.
      required: The templates that require it.
      parent: The parameter it belongs to; it is shown only when that one has a value.
      triggers: The parent's values with which it is shown; if empty, any value but the empty one.
      label: Its name in the form, if the flag's own does not make a good one.
      gpu: Whether only templates whose workers have GPUs have it.
    """

    templates: tuple[Mode, ...] = BOTH
    required: tuple[Mode, ...] = ()
    parent: str = ""
    triggers: tuple[str, ...] = ()
    label: str = ""
    gpu: bool = False


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Flag(Generic[T_co]):
    """One flag: ``--name`` on the command line, ``name`` as a template's parameter.

    Annotate it with the type of its value: ``Flag[int]`` where there is a default, else
    ``Flag[int | None]``. Flags compare by identity.

    Attributes:
      name: In snake case.
      group: Its heading in the help.
      help: Its effect, in a sentence or two.
      kind: The kind of its values.
      of: The dataclass whose field it configures, if there is one.
      field: That field's name; by default the flag's own.
      default: The value when the flag is not set: the field's default if there is one, else the
        value set here; None for none.
      place: Its place in the templates' forms.

    Raises:
      TypeError: ``of`` has no such field, or a default is set although the field has one.
    """

    name: str
    group: str
    help: str
    kind: Kind[T_co]
    _: dataclasses.KW_ONLY
    of: type | None = None
    field: str = ""
    default: Any = None
    place: Place = Place()

    def __post_init__(self) -> None:
        if not self.field:
            object.__setattr__(self, "field", self.name)
        if self.of is None:
            return
        fields = {field.name: field for field in dataclasses.fields(self.of)}
        if self.field not in fields:
            raise TypeError(f"--{self.name}: {self.of.__name__} has no field {self.field!r}")
        default = _default(fields[self.field])
        if default is not dataclasses.MISSING:
            if self.default is not None:
                raise TypeError(f"--{self.name}: its default is that of {self.of.__name__}")
            object.__setattr__(self, "default", default)

    @property
    def default_text(self) -> str:
        """The default as a user would write it; ``''`` for none."""
        return self.kind.text(self.default)

    @property
    def values(self) -> str:
        """The placeholder for the value in the help: the choices, else the kind's metavar."""
        return "|".join(self.kind.choices) or self.kind.metavar

    def __str__(self) -> str:
        return f"--{self.name}"


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
