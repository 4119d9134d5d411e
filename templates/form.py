"""The templates' forms: the parts that flags do not define, and the Beam options that we offer.

A flag itself defines its templates, its parent and how the console asks for its value
(`pipeline.options.flag`). Flags that not every backend takes are placed below the backend.
"""

import dataclasses
from typing import Any

from pipeline.backends import adapter_of, takers
from pipeline.options.flag import Flag, Form, Place
from pipeline.options.kinds import COUNT, NAMES
from pipeline.options.model import BACKEND

BOOLEAN = ("true", "false")

BEAM_FLAGS: tuple[Flag[Any], ...] = (
    Flag(
        "number_of_worker_harness_threads",
        "Workers",
        "How many bundles a worker process runs concurrently. Default: 4.",
        COUNT,
    ),
    Flag(
        "disk_size_gb",
        "Workers",
        "The size of each worker's disk in GB: model weights need more than Dataflow's default.",
        COUNT,
    ),
    Flag(
        "dataflow_service_options",
        "Workers",
        "Options of the Dataflow service, separated by commas, such as reservations and GPUs.",
        NAMES,
    ),
)
"""Apache Beam's own options that the templates also offer."""


def place_of(flag: Flag[Any]) -> Place:
    """A flag's place: its own, else below the backends that take it, else at the top level."""
    if flag.place.parent or not (backends := takers(flag)):
        return flag.place
    ordinary = any("cpu" in adapter_of(name).images for name in backends)
    return dataclasses.replace(flag.place, parent=BACKEND.name, triggers=backends, gpu=not ordinary)


def choices_offered(flag: Flag[Any], *, gpu: bool) -> tuple[str, ...]:
    """The choices that a template offers, without the backends that its workers cannot run.

    Args:
      flag: Any flag.
      gpu: Whether the workers have the image for GPUs.
    """
    if flag is not BACKEND:
        return flag.kind.choices
    image = "gpu" if gpu else "cpu"
    return tuple(name for name in flag.kind.choices if image in adapter_of(name).images)


def form_of(flag: Flag[Any], *, gpu: bool) -> Form:
    """How the console asks for its value."""
    if not flag.kind.choices or flag.kind.choices == BOOLEAN:
        return flag.kind.form
    choices = choices_offered(flag, gpu=gpu)
    return Form("ENUM", f"^({'|'.join(choices)})$", choices[0])
