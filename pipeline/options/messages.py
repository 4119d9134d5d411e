"""Reads texts that flags name, and formats error messages."""

import difflib
from collections.abc import Sequence

from apache_beam.io.filesystems import FileSystems

from transforms.records.errors import ConfigurationError

NO_CREDENTIALS = (
    "no Google credentials are found: run `gcloud auth application-default login`, or set "
    "GOOGLE_APPLICATION_CREDENTIALS to a service account's key file"
)


def read_text(uri: str, name: str) -> str:
    """The text of a local or gs:// file.

    Raises:
      ConfigurationError: It cannot be read, or is not UTF-8.
    """
    try:
        with FileSystems.open(uri) as file:
            return bytes(file.read()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{name}: {uri!r} is not UTF-8 (byte {error.start})") from None
    except Exception as error:  # each file system has errors of its own
        raise ConfigurationError(f"{name}: cannot read {uri!r}: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """An error's message in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text or type(error).__name__


def suggestion(value: str, known: Sequence[str]) -> str:
    """The probable intention, as the end of a sentence; empty if no known value is close."""
    close = difflib.get_close_matches(value, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
