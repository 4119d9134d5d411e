"""The closing table: its title says how a run ended."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from pipeline.terminal.report import summary_panel

SUMMARY = {
    "records": 5,
    "results": 3,
    "dead_letters": 2,
    "dead_letters_by_error_type": '{"blocked": 2}',
    "duplicate_ids": 0,
    "requests_sent": 5,
    "retries": 0,
    "throttled_ms": 0,
    "input_tokens": 0,
    "cached_input_tokens": 0,
    "output_tokens": 0,
    "reasoning_tokens": 0,
    "cost_usd": None,
    "started_at": "2026-11-21T15:00:00Z",
    "finished_at": "2026-11-21T15:00:02Z",
    "reconciled": True,
}


@pytest.mark.parametrize(
    ("more", "title"),
    [
        pytest.param({}, "reconciled", id="whole"),
        pytest.param(
            {"results": 0, "dead_letters": 5},
            "reconciled, but every record is a dead letter",
            id="no results",
        ),
        pytest.param(
            {"dead_letters_by_error_type": json.dumps({"blocked": 1, "not_attempted": 1})},
            "reconciled, but stopped early",
            id="stopped",
        ),
        pytest.param({"reconciled": False}, "NOT RECONCILED", id="not whole"),
    ],
)
def test_the_title_says_how_a_run_ended(tmp_path: Path, more: dict[str, Any], title: str) -> None:
    """The title of a stopped run says that it reconciles too: unsent requests are dead letters."""
    flags = ["--prompt={{ text }}", "--backend=fake", "--run_id=r", f"--output_path={tmp_path}/o"]
    (tmp_path / "in.jsonl").write_text('{"text": "hello"}\n')
    config = RunConfig.from_options(parse_flags([*flags, f"--input_files={tmp_path}/in.jsonl"]))
    console = Console(width=100)
    with console.capture() as shown:
        console.print(summary_panel(config, {**SUMMARY, **more}))
    assert f" {title} · run r " in shown.get().splitlines()[0]
