"""Every parameter of the templates has an effect: the pipeline built with it differs.

The flags in the run's summary and times are left out: nothing else changes between two builds.
`tests.templates.test_launch` finds Apache Beam's own three in a recorded request.
"""

import dataclasses
import functools
import uuid
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns

from pipeline.build import build
from pipeline.config import RunConfig
from pipeline.options.command_line import FLAGS, parse_flags
from pipeline.options.flag import Flag
from pipeline.options.mode import Mode
from templates.form import form_of, place_of

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
INPUTS = {Mode.BATCH: {"input_files": "gs://b/a"}, Mode.STREAMING: {"input_subscription": "projects/my-project/subscriptions/tickets"}}  # fmt: skip
OF_BACKEND = {
    "vertex_endpoint": {"endpoint": "projects/p/locations/l/endpoints/1"},
    "openai": {"endpoint": "http://h/v1"},
}
"""Required parameters of a backend besides the model."""
VALUES = {
    "accept_truncated": "true",
    "backend": "fake",
    "endpoint": "https://h/v1",
    "gpu_count": "2",
    "gpu_driver": "580",
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
"""Values for parameters whose form has no example, or the one in `JOB`."""
BESIDE: dict[str, dict[str, str]] = {
    "input_format": {"input_files": "gs://b/a"},
    "input_fields": {"input_files": "", "input_table": "my-project:d.i"},
    "input_filter": {"input_files": "", "input_table": "my-project:d.i"},
    "temp_dataset": {"input_files": "", "input_table": "my-project:d.i"},
    "input_table": {"input_files": ""},
    "input_query": {"input_files": ""},
    "input_dead_letters": {"input_files": ""},
    "prompt_file": {"prompt": ""},
    "messages_field": {"prompt": ""},
    "request_field": {"prompt": ""},
    "instance_fields": {"prompt": ""},
    "output_format": {"output_path": "gs://b/o"},
    "gpu_count": {"backend": "vllm", "gpu_type": "nvidia-l4"},
    "gpu_driver": {"backend": "vllm", "gpu_type": "nvidia-l4"},
    "gpu_machine_type": {"backend": "vllm", "gpu_type": "nvidia-l4"},
    "exactly_once": {"write_method": "storage_write"},
    "prefix_chars": {"order_by_prefix": "data_set"},
    "embedding_batch_size": {"task": "embed", "backend": "openai"},
}
"""Parameters that must be set, or left out (''), together with another one."""
OPPOSITES = {("exactly_once", Mode.STREAMING): "true"}
"""Parameters whose template default is the value that the other job needs."""
AT_LAUNCH = {("write_mode", Mode.STREAMING)}
"""Parameters that change no graph: a stream adds rows, and `fail` rejects a table with rows."""
FILES = {
    "prompt_file": "Tell {{ text }}",
    "system_prompt_file": "Be short.",
    "output_schema": '{"type": "object"}',
}

_OFFERED = [(flag, mode) for flag in FLAGS for mode in place_of(flag).templates]


def _value(flag: Flag[Any], folder: Path) -> str:
    if flag.name in FILES:
        path = folder / flag.name
        path.write_text(FILES[flag.name], encoding="utf-8")
        return str(path)
    if flag.name in VALUES:
        return VALUES[flag.name]
    return flag.kind.choices[-1] if flag.kind.choices else form_of(flag, gpu=True).example


@pytest.fixture(autouse=True)
def _no_random_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the random key that RunInference adds to each of its steps."""
    monkeypatch.setattr(uuid, "uuid1", lambda: uuid.UUID(int=0))


def _built(flags: dict[str, str]) -> dict[str, bytes]:
    """The executed steps in staged form, with their resource hints."""
    return _steps(frozenset(flags.items()))


@functools.cache
def _steps(flags: frozenset[tuple[str, str]]) -> dict[str, bytes]:
    options = parse_flags([f"--{name}={value}" for name, value in sorted(flags) if value])
    config = RunConfig.from_options(options)
    summary = dataclasses.replace(config.summary, started_at="", config={})
    root = beam.Pipeline(options=PipelineOptions(streaming=config.mode.streaming))
    build(root, dataclasses.replace(config, started_at="", summary=summary))
    components = root.to_runner_api().components
    return {
        step.unique_name: b"".join(
            part.SerializeToString(deterministic=True)
            for part in (step, components.environments[step.environment_id])
        )
        for step in components.transforms.values()
        if step.spec.urn != python_urns.PICKLED_TRANSFORM  # its parts run, not the composite itself
    }


def _flags(flag: Flag[Any], mode: Mode, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The flags of two jobs: with a parameter, and as similar as possible without it."""
    place = place_of(flag)
    without = {**JOB, **INPUTS[mode], **BESIDE.get(flag.name, {})}
    if place.parent == "backend":
        without |= {"backend": place.triggers[0], **OF_BACKEND.get(place.triggers[0], {})}
    value = OPPOSITES.get((flag.name, mode)) or _value(flag, folder)
    assert value, f"{flag} has no example: give its kind one, or VALUES here"
    given = {**without, flag.name: value}
    if flag.name in {"input_table", "input_query", "input_dead_letters", "prompt_file",
                     "messages_field", "request_field", "instance_fields"}:  # fmt: skip
        without |= INPUTS[mode] | {"prompt": JOB["prompt"]}  # exactly one of these is needed
    return given, without


@pytest.mark.parametrize(
    ("flag", "mode"), _OFFERED, ids=lambda each: getattr(each, "value", each.name)
)
def test_every_parameter_has_an_effect(flag: Flag[Any], mode: Mode, tmp_path: Path) -> None:
    """Every parameter changes the graph, or is known to act before there is one."""
    given, without = _flags(flag, mode, tmp_path)
    assert (_built(given) == _built(without)) is ((flag.name, mode) in AT_LAUNCH)


@pytest.mark.parametrize("mode", Mode)
def test_nothing_else_changes_a_pipeline(mode: Mode) -> None:
    """Two builds of the same flags are equal, so any difference is the parameter's."""
    first = _built({**JOB, **INPUTS[mode]})
    _steps.cache_clear()
    assert _built({**JOB, **INPUTS[mode]}) == first
