"""Beam's own options, where the user has set none."""

from collections.abc import Container

from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
)

from pipeline.backends import adapter_of
from pipeline.config import LOCAL_RUNNER, RunConfig, is_local
from pipeline.local import runner as local_streaming
from pipeline.options.command_line import InferenceOptions, Values
from pipeline.options.gpu import set_worker_defaults

LOCAL_THREADS = 4
"""Bundles at once: while one waits for its last calls, others give the model its next ones.

They run in the runner's ``in_memory`` mode, which does use several threads, whatever its warning
says. Its ``multi_threading`` mode loses records in Beam 2.77: a timer flushes the buffer of encoded
elements, also in the middle of an element (`docs/beam.md` has the experiment).
"""


def set_defaults(
    options: PipelineOptions, given: Container[str] = (), *, streaming: bool = False
) -> None:
    """Beam's own options that inference needs, where the user set none.

    Args:
      options: What to complete.
      given: The names of the flags that the user has set.
      streaming: The input never ends; of the local runners one can do that.
    """
    standard = options.view_as(StandardOptions)
    if standard.runner is None:
        standard.runner = LOCAL_RUNNER
    if streaming:
        standard.streaming = True
        if is_local(options):
            standard.runner = local_streaming.RUNNER
    if is_local(options):
        direct = options.view_as(DirectOptions)
        if "direct_num_workers" not in given:
            direct.direct_num_workers = LOCAL_THREADS
        if direct.direct_running_mode == "multi_threading":
            direct.direct_running_mode = "in_memory"  # see LOCAL_THREADS
    else:
        worker = options.view_as(DebugOptions)
        if worker.number_of_worker_harness_threads is None:
            worker.number_of_worker_harness_threads = LOCAL_THREADS
        cloud = options.view_as(GoogleCloudOptions)
        values = Values.of(options.view_as(InferenceOptions))
        needs = adapter_of(values.given["backend"]).dataflow
        set_worker_defaults(needs, options, gpu=bool(values.text("gpu_type")))
        ours = values.pairs("resource_labels")
        cloud.labels = [*(cloud.labels or []), *(f"{key}={value}" for key, value in ours.items())]
    options.view_as(SetupOptions).save_main_session = False


def name_job(options: PipelineOptions, config: RunConfig) -> None:
    """A streaming job that was given no name has its run's: an update finds it by that."""
    cloud = options.view_as(GoogleCloudOptions)
    if config.streaming and not config.local and cloud.job_name is None:
        cloud.job_name = config.run_id.lower().replace("_", "-")
