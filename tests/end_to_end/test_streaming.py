"""A whole stream over loopback services: Pub/Sub, a model server, BigQuery, Ctrl-C.

It runs in one process, so it does not prove how Dataflow commits, retries and drains.
"""

import collections
import json
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from google.cloud import bigquery

from pipeline.checks import bigquery as checks
from tests.emulators.google_cloud import LoopbackCloud
from tests.emulators.model_fixtures import SimulatedModelServer
from tests.emulators.pubsub import PubSubEmulator
from tests.end_to_end.runs import check_summary, in_files
from tests.end_to_end.streams import (
    check_minutes,
    ended,
    latest,
    make_strict_table,
    run_until,
    tables,
)

COUNT = 600


@pytest.fixture
def strict_table(
    redirected_clients: LoopbackCloud, bigquery_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A table whose `record_id` holds JSON; the check at the start would notice that."""
    table = f"{bigquery_dataset}.answers"
    make_strict_table(table)
    monkeypatch.setattr(checks, "_check_columns", lambda *_: None)
    return table


def messages() -> Iterator[tuple[str, str, bytes]]:
    """Id, outcome and body: 1 % malformed, 1 % poison for the model, some twice, two too large.

    The table rejects another 0.5 %, whose ids are not JSON.
    """
    for n in range(COUNT):
        key, outcome, fields = str(n), "result", {"text": f"hello {n}"}
        if n % 100 == 1:
            yield key, "parse_error", b'{"text": "cut'
            continue
        if n % 100 == 2:
            outcome, fields = "invalid_request", {"text": f"poison {n} [[http:400]]"}
        elif n % 100 == 3:
            fields = {"text": f"later {n} [[http:503x1]]"}
        elif n in (204, 404):  # a row of 9 MB is too large for an append
            outcome, fields = "too_large", {"text": "big", "blob": 1_500_000 * "\x01"}
        elif n % 200 == 7:
            key, outcome = f"x{n}", "write_rejected"
        yield key, outcome, json.dumps({"id": key, **fields}).encode()
        if n % 50 == 5:
            yield key, outcome, json.dumps({"id": key, **fields}).encode()


@pytest.mark.parametrize("more", [[], ["--exactly_once=true"]], ids=["at least once", "once"])
def test_every_message_of_a_stream_ends(
    pubsub: PubSubEmulator,
    model_server: SimulatedModelServer,
    strict_table: str,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
) -> None:
    """Every id has its rows in the tables and one row in `_latest`, and the minutes reconcile.

    The last messages have been read but wait in a batch when the run is stopped: only the drain
    flushes it.
    """
    topic, dead = pubsub.new_topic(), pubsub.new_topic()
    subscription, letters_of = pubsub.new_subscription(topic), pubsub.new_subscription(dead)
    sent = list(messages())
    pubsub.publish(topic, [(body, {"id": key}) for key, _, body in sent])
    table = strict_table
    model_server.reset()

    code = run_until(
        lambda: ended() >= len(sent),
        f"--input_subscription={subscription}",
        "--prompt={{ text }}",
        "--backend=openai",
        "--model=m",
        f"--endpoint={model_server.openai_url}",
        "--max_batch_size=64",
        "--batch_keys=2",
        f"--output_table={table}",
        f"--dead_letter_topic={dead}",
        *more,
    )

    assert code == 130
    said = capsys.readouterr().err
    assert "reconciled" in said
    assert "NOT RECONCILED" not in said
    held, minutes = tables(table)
    found = collections.Counter((str(row["record_id"]), "result") for row in held.results)
    found.update((row["record_id"], row["error_type"]) for row in held.letters)
    assert found == collections.Counter((key, outcome) for key, outcome, _ in sent)
    check_minutes(held, minutes)
    by_type = collections.Counter(row["error_type"] for row in held.letters)
    summed: collections.Counter[str] = collections.Counter()
    for row in latest(minutes):
        summed.update(json.loads(row["dead_letters_by_error_type"]))
    assert summed == by_type
    assert {row["stage"] for row in held.letters if row["error_type"] == "too_large"} == {"write"}
    with bigquery.Client() as client:
        newest = list(client.query(f"SELECT record_id FROM `{table}_latest`").result())
    ids = [str(row["record_id"]) for row in newest]
    assert len(ids) == len(set(ids))
    assert set(ids) == {key for key, outcome, _ in sent if outcome == "result"}
    published: list[str] = []
    while len(published) < len(held.letters):
        received = pubsub.pull(letters_of, timeout_s=30)
        assert received
        published += [message.message.attributes["record_id"] for message in received]
    assert sorted(published) == sorted(row["record_id"] for row in held.letters)
    assert pubsub.unacknowledged(subscription) == []


def test_an_open_batch_is_not_lost_when_the_stream_is_stopped(
    pubsub: PubSubEmulator,
    redirected_clients: LoopbackCloud,
    bigquery_dataset: str,
    tmp_path: Path,
) -> None:
    """A drain flushes an open batch, which would else wait for an hour."""
    topic = pubsub.new_topic()
    subscription = pubsub.new_subscription(topic)
    bodies = [json.dumps({"id": f"k{n}", "text": "x"}).encode() for n in range(100)]
    pubsub.publish(topic, [*((body, {}) for body in bodies), (b"bad", {"id": "bad"})])
    table = f"{bigquery_dataset}.answers"
    code = run_until(
        lambda: ended() >= 65,  # a full batch and the malformed one: 36 wait
        f"--input_subscription={subscription}",
        "--prompt={{ text }}",
        "--backend=fake",
        "--max_batch_size=64",
        "--max_batch_wait_s=3600",
        f"--output_table={table}",
        f"--output_path={tmp_path}/out",
    )
    assert code == 130
    held, minutes = tables(table)
    in_folder = in_files(tmp_path / "out")
    check_summary(in_folder)
    for rows in (held, in_folder):
        assert sorted(row["record_id"] for row in rows.results) == sorted(
            f"k{n}" for n in range(100)
        )
        assert [row["record_id"] for row in rows.letters] == ["bad"]
    check_minutes(held, minutes)
    files = (tmp_path / "out" / "runs").glob("*.jsonl")
    lines = [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]
    check_minutes(held, lines)
    assert pubsub.unacknowledged(subscription) == []
