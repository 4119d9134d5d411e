"""One launch per template with all parameters that can be combined.

`tests.templates.test_parameters` tests the effect of each.
"""

import pytest

from pipeline.options.mode import Mode
from templates import render
from tests.emulators.dataflow_server import DataflowServer
from tests.emulators.google_cloud import LoopbackCloud
from tests.templates.conftest import Script
from tests.templates.launches import GPU_IMAGE, IMAGE, launch, launcher_argv, sent

BATCH, STREAMING = (mode.value for mode in Mode)
COMMON = {
    "prompt": "Answer, shortly: {{ text }}",
    "system_prompt": "Be short, ~~ and | clear.",
    "max_output_tokens": "64",
    "temperature": "0.5",
    "generation_config": '{"top_p": 0.9, "stop": ["a,b"]}',
    "output_schema": '{"type": "object", "properties": {"a": {"type": "string"}}}',
    "accept_truncated": "true",
    "id_field": "id",
    "task": "generate",
    "max_requests_per_minute": "600",
    "max_tokens_per_minute": "100000",
    "max_concurrency": "64",
    "max_attempts": "3",
    "request_timeout_s": "60",
    "record_deadline_s": "1800",
    "max_dead_letter_ratio": "0.5",
    "max_batch_size": "64",
    "write_method": "storage_write",
    "exactly_once": "true",
    "write_mode": "append",
    "record_fields": "id,text",
    "run_id": "everything",
    "bigquery_location": "US",
    "resource_labels": "team=ml,env=test",
    "number_of_worker_harness_threads": "7",
    "disk_size_gb": "77",
    "dataflow_service_options": "automatically_use_created_reservation,enable_prime=no",
    "dead_letter_topic": "projects/emu-proj/topics/dead",
}
OWN = {
    BATCH: {
        "input_format": "jsonl",
        "limit": "10",
        "backend": "gemini",
        "model": "gemini-2.5-flash",
        "model_project": "emu-proj",
        "model_location": "us-central1",
        "service_tier": "flex",
        "endpoint": "https://gemini.example.com",
        "request_options": '{"labels": {"team": "ml"}}',
        "media_fields": "photo:image/jpeg",
        "order_by_prefix": "data_set",
        "prefix_chars": "500",
        "output_format": "parquet",
    },
    STREAMING: {
        "input_subscription": "projects/emu-proj/subscriptions/tickets",
        "pubsub_id_attribute": "key",
        "backend": "vllm",
        "model": "gs://models/m",
        "generate_api": "chat",
        "vllm_args": "--max-model-len=8192 --dtype=half",
        "vllm_python": "/opt/vllm/bin/python",
        "gpu_type": "nvidia-tesla-t4",
        "gpu_count": "2",
        "gpu_driver": "580",
        "gpu_machine_type": "n1-standard-32",
        "request_options": '{"top_k": 5}',
        "media_fields": "photo:image/jpeg",
        "order_by_prefix": "batch",
        "max_batch_wait_s": "2",
        "batch_keys": "4",
    },
}
_OTHER_PROMPTS = {"prompt_file", "system_prompt_file", "messages_field", "request_field"}
_OTHER_INPUTS = {"input_table", "input_query", "input_dead_letters"}
_OF_TABLES = {"input_fields", "input_filter", "temp_dataset"}
_OF_BACKENDS = {"instance_fields", "predict_method", "api_key_secret"}
_OF_EMBEDDINGS = {"embedding_batch_size"}
LEFT_OUT = {
    BATCH: _OTHER_PROMPTS
    | _OTHER_INPUTS
    | _OF_TABLES
    | _OF_BACKENDS
    | _OF_EMBEDDINGS
    | {"generate_api"},
    STREAMING: _OTHER_PROMPTS
    | _OF_BACKENDS
    | _OF_EMBEDDINGS
    | {"endpoint", "model_project", "model_location", "service_tier"},
}
"""Parameters for another input, prompt, task or backend than those used here."""


def _parameters(template: str, bucket: str, dataset: str) -> dict[str, str]:
    table = dataset.replace(".", ":")
    found = {
        **COMMON,
        **OWN[template],
        "output_table": f"{table}.answers",
        "dead_letter_table": f"{table}.failed",
    }
    if template == BATCH:
        found |= {
            "input_files": f"gs://{bucket}/in/*.jsonl",
            "output_path": f"gs://{bucket}/out",
            "dead_letter_path": f"gs://{bucket}/failed",
        }
    return found


@pytest.mark.parametrize("template", render.TEMPLATES, ids=lambda template: template.name)
def test_all_parameters_at_once(
    script: Script,
    dataflow: DataflowServer,
    loopback_cloud: LoopbackCloud,
    inputs: str,
    template: render.Template,
) -> None:
    """Each value arrives in the job unchanged, with its commas, quotes and delimiters."""
    name, worker_image = template.name, GPU_IMAGE if template.name == STREAMING else ""
    given = _parameters(name, inputs, loopback_cloud.new_dataset())
    offered = {flag.name for flag in render.offered(template.mode, gpu=bool(worker_image))}
    assert set(given) == offered - LEFT_OUT[name]

    done = script(
        f"run_{name}.sh", "--project=emu-proj", "--region=us-central1", f"--bucket={inputs}",
        "--max_workers=5", "--machine_type=n2-standard-4",
        *[f"{key}={value}" for key, value in given.items()],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sent(dataflow)["parameters"] == given

    spec = render.container_spec(template, IMAGE, worker_image)
    argv = launcher_argv(sent(dataflow), spec, "emu-proj", "us-central1")
    found = launch(loopback_cloud, dataflow, inputs, argv)
    assert found.code == 0, found.messages
    recorded = found.environment["sdkPipelineOptions"]["options"]
    ours = {key: value for key, value in given.items() if isinstance(recorded.get(key), str)}
    assert {key: recorded[key] for key in ours} == ours
    assert set(given) - set(ours) == {
        "number_of_worker_harness_threads",
        "disk_size_gb",
        "dataflow_service_options",
    }
    assert found.pool["numThreadsPerWorker"] == 7
    assert found.pool["diskSizeGb"] == 77
    options = set(given["dataflow_service_options"].split(","))
    assert options <= set(found.environment["serviceOptions"])
    hinted = {"type:nvidia-tesla-t4;count:2;machine_type:n1-standard-32;install-nvidia-driver:580"}
    assert set(found.accelerators.values()) == (hinted if worker_image else set())
