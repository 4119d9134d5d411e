"""The backends of ``--backend``: those of this package, and those that installed packages add.

A package adds a backend by an entry point of the group `GROUP`: its name is the backend's, its
object a `BackendAdapter`. A package that cannot be loaded disables its own backend only, and the
error appears when somebody chooses it.
"""

import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.backends import fake, gemini, openai, sentence_transformers, vertex_endpoint, vllm
from pipeline.backends.base import BackendAdapter
from pipeline.options.flag import Flag
from pipeline.options.plugins import Unusable, offers
from transforms.records.errors import ConfigurationError

GROUP = "batch_inference.backends"
BUILT_IN: tuple[BackendAdapter, ...] = (
    gemini.ADAPTER,
    vertex_endpoint.ADAPTER,
    openai.ADAPTER,
    vllm.ADAPTER,
    sentence_transformers.ADAPTER,
    fake.ADAPTER,
)


def load(
    entry_points: Iterable[importlib.metadata.EntryPoint],
) -> dict[str, BackendAdapter | Unusable]:
    """The built-in backends and those of the entry points, by name.

    The first backend of a name wins, the built-in one before all others.
    """
    built_in = {each.name: each for each in BUILT_IN}
    return {**built_in, **offers(entry_points, _checked, built_in)}


def _checked(name: str, adapter: object) -> BackendAdapter:
    """The adapter; its flags cannot clash with others, because their names begin with its own."""
    if not isinstance(adapter, BackendAdapter):
        raise TypeError(f"{type(adapter).__name__} is not a BackendAdapter")
    if adapter.name != name:
        raise ValueError(f"the adapter's name is {adapter.name!r}, but the entry point's {name!r}")
    shared = [flag for each in BUILT_IN for flag in each.flags]
    for flag in adapter.flags:
        if flag not in shared and not flag.name.startswith(f"{name}_"):
            raise ValueError(f"the name of its flag {flag.name!r} must begin with '{name}_'")
    return adapter


ADAPTERS: Mapping[str, BackendAdapter | Unusable] = load(
    importlib.metadata.entry_points(group=GROUP)
)
"""The choices of ``--backend``, in their order."""


def adapter_of(name: str) -> BackendAdapter:
    """The adapter of a choice of ``--backend``.

    Raises:
      ConfigurationError: A package adds it, but it cannot be used.
    """
    found = ADAPTERS[name]
    if isinstance(found, Unusable):
        raise ConfigurationError(
            f"--backend is {name!r}, but the package {found.package}, which adds it, cannot be "
            f"used ({found.reason}): repair or upgrade that package, or use another backend"
        )
    return found


def _adapters() -> list[BackendAdapter]:
    return [each for each in ADAPTERS.values() if isinstance(each, BackendAdapter)]


def backend_flags() -> tuple[Flag[Any], ...]:
    """The flags that only some backends take: each once, in the order of the backends."""
    return tuple(dict.fromkeys(flag for each in _adapters() for flag in each.flags))


def takers(flag: Flag[Any]) -> tuple[str, ...]:
    """The names of the backends that take a flag; empty for a flag that all take."""
    return tuple(each.name for each in _adapters() if flag in each.flags)
