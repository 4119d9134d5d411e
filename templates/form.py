"""The templates' forms beside the flags' own: what an image has, and Beam's options that we offer.

A flag says itself in which templates it stands, under which parent, and how the console asks for its
value (`pipeline.options.flag`).
"""

from typing import Any

from pipeline.options.flag import Flag, Form
from pipeline.options.kinds import COUNT, NAMES
from pipeline.options.model import BACKEND

BOOLEAN = ("true", "false")

IN_NO_IMAGE = ("sentence_transformers",)
"""Backends that need packages that no image of the templates has."""
IN_GPU_IMAGE = ("vllm",)
"""Backends that need packages that only the image for GPUs has."""

BEAM_FLAGS: tuple[Flag[Any], ...] = (
    Flag(
        "number_of_worker_harness_threads",
        "Workers",
        "How many bundles a worker process works on at once. Default: 4.",
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
"""Apache Beam's own options that the templates offer as well."""


def choices_offered(flag: Flag[Any], *, gpu: bool) -> tuple[str, ...]:
    """The choices that a template has; without the backends that its workers cannot run.

    Args:
      flag: Any flag.
      gpu: Whether the workers have the image for GPUs.
    """
    if flag.name != BACKEND.name:
        return flag.kind.choices
    missing = IN_NO_IMAGE if gpu else IN_NO_IMAGE + IN_GPU_IMAGE
    return tuple(choice for choice in flag.kind.choices if choice not in missing)


def form_of(flag: Flag[Any], *, gpu: bool) -> Form:
    """How the console asks for its value."""
    if not flag.kind.choices or flag.kind.choices == BOOLEAN:
        return flag.kind.form
    choices = choices_offered(flag, gpu=gpu)
    return Form("ENUM", f"^({'|'.join(choices)})$", choices[0])
