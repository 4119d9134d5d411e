"""From flags to a backend: no value is guessed or ignored, and none is silently global."""

from typing import Any

import pytest

from pipeline.backends import ADAPTERS
from pipeline.options.command_line import parse_flags, parse_values
from pipeline.options.model import BACKEND, make_backend
from transforms.backends.fake import FakeBackend
from transforms.backends.gemini import GeminiBackend
from transforms.backends.openai import OpenAIBackend
from transforms.backends.sentence_transformers import SentenceTransformersBackend
from transforms.backends.vertex_endpoint import VertexEndpointBackend
from transforms.backends.vllm.backend import VLLMBackend
from transforms.records.errors import ConfigurationError

ENDPOINT = "projects/p/locations/europe-west4/endpoints/123"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clears the machine's own settings."""
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "GOOGLE_CLOUD_REGION"):
        monkeypatch.delenv(name, raising=False)


def _backend(*argv: str) -> Any:
    options = parse_flags(argv)
    return make_backend(parse_values(options), options)


def _refused(*argv: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        _backend(*argv)
    return str(raised.value)


def test_gemini_is_never_silently_global(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model flags override the job's, which override the environment; without any, error."""
    argv = ["--model=m", "--model_project=mp", "--model_location=us-east1"]
    job = ["--project=jp", "--region=europe-west1"]
    assert _backend(*argv, *job) == GeminiBackend(model="m", project="mp", location="us-east1")
    assert _backend(argv[0], *job) == GeminiBackend(
        model="m", project="jp", location="europe-west1"
    )
    assert _refused(argv[0], "--project=p") == (
        "--model_location is missing: set it (e.g. us-central1, or global), or --region, or "
        "GOOGLE_CLOUD_LOCATION in the environment"
    )
    assert _refused(argv[0], argv[2]) == (
        "--model_project is missing: set it, or --project, or GOOGLE_CLOUD_PROJECT in the environment"
    )
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "ep")
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "asia-east1")
    assert _backend(argv[0]) == GeminiBackend(model="m", project="ep", location="asia-east1")
    assert _backend(argv[0], *job) == GeminiBackend(
        model="m", project="jp", location="europe-west1"
    )
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "")
    assert _refused(argv[0]).startswith("--model_location is missing: ")
    assert _backend(argv[0], "--model_location=global").location == "global"


def test_every_backend_of_the_flag() -> None:
    """The choices of ``--backend`` are the backends that can be made."""
    assert BACKEND.kind.choices == tuple(ADAPTERS)


def test_gemini() -> None:
    """Every flag of Gemini reaches its backend, which is the default, also for an empty value."""
    place = ["--model=m", "--project=p", "--region=r"]
    assert _backend(*place, "--backend=") == _backend(*place, "--backend=gemini")
    assert _backend(
        *place, "--task=embed", "--endpoint=http://x", "--accept_truncated=true"
    ) == GeminiBackend(
        model="m",
        project="p",
        location="r",
        task="embed",
        endpoint="http://x",
        accept_truncated=True,
    )
    for tier in ("standard", "flex", "priority", "provisioned"):
        assert _backend(*place, f"--service_tier={tier}").service_tier == tier
    assert _backend(*place).service_tier is None
    assert _refused(*place[1:]) == (
        "--model is missing: which Gemini model, e.g. --model=gemini-2.5-flash"
    )


def test_openai() -> None:
    """Without an endpoint the real OpenAI service is called; the name of the model is required."""
    assert _backend("--backend=openai", "--model=m") == OpenAIBackend(
        model="m", endpoint="https://api.openai.com/v1"
    )
    assert _backend(
        "--backend=openai", "--model=m", "--endpoint=http://h/v1", "--task=embed",
        "--accept_truncated=true",
    ) == OpenAIBackend(
        model="m", endpoint="http://h/v1", task="embed", accept_truncated=True
    )  # fmt: skip
    assert _refused("--backend=openai") == (
        "--model is missing: the name that the server knows the model by"
    )


def test_vertex_endpoint() -> None:
    """The endpoint's resource name is required; a flag selects how it is called."""
    argv = ["--backend=vertex_endpoint", f"--endpoint={ENDPOINT}"]
    assert _backend(*argv) == VertexEndpointBackend(endpoint=ENDPOINT)
    assert _backend(*argv, "--predict_method=raw_predict", "--model=m") == VertexEndpointBackend(
        endpoint=ENDPOINT, method="raw_predict", model="m"
    )
    assert _refused(argv[0]) == (
        "--endpoint is missing: which endpoint, e.g. projects/P/locations/L/endpoints/123"
    )
    assert _refused(*argv, "--task=embed") == (
        "--task is 'embed', but backend vertex_endpoint takes generate only: set --task=generate"
    )


def test_vllm() -> None:
    """The vLLM server's arguments are split like a shell's."""
    argv = [
        "--backend=vllm",
        "--model=Qwen/Qwen3-8B",
        "--task=embed",
        "--vllm_python=/v/bin/python",
    ]
    assert _backend(
        *argv, "--vllm_args=--max-model-len 8192 --override='{\"a b\": 1}'"
    ) == VLLMBackend(
        model="Qwen/Qwen3-8B",
        task="embed",
        python="/v/bin/python",
        args=("--max-model-len", "8192", '--override={"a b": 1}'),
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--model is missing: a name on the Hugging Face hub, a folder, or gs://…"),
        (
            ["--model=m", "--vllm_args=--served_model_name=x"],
            "--vllm_args has --served-model-name, which the pipeline sets itself: remove it",
        ),
        (
            ["--model=m", "--vllm_args='"],
            '--vllm_args is "\'": No closing quotation',
        ),
        (
            ["--model=m", '--request_options={"guided_json": {}}'],
            (
                "--request_options has 'guided_json', which vLLM silently ignores: use --output_schema, "
                "or structured_outputs in --request_options"
            ),
        ),
        (
            ["--model=m", "--endpoint=http://x/v1"],
            (
                "--endpoint is 'http://x/v1', but backend vllm does not take it: remove it, or use "
                "--backend=gemini or vertex_endpoint or openai"
            ),
        ),
    ],
)
def test_vllm_refuses(flags: list[str], message: str) -> None:
    """Bad flags of vLLM are rejected before a launch."""
    assert _refused("--backend=vllm", *flags) == message


@pytest.mark.parametrize("flag", ["vllm_args", "vllm_python"])
def test_flags_of_vllm_go_with_it_alone(flag: str) -> None:
    """Flags of vLLM are rejected for other backends, which would ignore them."""
    assert _refused("--backend=openai", "--model=m", f"--{flag}=x") == (
        f"--{flag} is 'x', but backend openai does not take it: remove it, or use --backend=vllm"
    )


def test_sentence_transformers() -> None:
    """Sentence transformers only compute embeddings."""
    argv = ["--backend=sentence_transformers", "--model=all-MiniLM-L6-v2"]
    assert _backend(*argv, "--task=embed") == SentenceTransformersBackend(model="all-MiniLM-L6-v2")
    assert _refused(*argv) == (
        "--task is 'generate', but backend sentence_transformers takes embed only: set --task=embed"
    )
    assert _refused(argv[0], "--task=embed") == (
        "--model is missing: a model's name or path, e.g. all-MiniLM-L6-v2"
    )


def test_fake() -> None:
    """Request options of the fake backend go to the backend, not into requests."""
    assert _backend("--backend=fake") == FakeBackend()
    assert _backend(
        "--backend=fake", "--model=m", "--task=embed",
        '--request_options={"latency_ms": 5, "faults": {"blocked": 0.5}, "embedding_dimensions": 4}',
    ) == FakeBackend(
        model="m", task="embed", latency_ms=5, faults={"blocked": 0.5}, embedding_dimensions=4
    )  # fmt: skip
    assert _refused("--backend=fake", '--request_options={"labels": {}}') == (
        "--request_options has 'labels', but the fake backend's options are: latency_ms, faults, "
        "embedding_dimensions"
    )
    assert _refused("--backend=fake", '--request_options={"latency_ms": -1}') == (
        "--request_options: latency_ms is -1: it must be a number of milliseconds, 0 or more"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--backend=fake", "--endpoint=http://h"],
            (
                "--endpoint is 'http://h', but backend fake does not take it: remove it, or use "
                "--backend=gemini or vertex_endpoint or openai"
            ),
        ),
        (
            ["--backend=sentence_transformers", "--task=embed", "--model=m", "--endpoint=x"],
            (
                "--endpoint is 'x', but backend sentence_transformers does not take it: remove it, or use "
                "--backend=gemini or vertex_endpoint or openai"
            ),
        ),
        (
            ["--backend=fake", "--instance_fields=a"],
            (
                "--instance_fields is 'a', but backend fake does not take it: remove it, or use "
                "--backend=vertex_endpoint"
            ),
        ),
        (
            ["--backend=fake", "--service_tier=flex"],
            (
                "--service_tier is 'flex', but backend fake does not take it: remove it, or use "
                "--backend=gemini"
            ),
        ),
        (
            ["--backend=openai", "--model=m", "--service_tier=priority"],
            (
                "--service_tier is 'priority', but backend openai does not take it: remove it, or use "
                "--backend=gemini"
            ),
        ),
        (
            ["--backend=fake", "--task=embed", "--output_schema={}"],
            "--output_schema is '{}', but goes with --task=generate only: remove it",
        ),
        (
            ["--backend=fake", "--task=embed", "--system_prompt=s"],
            "--system_prompt is 's', but goes with --task=generate only: remove it",
        ),
        (
            ["--backend=fake", "--task=embed", "--system_prompt_file=s.txt"],
            "--system_prompt_file is 's.txt', but goes with --task=generate only: remove it",
        ),
        (
            ["--backend=fake", "--task=embed", "--messages_field=chat"],
            "--messages_field is 'chat', but goes with --task=generate only: remove it",
        ),
        (
            ["--backend=fake", "--model_project=p"],
            (
                "--model_project is 'p', but backend fake does not take it: remove it, or use "
                "--backend=gemini"
            ),
        ),
        (
            ["--backend=openai", "--model=m", "--predict_method=raw_predict"],
            (
                "--predict_method is 'raw_predict', but backend openai does not take it: remove "
                "it, or use --backend=vertex_endpoint"
            ),
        ),
        (
            ["--backend=openai", "--model=m", "--gpu_type=nvidia-l4"],
            (
                "--gpu_type is 'nvidia-l4', but backend openai does not take it: remove it, or use "
                "--backend=vllm or sentence_transformers"
            ),
        ),
        (
            ["--backend=fake", "--api_key_secret=projects/p/secrets/s/versions/1"],
            (
                "--api_key_secret is set, but backend fake does not take it: remove it, or use "
                "--backend=openai"
            ),
        ),
        (
            ["--backend=sentence_transformers", "--task=embed", "--model=m", "--temperature=1"],
            (
                "--temperature is '1', but backend sentence_transformers has no parameters for a "
                "request: remove it"
            ),
        ),
        (
            ["--backend=sentence_transformers", "--task=embed", "--model=m", "--request_field=r"],
            (
                "--request_field is 'r', but backend sentence_transformers embeds a prompt's text: "
                "remove it"
            ),
        ),
        (
            ["--backend=vertex_endpoint", f"--endpoint={ENDPOINT}", "--messages_field=chat"],
            (
                "--messages_field is 'chat', but backend vertex_endpoint sends instances, which "
                "have no messages: remove it"
            ),
        ),
    ],
)
def test_backend_conflicts(argv: list[str], message: str) -> None:
    """Each conflict names the flag, its value and the setting that it goes with."""
    assert _refused(*argv) == message


def test_several_endpoints() -> None:
    """Commas separate several endpoints; a single endpoint needs no comma."""
    both = _backend("--backend=openai", "--model=m", "--endpoint=http://a/v1, http://b/v1")
    assert both == OpenAIBackend(model="m", endpoint=("http://a/v1", "http://b/v1"))
    one = _backend("--backend=openai", "--model=m", "--endpoint=http://a/v1,")
    assert one == OpenAIBackend(model="m", endpoint="http://a/v1")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--backend=openai", "--endpoint=http://a/v1,b/v1"],
            "--endpoint is 'b/v1', but must be a URL",
        ),
        (
            ["--backend=openai", "--endpoint=http://a/v1,http://a/v1/"],
            "--endpoint names a server twice: http://a/v1, http://a/v1/",
        ),
        (
            ["--backend=openai", "--endpoint=https://api.openai.com/v1,http://a/v1"],
            "--endpoint is https://api.openai.com/v1, http://a/v1, but several endpoints must",
        ),
        (
            ["--backend=gemini", "--model_location=l", "--endpoint=http://a,http://b"],
            "--endpoint is 'http://a,http://b', but only --backend=openai takes several: set one",
        ),
        (
            ["--backend=fake", "--generate_api=completions"],
            "--generate_api is 'completions', but backend fake does not take it: remove it, or use ",
        ),
        (
            ["--backend=vllm", "--generate_api=completions", "--task=embed"],
            "--generate_api is 'completions', but goes with --task=generate only: remove it",
        ),
    ],
)
def test_impossible_endpoints_and_apis(argv: list[str], message: str) -> None:
    """Impossible endpoints and APIs are rejected with the value and the remedy."""
    assert _refused("--model=m", *argv).startswith(message)


def test_base_models() -> None:
    """A flag selects the completions API for either backend that has one."""
    argv = ("--model=m", "--generate_api=completions")
    assert _backend("--backend=vllm", *argv) == VLLMBackend(model="m", api="completions")
    asked = _backend("--backend=openai", "--endpoint=http://a/v1", *argv)
    assert asked == OpenAIBackend(model="m", endpoint="http://a/v1", api="completions")
