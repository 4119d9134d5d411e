"""The Terraform module: it parses, and every reference has a declaration.

This does not prove that the provider accepts it. Without the provider's schema neither a plan nor
``terraform validate`` can run; Terraform evaluates the locals without it.
"""

import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import hcl2
import pytest

from pipeline.options.mode import Mode
from templates import render
from tests.end_to_end.runs import missing_part
from tests.templates.launches import ROOT
from transforms.accounting.minute_summary import MINUTE_COLUMNS
from transforms.results.rows import DEAD_LETTER_COLUMNS, RESULT_COLUMNS

MODULE = ROOT / "templates/terraform"
FILES = sorted(MODULE.glob("*.tf"))
TEXT = "\n".join(
    re.sub(r"^\s*#.*$", "", path.read_text("utf-8"), flags=re.MULTILINE) for path in FILES
)


def _blocks() -> dict[str, list[Any]]:
    """The top-level blocks of the module, by kind; hcl2 raises if a file is not HCL."""
    found: dict[str, list[Any]] = {}
    for path in FILES:
        with path.open(encoding="utf-8") as file:
            for kind, blocks in hcl2.load(file).items():
                if isinstance(blocks, list) and not kind.startswith("__"):
                    found.setdefault(kind, []).extend(blocks)
    return found


def _names(kind: str) -> list[str]:
    """The names of a kind of block; for resources ``type.name``."""
    names = []
    for block in _blocks()[kind]:
        for first, inner in block.items():
            if first.startswith("__"):
                continue
            label = first.strip('"')
            if kind == "resource":
                names += [f"{label}.{name.strip(chr(34))}" for name in inner]
            else:
                names.append(label)
    return [name for name in names if "__" not in name]


def _resources() -> dict[str, str]:
    """The text inside each resource, by ``type.name``."""
    found = re.findall(r'^resource "(\w+)" "(\w+)" \{\n(.*?)^\}', TEXT, re.MULTILINE | re.DOTALL)
    return {f"{kind}.{name}": body for kind, name, body in found}


def test_it_parses() -> None:
    """The module parses and declares all resources of a deployment."""
    resources = _names("resource")
    assert len(resources) == len(set(resources))
    kinds = {name.partition(".")[0] for name in resources}
    assert kinds >= {
        "google_bigquery_dataset",
        "google_bigquery_table",
        "google_cloud_scheduler_job",
        "google_dataflow_flex_template_job",
        "google_monitoring_alert_policy",
        "google_pubsub_subscription",
        "google_pubsub_topic",
        "google_service_account",
        "google_storage_bucket",
    }


def test_it_is_formatted() -> None:
    """The module is the output of ``terraform fmt``, which also parses it."""
    if shutil.which("terraform") is None:
        missing_part("terraform is not installed")
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-diff", "."],
        cwd=MODULE,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "TF_CLI_CONFIG_FILE": "/dev/null"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_reference_resolves() -> None:
    """All used variables, locals and resources are declared, and all declared ones are used."""
    variables, resources = set(_names("variable")), set(_names("resource"))
    declared_locals = set(_names("locals"))
    assert set(re.findall(r"\bvar\.(\w+)", TEXT)) == variables
    assert set(re.findall(r"\blocal\.(\w+)", TEXT)) == declared_locals
    used = set(re.findall(r"(?<![\w.\"/])(google_\w+\.\w+)", TEXT))
    assert used
    assert used <= resources, used - resources


def test_counted_resources_are_indexed() -> None:
    """References to a resource with ``count`` or ``for_each`` have an index."""
    several = {
        name
        for name, body in _resources().items()
        if re.search(r"^  (count|for_each) +=", body, re.MULTILINE)
    }
    assert several
    for name, behind in re.findall(r"(?<![\w.\"/])(google_\w+\.\w+)([\[.]?)", TEXT):
        if behind:
            assert (behind == "[") == (name in several), name


def test_guarantees_of_a_deployment() -> None:
    """A deployment sets retention, drain, private addresses, and an alert per kind of trouble."""
    assert TEXT.count('message_retention_duration = "604800s"') == 2
    assert re.search(r'on_delete += "drain"', TEXT)
    assert "skip_wait_on_job_termination = false" in TEXT
    assert TEXT.count('"WORKER_IP_PRIVATE"') == 2
    alerts = set(re.findall(r"^ +(\w+) = \{\n +title", TEXT, re.MULTILINE))
    assert alerts == {
        *("failed", "unreconciled", "refused", "not_launched", "slow", "throttled"),
        *("system_lag", "watermark_age", "dead_letters", "batch_dead_letters"),
    }
    assert "roles/owner" not in TEXT
    assert "roles/editor" not in TEXT


def test_files_of_a_running_job_are_not_deleted() -> None:
    """Only old files of tmp/ are deleted, later than the longest batch run."""
    bucket = _resources()["google_storage_bucket.work"]
    assert bucket.count("matches_prefix") == 1
    assert 'matches_prefix = ["tmp/"]' in bucket
    (age,) = re.findall(r"age += (\d+)", bucket)
    assert int(age) >= 30


@pytest.mark.parametrize(
    ("job", "others"),
    [
        ("google_cloud_scheduler_job.batch", {"pubsub_subscription", "pubsub_topic"}),
        ("google_dataflow_flex_template_job.streaming", set()),
    ],
)
def test_jobs_depend_on_all_permissions_of_their_identity(job: str, others: set[str]) -> None:
    """Jobs depend on all permissions of their identity, so that a drain can still pull images."""
    body = _resources()[job]
    waits = set(re.findall(r"^    (google_\w+\.\w+),$", body, re.MULTILINE))
    grants = {
        name
        for name in _resources()
        if name.endswith("_iam_member.worker")
        and name.removeprefix("google_").removesuffix("_iam_member.worker") not in others
    }
    assert len(grants) >= 5
    assert waits >= grants | {"google_kms_crypto_key_iam_member.agents"}


def test_resources_depend_on_their_enabled_service() -> None:
    """A resource without references depends on the services, directly or indirectly."""
    for name, body in _resources().items():
        if name == "google_project_service.needed":
            continue
        others = set(re.findall(r"(?<![\w.\"/])(google_\w+\.\w+)", body))
        others |= set(re.findall(r"\blocal\.(worker|builder|output_table)\b", body))
        assert others, name


def test_encrypted_resources_depend_on_the_agents_access() -> None:
    """Google's agents get access to the key before anything is encrypted with it."""
    encrypted = [
        name
        for name, body in _resources().items()
        if re.search(r"kms_key_name +=", body) and "flex_template_job" not in name
    ]
    assert len(encrypted) == 5
    for name in encrypted:
        assert "google_kms_crypto_key_iam_member.agents" in _resources()[name], name


_STREAM = {
    "prompt_file": "gs://b/p.jinja",
    "model": "gemini-2.5-flash",
    "output_table": "p:inference.answers",
}
_WITHOUT_PROVIDERS = """
output "found" {
  value = jsonencode({
    request    = local.batch_request
    thresholds = local.thresholds
    queries    = local.queries
    entries    = local.entries
    agents     = keys(local.agents)
    roles      = local.worker_roles
  })
}
"""


@pytest.mark.parametrize(
    ("batch", "streaming", "kms_key"),
    [
        ({"input_files": "gs://b/*.jsonl"}, None, None),
        ({"input_query": "SELECT 1"}, {}, "k"),
        (None, {"max_batch_size": "64"}, None),
        ({"input_table": "q:d.t", "temp_dataset": "q:mine"}, None, None),
    ],
)
def test_computed_locals(
    tmp_path: pathlib.Path, batch: Any, streaming: Any, kms_key: str | None
) -> None:
    """Terraform itself evaluates the locals, with stand-ins for attributes of resources."""
    found = _evaluated(tmp_path, batch, streaming, kms_key)
    if batch is not None:
        parameters = _STREAM | batch
        if "input_files" not in batch:
            parameters = {"temp_dataset": "p:inference_temporary"} | parameters
        assert found["request"]["parameters"] == parameters
        environment = found["request"]["environment"]
        assert environment["ipConfiguration"] == "WORKER_IP_PRIVATE"
        assert environment.get("kmsKeyName") == kms_key
        assert None not in environment.values()
    names = {name for kind in ("thresholds", "queries", "entries") for name in found[kind]}
    assert ("batch_dead_letters" in names) == ("not_launched" in names) == (batch is not None)
    assert ("dead_letters" in names) == ("system_lag" in names) == (streaming is not None)
    agents = ["bigquery", "compute", "dataflow", "pubsub", "storage"]
    assert found["agents"] == (agents if kms_key else [])
    assert {"roles/dataflow.worker", "roles/dataflow.viewer"} <= set(found["roles"])
    for entry in found["entries"].values():
        assert entry["filter"].count('"') % 2 == 0
    for query in found["queries"].values():
        assert query["query"].count("{") == query["query"].count("}") > 0


def _evaluated(folder: pathlib.Path, batch: Any, streaming: Any, kms_key: str | None) -> Any:
    if shutil.which("terraform") is None:
        missing_part("terraform is not installed")
    locals_of = re.findall(r"^locals \{\n.*?^\}\n", TEXT, re.MULTILINE | re.DOTALL)
    text = "\n".join(locals_of) + _WITHOUT_PROVIDERS
    for pattern, value in (
        (r"google_bigquery_dataset\.answers\.dataset_id", '"inference"'),
        (
            r"google_bigquery_dataset\.temporary\b",
            '[for _ in range(local.batches) : { dataset_id = "inference_temporary" }]',
        ),
        (r'google_bigquery_table\.answers\["answers"\]\.table_id', '"answers"'),
        (r"one\(data\.google_project\.this\[\*\]\.number\)", '"1"'),
        (r"(data\.)?google_\w+\.\w+(\[0\])?\.\w+", '"b"'),
    ):
        text = re.sub(pattern, value, text)
    text = re.sub(r"\$\{\"b\"\}", "b", text)
    (folder / "main.tf").write_text(text, "utf-8")
    (folder / "variables.tf").write_text((MODULE / "variables.tf").read_text("utf-8"), "utf-8")
    given = {
        "project": "p",
        "bucket": "b",
        "kms_key": kms_key,
        "parameters": {name: _STREAM[name] for name in ("prompt_file", "model")},
        "batch": None if batch is None else {"parameters": batch, "schedule": "0 3 * * *"},
        "streaming": streaming,
    }
    (folder / "terraform.tfvars.json").write_text(json.dumps(given), "utf-8")
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "TF_CLI_CONFIG_FILE": "/dev/null"}
    for command in (["init", "-input=false"], ["apply", "-input=false", "-auto-approve"]):
        done = subprocess.run(
            ["terraform", *command, "-no-color"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    state = json.loads((folder / "terraform.tfstate").read_text("utf-8"))
    return json.loads(state["outputs"]["found"]["value"])


def test_parameters_are_the_templates() -> None:
    """Parameters that the module sets itself exist in the template that it launches."""
    known = {flag.name for mode in Mode for flag in render.offered(mode)}
    assert known >= {"output_table", "input_subscription", "dead_letter_topic", "temp_dataset"}


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("results", RESULT_COLUMNS),
        ("dead_letters", DEAD_LETTER_COLUMNS),
        ("runs", MINUTE_COLUMNS),
    ],
)
def test_tables_have_our_columns(name: str, columns: Any) -> None:
    """The columns are the pipeline's; partitions and clusters name some of them."""
    schema = json.loads((MODULE / f"schemas/{name}.json").read_text("utf-8"))
    assert [(field["name"], field["type"], field["mode"]) for field in schema] == [
        (column.name, column.type, column.mode) for column in columns
    ]
    block = re.search(
        rf'schema += "{name}"\n +partition += "(\w+)"\n +clustering = \[(.*?)\]', TEXT
    )
    assert block is not None
    names = {column.name for column in columns}
    assert {block[1], *re.findall(r'"(\w+)"', block[2])} <= names
