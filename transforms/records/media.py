"""Media: fields that hold the URIs of images, PDF, audio and video become parts of a request.

A part is provider-neutral, ``{"type": "media", "uri": …, "mime_type": …}``; each backend translates
it. Nothing here opens an object: the model's server reads it by its URI.

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
"""Gemini's count for an image or a page. The length of audio, video and PDF is unknown here."""

_SHOWN_CHARS = 80
_URI = re.compile(r"gs://[^/\s]+/[^\r\n]+|https://[^/?#\s]\S*")
_MIME_TYPE = re.compile(r"[A-Za-z]+/[A-Za-z0-9][A-Za-z0-9.+_-]*")
_UNKNOWN = "application/octet-stream"
_USER = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"[?#]")

# `MimeTypes` holds only Python's own table. The function `mimetypes.guess_type` also reads the
# machine's files, and the type is part of the fingerprint: it must be the same on every worker.
# The entries below are missing in that table, exist only in some versions of Python, or have a name
# there that model servers do not accept.
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
      mime_type: The MIME type of all its URIs; None to derive it from each URI.
      mime_type_field: The field that holds the MIME type, if the record has one.
    """

    name: str
    mime_type: str | None = None
    mime_type_field: str | None = None

    @classmethod
    def parse(cls, text: str) -> "MediaField":
        """Reads ``photo`` or ``photo:image/jpeg``.

        Raises:
          ConfigurationError: The text is neither.
        """
        name, colon, mime_type = text.partition(":")
        if not name or (colon and not _MIME_TYPE.fullmatch(mime_type)):
            raise ConfigurationError(
                f"`media_fields` has {text!r}, which is neither a field nor a field with a MIME type: "
                f"write it as {name or 'photo'}:image/jpeg"
            )
        return cls(name, mime_type or None)


def check_fields(fields: Iterable[MediaField]) -> None:
    """Raises `ConfigurationError` if a field is named twice."""
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"`media_fields` names {name!r} twice: remove one")


def parts_of(field: MediaField, value: Json, record: Mapping[str, Json]) -> list[dict[str, Json]]:
    """The parts of one field, in order.

    Args:
      field: The field, and the source of its MIME type.
      value: The field's value, not NULL.
      record: All fields, among them the one that holds the MIME type.

    Raises:
      MissingField: The list is empty: BigQuery reads a repeated column that is NULL as one.
      InvalidRequest: A value is not a URI, or has an unknown MIME type.
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
    """One part; without a MIME type, its URI determines it.

    Args:
      uri: A ``gs://`` or ``https://`` URI.
      mime_type: The MIME type, if known.
      where: The place of the value, for the message.
      remedy: How to set a MIME type, for the message.

    Raises:
      InvalidRequest: The value is not such a URI, or its MIME type is unknown.
    """
    if not isinstance(uri, str) or not _URI.fullmatch(uri):
        raise InvalidRequest(f"{where}: {shown(uri)} is not a gs:// or https:// URI")
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
    """A value for an error message: short, without the parts of a URI that may hold secrets.

    >>> shown("https://user:word@host/a.jpg?signature=secret")
    "'https://host/a.jpg'"
    """
    if value is None:
        return "NULL"
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    bare = _USER.sub("", _QUERY.split(value, maxsplit=1)[0])
    return repr(bare if len(bare) <= _SHOWN_CHARS else f"{bare[: _SHOWN_CHARS - 1]}…")
