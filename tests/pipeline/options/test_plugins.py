"""A source from a third-party package is an entry point and needs no change of ours."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
NUMBERS = '''
"""Counts."""

import dataclasses
import itertools

import apache_beam as beam

from pipeline.options.flag import Flag
from pipeline.options.kinds import COUNT, TEXT
from pipeline.options.source import LIMIT, SourceAdapter
from transforms.sources.base import make_record

NUMBERS = Flag("input_numbers", "Source", "Count to this number.", COUNT)
STEM = Flag("numbers_stem", "Source", "Text in front of each number.", TEXT, default="n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberSource:
    count: int
    stem: str
    bounded = True

    def first(self, id_rule, count):
        for number in range(min(self.count, count)):
            yield make_record({"id": str(number), "text": f"{self.stem}{number}"}, "numbers", id_rule)

    def transform(self, id_rule):
        return ReadNumbers(source=self, id_rule=id_rule)


@dataclasses.dataclass(kw_only=True, eq=False)
class ReadNumbers(beam.PTransform):
    source: NumberSource
    id_rule: object

    def expand(self, root):
        records = list(self.source.first(self.id_rule, self.source.count))
        return root | "Numbers" >> beam.Create(records), root | "None" >> beam.Create([])


def make(values, options):
    count = min(values[NUMBERS], values[LIMIT] or values[NUMBERS])
    return NumberSource(count=count, stem=values[STEM])


ADAPTER = SourceAdapter(flag=NUMBERS, flags=(STEM, LIMIT), make=make)
RUDE = SourceAdapter(flag=Flag("input_files", "Source", "Mine.", TEXT), make=make)
'''
WARNINGS = (
    (
        "source 'broken' of package acme-numbers is ignored: "
        "ModuleNotFoundError: No module named 'acme_broken'"
    ),
    "the source --input_files is ignored: --input_files exists",
    ("source 'text' of package acme-numbers is ignored: TypeError: str is not a SourceAdapter"),
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with an installed package of one working source and three broken ones."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "acme_numbers.py").write_text(NUMBERS, "utf-8")
    info = folder / "acme_numbers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-numbers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[batch_inference.sources]\n"
        "numbers = acme_numbers:ADAPTER\n"
        "rude = acme_numbers:RUDE\n"
        "broken = acme_broken:ADAPTER\n"
        "text = acme_numbers:__name__\n"
    )
    return folder


def _run(package: pathlib.Path, *argv: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(package), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *argv],
        env={**os.environ, "PYTHONPATH": path},
        cwd=package,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_record_is_answered(package: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Every record of an unknown source is answered, with its own flag and one of ours."""
    done = _run(
        package, "--input_numbers=9", "--limit=3", "--numbers_stem=no.", "--prompt={{ text }}",
        "--backend=fake", f"--output_path={tmp_path}/out", "--run_id=r",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [
        json.loads(line)
        for path in (tmp_path / "out/results").glob("*.jsonl")
        for line in path.read_text("utf-8").splitlines()
    ]
    assert {row["record_id"]: json.loads(row["record"])["text"] for row in rows} == {
        str(number): f"no.{number}" for number in range(3)
    }
    config = json.loads((tmp_path / "out/run.json").read_text("utf-8"))["config"]
    assert "numbers_stem" in json.dumps(config)


def test_help_lists_it(package: pathlib.Path) -> None:
    """``--help`` lists a source with flags and default; broken ones are left out and logged."""
    done = _run(package, "--help")
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "--input_numbers N Count to this number." in shown
    assert "--numbers_stem TEXT Text in front of each number. Default: n." in shown
    assert done.stderr.splitlines() == list(WARNINGS)


def test_it_works_like_our_own(package: pathlib.Path) -> None:
    """A run has exactly one source, and a source's flags are rejected for any other."""
    done = _run(package, "--input_numbers=9", "--input_files=a", "--backend=fake")
    assert done.returncode == 2
    assert (
        "exactly one input is needed, but --input_files and --input_numbers are set" in done.stderr
    )
    done = _run(package, "--input_files=a", "--numbers_stem=x", "--backend=fake")
    assert "--numbers_stem is 'x', but goes with --input_numbers only: remove it" in done.stderr
