"""All mistakes of one command in one message."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from transforms.records.errors import ConfigurationError

T = TypeVar("T")


class Attempt(Generic[T]):
    """Something that was made, unless it was a mistake; read it behind `Mistakes.check`."""

    __slots__ = ("value",)

    value: T


class Mistakes:
    """Collects what is wrong, so that a user reads all of it at once.

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
            if str(error) not in self._found:  # two parts may trip over the same flag
                self._found.append(str(error))

    def attempt(self, make: Callable[[], T]) -> Attempt[T]:
        """Makes something that depends on nothing that may be wrong already."""
        made = Attempt[T]()
        with self.collected():
            made.value = make()
        return made

    def check(self) -> None:
        """Goes on only when nothing is wrong.

        Raises:
          ConfigurationError: What is wrong, one mistake per line.
        """
        if self._found:
            raise ConfigurationError("\n".join(self._found))
