"""The smoke test's own logic, with fake gcloud and bq.

This does not prove that the commands work in a real project.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from apache_beam.testing.load_tests import dataflow_cost_consts as costs

from tests.templates.launches import ROOT

PRETENDER = """\
#!/usr/bin/env bash
# Notes its arguments; answers as a project would in which all goes well, with $ROWS results and the
# pipeline's own summary in $SUMMARY.
printf '%s %s\\n' "$(basename "$0")" "$*" >>"$NOTES"
case "$*" in
  *LOGICAL_AND*) printf 'n\n%s\n' "$SUMMARY" ;;
  *_dead_letters*) echo "Not found: Table"; exit 1 ;;
  *DISTINCT*) printf 'n\\n%s\\n' "$ROWS" ;;
  *'SUM(cost_usd)'*) printf 'n\\n0.0042\\n' ;;
  *'COUNT(*)'*) printf 'n\\n%s\\n' "$ROWS" ;;
  *'jobs list'*-batch*'value(state)'*) echo Done ;;
  *'jobs list'*-streaming*'value(state)'*)
    if grep -q 'jobs drain' "$NOTES"; then echo Drained; else echo Running; fi ;;
  *'jobs list'*--status=active*-streaming*)
    grep -q 'jobs drain' "$NOTES" || echo job-2 ;;
  *'jobs list'*--status=active*) ;;
  *'jobs list'*) echo job-1 ;;
  *'metrics list job-1'*)
    printf 'TotalVcpuTime,3600\nTotalMemoryUsage,3686400\nTotalPdUsage,360000\nCurrentVcpuCount,4\n'
    printf 'BillableShuffleDataProcessed,2\nTotalStreamingDataProcessed,0\n' ;;
esac
"""


def smoke(
    folder: Path, *flags: str, rows: int = 100, summary: str = "100 true"
) -> tuple[int, str, list[str]]:
    """The script's exit code, its output, and the commands that it ran."""
    for name in ("gcloud", "bq"):
        path = folder / name
        path.write_text(PRETENDER, encoding="utf-8")
        path.chmod(0o755)
    notes = folder / "notes"
    notes.touch()
    environment = os.environ | {
        "NOTES": str(notes),
        "ROWS": str(rows),
        "SUMMARY": summary,
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["templates/smoke.sh", "my-project", "--bucket=b", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr, notes.read_text("utf-8").splitlines()


def test_all_goes_well(tmp_path: Path) -> None:
    """Both jobs, 100 messages, resources and cost are checked; then everything is deleted."""
    code, printed, commands = smoke(tmp_path)
    assert code == 0, printed
    assert "batch: 100 results, 0 dead letters, model cost (list price) USD 0.0042" in printed
    assert "streaming: 100 results, 0 dead letters" in printed
    used = "1.000 vCPU hours, 1.000 GB hours of memory, 100.0 of disk, 2.000 GB of data"
    assert [line for line in printed.splitlines() if line.startswith("Dataflow: ")] == [
        f"Dataflow: {used}: about USD 0.0870 (estimate, list prices of us-central1)",
        f"Dataflow: {used}: about USD 0.1140 (estimate, list prices of us-central1)",
    ]
    assert sum("--sort-by=~creationTime" in command for command in commands) >= 5
    summaries = [command for command in commands if "LOGICAL_AND(reconciled)" in command]
    assert ["batch_runs" in command for command in summaries] == [True, False]
    assert sum("topics publish" in command for command in commands) == 100
    launches = [command for command in commands if "flex-template run" in command]
    assert ["-batch " in command for command in launches] == [True, False]
    assert all("max-workers=2" in command for command in launches)
    order = [
        next(number for number, command in enumerate(commands) if part in command)
        for part in ("mk -d", "flex-template run", "topics publish", "jobs drain", "rm -r -f -d")
    ]
    assert order == sorted(order)
    deleted = [command for command in commands if " delete " in command or " rm " in command]
    assert len(deleted) == 4


def test_a_run_that_does_not_reconcile(tmp_path: Path) -> None:
    """It fails with the numbers and still cleans up, unless --keep is set."""
    code, printed, commands = smoke(tmp_path, "--only=batch", rows=99)
    assert code == 1
    assert "FAILED: batch does not reconcile: 100 records, 99 results of 99 ids" in printed
    assert any("rm -r -f -d" in command for command in commands)
    assert not any("pubsub" in command for command in commands)

    (tmp_path / "notes").unlink()
    code, _, commands = smoke(tmp_path, "--only=batch", "--keep", rows=99)
    assert code == 1
    assert not any("rm -r -f -d" in command for command in commands)


@pytest.mark.parametrize("summary", ["99 true", "100 false", ""])
def test_a_summary_that_disagrees(tmp_path: Path, summary: str) -> None:
    """The rows must agree with the run's summary."""
    code, printed, _ = smoke(tmp_path, "--only=batch", summary=summary)
    assert code == 1
    assert f"FAILED: batch_runs says '{summary}' (records, reconciled)" in printed


def test_the_workers_identity(tmp_path: Path) -> None:
    """Both jobs run as the workers' identity, which gets access to their resources."""
    account = "worker@my-project.iam.gserviceaccount.com"
    code, printed, commands = smoke(tmp_path, f"--service_account={account}")
    assert code == 0, printed
    launches = [command for command in commands if "flex-template run" in command]
    assert len(launches) == 2
    assert all(f"--service-account-email={account}" in command for command in launches)
    assert sum(f"TO 'serviceAccount:{account}'" in command for command in commands) == 1
    assert sum("subscriptions add-iam-policy-binding" in command for command in commands) == 2


def test_the_prices_are_beams() -> None:
    """The prices equal the constants that the script names as its source."""
    text = (ROOT / "templates/smoke.sh").read_text("utf-8")
    for kind in ("batch", "streaming"):
        upper = kind.upper()
        found = re.search(rf"^{kind}_prices='(.*)'$", text, re.MULTILINE)
        assert found is not None
        assert [float(price) for price in found[1].split()] == [
            getattr(costs, f"VCPU_PER_HR_{upper}"),
            getattr(costs, f"MEM_PER_GB_HR_{upper}"),
            costs.PD_PER_GB_HR,
            getattr(costs, f"SHUFFLE_PER_GB_{upper}"),
        ]


def test_a_dry_run_calls_nothing(tmp_path: Path) -> None:
    """A dry run prints its commands and runs none."""
    code, printed, commands = smoke(tmp_path, "--dry_run")
    assert code == 0
    assert printed.count("flex-template run") == 2
    assert "every record ended" not in printed
    assert commands == []


@pytest.mark.parametrize("flag", ["--bucke=b", "--only=stream"])
def test_wrong_use(tmp_path: Path, flag: str) -> None:
    """A usage error returns 2 before anything is created."""
    code, printed, commands = smoke(tmp_path, flag)
    assert (code, commands) == (2, [])
    assert printed.startswith(f"error: unknown flag {flag}")
