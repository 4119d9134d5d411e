"""Objects that other installed packages offer by an entry point."""

import importlib.metadata
import logging
from typing import TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


def plugins(group: str, kind: type[T]) -> tuple[T, ...]:
    """The objects that installed packages offer, in the order of their names.

    One that cannot be loaded is left out, with a warning in the log: it must not break commands
    that do not need it.

    Args:
      group: The group of entry points, such as ``batch_inference.sources``.
      kind: The class of the objects that entry points of this group name.
    """
    found = []
    for point in sorted(importlib.metadata.entry_points(group=group), key=lambda p: p.name):
        try:
            offered = point.load()
            if not isinstance(offered, kind):
                raise TypeError(f"it is a {type(offered).__name__}, not a {kind.__name__}")
        except Exception as error:  # somebody else's code may fail in any way
            _log.warning(
                "the entry point %s of %s (%s) is ignored: %s: %s",
                point.name,
                group,
                point.value,
                type(error).__name__,
                error,
            )
        else:
            found.append(offered)
    return tuple(found)
