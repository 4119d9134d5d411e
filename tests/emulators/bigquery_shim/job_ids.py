"""A job id works once: a second ``jobs.insert`` with it answers 409, as the service does.

Retries rely on it: a client that lost the answer sends the same id again and learns that the job
exists. A request that is rejected before it becomes a job releases its id; a job that fails keeps
it.
"""

import contextlib
from collections.abc import Iterator

from bqemulator.domain.errors import AlreadyExistsError

_taken: set[tuple[str, str]] = set()


@contextlib.contextmanager
def claimed(project: str, job_id: str) -> Iterator[None]:
    """Holds the id for the job that the block creates.

    Raises:
        AlreadyExistsError: the id belongs to an earlier job.
    """
    if (project, job_id) in _taken:
        raise AlreadyExistsError(f"Already Exists: Job {project}:US.{job_id}")
    _taken.add((project, job_id))
    try:
        yield
    except BaseException:
        _taken.discard((project, job_id))
        raise
