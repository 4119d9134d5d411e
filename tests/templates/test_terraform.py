"""The Terraform module: it parses, and every reference leads to something declared.

What this does not prove: that the provider takes it. Its schema is not on this machine, so neither
``terraform validate`` nor a plan has been run.
"""

import json
import re
import shutil
import subprocess
from typing import Any

import hcl2
import pytest

from templates import render
from tests.end_to_end.runs import missing_part
from tests.templates.launches import ROOT
from transforms.minute_summary import MINUTE_COLUMNS
from transforms.rows import DEAD_LETTER_COLUMNS, RESULT_COLUMNS

MODULE = ROOT / "templates/terraform"
FILES = sorted(MODULE.glob("*.tf"))
TEXT = "\n".join(
    re.sub(r"^\s*#.*$", "", path.read_text("utf-8"), flags=re.MULTILINE) for path in FILES
)


def _blocks() -> dict[str, list[Any]]:
    """Every top-level block of the module, by its kind; hcl2 raises where a file is not HCL."""
    found: dict[str, list[Any]] = {}
    for path in FILES:
        with path.open(encoding="utf-8") as file:
            for kind, blocks in hcl2.load(file).items():
                if isinstance(blocks, list) and not kind.startswith("__"):
                    found.setdefault(kind, []).extend(blocks)
    return found


def _names(kind: str) -> list[str]:
    """The names of a kind of block; of resources ``type.name``."""
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


def test_it_parses() -> None:
    """Everything that the issue asks for is a resource."""
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
    """As ``terraform fmt`` writes it, which also parses it."""
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
    """Variables, locals and resources that are used are declared, and the reverse."""
    variables, resources = set(_names("variable")), set(_names("resource"))
    declared_locals = set(_names("locals"))
    assert set(re.findall(r"\bvar\.(\w+)", TEXT)) == variables
    assert set(re.findall(r"\blocal\.(\w+)", TEXT)) == declared_locals
    used = set(re.findall(r"(?<![\w.\"/])(google_\w+\.\w+)", TEXT))
    assert used
    assert used <= resources, used - resources


def test_counted_resources_are_indexed() -> None:
    """A resource with ``count`` is a list wherever its attributes are read."""
    counted = {
        f"{kind}.{name}"
        for kind, name, body in re.findall(
            r'^resource "(\w+)" "(\w+)" \{\n(.*?)^\}', TEXT, re.MULTILINE | re.DOTALL
        )
        if re.search(r"^  count +=", body, re.MULTILINE)
    }
    assert counted
    for name, behind in re.findall(r"(?<![\w.\"/])(google_\w+\.\w+)([\[.]?)", TEXT):
        if behind:
            assert (behind == "[") == (name in counted or name.endswith("table.answers")), name


def test_what_the_issue_asks_for() -> None:
    """Retention, drain, private addresses, and an alert for each thing that can go wrong."""
    assert TEXT.count('message_retention_duration = "604800s"') == 2
    assert re.search(r'on_delete += "drain"', TEXT)
    assert "skip_wait_on_job_termination = false" in TEXT
    assert TEXT.count('"WORKER_IP_PRIVATE"') == 2
    alerts = set(re.findall(r"^ +(\w+) = \{\n +title", TEXT, re.MULTILINE))
    assert alerts == {"failed", "overdue", "system_lag", "watermark_age", "dead_letters"}
    assert "roles/owner" not in TEXT
    assert "roles/editor" not in TEXT


def test_parameters_are_the_templates() -> None:
    """What the module sets by itself exists in the template that it launches."""
    known = {option.name for name in ("batch", "streaming") for option in render.offered(name)}
    assert {"output_table", "input_subscription", "dead_letter_topic"} <= known


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("results", RESULT_COLUMNS),
        ("dead_letters", DEAD_LETTER_COLUMNS),
        ("runs", MINUTE_COLUMNS),
    ],
)
def test_tables_have_our_columns(name: str, columns: Any) -> None:
    """As the pipeline writes them; partitions and clusters name some of them."""
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
