"""Media: fields that hold the URIs of images, PDF, audio and video become parts of a request.

A part is in no provider's dialect, ``{"type": "media", "uri": …, "mime_type": …}``; each backend
translates it. No object is opened here: whoever serves the model reads it by its URI.

>>> parts_of(MediaField.parse("photo"), "gs://shop/7.webp", {})
[{'type': 'media', 'uri': 'gs://shop/7.webp', 'mime_type': 'image/webp'}]
"""

import dataclasses
import mimetypes
import posixpath
import re
from collections.abc import Iterable, Mapping

from transforms.records.errors import ConfigurationError, InvalidRequest, MissingField
from transforms.records.records import Json

TOKENS_PER_PART = 258
"""What Gemini counts for an image or a page. How long audio, video and PDF are is not known here."""

_SHOWN_CHARS = 80
_URI = re.compile(r"gs://[^/\s]+/[^\r\n]+|https://[^/?#\s]\S*")
_MIME_TYPE = re.compile(r"[A-Za-z]+/[A-Za-z0-9][A-Za-z0-9.+_-]*")
_UNKNOWN = "application/octet-stream"
_USER = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"[?#]")

# `MimeTypes` holds Python's own table alone. The function `mimetypes.guess_type` also reads the
# machine's files, and the type is part of the fingerprint: it must be the same on every worker.
# Below, what that table lacks, has only in some versions of Python, or calls by a name that model
# servers do not take.
_BY_SUFFIX: Mapping[str, str] = {
    **mimetypes.MimeTypes().types_map[True],
    ".webp": "image/webp",
    ".heic": "image/heic",
    ".heif": "image/heif",
    ".avif": "image/avif",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".m4a": "audio/m4a",
    ".aac": "audio/aac",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/opus",
    ".aif": "audio/aiff",
    ".aiff": "audio/aiff",
    ".weba": "audio/webm",
    ".m4v": "video/mp4",
    ".mkv": "video/x-matroska",
    ".flv": "video/x-flv",
    ".wmv": "video/wmv",
    ".3gp": "video/3gpp",
    ".md": "text/markdown",
}


@dataclasses.dataclass(frozen=True, slots=True)
class MediaField:
    """A field of the record that holds one URI or a list of URIs.

    Attributes:
      name: The field.
      mime_type: Of all its URIs; None tells it from the URI.
      mime_type_field: The field that holds the MIME type, where the record knows it itself.
    """

    name: str
    mime_type: str | None = None
    mime_type_field: str | None = None

    @classmethod
    def parse(cls, text: str) -> "MediaField":
        """Reads ``photo`` or ``photo:image/jpeg``.

        Raises:
          ConfigurationError: It is neither.
        """
        name, colon, mime_type = text.partition(":")
        if not name or (colon and not _MIME_TYPE.fullmatch(mime_type)):
            raise ConfigurationError(
                f"`media_fields` has {text!r}, which is neither a field nor a field with a MIME type: "
                f"write it as {name or 'photo'}:image/jpeg"
            )
        return cls(name, mime_type or None)


def check_fields(fields: Iterable[MediaField]) -> None:
    """Raises `ConfigurationError` when a field is named twice."""
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"`media_fields` names {name!r} twice: remove one")


def parts_of(field: MediaField, value: Json, record: Mapping[str, Json]) -> list[dict[str, Json]]:
    """The parts of one field, in order.

    Args:
      field: Which field, and how its MIME type is told.
      value: What it holds, not NULL.
      record: All fields, for the one that holds the MIME type.

    Raises:
      MissingField: An empty list: BigQuery reads a repeated column that is NULL as one.
      InvalidRequest: A value that is no URI, or a MIME type that cannot be told.
    """
    mime_type = field.mime_type
    if mime_type is None and field.mime_type_field is not None:
        given = record.get(field.mime_type_field)
        if isinstance(given, str) and given != _UNKNOWN and _MIME_TYPE.fullmatch(given):
            mime_type = given
    where, remedy = f"field {field.name!r}", f"name it in `media_fields`: {field.name}:image/jpeg"
    if not isinstance(value, list):
        return [media_part(value, mime_type, where, remedy)]
    if not value:
        raise MissingField(f"{where} is an empty list")
    return [
        media_part(uri, mime_type, f"{where}, item {number}", remedy)
        for number, uri in enumerate(value, 1)
    ]


def media_part(uri: Json, mime_type: Json, where: str, remedy: str) -> dict[str, Json]:
    """One part; a MIME type that is not given is told from the URI.

    Args:
      uri: What should be a ``gs://`` or ``https://`` URI.
      mime_type: The MIME type, if it is known.
      where: What held it, for the message.
      remedy: How to give a MIME type, for the message.

    Raises:
      InvalidRequest: It is no such URI, or its MIME type cannot be told.
    """
    if not isinstance(uri, str) or not _URI.fullmatch(uri):
        raise InvalidRequest(f"{where}: {shown(uri)} is no gs:// or https:// URI")
    mime_type = mime_type or guess_mime_type(uri)
    if not isinstance(mime_type, str) or not _MIME_TYPE.fullmatch(mime_type):
        raise InvalidRequest(
            f"{where}: the MIME type of {shown(uri)} cannot be told from its name; {remedy}"
        )
    return {"type": "media", "uri": uri, "mime_type": mime_type}


def guess_mime_type(uri: str) -> str | None:
    """The MIME type by the extension of a URI or path, the same on every machine; None if unknown.

    >>> guess_mime_type("https://host/scan.PDF?token=a.png"), guess_mime_type("gs://b/voice.opus")
    ('application/pdf', 'audio/opus')
    """
    path = _QUERY.split(uri, maxsplit=1)[0] if uri.startswith("https://") else uri
    return _BY_SUFFIX.get(posixpath.splitext(path)[1].lower())


def shown(value: Json) -> str:
    """A value for an error message: short, without what a URI may hold of secrets.

    >>> shown("https://user:word@host/a.jpg?signature=secret")
    "'https://host/a.jpg'"
    """
    if value is None:
        return "NULL"
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    bare = _USER.sub("", _QUERY.split(value, maxsplit=1)[0])
    return repr(bare if len(bare) <= _SHOWN_CHARS else f"{bare[: _SHOWN_CHARS - 1]}…")
