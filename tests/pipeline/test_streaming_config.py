"""The flags of a stream: the parts they make, the values they reject, and the runner they need."""

import pickle
import re
import tempfile

import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, StandardOptions
from apache_beam.runners.runner import create_runner

from pipeline.checks.all import all_checks
from pipeline.config import RunConfig
from pipeline.defaults import name_job, set_defaults
from pipeline.local import runner as local_streaming
from pipeline.local.runner import LocalStreamingRunner
from pipeline.options.command_line import parse_flags
from pipeline.options.mode import Mode
from pipeline.options.run import LOCAL_RUNNER, is_local
from transforms.accounting.minute_summary import MINUTE_COLUMNS
from transforms.records.errors import ConfigurationError
from transforms.sources.base import IdRule
from transforms.sources.pubsub import PubSubSource

SUBSCRIPTION = "projects/a-project/subscriptions/tickets"
TOPIC = "projects/a-project/topics/dead"
STREAM = (f"--input_subscription={SUBSCRIPTION}", "--prompt=x", "--backend=fake")
OUT = "--output_path=/out"
TABLE = "--output_table=p:d.t"
DATAFLOW = (
    "--runner=DataflowRunner",
    "--project=p",
    "--region=r",
    "--output_table=p:d.t",
)


def config_of(*argv: str) -> RunConfig:
    """The configuration of a command line."""
    return RunConfig.from_options(parse_flags(argv))


def refused(*argv: str) -> str:
    """The reason why a command line is rejected."""
    with pytest.raises(ConfigurationError) as error:
        config_of(*argv)
    return str(error.value)


def test_a_stream() -> None:
    """A stream has its source, id and topic, can be pickled, and has the checks that it needs."""
    config = config_of(*STREAM, OUT, "--id_field=ticket", f"--dead_letter_topic={TOPIC}")
    assert config.source == PubSubSource(subscription=SUBSCRIPTION)
    assert config.mode is Mode.STREAMING
    assert config.id_rule == IdRule("ticket", required=True)
    assert config.sinks.dead_letter_topic == TOPIC
    assert config.sinks.count == config.summary.sinks == 3
    assert pickle.loads(pickle.dumps(config)) == config
    checks = [what for what, _ in all_checks(config)]
    assert checks == [
        f"--input_subscription {SUBSCRIPTION}",
        f"--dead_letter_topic {TOPIC}",
        "--backend",
        "--output_path /out",
    ]


def test_a_stream_holds_its_messages_and_waits_for_batches() -> None:
    """A stream holds its messages through an outage; a bounded run gives up."""
    config = config_of(*STREAM, OUT, "--max_batch_wait_s=0.5", "--batch_keys=4")
    assert config.limits.hold
    assert (config.batch.max_batch_wait_s, config.batch_keys) == (0.5, 4)
    default = config_of(*STREAM, OUT)
    assert (default.batch.max_batch_wait_s, default.batch_keys) == (1.0, 1)
    assert not config_of("--input_files=a.jsonl", "--prompt=x", "--backend=fake", OUT).limits.hold


def test_a_stream_is_called_as_its_job() -> None:
    """A named job names its run, also after an update; the run names an unnamed job."""
    assert config_of(*STREAM, *DATAFLOW, "--job_name=tickets").run_id == "tickets"
    assert config_of(*STREAM, *DATAFLOW, "--job_name=tickets", "--run_id=r").run_id == "r"
    options = parse_flags([*STREAM, *DATAFLOW])
    config = RunConfig.from_options(options)
    name_job(options, config)
    assert options.view_as(GoogleCloudOptions).job_name == config.run_id
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", config.run_id)
    batch = ("--input_table=p:d.t", *STREAM[1:], *DATAFLOW[:3], "--temp_location=gs://b/t")
    assert config_of(*batch, "--output_table=p:d.o", "--job_name=tickets").run_id != "tickets"


def test_summaries_of_a_stream() -> None:
    """A stream's table has a row per minute; a file has the summary of a local stream."""
    table = config_of(*STREAM, "--output_table=p:d.t", "--run_id=r")
    assert table.sinks.runs_table is not None
    assert table.sinks.runs_table.columns == MINUTE_COLUMNS
    assert table.summary.table is None
    assert table.summary.path == f"{tempfile.gettempdir()}/batch-inference/r.json"
    assert config_of(*STREAM, OUT).summary.path == "/out/run.json"
    dataflow = config_of(*STREAM, *DATAFLOW)
    assert (dataflow.summary.table, dataflow.summary.path) == (None, None)
    assert dataflow.sinks.staging is None


def test_files_are_not_a_stream() -> None:
    """Files make a batch run, which needs no topic for dead letters."""
    config = config_of("--input_files=a.jsonl", "--prompt=x", "--backend=fake", OUT)
    assert config.mode is Mode.BATCH
    assert config.sinks.dead_letter_topic is None


def test_de_duplication_is_for_dataflow() -> None:
    """The id attribute is rejected for a local run, which cannot drop duplicates."""
    config = config_of(*STREAM, *DATAFLOW, "--pubsub_id_attribute=event_id")
    assert config.source == PubSubSource(subscription=SUBSCRIPTION, id_attribute="event_id")
    assert refused(*STREAM, OUT, "--pubsub_id_attribute=event_id") == (
        "--pubsub_id_attribute is 'event_id', but only Dataflow drops copies of messages, and this "
        "run is local: remove it"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("--input_subscription=tickets", *STREAM[1:], OUT),
            (
                "the subscription is 'tickets', but must be written as "
                "projects/PROJECT/subscriptions/NAME: a project's id has at least 6 characters, "
                "NAME at least 3"
            ),
        ),
        (
            (*STREAM, OUT, "--dead_letter_topic=dead"),
            (
                "the topic is 'dead', but must be written as projects/PROJECT/topics/NAME: a "
                "project's id has at least 6 characters, NAME at least 3"
            ),
        ),
        (
            (*STREAM, *DATAFLOW, "--dead_letter_path=gs://b/dead"),
            (
                "--dead_letter_path is 'gs://b/dead', but --input_subscription on Dataflow would "
                "write a small file for each of its many bundles: use --output_table, and for dead "
                "letters --dead_letter_table or --dead_letter_topic"
            ),
        ),
        (
            (*STREAM, *DATAFLOW[:-1], "--output_path=gs://b/out"),
            (
                "--output_path is 'gs://b/out', but --input_subscription on Dataflow would "
                "write a small file for each of its many bundles: use --output_table, and for dead "
                "letters --dead_letter_table or --dead_letter_topic"
            ),
        ),
        (
            (*STREAM, OUT, "--limit=5"),
            (
                "--limit is '5', but goes with --input_files, --input_table, --input_query or "
                "--input_dead_letters only: remove it"
            ),
        ),
        (
            (*STREAM, OUT, "--temp_dataset=p:d"),
            (
                "--temp_dataset is 'p:d', but goes with --input_table, --input_query or "
                "--input_dead_letters only: remove it"
            ),
        ),
        (
            ("--input_files=a.csv", *STREAM[1:], OUT, "--pubsub_id_attribute=a"),
            "--pubsub_id_attribute is 'a', but goes with --input_subscription only: remove it",
        ),
        (
            (*STREAM, TABLE, "--write_method=file_loads"),
            "--write_method is 'file_loads', but the input never ends: use storage_write",
        ),
        *(
            (
                (*STREAM, TABLE, "--write_mode=replace", *method),
                (
                    "--write_mode is 'replace', but the input never ends, and a stream only adds "
                    "rows: remove it"
                ),
            )
            for method in ((), ("--write_method=storage_write",))
        ),
    ],
)
def test_refused(argv: tuple[str, ...], message: str) -> None:
    """Bad flags of a stream are rejected with the value and the remedy."""
    assert refused(*argv) == message


@pytest.mark.parametrize("runner", [(), ("--runner=DirectRunner",), (f"--runner={LOCAL_RUNNER}",)])
def test_a_local_stream_has_a_runner_that_can(runner: tuple[str, ...]) -> None:
    """A local stream gets our runner whichever local runner is named; Beam finds it by its name."""
    options = parse_flags([*STREAM, OUT, *runner])
    set_defaults(options, RunConfig.from_options(options))
    standard = options.view_as(StandardOptions)
    assert (standard.runner, standard.streaming) == (local_streaming.RUNNER, True)
    assert isinstance(create_runner(standard.runner), LocalStreamingRunner)
    assert is_local(options)


def test_a_stream_on_dataflow() -> None:
    """A stream on Dataflow keeps its runner and sets ``streaming``."""
    options = parse_flags([*STREAM, *DATAFLOW])
    set_defaults(options, RunConfig.from_options(options))
    standard = options.view_as(StandardOptions)
    assert (standard.runner, standard.streaming) == ("DataflowRunner", True)


def test_a_batch_run_does_not_stream() -> None:
    """A batch run gets the pinned local runner and does not stream."""
    options = parse_flags(["--input_files=a.csv", *STREAM[1:], OUT])
    set_defaults(options, RunConfig.from_options(options))
    standard = options.view_as(StandardOptions)
    assert (standard.runner, standard.streaming) == (LOCAL_RUNNER, False)


def test_a_stream_has_no_order() -> None:
    """A stream can be ordered within batches but not as a data set, since it never ends."""
    assert refused(*STREAM, OUT, "--order_by_prefix=data_set") == (
        "--order_by_prefix is 'data_set', but the input never ends: use batch"
    )
    assert config_of(*STREAM, OUT, "--order_by_prefix=batch").order.in_batch
