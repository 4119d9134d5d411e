"""One call to a client, with its timeout: a response per request, or a failure of the call."""

import asyncio
from collections.abc import Callable, Sequence

from transforms.backends.base import BatchClient, Client
from transforms.dispatch.call import Response
from transforms.records.errors import BackendUnusable, RequestTimeout, RunError
from transforms.records.records import Completion, Request


async def ask(
    client: Client,
    requests: Sequence[Request],
    timeout_s: float | None,
    stopping: Callable[[], bool],
) -> list[Response] | Exception:
    """Calls the client once, in the current task.

    Args:
      client: A single request goes to its `generate`, several go to its `generate_many`.
      requests: At least one.
      timeout_s: Seconds after which the call is cancelled; None for never.
      stopping: Returns whether a cancellation is the dispatcher's, which ends the task.

    Returns:
      One response per request, in order; or the exception that a call of several requests raised.

    Raises:
      BackendUnusable: The client returned the wrong number of outcomes.
      RunError: The client reports that the run cannot go on.
    """
    task, timed_out = asyncio.current_task(), False

    def time_out() -> None:
        nonlocal timed_out
        timed_out = True
        if task is not None:
            task.cancel()

    timer = None
    if timeout_s is not None:
        timer = asyncio.get_running_loop().call_later(timeout_s, time_out)
    failure: Exception
    try:
        if len(requests) > 1 and isinstance(client, BatchClient):
            return _checked(client, await client.generate_many(requests), len(requests))
        response = await client.generate(requests[0])
        if not isinstance(response, Completion):
            raise TypeError(f"generate returned a {type(response).__name__}")
        return [response]
    except asyncio.CancelledError:
        if stopping():
            raise
        if timed_out:
            failure = RequestTimeout(f"no answer within {timeout_s:g} s (`request_timeout_s`)")
        else:
            failure = RuntimeError("the client cancelled its own call")
    except RunError:
        raise
    except Exception as error:  # unforeseen ones too: they cost records, not the run
        failure = error
    finally:
        if timer is not None:
            timer.cancel()
    return failure if len(requests) > 1 else [failure]


def _checked(client: Client, responses: Sequence[object], requests: int) -> list[Response]:
    if len(responses) != requests:
        raise BackendUnusable(
            f"{type(client).__name__}.generate_many returned {len(responses)} outcomes "
            f"for {requests} requests"
        )
    return [
        response
        if isinstance(response, (Completion, Exception))
        else TypeError(f"generate_many returned a {type(response).__name__} for a request")
        for response in responses
    ]
