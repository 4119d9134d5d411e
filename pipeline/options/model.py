"""The flags of models, and the backend that they describe."""

from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends import ADAPTERS, adapter_of, backend_flags, takers
from pipeline.backends.shared import EMBEDDING_BATCH_SIZE, GROUP, MODEL
from pipeline.options.flag import Flag
from pipeline.options.kinds import one_of
from pipeline.options.request import (
    MESSAGES_FIELD,
    OUTPUT_SCHEMA,
    SYSTEM_PROMPT,
    SYSTEM_PROMPT_FILE,
    TASK,
)
from pipeline.options.values import Values
from transforms.backends.base import Backend, capabilities_of
from transforms.records.errors import ConfigurationError

BACKEND: Flag[str] = Flag(
    "backend", GROUP, "Who serves the model.", one_of(tuple(ADAPTERS)), default="gemini"
)

MODEL_FLAGS: tuple[Flag[Any], ...] = (BACKEND, MODEL, *backend_flags())

_GENERATING = (OUTPUT_SCHEMA, SYSTEM_PROMPT, SYSTEM_PROMPT_FILE, MESSAGES_FIELD)
"""Flags that need ``--task=generate``."""


def make_backend(values: Values, options: PipelineOptions) -> Backend:
    """The backend that the flags describe.

    Raises:
      ConfigurationError: A flag that it needs is missing, it does not take a flag that is set, or
        the package that adds the backend cannot be used.
    """
    chosen = adapter_of(values[BACKEND])
    for flag in backend_flags():
        if values.is_set(flag) and flag not in chosen.flags:
            raise ConfigurationError(
                f"{_shown(flag, values)}, but backend {chosen.name} does not take it: remove it, or "
                f"use {BACKEND}={' or '.join(takers(flag))}"
            )
    for flag, reason in chosen.refuses.items():
        if values.is_set(flag):
            raise ConfigurationError(f"{_shown(flag, values)}, but {reason}: remove it")
    task = values[TASK]
    if task == "embed":
        for flag in (*_GENERATING, *chosen.generates):
            values.only_with(flag, f"{TASK}=generate")
    else:
        values.only_with(EMBEDDING_BATCH_SIZE, f"{TASK}=embed")
    backend = chosen.make(values, options)
    tasks = capabilities_of(backend).tasks
    if task not in tasks:
        raise ConfigurationError(
            f"{TASK} is {task!r}, but backend {chosen.name} takes {' and '.join(tasks)} only: set "
            f"{TASK}={tasks[0]}"
        )
    return backend


def _shown(flag: Flag[Any], values: Values) -> str:
    """A flag and its value; not the value of one that names a secret, and may hold it by mistake."""
    return f"{flag} is set" if flag.name.endswith("_secret") else f"{flag} is {values.text(flag)!r}"
