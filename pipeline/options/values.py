"""The values of one command line, parsed once and read by flag."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pipeline.options.flag import Flag
from pipeline.options.mistakes import Mistakes
from transforms.records.errors import ConfigurationError

T = TypeVar("T")

_URL_SECRETS = re.compile(r"(?<=://)[^/@\s]+@|[?&][^\s]*")


@dataclasses.dataclass(frozen=True, slots=True)
class Values:
    """The value of every flag.

    Attributes:
      given: Each flag's text, by name, as the user wrote it or as its default is written; ``''``
        if there is neither.
      parsed: Each flag's value, by name.
    """

    given: Mapping[str, str]
    parsed: Mapping[str, Any]

    @classmethod
    def of(cls, texts: Mapping[str, str | None], flags: Iterable[Flag[Any]]) -> "Values":
        """Parses the texts of a command line; blank ones count as not set.

        Raises:
          ConfigurationError: Values are invalid; the message lists all of them, each with its
            remedy.
        """
        given, parsed, mistakes = {}, {}, Mistakes()
        for flag in flags:
            text = (texts.get(flag.name) or "").strip()
            given[flag.name] = text or flag.default_text
            parsed[flag.name] = flag.default
            if text:
                with mistakes.collected():
                    parsed[flag.name] = flag.kind.parse(text, str(flag))
        mistakes.check()
        return cls(given, parsed)

    def __getitem__(self, flag: Flag[T]) -> T:
        """The value; the flag's default if it is not set."""
        value: T = self.parsed[flag.name]
        return value

    def text(self, flag: Flag[Any]) -> str:
        """The value as the user wrote it, or as the default is written; ``''`` for neither."""
        return self.given[flag.name]

    def require(self, flag: Flag[T | None], why: str) -> T:
        """The value.

        Raises:
          ConfigurationError: It is not set; ``why`` describes the value needed.
        """
        value = self[flag]
        if value is None:
            raise ConfigurationError(f"{flag} is missing: {why}")
        return value

    def is_set(self, flag: Flag[Any]) -> bool:
        """Whether the user set a value other than the default."""
        return self.given[flag.name] != flag.default_text

    def only_with(self, flag: Flag[Any], wanted: str, *, allowed: bool = False) -> None:
        """Refuses a flag that something else would ignore.

        Raises:
          ConfigurationError: It is set and not allowed; ``wanted`` names what it needs.
        """
        if self.is_set(flag) and not allowed:
            raise ConfigurationError(
                f"{flag} is {self.text(flag)!r}, but goes with {wanted} only: remove it"
            )

    def without_secrets(self) -> dict[str, str]:
        """The flags with a value, for the summary; URLs without their user and query."""
        return {
            name: _URL_SECRETS.sub("", text) if "://" in text else text
            for name, text in self.given.items()
            if text
        }
