"""Files that flags name, and errors as one line."""

import pathlib

import pytest

from pipeline.options.messages import read_text, reason
from transforms.records.errors import ConfigurationError


def test_read_text(tmp_path: pathlib.Path) -> None:
    """The whole text of a file is read; a folder is rejected."""
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"\xef\xbb\xbfHello\r\n\xc3\xa9\n")
    assert read_text(str(path), "--prompt_file") == "Hello\r\né\n"
    with pytest.raises(ConfigurationError) as raised:
        read_text(str(tmp_path), "--prompt_file")
    assert str(raised.value) == f"--prompt_file: cannot read {str(tmp_path)!r}: Is a directory"


def test_reason() -> None:
    """The reason is one line, also of an error without a message."""
    assert reason(FileNotFoundError(2, "No such file or directory", "x")) == (
        "No such file or directory"
    )
    assert reason(ValueError("two\n  lines")) == "two lines"
    assert reason(KeyError()) == "KeyError"
