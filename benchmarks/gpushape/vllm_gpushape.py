"""A vLLM plugin that gives a CPU's forward step the duration of a GPU's. The model is tiny, the rest real.

``GPUSHAPE="base_ms,per_sequence_ms,per_prefill_token_ms"``, such as ``60,0.1,0.15``: a step takes
the base time, plus a time for each running sequence and for each token beyond one per sequence. The
duration of the real step is included. Scheduler, KV blocks, sampler and HTTP are vLLM's own.
Without the plugin the host limits a tiny model, and nothing drains. Unset, it does nothing.
"""

import os
import time


def register():
    """Called by vLLM in each of its processes."""
    spec = os.environ.get("GPUSHAPE")
    if not spec:
        return
    base_s, sequence_s, prefill_s = (float(part) / 1e3 for part in spec.split(","))
    from vllm.v1.worker import cpu_worker

    worker = cpu_worker.CPUWorker
    if getattr(worker, "_gpushape", False):
        return
    worker._gpushape = True
    plain = worker.execute_model

    def execute_model(self, scheduler_output, *given, **named):
        began = time.perf_counter()
        done = plain(self, scheduler_output, *given, **named)
        tokens = scheduler_output.total_num_scheduled_tokens
        sequences = len(scheduler_output.num_scheduled_tokens)
        if sequences:
            step_s = base_s + sequence_s * sequences + prefill_s * (tokens - sequences)
            left_s = step_s - (time.perf_counter() - began)
            if left_s > 0:
                time.sleep(left_s)
        return done

    worker.execute_model = execute_model
