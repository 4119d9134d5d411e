"""The rendered templates: strict API messages, working patterns, and no drift."""

import json
import pathlib
import re
from typing import Any

import pytest
from google.cloud.dataflow_v1beta3.types import StreamingMode
from google.cloud.dataflow_v1beta3.types import templates as api
from google.protobuf import json_format

from pipeline.options import kinds
from pipeline.options.command_line import FLAGS
from pipeline.options.flag import Kind
from pipeline.options.sinks import OUTPUT_PATH
from templates import render
from templates.form import BEAM_FLAGS, choices_offered, form_of, place_of
from tests.templates.posix import compiled, matches

IMAGE = "us-docker.pkg.dev/p/r/batch-inference:1"
GPU_IMAGE = f"{IMAGE}-gpu"
BY_NAME = {flag.name: flag for flag in (*FLAGS, *BEAM_FLAGS)}
GPUS = pytest.mark.parametrize("worker_image", ["", GPU_IMAGE], ids=["cpu", "gpu"])
EACH = pytest.mark.parametrize("template", render.TEMPLATES, ids=lambda template: template.name)


def spec(template: render.Template, worker_image: str = "") -> api.ContainerSpec:
    """A template's spec, parsed into the API's message; an unknown key is an error."""
    message = api.ContainerSpec.pb(api.ContainerSpec())
    document = json.loads(render.text(render.container_spec(template, IMAGE, worker_image)))
    json_format.ParseDict(document, message, ignore_unknown_fields=False)
    return api.ContainerSpec(api.ContainerSpec.deserialize(message.SerializeToString()))


# The API's messages


@EACH
def test_specs_are_messages_of_the_api(template: render.Template) -> None:
    """A spec survives the round trip through the API's message."""
    document = render.container_spec(template, IMAGE, GPU_IMAGE)
    message = json_format.ParseDict(document, api.ContainerSpec.pb(api.ContainerSpec()))
    back = json_format.MessageToDict(message)
    assert _without_defaults(back) == _without_defaults(document)


def _without_defaults(value: Any) -> Any:
    """The value without the false and empty ones, which proto3 omits."""
    if isinstance(value, dict):
        return {k: _without_defaults(v) for k, v in value.items() if v not in (False, [], "")}
    return [_without_defaults(v) for v in value] if isinstance(value, list) else value


def test_the_check_is_strict() -> None:
    """A misspelt key, as in public templates, is rejected."""
    document = render.container_spec(render.TEMPLATES[0], IMAGE)
    document["metadata"]["parameters"][0]["optional"] = True
    with pytest.raises(json_format.ParseError, match="optional"):
        json_format.ParseDict(document, api.ContainerSpec.pb(api.ContainerSpec()))


def test_streaming_flags() -> None:
    """The specs have the flags that ``gcloud dataflow flex-template build`` would omit."""
    batch, streaming = map(spec, render.TEMPLATES)
    assert (batch.metadata.streaming, streaming.metadata.streaming) == (False, True)
    assert batch.metadata.supports_exactly_once
    assert not batch.metadata.supports_at_least_once
    assert streaming.metadata.supports_exactly_once
    assert streaming.metadata.supports_at_least_once
    assert streaming.metadata.default_streaming_mode == "EXACTLY_ONCE"
    assert streaming.default_environment.streaming_mode == StreamingMode.STREAMING_MODE_EXACTLY_ONCE
    assert streaming.default_environment.enable_streaming_engine
    assert not batch.default_environment.enable_streaming_engine


@EACH
def test_workers_have_our_image(template: render.Template) -> None:
    """Workers have the launcher's image or the one for GPUs; machines are set per launch."""
    cpu, gpu = spec(template), spec(template, GPU_IMAGE)
    assert (cpu.image, cpu.default_environment.sdk_container_image) == (IMAGE, IMAGE)
    assert (gpu.image, gpu.default_environment.sdk_container_image) == (IMAGE, GPU_IMAGE)
    for each in (cpu, gpu):
        assert each.default_environment.machine_type == ""
        assert each.default_environment.disk_size_gb == 0
    assert cpu.sdk_info.language == api.SDKInfo.Language.PYTHON
    assert gpu.metadata.name == f"{cpu.metadata.name} with GPUs"


# Parameters


@GPUS
@EACH
def test_parameters_are_the_options(template: render.Template, worker_image: str) -> None:
    """Parameters are every flag of the command line that suits the template, and nothing else."""
    names = [parameter.name for parameter in spec(template, worker_image).metadata.parameters]
    assert len(names) == len(set(names))
    left_out = {n for n, flag in BY_NAME.items() if template.mode not in place_of(flag).templates}
    if not worker_image:
        left_out |= {name for name in BY_NAME if name.startswith(("gpu_", "vllm_"))}
    assert set(names) == set(BY_NAME) - left_out
    assert {"preview", "wait"} <= left_out


@EACH
def test_backends_follow_the_image(template: render.Template) -> None:
    """The form offers and accepts a backend only if the workers' image has it."""
    everywhere = ["gemini", "vertex_endpoint", "openai"]
    for worker_image, offered in (
        ("", [*everywhere, "fake"]),
        (GPU_IMAGE, [*everywhere, "vllm", "fake"]),
    ):
        parameters = {each.name: each for each in spec(template, worker_image).metadata.parameters}
        backend = parameters["backend"]
        assert [choice.value for choice in backend.enum_options] == offered
        (pattern,) = backend.regexes
        assert [c for c in BY_NAME["backend"].kind.choices if matches(pattern, c)] == offered
        for each in parameters.values():
            if each.parent_name == "backend":
                assert set(each.parent_trigger_values) <= set(offered)


@GPUS
@EACH
def test_parameters_describe_themselves(template: render.Template, worker_image: str) -> None:
    """A parameter has a label, a help text, a default and one place, after its parent."""
    gpu, seen = bool(worker_image), set[str]()
    for parameter in spec(template, worker_image).metadata.parameters:
        flag = BY_NAME[parameter.name]
        assert parameter.label
        assert parameter.help_text.startswith(flag.help)
        assert parameter.default_value == flag.default_text
        assert bool(parameter.group_name) != bool(parameter.parent_name)
        assert not parameter.parent_name or parameter.parent_name in seen
        parent = BY_NAME.get(parameter.parent_name)
        if parent is not None and parent.kind.choices:
            assert set(parameter.parent_trigger_values) <= set(parent.kind.choices)
            assert parameter.parent_trigger_values or not parent.default
        values = [choice.value for choice in parameter.enum_options]
        choices = choices_offered(flag, gpu=gpu)
        assert values == (list(choices) if choices != ("true", "false") else [])
        seen.add(parameter.name)


@EACH
def test_required_parameters(template: render.Template) -> None:
    """The service rejects a launch without them; the launcher checks all other combinations."""
    parameters = spec(template, GPU_IMAGE).metadata.parameters
    required = {parameter.name for parameter in parameters if not parameter.is_optional}
    assert required == {"model"} | (
        {"input_subscription", "output_table"} if template.mode.streaming else set()
    )


@GPUS
@EACH
def test_patterns_accept_their_own_values(template: render.Template, worker_image: str) -> None:
    """Each pattern is POSIX extended, anchored, and matches its example, default and choices."""
    gpu = bool(worker_image)
    for parameter in spec(template, worker_image).metadata.parameters:
        flag = BY_NAME[parameter.name]
        choices = choices_offered(flag, gpu=gpu)
        values = [form_of(flag, gpu=gpu).example, flag.default_text, *choices]
        for pattern in parameter.regexes:
            compiled(pattern)
            assert pattern.startswith("^")
            assert pattern.endswith("$")
            for value in filter(None, values):
                assert matches(pattern, value), (parameter.name, pattern, value)


@pytest.mark.parametrize("flag", BY_NAME.values(), ids=str)
def test_forms(flag: Any) -> None:
    """Every kind's form works, and console types are the API's."""
    form = flag.kind.form
    assert form.param_type in api.ParameterType.__members__
    if form.pattern:
        assert matches(form.pattern, form.example)
        assert not matches(form.pattern, "")


@pytest.mark.parametrize(
    ("kind", "value", "accepted"),
    [
        (kinds.COUNT, "12", True),
        (kinds.COUNT, "1.5", False),
        (kinds.DECIMAL, "0.25", True),
        (kinds.DECIMAL, "1e3", False),
        (kinds.JSON_OBJECT, '{"a":\n {"b": [1]}}', True),
        (kinds.JSON_OBJECT, "gs://b/a.json", True),
        (kinds.JSON_OBJECT, "a.json", False),
        (kinds.GLOB, "gs://b/a*.jsonl", True),
        (kinds.GLOB, "/tmp/a.jsonl", False),
        (OUTPUT_PATH.kind, "gs://b/a/b", True),
        (OUTPUT_PATH.kind, "gs://b", False),
        (OUTPUT_PATH.kind, "gs://b/a*", False),
        (kinds.TABLE, "p-1:d.t", True),
        (kinds.TABLE, "example.com:p.d.t", True),
        (kinds.TABLE, "d.t", True),
        (kinds.TABLE, "t", False),
        (kinds.LABELS, "a=b,c=", True),
        (kinds.LABELS, "A=b", False),
        (BY_NAME["api_key_secret"].kind, "sk-123", False),
        (kinds.SUBSCRIPTION, "projects/my-project/subscriptions/s", False),
        (kinds.SUBSCRIPTION, "tickets", False),
        (kinds.TOPIC, "projects/example.com:my-project/topics/a.b", True),
        (BY_NAME["endpoint"].kind, "projects/p/locations/l/endpoints/1", True),
        (BY_NAME["endpoint"].kind, "models.example.com", False),
    ],
)
def test_values_that_patterns_reject(kind: Kind[Any], value: str, accepted: bool) -> None:
    """A wrong value is rejected in the form, before anything starts."""
    assert matches(kind.form.pattern, value) is accepted


def test_flags_are_shown_under_the_flags_they_need() -> None:
    """A flag is shown under the backends or the flag that it goes with."""
    for name, backends, gpu in (
        ("vllm_args", ("vllm",), True),
        ("gpu_type", ("vllm", "sentence_transformers"), True),
        ("generate_api", ("openai", "vllm"), False),
        ("endpoint", ("gemini", "vertex_endpoint", "openai"), False),
    ):
        place = place_of(BY_NAME[name])
        assert (place.parent, place.triggers, place.gpu) == ("backend", backends, gpu)
    for name in ("gpu_count", "gpu_driver", "gpu_machine_type"):
        place = place_of(BY_NAME[name])
        assert (place.parent, place.triggers) == ("gpu_type", ())  # any GPU
    assert {place_of(flag).parent for flag in FLAGS} - {""} <= set(BY_NAME)


# Files


def test_metadata_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    """The metadata is the output of ``python -m templates.render``."""
    assert render.main(["--check"]) == 0, capsys.readouterr().err


def test_drift_fails(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the command that repairs drift."""
    monkeypatch.setattr(render, "METADATA", tmp_path / "metadata")
    assert render.main(["--check"]) == 1
    assert "run python -m templates.render" in capsys.readouterr().err
    assert not (tmp_path / "metadata").exists()
    assert render.main([]) == 0
    assert render.main(["--check"]) == 0


def test_specs_are_written(tmp_path: pathlib.Path) -> None:
    """Each template has one spec, and a second one with a GPU image."""
    assert render.main([f"--image={IMAGE}", f"--folder={tmp_path}"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch.json", "streaming.json"]
    render.main([f"--image={IMAGE}", f"--gpu_image={GPU_IMAGE}", f"--folder={tmp_path}"])
    assert len(list(tmp_path.iterdir())) == 4
    written = json.loads((tmp_path / "streaming-gpu.json").read_text("utf-8"))
    assert written == render.container_spec(render.TEMPLATES[1], IMAGE, GPU_IMAGE)


def test_a_spec_needs_image_and_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """An image without a folder, or the reverse, is a usage error."""
    with pytest.raises(SystemExit):
        render.main([f"--image={IMAGE}"])
    assert re.search("both --image and --folder", capsys.readouterr().err)
