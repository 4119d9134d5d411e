"""Every parameter of the templates has an effect: what is built with it differs.

Apache Beam's own three are found in a recorded request by `tests.templates.test_launch`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.option import Option
from pipeline.options import OPTIONS, parse_flags
from pipeline.template_data import BATCH, NOT_OFFERED, STREAMING, form_of, place_of

JOB = {
    "runner": "DataflowRunner",
    "project": "p",
    "region": "us-central1",
    "temp_location": "gs://b/t",
    "machine_type": "n2-standard-4",
    "max_num_workers": "2",
    "run_id": "r",
    "prompt": "Say {{ text }}",
    "backend": "gemini",
    "model": "gemini-2.5-flash",
    "output_table": "p:d.t",
}
INPUTS = {BATCH: {"input_files": "gs://b/a"}, STREAMING: {"input_subscription": "projects/my-project/subscriptions/tickets"}}  # fmt: skip
OF_BACKEND = {
    "vertex_endpoint": {"endpoint": "projects/p/locations/l/endpoints/1"},
    "openai": {"endpoint": "http://h/v1"},
}
"""What a backend needs beside a model."""
VALUES = {
    "accept_truncated": "true",
    "backend": "fake",
    "endpoint": "https://h/v1",
    "gpu_count": "2",
    "gpu_driver": "550",
    "gpu_machine_type": "g2-standard-12",
    "order_by_prefix": "batch",
    "generation_config": '{"top_p": 0.5}',
    "id_field": "key",
    "messages_field": "chat",
    "model": "gemini-2.5-pro",
    "model_location": "europe-west4",
    "model_project": "other",
    "predict_method": "raw_predict",
    "prompt": "Tell {{ text }}",
    "request_field": "request",
    "run_id": "other",
    "system_prompt": "Be short.",
    "input_subscription": "projects/my-project/subscriptions/others",
    "task": "embed",
    "bigquery_location": "EU",
    "input_filter": "a = 1",
    "max_dead_letter_ratio": "0.5",
    "media_fields": "photo:image/jpeg",
}
"""Where the form's example is none, or is what stands in `JOB`."""
BESIDE: dict[str, dict[str, str]] = {
    "input_format": {"input_files": "gs://b/a"},
    "input_fields": {"input_files": "", "input_table": "p:d.i"},
    "input_filter": {"input_files": "", "input_table": "p:d.i"},
    "temp_dataset": {"input_files": "", "input_table": "p:d.i"},
    "input_table": {"input_files": ""},
    "input_query": {"input_files": ""},
    "input_dead_letters": {"input_files": ""},
    "prompt_file": {"prompt": ""},
    "messages_field": {"prompt": ""},
    "request_field": {"prompt": ""},
    "instance_fields": {"prompt": ""},
    "output_format": {"output_path": "gs://b/o"},
    "gpu_count": {"gpu_type": "nvidia-l4"},
    "gpu_driver": {"gpu_type": "nvidia-l4"},
    "gpu_machine_type": {"gpu_type": "nvidia-l4"},
    "prefix_chars": {"order_by_prefix": "data_set"},
}
"""What has to be given, or left out (''), with a parameter."""
FILES = {
    "prompt_file": "Tell {{ text }}",
    "system_prompt_file": "Be short.",
    "output_schema": '{"type": "object"}',
}

_OFFERED = [
    (option, template)
    for option in OPTIONS
    if option.name not in NOT_OFFERED
    for template in place_of(option).templates
]


def _value(option: Option, folder: Path) -> str:
    if option.name in FILES:
        path = folder / option.name
        path.write_text(FILES[option.name], encoding="utf-8")
        return str(path)
    if option.name in VALUES:
        return VALUES[option.name]
    return option.choices[-1] if option.choices else form_of(option).example


def _built(flags: dict[str, str]) -> dict[str, Any]:
    """The configuration that `pipeline.build` gets, but for what only tells of it."""
    options = parse_flags([f"--{name}={value}" for name, value in flags.items() if value])
    config = RunConfig.from_options(options)
    told = {"summary", "started_at"}
    fields = [field.name for field in dataclasses.fields(config) if field.name not in told]
    return {name: getattr(config, name) for name in fields}


@pytest.mark.parametrize(
    ("option", "template"), _OFFERED, ids=lambda each: getattr(each, "name", each)
)
def test_every_parameter_has_an_effect(option: Option, template: str, tmp_path: Path) -> None:
    """With everything else the same."""
    place = place_of(option)
    without = {**JOB, **INPUTS[template], **BESIDE.get(option.name, {})}
    if place.parent == "backend":
        without |= {"backend": place.triggers[0], **OF_BACKEND.get(place.triggers[0], {})}
    value = _value(option, tmp_path)
    assert value, f"--{option.name} has no example: give its metavar one, or VALUES here"
    given = {**without, option.name: value}
    if option.name in {"input_table", "input_query", "input_dead_letters", "prompt_file",
                       "messages_field", "request_field", "instance_fields"}:  # fmt: skip
        without |= INPUTS[template] | {"prompt": JOB["prompt"]}  # exactly one of these is needed
    assert _built(given) != _built(without)
