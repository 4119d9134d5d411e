"""Worker processes that run one bundle of appends each, and may be killed after any of them.

The parent stays, with everything imported, and forks a worker for each task before gRPC starts. A
worker returns the state to commit, so one that dies has committed nothing.
"""

import os
import pickle
import signal
import sys
from typing import Any

from tests.transforms.sinks.keyed_bundles import run_bundle
from transforms.sinks.bigquery.append_stream import AppendStream
from transforms.sinks.bigquery.exactly_once import _AppendInOrderDoFn


def run_task(task: bytes) -> bytes:
    """Runs one bundle: its elements, then its timers."""
    spec, committed, elements, timers, die_behind = pickle.loads(task)
    answered = 0
    append = AppendStream.append

    def append_and_die(self: AppendStream, *arguments: Any) -> Any:
        nonlocal answered
        rejections = append(self, *arguments)
        answered += 1
        if answered == die_behind:
            os.kill(os.getpid(), signal.SIGKILL)
        return rejections

    AppendStream.append = append_and_die  # type: ignore[method-assign]
    dofn = _AppendInOrderDoFn(spec, None, bounded=True)
    dofn.setup()
    result = pickle.dumps(run_bundle(dofn, committed, elements, timers))
    dofn.teardown()
    return result


def in_a_fork(task: bytes) -> tuple[int, bytes]:
    """The wait status of a worker and its result."""
    read, write = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(read)
        with os.fdopen(write, "wb") as pipe:
            pipe.write(run_task(task))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        result = pipe.read()
    return os.waitpid(worker, 0)[1], result


def main() -> None:
    """Runs the tasks that arrive on standard input, one after the other, until it ends."""
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(in_a_fork(task), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
