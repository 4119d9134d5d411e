"""Asking a `BatchClient`: a batch in one call, for models that compute in this process.

Such a call is the client's own to bound: it has no timeout and no pace, for there is no quota in a
worker's own memory.
"""

from collections.abc import Sequence

from transforms.backends.base import BatchClient
from transforms.records.errors import BackendUnusable, RunError
from transforms.records.records import Completion, Request


async def ask_at_once(
    client: BatchClient, requests: Sequence[Request]
) -> list[Completion | Exception] | None:
    """One reply per request, in order; None when the call failed: one may have broken the batch.

    Raises:
      BackendUnusable: The client gave another number of outcomes.
      RunError: The client says that the run cannot go on.
    """
    try:
        replies = await client.generate_many(requests)
    except RunError:
        raise
    except Exception:
        return None
    if len(replies) != len(requests):
        raise BackendUnusable(
            f"{type(client).__name__}.generate_many returned {len(replies)} outcomes "
            f"for {len(requests)} requests"
        )
    return [_checked(reply) for reply in replies]


def _checked(reply: object) -> Completion | Exception:
    """What was given for a request; anything else costs its record."""
    if isinstance(reply, (Completion, Exception)):
        return reply
    return TypeError(f"generate_many gave a {type(reply).__name__} for a request")
