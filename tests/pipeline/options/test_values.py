"""A command line is parsed once, and all of its mistakes are reported together."""

import json
import pathlib
from typing import Any

import pytest

from pipeline.checks.launch import check_launch
from pipeline.config import RunConfig
from pipeline.defaults import set_defaults
from pipeline.main import main
from pipeline.options.command_line import parse_flags
from pipeline.options.values import Values
from transforms.records.errors import ConfigurationError


@pytest.fixture
def parsings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for each parsing of the flags."""
    found: list[int] = []
    parse = Values.of

    def counted(*args: Any) -> Values:
        found.append(1)
        return parse(*args)

    monkeypatch.setattr(Values, "of", counted)
    return found


def test_a_run_parses_once(parsings: list[int], tmp_path: pathlib.Path) -> None:
    """A run parses its flags once, from the command line to the results."""
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "1", "text": "a"}), encoding="utf-8")
    argv = [
        f"--input_files={tmp_path}/in.jsonl",
        "--prompt={{ text }}",
        "--backend=fake",
        f"--output_path={tmp_path}/out",
    ]
    assert main(argv) == 0
    assert len(parsings) == 1


def test_a_launch_parses_once(parsings: list[int]) -> None:
    """A launch parses its flags once, with its checks and defaults."""
    options = parse_flags(
        [
            "--input_files=gs://b/a.jsonl", "--prompt={{ text }}", "--backend=fake",
            "--output_path=gs://b/out", "--runner=DataflowRunner", "--project=p", "--region=r",
            "--temp_location=gs://b/t", "--sdk_container_image=i:1", "--resource_labels=a=b",
        ]
    )  # fmt: skip
    config = RunConfig.from_options(options)
    check_launch(config.values, options)
    set_defaults(options, config)
    assert len(parsings) == 1


def test_all_mistakes_at_once() -> None:
    """All wrong values and independent conflicts are reported together, one per line."""
    with pytest.raises(ConfigurationError) as raised:
        RunConfig.from_options(
            parse_flags(["--limit=0", "--task=x", "--temperature=warm", "--max_attempts=-1"])
        )
    assert str(raised.value).splitlines() == [
        "--limit is 0, but must be at least 1",
        "--temperature is 'warm', but must be a number",
        "--task is 'x', but must be one of: generate, embed",
        "--max_attempts is -1, but must be at least 1",
    ]
    with pytest.raises(ConfigurationError) as raised:
        RunConfig.from_options(
            parse_flags(["--input_files=a", "--backend=fake", "--prefix_chars=9"])
        )
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == [
        "it is not clear what to send to the model",
        "no output is set",
        "--prefix_chars is 9, but goes with --order_by_prefix=data_set only",
    ]


def test_each_mistake_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Each mistake is a line on the terminal, and nothing is launched."""
    assert main(["--promt=x", "--no_such_flag", "value", "word"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: unknown flag --promt; did you mean --prompt?",
        "error: unknown flag --no_such_flag",
        "error: 'word' is not a flag: write --name=value",
    ]
