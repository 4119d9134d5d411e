"""The dispatch benchmark: its figures from invented logs, its picture, and one tiny run.

Nothing here measures speed, so no published figure is proved.
"""

import doctest
import importlib
import itertools
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.dispatch import analysis, picture, scenarios, table
from benchmarks.dispatch.__main__ import SCENARIOS
from benchmarks.dispatch.runs import Ended
from benchmarks.simulator.log import Call, Step
from benchmarks.simulator.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def calls(
    rate: int, from_s: int, to_s: int, *, status: int = 200, client: str = ""
) -> Iterator[Call]:
    """This many calls per second, each of which ends at once."""
    cause = None if status == 200 else "quota"
    for number in range((to_s - from_s) * rate):
        at_s = from_s + number / rate
        name = f"{client}{status}-{from_s}-{number}"
        yield Call(name, client, 1, at_s, at_s, at_s, status, cause)


@pytest.mark.parametrize("module", ["analysis", "picture", "table"])
def test_examples(module: str) -> None:
    """The examples of the docstrings run as written."""
    done = doctest.testmod(importlib.import_module(f"benchmarks.dispatch.{module}"))
    assert done.attempted
    assert not done.failed


# Levels


def test_a_new_level_is_reached_when_a_window_is_there() -> None:
    """A new level is reached when a whole window is near it."""
    log = [*calls(20, 0, 10), *calls(5, 10, 14), *calls(10, 14, 30)]
    assert analysis.reached_s(log, 10, 30, level=10, near=0.1) == 4.0


def test_a_level_is_not_reached_while_calls_exceed_it() -> None:
    """A level is not reached while calls exceed it, although the server limits the successes."""
    log = [*calls(10, 10, 30), *calls(10, 10, 17, status=429)]
    assert analysis.reached_s(log, 10, 30, level=10, near=0.1) == 7.0


def test_a_level_that_is_never_reached() -> None:
    """A level is never reached if there are too few successes or too little time for a window."""
    assert math.isinf(analysis.reached_s(list(calls(5, 0, 30)), 10, 30, level=10, near=0.1))
    assert math.isinf(analysis.reached_s(list(calls(10, 0, 30)), 10, 12, level=10, near=0.1))


def test_both_work_until_the_first_has_no_more_records() -> None:
    """The span begins with the later client and ends when the first has no more records."""
    log = [*calls(1, 0, 10, client="a"), *calls(1, 4, 20, client="b")]
    assert analysis.both_work(log, ("a", "b")) == (4.0, 9.0)
    assert {call.client for call in analysis.of_client(log, "b")} == {"b"}
    assert len(analysis.between(log, 4, 6)) == 4


# Faults


def test_unavoidable_calls_agree_with_the_probabilities() -> None:
    """Both ways to compute the unavoidable calls agree."""
    settings = Settings.parse({"faults": "503:0.05,reset:0.02,poison:0.01"})
    ids = [str(number) for number in range(20_000)]
    counted = analysis.unavoidable_calls(settings, ids) / len(ids)
    assert analysis.expected_calls(settings) == pytest.approx(0.99 / 0.93 + 0.01)
    assert counted == pytest.approx(analysis.expected_calls(settings), rel=0.01)


def test_ids_that_did_not_end_once_are_named() -> None:
    """Missing, repeated and unknown ids are named."""
    assert analysis.not_once(["1", "2", "3"], ["2", "3", "3", "4"]) == ["1", "3", "4"]
    assert analysis.not_once(["1", "1"], ["1", "1"]) == []


@pytest.mark.parametrize(
    ("results", "letters", "code", "kept"),
    [
        (["1", "2"], ["3"], 0, True),
        (["1", "2"], ["3"], 1, False),
        (["1", "3"], ["2"], 0, False),
        (["1"], ["3"], 0, False),
        (["1", "2", "2"], ["3"], 0, False),
        (["1", "2"], [], 0, False),
    ],
)
def test_records_are_accounted_for(
    results: list[str], letters: list[str], code: int, kept: bool
) -> None:
    """A run is accounted for if each record ends once, with the right dead letters and summary."""
    ended = Ended(code, 1.0, "", results, letters, {"reconciled": True})
    assert scenarios.accounted(ended, ["1", "2", "3"], ["3"]).kept is kept


# Output


def test_a_series_is_shown_in_lines() -> None:
    """A series is shown in lines, each the mean of some steps."""
    steps = [Step(float(n), 2.0 * n, 0.0, 10, 8, 2) for n in range(4)]
    lines = analysis.shown(steps, 2).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["0", "1.0", "0.0", "10.0", "8.0", "2.0"],
        ["2", "5.0", "0.0", "10.0", "8.0", "2.0"],
    ]


def test_the_picture_is_well_formed_and_within_its_frame(tmp_path: Path) -> None:
    """The picture is well-formed and has six named curves within its frame."""
    lines = [
        '{"at_s": 99.0, "concurrency_limit": 32}',
        '{"at_s": 100.5}',
        '{"at_s": 101.0, "concurrency_limit": 32}',
        '{"at_s": 102.0, "concurrency_limit": 64, "rate_limit_per_minute": 600}',
    ]
    (tmp_path / "samples").write_text("\n".join(lines))
    samples = picture.read_samples(tmp_path / "samples", origin_s=100.0)
    assert samples == [picture.Sample(1.0, 32, None), picture.Sample(2.0, 64, 10.0)]
    steps = [Step(float(n), 3.0, 1.0, 100, 8, 92) for n in range(6)]
    drawn = ET.fromstring(picture.draw(steps, samples, [(0.0, 10.0), (3.0, 5.0)], 5.0))
    space = "{http://www.w3.org/2000/svg}"
    curves = drawn.findall(f"{space}polyline")
    assert len(curves) == 6
    for point in " ".join(curve.attrib["points"] for curve in curves).split():
        x, y = map(float, point.split(","))
        assert picture.LEFT <= x <= picture.WIDTH
        assert picture.TOPS[0] <= y <= picture.TOTAL
    texts = {text.text for text in drawn.findall(f"{space}text")}
    assert {"goodput", "429s", "in flight", "limit of calls in flight"} <= texts


def test_a_run_of_some_scenarios_keeps_the_lines_of_others() -> None:
    """A run of some scenarios keeps the lines of others in order, and no other section's lines."""
    check = scenarios.Check("429s", "≤ 3 %", "9 %", kept=False)
    made = table.rows("quota_50", [check], "2026-11-22")
    assert made == ["| `quota_50` | 429s | ≤ 3 % | 9 % | **missed** | 2026-11-22 |"]
    text = (
        "# F\n\n## Dispatch\n\n| `faults` | 1 |\n| `quota_50` | 0 |\n\n## Other\n\n| `slots_64` |"
    )
    earlier = table.section_of(text)
    assert table.merged(earlier, {"quota_50": made}, list(SCENARIOS)) == [*made, "| `faults` | 1 |"]
    assert table.section_of("# F\n") == []


# One run


def test_a_tiny_run_end_to_end() -> None:
    """A tiny run of simulator, pipeline and table ends every record once."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.dispatch", "--quick", "outage_503"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| `outage_503` |")]
    assert "| records | each once, no dead letters | 600 = 600 + 0 | met |" in rows[0]
    assert "|---|" in done.stdout


def test_an_unknown_scenario_is_refused() -> None:
    """An unknown scenario is rejected with the known names."""
    command = [sys.executable, "-m", "benchmarks.dispatch", "quota_5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert "quota_5" in done.stderr
    assert all(name in done.stderr for name in itertools.islice(SCENARIOS, 3))
