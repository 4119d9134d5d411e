"""The vLLM benchmark fails if a fact is wrong, after it has written its measurements."""

from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.vllm.clients import Ran
from benchmarks.vllm.prompts import is_poison, prefixed, requests_of
from benchmarks.vllm.table import Line, Table


@pytest.mark.parametrize(
    ("ran", "wrong"),
    [
        (Ran(0, True, ["0", "2"], ["1"]), ""),
        (Ran(0, True, ["0"], ["1"]), "1 lost"),
        (Ran(0, True, ["0", "2", "2"], ["1"]), "1 doubled"),
        (Ran(0, True, ["0", "2", "9"], ["1"]), "1 unknown"),
        (
            Ran(0, True, ["2"], ["0", "1"], {"0": "timeout", "1": "too_large"}),
            "1 dead letters of good records, timeout",
        ),
        (Ran(0, True, ["0", "1", "2"], []), "1 results of poisoned records"),
        (Ran(1, False, ["0", "2"], ["1"]), "status 1, reconciled: False"),
    ],
)
def test_records_that_did_not_end_once(ran: Ran, wrong: str) -> None:
    """Lost, doubled and wrongly ended records are named."""
    assert ran.wrong(3, {"1"}) == wrong


def test_a_wrong_fact_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong fact fails the command, and the file still holds all lines, also during the run."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    table = Table("vLLM", "python -m benchmarks.vllm", "about")
    table.add(Line("one", 2.0, 100.0, 8.0))
    assert "| one | 2.0 | 50 | 8 |  |" in results.RESULTS.read_text()
    assert "*This run has not ended.*" in results.RESULTS.read_text()
    table.expect(False, "3 restarts")
    with table.going_on("two"):
        raise ValueError("no\nserver")
    table.add(Line("three", 1.0, 0.0, 0.0))
    table.expect(True, "0 processes left")
    assert table.close(0.5) == 1
    text = results.RESULTS.read_text()
    assert "| one | 2.0 | 50 | 8 | **WRONG: 3 restarts** |" in text
    assert "| two | 0.0 | – | – | **WRONG: ValueError: no server** |" in text
    assert "| three | 1.0 | – | – | 0 processes left |" in text
    assert "**2 facts are wrong.**" in text
    assert "WRONG: one: 3 restarts" in capsys.readouterr().out


def test_without_a_wrong_fact_it_succeeds() -> None:
    """Without a wrong fact the command succeeds, and without a title it only prints."""
    table = Table(None, "", "")
    table.add(Line("one", 2.0, 100.0, 8.0))
    table.expect(True, "2 restarts")
    assert table.close(0.5) == 0


def test_lines_send_the_same_requests() -> None:
    """Lines send equally shuffled prompts, one in a hundred poisoned, none with another's text."""
    first, second = ([r["prompt"] for r in prefixed(tag, 40, 10)] for tag in "ab")
    assert [prompt.removeprefix("a") for prompt in first] == [p.removeprefix("b") for p in second]
    assert not set(first) & set(second)
    assert first != sorted(first)
    asked = requests_of("p", 10_000, "natural", poison=0.01)
    assert 80 <= sum(map(is_poison, asked)) <= 120
    assert not any(map(is_poison, requests_of("p", 100, "uniform")))
