"""Bearer tokens of the environment's Google credentials, fetched off the event loop.

google-auth blocks: it reads files, asks the metadata server and signs. All of that happens in a
thread, under one lock, before the old token expires; a request in between pays one comparison.
"""

import asyncio
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from transforms.records.causes import Cause
from transforms.records.errors import BackendUnusable, Forbidden, RecordError, Unavailable

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
REMEDY = (
    "run `gcloud auth application-default login`, or give the job a service account "
    "(on Dataflow: --service_account_email) that may call the model"
)
PAUSE_AFTER_FAILURE_S = 5.0
"""How long a failed refresh is not repeated: a thousand requests must not ask one by one."""


class GoogleAuth:
    """The authorization headers of one set of credentials.

    Args:
      credentials: A `google.auth.credentials.Credentials`.
    """

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials
        self._lock = asyncio.Lock()
        self._headers: Mapping[str, str] = {}
        self._failure: _NoToken | None = None
        self._pause_until = 0.0

    @classmethod
    async def open(cls, credentials: Any = None) -> "GoogleAuth":
        """Finds the environment's credentials and fetches the first token.

        Raises:
          BackendUnusable: There are none, or no token can be had for them.
        """
        try:
            import google.auth.exceptions
            import google.auth.transport.requests
        except ImportError as error:
            raise BackendUnusable(f"Google backends need apache-beam[gcp]: {error}") from error
        if credentials is None:
            try:
                credentials, _ = await asyncio.to_thread(google.auth.default, scopes=SCOPES)
            except google.auth.exceptions.GoogleAuthError as error:
                raise BackendUnusable(f"no Google credentials: {_said(error)}; {REMEDY}") from error
        auth = cls(credentials)
        try:
            await auth.headers()
        except RecordError as error:
            raise BackendUnusable(f"{error}; {REMEDY}") from error
        return auth

    async def headers(self) -> Mapping[str, str]:
        """The headers of an authorized request.

        Raises:
          Forbidden: The credentials were revoked.
          Unavailable: The token has expired and the token endpoint does not answer.
        """
        if self._headers and self._credentials.token_state.name == "FRESH":
            return self._headers
        async with self._lock:
            state = self._credentials.token_state.name
            if state != "FRESH" and time.monotonic() >= self._pause_until:
                self._failure = await self._refresh()
                if self._failure:
                    self._pause_until = time.monotonic() + PAUSE_AFTER_FAILURE_S
                state = self._credentials.token_state.name
            if self._failure and state == "INVALID":
                raise self._failure.error()
            self._headers = self._bearer()  # a stale token lives for minutes: better than none
            return self._headers

    async def _refresh(self) -> "_NoToken | None":
        import google.auth.exceptions
        from google.auth.transport.requests import Request

        try:
            await asyncio.to_thread(self._credentials.refresh, Request())
        except google.auth.exceptions.RefreshError as error:
            return _NoToken(_said(error), refused=not error.retryable)
        except google.auth.exceptions.GoogleAuthError as error:
            return _NoToken(_said(error), refused=False)
        return None

    def _bearer(self) -> Mapping[str, str]:
        headers = {"Authorization": f"Bearer {self._credentials.token}"}
        project = getattr(self._credentials, "quota_project_id", None)
        if project:  # a person's own credentials name the project that is billed
            headers["x-goog-user-project"] = project
        return headers


class _NoToken(NamedTuple):
    """Why there is no token."""

    reason: str
    refused: bool

    def error(self) -> RecordError:
        """A new error of this failure: each request raises its own."""
        message = f"no Google token: {self.reason}"
        if self.refused:
            return Forbidden(message, cause=Cause.CREDENTIALS)
        return Unavailable(message, cause=Cause.OVERLOADED)


def _said(error: Exception) -> str:
    """The message of an error of google-auth: its arguments also hold whole replies."""
    return str(error.args[0] if error.args else error)[:500]


def vertex_base_url(location: str, override: str | None = None) -> str:
    """Where Vertex AI's API is: the override, else ``GOOGLE_VERTEX_BASE_URL``, else Google's host.

    >>> vertex_base_url("europe-west4", override=None)
    'https://europe-west4-aiplatform.googleapis.com'
    """
    given = override or os.environ.get("GOOGLE_VERTEX_BASE_URL")
    if given:
        return given.rstrip("/")
    if location == "global":
        return "https://aiplatform.googleapis.com"
    if location in ("us", "eu"):  # multi-regions
        return f"https://aiplatform.{location}.rep.googleapis.com"
    return f"https://{location}-aiplatform.googleapis.com"


async def auth_for(base_url: str) -> GoogleAuth:
    """The authorization for an address; a made-up token where plain HTTP would show a real one.

    Raises:
      BackendUnusable: The address needs credentials and there are none.
    """
    if base_url.startswith("https://"):
        return await GoogleAuth.open()
    from google.oauth2.credentials import Credentials

    untyped: Any = Credentials
    return await GoogleAuth.open(untyped("anonymous"))
