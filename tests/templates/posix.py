"""POSIX extended regular expressions, as the service documents, matched by the C library."""

import ctypes
import functools

_EXTENDED, _NO_MATCH = 1, 1
_SIZE = 256
"""Bytes for a ``regex_t``: 64 with glibc, fewer elsewhere."""


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@functools.cache
def compiled(pattern: str) -> "ctypes.Array[ctypes.c_char]":
    """A compiled pattern.

    Raises:
      ValueError: The C library rejects it.
    """
    regex = ctypes.create_string_buffer(_SIZE)
    if code := _library().regcomp(regex, pattern.encode(), _EXTENDED):
        message = ctypes.create_string_buffer(200)
        _library().regerror(code, regex, message, 200)
        raise ValueError(f"{pattern!r}: {message.value.decode()}")
    return regex


def matches(pattern: str, value: str) -> bool:
    """Whether a value matches; patterns anchor themselves."""
    code = int(_library().regexec(compiled(pattern), value.encode(), 0, None, 0))
    assert code in {0, _NO_MATCH}
    return code == 0
