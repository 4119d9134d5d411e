"""What a template's console form needs beside an option's definition: its type, pattern and place.

`pipeline.options.command_line` says what an option is; most of its console form follows from that: choices make
a list, ``true|false`` a switch, and the metavar decides type and pattern. The tables below hold the
rest, by name.

Patterns are POSIX extended regular expressions, anchored at both ends.
"""

import dataclasses

from pipeline.backends import adapter_of, takers
from pipeline.options.option import Option

BATCH, STREAMING = "batch", "streaming"
BOTH = (BATCH, STREAMING)
BOOLEAN = ("true", "false")
_ANY = "(.|[[:space:]])*"
_PROJECT = "([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"
_PUBSUB_NAME = "[A-Za-z][A-Za-z0-9._~%+-]{2,254}"
_LIST = "^[^,]+(,[^,]+)*$"
_OBJECT = "gs://[^/[:space:]]+/[^[:space:]].*"


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """How a value is asked for in the console.

    Attributes:
      param_type: A name of the API's ``ParameterType``.
      pattern: What every value has to match; ``''`` for anything.
      example: A value that does.
    """

    param_type: str = "TEXT"
    pattern: str = ""
    example: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where an option stands in the form, and when it is shown.

    Attributes:
      templates: The templates that have it.
      required: Those that cannot do without.
      parent: The parameter under which it stands; it is shown only when that one has a value.
      triggers: The parent's values with which it is shown; all but the empty one, when empty.
      label: Its name in the form, where the option's own does not make a good one.
      form: The form, where the metavar does not tell it.
      gpu: Whether only the templates whose workers have GPUs have it.
    """

    templates: tuple[str, ...] = BOTH
    required: tuple[str, ...] = ()
    parent: str = ""
    triggers: tuple[str, ...] = ()
    label: str = ""
    form: Form | None = None
    gpu: bool = False


_NUMBER = Form("NUMBER", "^[0-9]+$", "100")
_DECIMAL = Form("NUMBER", "^[0-9]+([.][0-9]+)?$", "0.5")
_JSON = Form("TEXT", f"^([{{]{_ANY}|{_OBJECT})$", '{"top_p": 0.9}')

FORMS = {
    "TEXT": Form(),
    "SQL": Form("TEXT", "", "SELECT id, text FROM `p.d.t`"),
    "N": _NUMBER,
    "S": _DECIMAL,
    "X": _DECIMAL,
    "NAME": Form("TEXT", "^[^[:space:]]+$", "key"),
    "PATH": Form("TEXT", "^/[^[:space:]]+$", "/opt/vllm/bin/python"),
    "ARGS": Form("TEXT", "^--.*$", "--max-model-len=8192 --dtype=half"),
    "A,B": Form("TEXT", _LIST, "subject,body"),
    "A,B:TYPE": Form("TEXT", _LIST, "photo:image/jpeg"),
    "all|none|A,B": Form("TEXT", _LIST, "subject,body"),
    "K=V,K=V": Form(
        "TEXT",
        "^[a-z][a-z0-9_-]*=[a-z0-9_-]*(,[a-z][a-z0-9_-]*=[a-z0-9_-]*)*$",
        "team=support,env=prod",
    ),
    "JSON": _JSON,
    "URI": Form("GCS_READ_FILE", f"^{_OBJECT}$", "gs://bucket/prompts/classify.jinja"),
    "GLOB": Form("GCS_READ_FILE", f"^{_OBJECT}$", "gs://bucket/tickets/*.jsonl"),
    "DIR": Form("GCS_WRITE_FOLDER", "^gs://[^/[:space:]]+/[^*?[]+$", "gs://bucket/answers/"),
    "PROJECT:DATASET.TABLE": Form(
        "BIGQUERY_TABLE",
        "^([^[:space:]]+[:.])?[^[:space:]:.]+[.][^[:space:]:.]+$",
        "my-project:support.answers",
    ),
    "PROJECT:DATASET": Form(
        "TEXT", "^([^[:space:]]+[:.])?[^[:space:]:.]+$", "my-project:temporary"
    ),
    "TABLE_OR_GLOB": Form("TEXT", "^[^[:space:]]+$", "my-project:support.answers_dead_letters"),
    "URL_OR_RESOURCE": Form(
        "TEXT", "^(https?://[^[:space:]]+|projects/[^[:space:]]+)$", "https://models.example.com/v1"
    ),
    "projects/P/subscriptions/S": Form(
        "PUBSUB_SUBSCRIPTION",
        f"^projects/{_PROJECT}/subscriptions/{_PUBSUB_NAME}$",
        "projects/my-project/subscriptions/tickets",
    ),
    "projects/P/topics/T": Form(
        "PUBSUB_TOPIC",
        f"^projects/{_PROJECT}/topics/{_PUBSUB_NAME}$",
        "projects/my-project/topics/tickets-failed",
    ),
    "projects/P/secrets/S/versions/V": Form(
        "TEXT",
        "^projects/[^/]+/(locations/[^/]+/)?secrets/[^/]+/versions/[^/]+$",
        "projects/p/secrets/openai/versions/1",
    ),
    "MACHINE_TYPE": Form("MACHINE_TYPE", "^[a-z0-9-]+$", "g2-standard-8"),
}
"""The form of each metavar."""

_BATCH_ONLY = Place(templates=(BATCH,))
_OF_GPU_TYPE = Place(parent="gpu_type", gpu=True)
NOT_OFFERED = ("preview", "wait")
"""A template prints nothing that anybody reads, and never waits."""

PLACES = {
    "model": Place(required=BOTH),
    "gpu_count": _OF_GPU_TYPE,
    "gpu_driver": _OF_GPU_TYPE,
    "gpu_machine_type": _OF_GPU_TYPE,
    "input_files": _BATCH_ONLY,
    "input_format": Place(templates=(BATCH,), parent="input_files"),
    "input_table": _BATCH_ONLY,
    "input_fields": Place(templates=(BATCH,), parent="input_table"),
    "input_filter": _BATCH_ONLY,
    "input_query": Place(templates=(BATCH,), form=FORMS["SQL"]),
    "input_dead_letters": _BATCH_ONLY,
    "input_subscription": Place(templates=(STREAMING,), required=(STREAMING,)),
    "pubsub_id_attribute": Place(templates=(STREAMING,), parent="input_subscription"),
    "limit": _BATCH_ONLY,
    "temp_dataset": _BATCH_ONLY,
    "output_schema": Place(
        form=Form("TEXT", f"^([{{]{_ANY}|{_OBJECT})$", "gs://bucket/schemas/classify.json")
    ),
    "prefix_chars": Place(templates=(BATCH,), parent="order_by_prefix", triggers=("data_set",)),
    "max_batch_wait_s": Place(templates=(STREAMING,)),
    "batch_keys": Place(templates=(STREAMING,)),
    "output_table": Place(required=(STREAMING,)),
    "output_path": _BATCH_ONLY,
    "output_format": Place(templates=(BATCH,), parent="output_path"),
    "dead_letter_path": _BATCH_ONLY,
    "write_method": Place(parent="output_table"),
    "exactly_once": Place(parent="output_table"),
    "max_dead_letter_ratio": Place(form=Form("NUMBER", "^(1|0([.][0-9]+)?)$", "0.2")),
    "run_id": Place(
        form=Form("TEXT", "^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$", "backfill-2026"), label="Run ID"
    ),
}
"""The place of each option that has one of its own; a backend's flags stand below the backend."""

BEAM_OPTIONS: tuple[Option, ...] = (
    Option(
        "number_of_worker_harness_threads",
        "Workers",
        "Bundles that a worker process works on at once; 4 by default.",
        metavar="N",
    ),
    Option(
        "disk_size_gb",
        "Workers",
        "Size of each worker's disk in GB: model weights need more than Dataflow's default.",
        metavar="N",
    ),
    Option(
        "dataflow_service_options",
        "Workers",
        "Options of the Dataflow service, separated by commas, such as reservations and GPUs.",
        metavar="A,B",
    ),
)
"""Apache Beam's own options that the templates offer as well."""


def place_of(option: Option) -> Place:
    """Where an option stands: by `PLACES`, else below the backends that take it, else by itself."""
    if option.name in PLACES:
        return PLACES[option.name]
    if backends := takers(option.name):
        ordinary = any("cpu" in adapter_of(name).images for name in backends)
        return Place(parent="backend", triggers=backends, gpu=not ordinary)
    return Place()


def choices_offered(option: Option, *, gpu: bool) -> tuple[str, ...]:
    """The choices that a template has; without the backends that its workers cannot run.

    Args:
      option: Any option.
      gpu: Whether the workers have the image for GPUs.
    """
    if option.name != "backend":
        return option.choices
    image = "gpu" if gpu else "cpu"
    return tuple(name for name in option.choices if image in adapter_of(name).images)


def form_of(option: Option, *, gpu: bool) -> Form:
    """How its value is asked for.

    Raises:
      KeyError: Its metavar is in no table: add it to `FORMS`.
    """
    if option.choices == BOOLEAN:
        return Form("BOOLEAN", "^(true|false)$", "true")
    if option.choices:
        choices = choices_offered(option, gpu=gpu)
        return Form("ENUM", f"^({'|'.join(choices)})$", choices[0])
    return place_of(option).form or FORMS[option.metavar]
