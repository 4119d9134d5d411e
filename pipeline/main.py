"""The command: parse, check, build, run, report.

Exit codes: 0 when every record has ended (dead letters included), 1 when the run failed or does
not reconcile, 2 for wrong use (nothing was launched), 130 when it was interrupted.
"""

import contextlib
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
)
from rich.console import Console

from pipeline import VERSION
from pipeline.build import build
from pipeline.checks.all import all_checks
from pipeline.checks.launch import check_launch
from pipeline.checks.placement import placement_checks
from pipeline.checks.runner import run_checks
from pipeline.config import RunConfig
from pipeline.defaults import name_job, set_defaults
from pipeline.local import runner as local_streaming
from pipeline.options.command_line import help_text, parse_flags, with_flags
from pipeline.terminal.preview import print_preview
from pipeline.terminal.progress import Progress
from pipeline.terminal.report import print_locations, print_report, read_summary
from transforms.accounting import metrics
from transforms.dispatch.interrupt import stop_all
from transforms.records.errors import ConfigurationError, PipelineError
from transforms.sinks.files import temporary_folder
from transforms.sinks.staging import delete_folder

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
STOP_TIMEOUT_S = 5.0
"""How long an interrupted run waits for its threads to stop."""

OPEN_FILES = 8192
"""Open files for the default ``--max_concurrency`` and the files of a run."""

_log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns its exit code. Never shows a traceback for wrong use."""
    console = Console(stderr=True, soft_wrap=True)
    if not argv or "--help" in argv or "-h" in argv:
        print(help_text())
        return EXIT_DONE if argv else EXIT_USAGE
    if "--version" in argv:
        print(VERSION)
        return EXIT_DONE
    _quiet_libraries()
    try:
        return run(argv, console)
    except ConfigurationError as error:
        for mistake in with_flags(str(error)).splitlines():
            console.print(f"error: {mistake}", style="red", markup=False, highlight=False)
        return EXIT_USAGE
    except KeyboardInterrupt:
        console.print("\ninterrupted", style="yellow")
        return EXIT_INTERRUPTED
    except Exception as error:  # last resort: one line; the traceback on request
        _log.debug("the command failed", exc_info=error)
        console.print(f"failed: {explain(error)[0]}", style="red", markup=False, highlight=False)
        console.print("BATCH_INFERENCE_DEBUG=1 shows more", highlight=False)
        return EXIT_FAILED


def run(argv: Sequence[str], console: Console) -> int:
    """Parses, checks, builds and runs.

    Raises:
      ConfigurationError: Wrong use; nothing was launched.
    """
    options = parse_flags(argv)
    config = RunConfig.from_options(options)
    check_launch(config.values, options)
    for warned in run_checks([*all_checks(config), *placement_checks(options, config)]):
        text = f"warning: {warned.what}: not checked: {warned.why}"
        console.print(text, style="yellow", markup=False, highlight=False)
    if config.preview is not None:
        print_preview(Console(soft_wrap=True), config, config.preview)
        return EXIT_DONE
    set_defaults(options, config, {word.lstrip("-").partition("=")[0] for word in argv})
    name_job(options, config)
    set_aside_old_summary(config)
    pipeline = beam.Pipeline(options=options)
    build(pipeline, config)
    if config.local:
        return _run_here(pipeline, config, console)
    return _launch(pipeline, options, config, console)


def set_aside_old_summary(config: RunConfig) -> None:
    """Renames an earlier run's ``run.json``, which would pass for this run's if this one fails."""
    path = config.sinks.summary_path
    if path is None or not FileSystems.exists(path):
        return
    import json

    with FileSystems.open(path) as file:
        try:
            earlier = str(json.loads(file.read())["run_id"])
        except (ValueError, KeyError, TypeError):
            earlier = "unknown"
    FileSystems.rename([path], [path.removesuffix(".json") + f"-{earlier}.json"])


def _run_here(pipeline: beam.Pipeline, config: RunConfig, console: Console) -> int:
    """Runs on a local runner in a separate thread; this one shows progress and handles Ctrl-C."""
    metrics.LIVE.reset()
    failure: list[BaseException] = []
    ended = threading.Event()  # an interrupted join considers its thread ended

    def work() -> None:
        try:
            pipeline.run().wait_until_finish()
        except BaseException as error:  # passed to the thread that reports it
            failure.append(error)
        finally:
            ended.set()

    _allow_connections()
    worker = threading.Thread(target=work, name="pipeline", daemon=True)
    console.print(f"run {config.run_id}", highlight=False)
    try:
        progress = Progress(console, metrics.LIVE.snapshot, holds=config.mode.streaming)
        with _terminate_as_interrupt(), progress:
            worker.start()
            stopped = _watch(ended, progress, config, console)
    except KeyboardInterrupt:
        return _interrupted(ended, config, console)
    _remove_staging(config)
    if failure:
        return _failed(failure[0], config, console)
    row = read_summary(config)
    if row is None:
        return _failed(RuntimeError("the run has left no summary"), config, console)
    if config.summary.path not in (None, config.sinks.summary_path):  # only for the table below
        FileSystems.delete([config.summary.path])
    print_report(console, config, row)
    if not row["reconciled"]:
        return EXIT_FAILED
    return EXIT_INTERRUPTED if stopped else EXIT_DONE


def _watch(ended: threading.Event, progress: Progress, config: RunConfig, console: Console) -> bool:
    """Shows progress until the run has ended; returns whether the user stopped a stream.

    A stopped stream is drained: it takes no more messages, finishes those taken, and ends with its
    summary. Stopped a second time, it is aborted like a bounded run.

    Raises:
      KeyboardInterrupt: The run must stop immediately.
    """
    stopped = False
    while True:
        try:
            while not ended.wait(0.2):
                progress.tick()
            return stopped
        except KeyboardInterrupt:
            if stopped or not config.mode.streaming:
                raise
            stopped = True
            console.print(
                "stopping: taking no more messages and finishing those taken; interrupt again to "
                "stop immediately",
                style="yellow",
                highlight=False,
            )
            local_streaming.drain()


def _allow_connections() -> None:
    """Raises the soft limit of open files, often 256 on laptops: each call in flight needs one."""
    try:
        import resource  # not on every system
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # the system may not allow it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _terminate_as_interrupt:
    """While entered, SIGTERM stops a run like Ctrl-C; only in the main thread."""

    def __enter__(self) -> None:
        self._previous: Any = None
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)


def _interrupted(ended: threading.Event, config: RunConfig, console: Console) -> int:
    """Stops the calls, removes half-written files, and exits within seconds."""
    counts = metrics.LIVE.snapshot()
    console.print(
        f"interrupted: {counts.get('sent', 0):,} calls had been sent; the run has no summary; "
        "treat its output as incomplete",
        style="yellow",
        highlight=False,
    )
    try:
        stop_all()
        ended.wait(STOP_TIMEOUT_S)  # a step still writing would leave its file behind
        _clean_up_files(config)
        if config.sinks.staging:
            for kind in ("results", "dead_letters"):
                _delete_folder(f"{config.sinks.staging}/{kind}")
        _remove_staging(config)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)  # the runner's threads cannot be stopped in any other way


def _failed(error: BaseException, config: RunConfig, console: Console) -> int:
    """Prints one message for a failed run; offers the traceback only for unforeseen errors."""
    message, foreseen = explain(error)
    console.print(f"run {config.run_id} failed: {message}", style="red", markup=False)
    _log.debug("the run failed", exc_info=error)
    if not foreseen:
        console.print("BATCH_INFERENCE_DEBUG=1 shows the traceback", highlight=False)
    row = read_summary(config)
    if row is not None:
        print_report(console, config, row)
    else:
        _clean_up_files(config)
        console.print("the run has no summary; treat its output as incomplete", highlight=False)
    return EXIT_FAILED


def _clean_up_files(config: RunConfig) -> None:
    sinks = config.sinks
    for folder in (sinks.results_path, sinks.dead_letter_path, sinks.runs_path):
        if folder:
            _delete_folder(temporary_folder(folder, config.run_id))


def _delete_folder(folder: str) -> None:
    """Deletes a temporary folder; ignores a failure, which must not hide why the run failed."""
    try:
        delete_folder(folder)
    except OSError as error:
        _log.debug("%s was not deleted", folder, exc_info=error)


def _remove_staging(config: RunConfig) -> None:
    """Removes the local folder in which rows waited for BigQuery, unless some still wait."""
    staging = config.sinks.staging
    if staging and "://" not in staging:
        with contextlib.suppress(OSError):
            os.rmdir(staging)


_WHILE_RUNNING = re.compile(r" \[while running '[^']*'\]$")


def explain(error: BaseException) -> tuple[str, bool]:
    """A run's error in one line, and whether this project raises it on purpose.

    Beam re-raises a step's error with the step's name at its end, or as a RuntimeError that holds
    the traceback as text: both are searched for the cause.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (PipelineError, OSError)):
            return with_flags(_WHILE_RUNNING.sub("", str(seen))), True
        seen = seen.__cause__ or seen.__context__
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    last = _WHILE_RUNNING.sub("", lines[-1]) if lines else ""
    if found := re.match(rf"{re.escape(PipelineError.__module__)}\.\w+: (.*)", last):
        return with_flags(found[1]), True
    return f"{type(error).__name__}: {last}", False


def _launch(
    pipeline: beam.Pipeline, options: PipelineOptions, config: RunConfig, console: Console
) -> int:
    """Submits the pipeline to a remote runner; waits only with --wait, never in a template."""
    result = pipeline.run()
    if options.view_as(GoogleCloudOptions).template_location:
        console.print(f"template staged: run {config.run_id}", highlight=False)
        return EXIT_DONE
    job = getattr(result, "job_id", None)
    console.print(
        f"launched run {config.run_id}"
        + (f" as job {job() if callable(job) else job}" if job else "")
    )
    print_locations(console, config)
    if not config.wait:
        return EXIT_DONE
    state = _wait(result, console)
    row = read_summary(config)
    if row is not None:
        print_report(console, config, row)
    if state == "DONE" and row is not None and row["reconciled"]:
        return EXIT_DONE
    console.print(f"run {config.run_id} ended as {state}", style="red")
    return EXIT_FAILED


def _wait(result: Any, console: Console) -> str:
    """Waits for a remote job and shows its counters."""

    def counts() -> dict[str, int]:
        found = result.metrics().query(
            beam.metrics.MetricsFilter().with_namespace(metrics.NAMESPACE)
        )["counters"]
        return {c.key.metric.name: int(c.committed or c.attempted or 0) for c in found}

    state: list[Any] = []
    waiter = threading.Thread(
        target=lambda: state.append(_finish(result)), name="wait", daemon=True
    )
    with Progress(console, counts) as progress:
        waiter.start()
        while waiter.is_alive():
            waiter.join(1.0)
            progress.tick()
    return str(state[0])


def _finish(result: Any) -> str:
    try:
        return str(result.wait_until_finish())
    except Exception as error:  # the runner's report of how the job failed
        _log.debug("the job failed", exc_info=error)
        return f"FAILED ({explain(error)[0]})"


def _quiet_libraries() -> None:
    """Hides library logs; Beam would log each retried bundle with its traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if os.environ.get("BATCH_INFERENCE_DEBUG"):
        logging.getLogger().setLevel(logging.DEBUG)
        return
    for name in ("apache_beam", "google", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger().setLevel(logging.ERROR)
    for name in ("pipeline", "transforms"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
