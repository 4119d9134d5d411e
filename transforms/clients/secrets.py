"""Secrets by their resource name in Secret Manager, read by the worker that uses them.

Only the name travels with the pipeline: the value exists only in a worker's memory, never in a
flag, job graph, display data, log or error message.
"""

import asyncio
import base64
import os
import re

from transforms.clients.google_auth import auth_for
from transforms.clients.http import JsonClient, shaped
from transforms.records.errors import BackendUnusable, ConfigurationError, RecordError

BASE_URL_VARIABLE = "SECRET_MANAGER_BASE_URL"
"""Names a server to use instead of Google's, for tests."""
ATTEMPTS = 5
PAUSE_S = 1.0
"""Pause before the second attempt; it doubles with each further one."""
TIMEOUT_S = 20.0
_NAME = re.compile(
    r"projects/[^/\s]+/(?:locations/(?P<location>[a-z0-9-]+)/)?secrets/[A-Za-z0-9_-]{1,255}"
    r"/versions/[A-Za-z0-9_-]+"
)


def check_secret_name(name: str, flag: str) -> str:
    """Returns the name of a secret's version unchanged.

    Raises:
      ConfigurationError: It is not such a name. The message omits it: it may be the secret itself.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{flag} is not the name of a secret's version: write "
            "projects/P/secrets/S/versions/V, never the secret itself (not shown here)"
        )
    return name


def base_url(name: str) -> str:
    """The base URL that serves a secret: a regional secret is served only in its region.

    >>> base_url("projects/p/locations/europe-west4/secrets/s/versions/1")
    'https://secretmanager.europe-west4.rep.googleapis.com'
    """
    if given := os.environ.get(BASE_URL_VARIABLE):
        return given.rstrip("/")
    found = _NAME.fullmatch(name)
    location = found and found["location"]
    host = f"{location}.rep." if location else ""
    return f"https://secretmanager.{host}googleapis.com"


async def read_secret(name: str, *, pause_s: float = PAUSE_S) -> str:
    """Reads the value of a secret's version, without surrounding white space.

    It retries outages and throttling, up to `ATTEMPTS` attempts.

    Args:
      name: ``projects/P/secrets/S/versions/V``, or with ``locations/L``.
      pause_s: Pause before the second attempt.

    Raises:
      BackendUnusable: The secret does not exist, cannot be read, is empty or is not text.
    """
    url = base_url(name)
    auth = await auth_for(url)
    http = JsonClient()
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                headers = await auth.headers()
                reply = await asyncio.wait_for(
                    http.get(f"{url}/v1/{name}:access", headers), TIMEOUT_S
                )
                value = shaped(
                    lambda data: base64.b64decode(data["payload"]["data"]).decode().strip(),
                    reply.data,
                    what="Secret Manager",
                )
                break
            except (RecordError, TimeoutError, asyncio.TimeoutError) as error:
                retryable = not isinstance(error, RecordError) or error.retryable
                if attempt == ATTEMPTS or not retryable:
                    said = str(error) or f"no answer in {TIMEOUT_S:g} s"
                    raise BackendUnusable(
                        f"the secret {name} cannot be read: {said}; the workers' service account "
                        "needs roles/secretmanager.secretAccessor on it"
                    ) from None
            await asyncio.sleep(pause_s * 2 ** (attempt - 1))
    finally:
        await http.close()
    if not value:
        raise BackendUnusable(f"the secret {name} is empty: add a version that holds the key")
    return value
