"""The order of requests: none by default, by prefix within batches or the data set by a flag."""

import json
import pathlib

import apache_beam as beam
import pytest

from pipeline.build import build
from pipeline.config import RunConfig
from pipeline.main import main
from pipeline.options.command_line import parse_flags
from pipeline.options.pace import Order
from transforms.records.errors import ConfigurationError
from transforms.requests.order import OrderByPrefix

BASE = ("--input_files=a.jsonl", "--prompt={{ text }}", "--output_path=/out", "--backend=fake")


def _config(*argv: str) -> RunConfig:
    return RunConfig.from_options(parse_flags([*BASE, *argv]))


def test_flags() -> None:
    """Requests are ordered only if the flag is set, and steps keep their labels."""
    assert _config().order == Order()
    assert _config("--order_by_prefix=batch").order == Order(in_batch=True)
    assert _config("--order_by_prefix=data_set").order == Order(True, OrderByPrefix().prefix_chars)
    assert _config("--order_by_prefix=data_set", "--prefix_chars=50").order == Order(True, 50)
    for value, expected in (("", False), ("batch", False), ("data_set", True)):
        root = beam.Pipeline()
        build(root, _config(f"--order_by_prefix={value}"))
        steps = {step.unique_name for step in root.to_runner_api().components.transforms.values()}
        assert ("OrderByPrefix" in steps) is expected
        assert "BatchRequests/Batch" in steps


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--order_by_prefix=all"], "--order_by_prefix is 'all', but must be one of: batch, "),
        (["--prefix_chars=9"], "--prefix_chars is 9, but goes with --order_by_prefix=data_set"),
        (
            ["--order_by_prefix=batch", "--prefix_chars=9"],
            "--prefix_chars is 9, but goes with --order_by_prefix=data_set",
        ),
        (
            ["--order_by_prefix=data_set", "--prefix_chars=0"],
            "--prefix_chars is 0, but must be at least 1",
        ),
    ],
)
def test_refused(argv: list[str], message: str) -> None:
    """A wrong order is rejected with the value and the remedy."""
    with pytest.raises(ConfigurationError) as raised:
        _config(*argv)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("where", ["batch", "data_set"])
def test_a_run(where: str, tmp_path: pathlib.Path) -> None:
    """Each record of an ordered run has its one result."""
    records = [{"id": str(n), "text": f"{'ab'[n % 2] * 9} {n}"} for n in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    argv = [
        f"--input_files={tmp_path}/a.jsonl",
        "--prompt={{ text }}",
        f"--output_path={tmp_path}/out",
        "--backend=fake",
        f"--order_by_prefix={where}",
    ]
    assert main(argv) == 0
    rows = [
        json.loads(line)
        for file in (tmp_path / "out/results").glob("*.jsonl")
        for line in file.read_text("utf-8").splitlines()
    ]
    assert sorted(row["record_id"] for row in rows) == sorted(str(n) for n in range(40))
