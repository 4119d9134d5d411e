"""Defaults for Beam's own options."""

from collections.abc import Container

from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
)

from pipeline.config import RunConfig
from pipeline.local import runner as local_streaming
from pipeline.options.gpu import GPU_TYPE, set_worker_defaults
from pipeline.options.run import LOCAL_RUNNER, RESOURCE_LABELS

LOCAL_THREADS = 4
"""Concurrent bundles: while one waits for its last calls, others send the model the next ones.

They run in the runner's ``in_memory`` mode, which does use several threads, whatever its warning
says. Its ``multi_threading`` mode loses records in Beam 2.77: a timer flushes the buffer of encoded
elements, even in the middle of an element (`docs/beam.md` has the experiment).
"""


def set_defaults(options: PipelineOptions, config: RunConfig, given: Container[str] = ()) -> None:
    """Sets Beam's own options that inference needs, unless the user has set them.

    Args:
      options: The options to complete.
      config: The run.
      given: The names of the flags that the user has set.
    """
    standard = options.view_as(StandardOptions)
    if standard.runner is None:
        standard.runner = LOCAL_RUNNER
    if config.mode.streaming:
        standard.streaming = True
        if config.local:  # of the local runners, one can run a stream
            standard.runner = local_streaming.RUNNER
    if config.local:
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
        needs = config.adapter.dataflow
        set_worker_defaults(needs, options, config.mode, gpu=config.values.is_set(GPU_TYPE))
        ours = config.values[RESOURCE_LABELS]
        cloud.labels = [*(cloud.labels or []), *(f"{key}={value}" for key, value in ours.items())]
    options.view_as(SetupOptions).save_main_session = False


def name_job(options: PipelineOptions, config: RunConfig) -> None:
    """Names a streaming job after its run, unless the user named it: an update finds it by name."""
    cloud = options.view_as(GoogleCloudOptions)
    if config.mode.streaming and not config.local and cloud.job_name is None:
        cloud.job_name = config.run_id.lower().replace("_", "-")
