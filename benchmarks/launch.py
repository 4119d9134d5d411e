"""From the template's entry point to the submitted job: the time that the launcher waits.

Runs the launcher's own argv in its own process, with Google's clients against the loopback cloud
and a Dataflow that accepts every job. The time excludes the start of the launcher's machine and the
network latency of real services.

``python -m benchmarks.launch`` prints a table and writes it to ``benchmarks/RESULTS.md``.
"""

import argparse
import itertools
import pathlib
import resource
import statistics
import tempfile
import time

from benchmarks.results import machine, write_section
from templates import render
from tests.emulators.dataflow_server import serve_dataflow
from tests.emulators.environment import emulator_python
from tests.emulators.google_cloud import LoopbackCloud
from tests.templates.launches import IMAGE, launcher_argv, run_entry_point, storage

GOAL_S = 30.0
LINE = '{"id": "1", "text": "My invoice is wrong."}\n'
GPU = {"backend": "vllm", "model": "gs://models/m", "gpu_type": "nvidia-l4"}
CPU = {"backend": "gemini", "model": "gemini-2.5-flash"}


def arguments(
    cloud: LoopbackCloud, bucket: str, template: render.Template, *, gpu: bool
) -> list[str]:
    """The launcher's arguments for a typical job, with results in a new dataset."""
    table = cloud.new_dataset().replace(".", ":") + ".answers"
    parameters = {"prompt": "Say {{ text }}", "output_table": table, **(GPU if gpu else CPU)}
    if template.name == "streaming":
        parameters["input_subscription"] = f"projects/{cloud.project}/subscriptions/tickets"
    else:
        parameters["input_files"] = f"gs://{bucket}/in/*.jsonl"
    folders = {"tempLocation": f"gs://{bucket}/tmp", "stagingLocation": f"gs://{bucket}/staging"}
    asked = {"jobName": "answers", "parameters": parameters, "environment": folders}
    spec = render.container_spec(template, IMAGE, f"{IMAGE}-gpu" if gpu else "")
    return launcher_argv(asked, spec, cloud.project, "us-central1")


def cpu_s() -> float:
    """CPU time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(cloud: LoopbackCloud, template: render.Template, *, gpu: bool) -> tuple[float, float]:
    """Wall and CPU seconds of one launch, Python's start included."""
    bucket = cloud.new_bucket()
    with storage(cloud) as client:
        client.bucket(bucket).blob("in/a.jsonl").upload_from_string(LINE)
    with serve_dataflow() as dataflow:
        argv = arguments(cloud, bucket, template, gpu=gpu)
        before, used = time.perf_counter(), cpu_s()
        done = run_entry_point(cloud, dataflow, argv)
        wall, used = time.perf_counter() - before, cpu_s() - used
        if done.returncode or len(dataflow.posted("/jobs")) != 1:
            raise SystemExit(f"no job was submitted: {done.stdout}{done.stderr}")
    return wall, used


def main() -> None:
    """Measures each template and writes the section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launch", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    lines = [
        (
            "From the start of the template's entry point to its end, with the job submitted to a "
            f"Dataflow on loopback. Medians of {given.runs} ({machine()}; other work ran on the same "
            f"cores). The goal is {GOAL_S:g} s; the launcher's own deadline is ten minutes, its "
            "machine's start included."
        ),
        "",
        "| Template | wall s | longest | CPU s | |",
        "|---|---|---|---|---|",
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        LoopbackCloud.running(emulator_python(), pathlib.Path(folder)) as cloud,
    ):
        for template, gpu in itertools.product(render.TEMPLATES, (False, True)):
            runs = [measured(cloud, template, gpu=gpu) for _ in range(given.runs)]
            walls, used = zip(*runs, strict=True)
            lines.append(
                f"| {template.name}{'-gpu' if gpu else ''} | {statistics.median(walls):.1f} "
                f"| {max(walls):.1f} | {statistics.median(used):.1f} "
                f"| {'met' if max(walls) <= GOAL_S else 'missed'} |"
            )
    write_section("Launch", "python -m benchmarks.launch", lines)


if __name__ == "__main__":
    main()
