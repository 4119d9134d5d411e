"""Bearer tokens of the environment's Google credentials, fetched off the event loop.

google-auth blocks: it reads files, calls the metadata server and signs. All of that runs in a
thread, under one lock, before the old token expires; other requests cost one comparison.
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
    "run `gcloud auth application-default login`, or run the job as a service "
    "account that may call the model"
)
PAUSE_AFTER_FAILURE_S = 5.0
"""Pause after a failed refresh: a thousand requests must not each retry it."""


class GoogleAuth:
    """The authorization headers of one set of credentials.

    Args:
      credentials: A `google.auth.credentials.Credentials`.
    """

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials
        self._lock = asyncio.Lock()
        self._headers: Mapping[str, str] = {}
        self._failure: _RefreshFailure | None = None
        self._pause_until = 0.0

    @classmethod
    async def open(cls, credentials: Any = None) -> "GoogleAuth":
        """Finds the environment's credentials and fetches the first token.

        Raises:
          BackendUnusable: There are none, or no token can be fetched with them.
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

    async def _refresh(self) -> "_RefreshFailure | None":
        import google.auth.exceptions
        from google.auth.transport.requests import Request

        try:
            await asyncio.to_thread(self._credentials.refresh, Request())
        except google.auth.exceptions.RefreshError as error:
            return _RefreshFailure(_said(error), refused=not error.retryable)
        except google.auth.exceptions.GoogleAuthError as error:
            return _RefreshFailure(_said(error), refused=False)
        return None

    def _bearer(self) -> Mapping[str, str]:
        headers = {"Authorization": f"Bearer {self._credentials.token}"}
        project = getattr(self._credentials, "quota_project_id", None)
        if project:  # a user's own credentials name the project to bill
            headers["x-goog-user-project"] = project
        return headers


class _RefreshFailure(NamedTuple):
    """The reason why there is no token."""

    reason: str
    refused: bool

    def error(self) -> RecordError:
        """Creates an error for this failure: each request raises its own."""
        message = f"no Google token: {self.reason}"
        if self.refused:
            return Forbidden(message, cause=Cause.CREDENTIALS)
        return Unavailable(message, cause=Cause.OVERLOADED)


def _said(error: Exception) -> str:
    """The message of a google-auth error, without its other arguments, which hold whole replies."""
    return str(error.args[0] if error.args else error)[:500]


def vertex_base_url(location: str, override: str | None = None) -> str:
    """The base URL of Vertex AI: the override, else ``GOOGLE_VERTEX_BASE_URL``, else Google's host.

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
    """The authorization for a base URL; for plain HTTP a fake token, because it would be exposed.

    Raises:
      BackendUnusable: The URL needs credentials and there are none.
    """
    if base_url.startswith("https://"):
        return await GoogleAuth.open()
    from google.oauth2.credentials import Credentials

    untyped: Any = Credentials
    return await GoogleAuth.open(untyped("anonymous"))
