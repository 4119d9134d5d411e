"""Secrets: workers read them by name, and their values are nowhere else."""

import asyncio
import doctest
import logging
import pickle
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from tests.emulators.model_fixtures import SimulatedModelServer
from tests.emulators.secret_server import serve_secrets
from tests.end_to_end.runs import in_files, run
from transforms.backends.openai import OpenAIBackend
from transforms.clients import secrets
from transforms.clients.secrets import (
    ATTEMPTS,
    BASE_URL_VARIABLE,
    base_url,
    check_secret_name,
    read_secret,
)
from transforms.records.errors import BackendUnusable, ConfigurationError

NAME = "projects/p/secrets/openai/versions/3"
KEY = "sk-" + "k" * 24


def _read(name: str = NAME) -> str:
    return asyncio.run(read_secret(name, pause_s=0.0))


def _refused(name: str = NAME) -> str:
    with pytest.raises(BackendUnusable) as raised:
        _read(name)
    return str(raised.value)


def test_examples() -> None:
    """The examples of the docstrings run as written."""
    assert doctest.testmod(secrets).failed == 0


def test_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret is read in one request, without the white space that editors add."""
    with serve_secrets({NAME: [f" {KEY}\n"]}) as (url, asked):
        monkeypatch.setenv(BASE_URL_VARIABLE, f"{url}/")
        assert _read() == KEY
    assert asked == [f"/v1/{NAME}:access"]


def test_outages_are_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Throttling and server errors are retried, but not for ever."""
    with serve_secrets({NAME: [503, 429, 500, KEY]}) as (url, asked):
        monkeypatch.setenv(BASE_URL_VARIABLE, url)
        assert _read() == KEY
        assert len(asked) == 4
    with serve_secrets({NAME: [503]}) as (url, asked):
        monkeypatch.setenv(BASE_URL_VARIABLE, url)
        assert _refused().startswith(f"the secret {NAME} cannot be read: HTTP 503 from 127.0.0.1:")
        assert len(asked) == ATTEMPTS


@pytest.mark.parametrize("status", [403, 404, 400])
def test_an_unreadable_secret(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """An unreadable secret is requested once; the message has its name, the answer and the role."""
    with serve_secrets({NAME: [status]}) as (url, asked):
        monkeypatch.setenv(BASE_URL_VARIABLE, url)
        message = _refused()
    assert f"the secret {NAME} cannot be read: HTTP {status}" in message
    assert message.endswith(f"said {status}; the workers' service account needs "
                            "roles/secretmanager.secretAccessor on it")  # fmt: skip
    assert len(asked) == 1


def test_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty version is rejected as a key."""
    with serve_secrets({NAME: [" \n"]}) as (url, _):
        monkeypatch.setenv(BASE_URL_VARIABLE, url)
        assert _refused() == f"the secret {NAME} is empty: add a version that holds the key"


def test_google_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's own host is the default without the tests' variable."""
    monkeypatch.delenv(BASE_URL_VARIABLE, raising=False)
    assert base_url(NAME) == "https://secretmanager.googleapis.com"


@pytest.mark.parametrize("name", [KEY, "projects/p/secrets/openai", f"{NAME}/more", f" {NAME}"])
def test_names(name: str) -> None:
    """A key in place of a name is rejected and not repeated in the message."""
    with pytest.raises(ConfigurationError, match="--flag is not the name") as raised:
        check_secret_name(name, "--flag")
    assert name.strip() not in str(raised.value)
    assert check_secret_name(NAME, "--flag") == NAME


def test_the_flag() -> None:
    """The secret's name reaches the backend, only of openai; a key in its place is never shown."""
    argv = ["--input_files=a.jsonl", "--prompt=x", "--model=m", "--output_path=out"]

    def config(*more: str) -> RunConfig:
        return RunConfig.from_options(parse_flags([*argv, *more]))

    backend = config("--backend=openai", f"--api_key_secret={NAME}").backend
    assert isinstance(backend, OpenAIBackend)
    assert backend.api_key_secret == NAME
    for backend_name in ("openai", "fake"):
        with pytest.raises(ConfigurationError, match="--api_key_secret") as raised:
            config(f"--backend={backend_name}", f"--api_key_secret={KEY}")
        assert KEY not in str(raised.value)


def test_the_key_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret's key precedes the environment's."""
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")

    async def headers() -> object:
        client = await OpenAIBackend(model="m", api_key_secret=NAME).open()
        await client.close()
        return client._headers

    with serve_secrets({NAME: [KEY]}) as (url, _):
        monkeypatch.setenv(BASE_URL_VARIABLE, url)
        assert asyncio.run(headers()) == {"Authorization": f"Bearer {KEY}"}


def test_a_run_with_a_secret(
    tmp_path: Path,
    model_server: SimulatedModelServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The server gets a key; the pickled backend, logs, messages, results and summary do not."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    model_server.reset()
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "1", "text": "hello"}\n', encoding="utf-8")
    with serve_secrets({NAME: [KEY]}) as (url, _):
        monkeypatch.setenv(BASE_URL_VARIABLE, url)
        code = run(
            f"--input_files={source}", "--prompt={{ text }}", "--backend=openai", "--model=m",
            f"--endpoint={model_server.openai_url}", f"--api_key_secret={NAME}",
            f"--output_path={tmp_path / 'out'}",
        )  # fmt: skip
    assert code == 0
    (request,) = model_server.requests()
    sent = {name.lower(): value for name, value in request["headers"].items()}
    assert sent["authorization"] == "(hidden)"
    held = in_files(tmp_path / "out")
    printed = capsys.readouterr()
    written = [path.read_text("utf-8") for path in tmp_path.rglob("*.json*")]
    assert len(held.results) == 1
    assert KEY not in "".join([*written, caplog.text, printed.out, printed.err])
    assert NAME in held.summary["config"]
    backend = OpenAIBackend(model="m", api_key_secret=NAME)
    assert KEY.encode() not in pickle.dumps(backend)
    assert KEY not in repr(OpenAIBackend(model="m", api_key=KEY))
