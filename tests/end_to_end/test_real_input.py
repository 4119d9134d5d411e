"""Two thousand real texts, the package descriptions of this machine, through every sink."""

import collections
import json
import shutil
from pathlib import Path

import pytest

from benchmarks import real_input
from tests.emulators.model_fixtures import SimulatedModelServer
from tests.end_to_end import runs

COUNT = 2_000


@pytest.fixture(scope="module")
def packages() -> list[dict[str, str]]:
    """Packages of this machine, spread over its whole list."""
    if shutil.which("apt-cache") is None:
        runs.missing_part("no apt-cache: the texts are those of a Debian machine")
    try:
        found = real_input.packages()
    except LookupError as error:
        pytest.fail(str(error), pytrace=False)
    return found[:: max(1, len(found) // COUNT)][:COUNT]


def check(held: runs.Held, packages: list[dict[str, str]]) -> dict[str, collections.Counter[str]]:
    """Checks that every text has one valid result; returns each package's answers by its id."""
    assert held.letters == []
    runs.check_summary(held)
    assert held.summary["records"] == len(packages)
    read = collections.Counter(json.dumps(json.loads(row["record"])) for row in held.results)
    assert read == collections.Counter(map(json.dumps, packages))
    answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in held.results:
        answer = json.loads(row["output_json"])
        assert set(answer) == {"category", "summary"}
        assert answer["category"] in real_input.CATEGORIES
        assert json.loads(row["record"])["id"] == row["record_id"]
        answers[row["record_id"]][row["output_json"]] += 1
    return answers


def test_real_texts_end_once_from_any_source(
    tmp_path: Path,
    bucket: str,
    bigquery_dataset: str,
    model_server: SimulatedModelServer,
    packages: list[dict[str, str]],
) -> None:
    """Texts from Cloud Storage and from BigQuery get the same answers in files and in tables."""
    folder, dataset = f"gs://{bucket}", bigquery_dataset
    runs.write_object(f"{folder}/packages.jsonl", real_input.json_lines(packages))
    real_input.make_table(f"{dataset}.packages", packages)
    model_server.reset()

    from_files = runs.run(
        f"--input_files={folder}/packages.jsonl",
        f"--output_path={folder}/out",
        f"--output_table={dataset}.from_files",
        *real_input.flags(model_server),
    )
    from_table = runs.run(
        f"--input_table={dataset}.packages",
        f"--output_path={tmp_path}/out",
        f"--output_table={dataset}.from_table",
        *real_input.flags(model_server),
    )

    assert (from_files, from_table) == (0, 0)
    answers = check(runs.in_files(f"{folder}/out"), packages)
    assert check(runs.in_tables(f"{dataset}.from_files"), packages) == answers
    assert check(runs.in_files(tmp_path / "out"), packages) == answers
    assert check(runs.in_tables(f"{dataset}.from_table"), packages) == answers
    assert model_server.stats()["calls"] == 2 * len(packages)


def test_an_empty_list_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If apt knows no packages, the error names the command to run."""
    fake = tmp_path / "apt-cache"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(LookupError, match="run `apt-get update`"):
        real_input.packages()
