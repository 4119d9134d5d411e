"""Objects that other installed packages offer by an entry point."""

import dataclasses
import importlib.metadata
import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Unusable:
    """An offer that cannot be used.

    Attributes:
      package: The name of the package that makes it.
      reason: Why not.
    """

    package: str
    reason: str


def offers(
    entry_points: Iterable[importlib.metadata.EntryPoint],
    checked: Callable[[str, object], T],
    taken: Iterable[str] = (),
) -> dict[str, T | Unusable]:
    """The objects that entry points name, by the entry points' names and in their order.

    An offer that cannot be loaded must not break commands that do not need it: it is `Unusable`.
    The first offer of a name wins; later ones are ignored with a warning in the log.

    Args:
      entry_points: Those of one group.
      checked: Returns the object of a name and a loaded object, or raises.
      taken: Names that no package may offer.
    """
    found: dict[str, T | Unusable] = {}
    for entry in sorted(entry_points):  # by name: the order of files on a disk is arbitrary
        package = entry.dist.name if entry.dist else entry.value
        if entry.name in found or entry.name in taken:
            _log.warning(
                "%s %r of package %s ignored: name taken", entry.group, entry.name, package
            )
            continue
        try:
            found[entry.name] = checked(entry.name, entry.load())
        except Exception as error:  # somebody else's code may fail in any way
            found[entry.name] = Unusable(package, f"{type(error).__name__}: {error}")
    return found
