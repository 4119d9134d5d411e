"""All mistakes of one command in one message."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from transforms.records.errors import ConfigurationError

T = TypeVar("T")


class Attempt(Generic[T]):
    """The result of an attempt, unless it failed; read it only after `Mistakes.check`."""

    __slots__ = ("value",)

    value: T


class Mistakes:
    """Collects mistakes, so that a user sees all of them together.

    >>> mistakes = Mistakes()
    >>> number = mistakes.attempt(lambda: 7)
    >>> mistakes.check()
    >>> number.value
    7
    """

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Keeps a `ConfigurationError` of the block for later."""
        try:
            yield
        except ConfigurationError as error:
            if str(error) not in self._found:  # two parts may report the same flag
                self._found.append(str(error))

    def attempt(self, make: Callable[[], T]) -> Attempt[T]:
        """Makes something that does not depend on anything that may have failed already."""
        made = Attempt[T]()
        with self.collected():
            made.value = make()
        return made

    def check(self) -> None:
        """Returns only if there are no mistakes.

        Raises:
          ConfigurationError: There are mistakes; the message has one per line.
        """
        if self._found:
            raise ConfigurationError("\n".join(self._found))
