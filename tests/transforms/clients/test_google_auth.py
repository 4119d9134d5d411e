"""Tokens: fetched before they expire, once for all waiting requests, off the event loop."""

import asyncio
import datetime as dt
import threading
from typing import Any

import google.auth
import google.auth.credentials
import google.auth.exceptions
import pytest

from transforms.clients import google_auth
from transforms.clients.google_auth import GoogleAuth, auth_for, vertex_base_url
from transforms.records.causes import Cause
from transforms.records.errors import BackendUnusable, Forbidden, Unavailable


class _Credentials(google.auth.credentials.Credentials):
    """Credentials with scripted refreshes: an exception, or the lifetime of a token."""

    def __init__(self, *script: Exception | dt.timedelta) -> None:
        super().__init__()
        self.script = list(script)
        self.refreshed_in: list[int] = []

    def refresh(self, request: Any) -> None:
        """Executes the next line of the script."""
        self.refreshed_in.append(threading.get_ident())
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        self.token = f"token-{len(self.refreshed_in)}"
        self.expiry = dt.datetime.now(dt.timezone.utc).replace(tzinfo=None) + step


HOUR, MINUTE, PAST = dt.timedelta(hours=1), dt.timedelta(minutes=1), dt.timedelta(hours=-1)


def _bearer(number: int) -> dict[str, str]:
    return {"Authorization": f"Bearer token-{number}"}


def test_one_refresh_for_all_waiting_requests() -> None:
    """A hundred concurrent requests cost one refresh, in a thread other than the loop's."""
    credentials = _Credentials(PAST, HOUR)

    async def ask() -> list[Any]:
        auth = GoogleAuth(credentials)
        await auth.headers()
        return await asyncio.gather(*(auth.headers() for _ in range(100)))

    assert asyncio.run(ask()) == [_bearer(2)] * 100
    assert len(credentials.refreshed_in) == 2
    assert threading.get_ident() not in credentials.refreshed_in


def test_refreshed_before_expiry() -> None:
    """A token with only a minute left is replaced."""
    credentials = _Credentials(MINUTE, HOUR)

    async def ask() -> list[Any]:
        auth = await GoogleAuth.open(credentials)
        return [await auth.headers(), await auth.headers()]

    assert asyncio.run(ask()) == [_bearer(2), _bearer(2)]


def test_the_old_token_serves_while_it_lives() -> None:
    """While the old token is accepted, a failing token endpoint has no effect."""
    failure = google.auth.exceptions.TransportError("no route")
    credentials = _Credentials(MINUTE, failure)

    async def ask() -> list[Any]:
        auth = await GoogleAuth.open(credentials)
        return [await auth.headers() for _ in range(3)]

    assert asyncio.run(ask()) == [_bearer(1)] * 3
    assert len(credentials.refreshed_in) == 2  # the failed refresh is not repeated at once


def test_expired_and_no_new_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an expired token requests fail as retryable, each with its own error, and recover."""
    failure = google.auth.exceptions.RefreshError("503", {"a": "b"}, retryable=True)
    credentials = _Credentials(PAST, failure, HOUR)

    async def ask() -> Any:
        auth = await GoogleAuth.open(credentials)
        errors = await asyncio.gather(*(auth.headers() for _ in range(3)), return_exceptions=True)
        assert len({id(error) for error in errors}) == 3
        for error in errors:
            assert type(error) is Unavailable
            assert str(error) == "no Google token: 503"
            assert error.cause is Cause.OVERLOADED
        monkeypatch.setattr(google_auth, "PAUSE_AFTER_FAILURE_S", 0.0)
        auth._pause_until = 0.0
        return await auth.headers()

    assert asyncio.run(ask()) == _bearer(3)


def test_revoked() -> None:
    """A revoked credential is `forbidden` for a record, and fatal at the start."""
    credentials = _Credentials(PAST, google.auth.exceptions.RefreshError("invalid_grant"))

    async def ask() -> None:
        auth = await GoogleAuth.open(credentials)
        await auth.headers()

    with pytest.raises(Forbidden, match=r"^no Google token: invalid_grant$") as caught:
        asyncio.run(ask())
    assert caught.value.cause is Cause.CREDENTIALS


@pytest.mark.parametrize(
    "failure",
    [
        google.auth.exceptions.RefreshError("invalid_grant"),
        google.auth.exceptions.TransportError("no route"),
    ],
)
def test_no_token_at_open(failure: Exception) -> None:
    """`open` fetches the first token, and its failure names the remedy."""
    with pytest.raises(BackendUnusable, match="gcloud auth application-default login"):
        asyncio.run(GoogleAuth.open(_Credentials(failure)))


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing credentials name the remedy; the scope is the cloud platform's."""
    asked: list[Any] = []

    def default(**arguments: Any) -> None:
        asked.append(arguments)
        raise google.auth.exceptions.DefaultCredentialsError("not found")

    monkeypatch.setattr(google.auth, "default", default)
    with pytest.raises(BackendUnusable, match=r"^no Google credentials: not found; run `gcloud"):
        asyncio.run(auth_for("https://aiplatform.googleapis.com"))
    assert asked == [{"scopes": ("https://www.googleapis.com/auth/cloud-platform",)}]


def test_quota_project() -> None:
    """A user's own credentials name the project to bill."""
    credentials = _Credentials(HOUR)
    credentials._quota_project_id = "billed"

    async def ask() -> Any:
        return await (await GoogleAuth.open(credentials)).headers()

    assert asyncio.run(ask()) == {**_bearer(1), "x-goog-user-project": "billed"}


def test_no_real_token_over_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over plain HTTP a fake token is sent, and no credentials are looked up."""
    monkeypatch.setattr(google.auth, "default", None)

    async def ask() -> Any:
        return await (await auth_for("http://127.0.0.1:1234")).headers()

    assert asyncio.run(ask()) == {"Authorization": "Bearer anonymous"}


def test_vertex_base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts depend on the location, like google-genai's; overrides take precedence."""
    monkeypatch.delenv("GOOGLE_VERTEX_BASE_URL", raising=False)
    assert [vertex_base_url(name) for name in ("us-central1", "global", "eu", "us")] == [
        "https://us-central1-aiplatform.googleapis.com",
        "https://aiplatform.googleapis.com",
        "https://aiplatform.eu.rep.googleapis.com",
        "https://aiplatform.us.rep.googleapis.com",
    ]
    monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", "http://127.0.0.1:1/")
    assert vertex_base_url("global") == "http://127.0.0.1:1"
    assert vertex_base_url("global", "http://127.0.0.1:2/") == "http://127.0.0.1:2"
