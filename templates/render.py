"""Renders the templates' metadata and container specs from the one definition of the flags.

``python -m templates.render`` writes ``templates/metadata/*.json``; with ``--check`` it changes
nothing and fails when a file would change. ``python -m templates.render --image=IMAGE
--folder=DIR`` writes one complete container spec per template, ready to be copied into a bucket:
``gcloud dataflow flex-template build`` would drop the streaming flags.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

from pipeline.options.command_line import FLAGS
from pipeline.options.flag import Flag
from pipeline.options.mode import Mode
from templates.form import BEAM_FLAGS, choices_offered, form_of, place_of

HERE = pathlib.Path(__file__).resolve().parent
METADATA = HERE / "metadata"
_WORDS = {
    "Bigquery": "BigQuery",
    "Pubsub": "Pub/Sub",
    "Vllm": "vLLM",
    "Gpu": "GPU",
    "Id": "ID",
    "Api": "API",
}

_BY_NAME = {flag.name: flag for flag in (*FLAGS, *BEAM_FLAGS)}

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """One template.

    Attributes:
      mode: The mode of the runs that it launches.
      title: Its title in the console.
      description: Its purpose, in a sentence or two.
    """

    mode: Mode
    title: str
    description: str

    @property
    def name(self) -> str:
        """Its name in the file names."""
        return self.mode.value


TEMPLATES = (
    Template(
        Mode.BATCH,
        "Batch inference",
        "Runs a model on every record of files, a BigQuery table or a query, and writes one result "
        "or one dead letter for each.",
    ),
    Template(
        Mode.STREAMING,
        "Streaming inference",
        "Runs a model on every message of a Pub/Sub subscription, and writes one result or one "
        "dead letter for each.",
    ),
)


def offered(mode: Mode, *, gpu: bool = True) -> list[Flag[Any]]:
    """The flags that a template has as parameters; a parent comes before its children.

    Args:
      mode: The template's.
      gpu: Whether its workers have GPUs, and so the flags that need one.
    """
    found = []
    for flag in (*FLAGS, *BEAM_FLAGS):
        place = place_of(flag)
        if mode in place.templates and (gpu or not place.gpu):
            found.append(flag)
    return sorted(found, key=lambda flag: bool(place_of(flag).parent))


def label_of(flag: Flag[Any]) -> str:
    """The name of a parameter in the form.

    >>> from pipeline.options.pace import REQUEST_TIMEOUT_S
    >>> label_of(REQUEST_TIMEOUT_S)
    'Request timeout (s)'
    """
    if flag.place.label:
        return flag.place.label
    words = flag.name.removesuffix("_s").split("_")
    words[0] = words[0].capitalize()
    unit = " (s)" if flag.name.endswith("_s") else ""
    return " ".join(_WORDS.get(word, word) for word in words) + unit


def parameter(flag: Flag[Any], mode: Mode, *, gpu: bool) -> Json:
    """One ``ParameterMetadata``."""
    place, form = place_of(flag), form_of(flag, gpu=gpu)
    example = "" if flag.kind.choices or not form.example else f" Example: {form.example}"
    found: Json = {
        "name": flag.name,
        "label": label_of(flag),
        "helpText": flag.help + example,
        "isOptional": mode not in place.required,
        "paramType": form.param_type,
    }
    if form.pattern:
        found["regexes"] = [form.pattern]
    if form.param_type == "ENUM":
        choices = choices_offered(flag, gpu=gpu)
        found["enumOptions"] = [{"value": choice, "label": choice} for choice in choices]
    if flag.default_text:
        found["defaultValue"] = flag.default_text
    if place.parent:
        shown = choices_offered(_BY_NAME[place.parent], gpu=gpu)
        found["parentName"] = place.parent
        found["parentTriggerValues"] = [value for value in place.triggers if value in shown]
    else:
        found["groupName"] = flag.group
    return found


def metadata(template: Template, *, gpu: bool = False) -> Json:
    """The ``TemplateMetadata``.

    A stream runs in exactly-once mode by default: in at-least-once mode Dataflow may send a message
    to the model twice, and each answer is paid for.

    Args:
      template: Which one.
      gpu: Whether its workers have the image for GPUs.
    """
    streaming = template.mode.streaming
    found: Json = {
        "name": f"{template.title} with GPUs" if gpu else template.title,
        "description": template.description,
        "streaming": streaming,
        "supportsExactlyOnce": True,
        "supportsAtLeastOnce": streaming,
    }
    if streaming:
        found["defaultStreamingMode"] = "EXACTLY_ONCE"
    flags = offered(template.mode, gpu=gpu)
    found["parameters"] = [parameter(flag, template.mode, gpu=gpu) for flag in flags]
    return found


def container_spec(template: Template, image: str, worker_image: str = "") -> Json:
    """The ``ContainerSpec``.

    Args:
      template: Which one.
      image: The image that launches.
      worker_image: The image of the workers, if different: the one for GPUs.
    """
    environment: Json = {
        "sdkContainerImage": worker_image or image,  # else stock workers without this code
        "additionalUserLabels": {"pipeline": f"{template.name}-inference"},
    }
    if template.mode.streaming:
        environment |= {
            "enableStreamingEngine": True,
            "streamingMode": "STREAMING_MODE_EXACTLY_ONCE",  # the metadata's value has no prefix
        }
    return {
        "image": image,
        "sdkInfo": {"language": "PYTHON"},
        "metadata": metadata(template, gpu=bool(worker_image)),
        "defaultEnvironment": environment,
    }


def text(document: Json) -> str:
    """The text of a document's file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def write_metadata(*, check: bool) -> list[str]:
    """Writes the metadata; returns the files that were out of date."""
    stale = []
    for template in TEMPLATES:
        for suffix, gpu in (("", False), ("-gpu", True)):
            path = METADATA / f"{template.name}{suffix}.json"
            wanted = text(metadata(template, gpu=gpu))
            if path.exists() and path.read_text("utf-8") == wanted:
                continue
            stale.append(path.name)
            if not check:
                METADATA.mkdir(exist_ok=True)
                path.write_text(wanted, "utf-8")
    return stale


def write_specs(folder: pathlib.Path, image: str, worker_image: str) -> None:
    """Writes the spec of each template, and those for GPUs if there is an image for them."""
    folder.mkdir(parents=True, exist_ok=True)
    for template in TEMPLATES:
        path = folder / f"{template.name}.json"
        path.write_text(text(container_spec(template, image)), "utf-8")
        if worker_image:
            path = folder / f"{template.name}-gpu.json"
            path.write_text(text(container_spec(template, image, worker_image)), "utf-8")


def main(argv: list[str] | None = None) -> int:
    """Writes, or checks; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m templates.render", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail on drift")
    parser.add_argument("--image", default="", help="the image of launcher and workers")
    parser.add_argument("--gpu_image", default="", help="the image of workers with GPUs")
    parser.add_argument("--folder", type=pathlib.Path, help="the folder for container specs")
    given = parser.parse_args(argv)
    if bool(given.image) != bool(given.folder) or (given.gpu_image and not given.image):
        parser.error("a container spec needs both --image and --folder")
    if given.image:
        write_specs(given.folder, given.image, given.gpu_image)
        return 0
    stale = write_metadata(check=given.check)
    if stale and given.check:
        sys.stderr.write(
            f"templates/metadata/{', '.join(stale)}: out of date: run python -m templates.render\n"
        )
    return 1 if stale and given.check else 0


if __name__ == "__main__":
    sys.exit(main())
