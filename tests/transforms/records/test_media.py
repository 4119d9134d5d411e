"""Media: URIs become parts, MIME types are the same everywhere, errors hold no secret."""

import mimetypes
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms import JSON_VALUES
from transforms.records import media
from transforms.records.errors import ConfigurationError, InvalidRequest, MissingField
from transforms.records.media import MediaField, check_fields, guess_mime_type, parts_of, shown

REMEDY = "name it in `media_fields`: photo:image/jpeg"


def _parts(value: Any, text: str = "photo") -> list[dict[str, Any]]:
    return parts_of(MediaField.parse(text), value, {})


def _part(uri: str, mime_type: str) -> dict[str, Any]:
    return {"type": "media", "uri": uri, "mime_type": mime_type}


# The flag's value


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("photo", MediaField("photo")),
        ("photo:image/jpeg", MediaField("photo", "image/jpeg")),
        ("Scan 1:application/pdf", MediaField("Scan 1", "application/pdf")),
        ("doc:image/svg+xml", MediaField("doc", "image/svg+xml")),
    ],
)
def test_parse(text: str, field: MediaField) -> None:
    """A value is a field, with or without a MIME type."""
    assert MediaField.parse(text) == field


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("photo:jpeg", "photo:image/jpeg"),
        ("photo:", "photo:image/jpeg"),
        ("photo:image/", "photo:image/jpeg"),
        ("photo:image/jpeg/x", "photo:image/jpeg"),
        ("photo:image/jpeg png", "photo:image/jpeg"),
        (":image/jpeg", "photo:image/jpeg"),
    ],
)
def test_parse_refuses(text: str, remedy: str) -> None:
    """Any other text is rejected, with the right form."""
    with pytest.raises(ConfigurationError) as raised:
        MediaField.parse(text)
    assert str(raised.value) == (
        f"`media_fields` has {text!r}, which is neither a field nor a field with a MIME type: "
        f"write it as {remedy}"
    )


def test_a_field_named_twice() -> None:
    """A field named twice is rejected, since it is unclear which MIME type counts."""
    check_fields([MediaField("a"), MediaField("b", "image/png")])
    with pytest.raises(ConfigurationError, match=r"^`media_fields` names 'a' twice: remove one$"):
        check_fields([MediaField("a"), MediaField("b"), MediaField("a", "image/png")])


# Parts


def test_one_uri_and_a_list() -> None:
    """Parts keep the order of a list, each with the type of its extension."""
    assert _parts("gs://b/a b.jpg") == [_part("gs://b/a b.jpg", "image/jpeg")]
    assert _parts(["https://h/x.png?size=1.jpg", "gs://b/y/z.PDF"]) == [
        _part("https://h/x.png?size=1.jpg", "image/png"),
        _part("gs://b/y/z.PDF", "application/pdf"),
    ]


def test_an_explicit_type_takes_precedence() -> None:
    """A type that is set precedes the extension and the record's own."""
    assert _parts("gs://b/a.png", "photo:image/jpeg") == [_part("gs://b/a.png", "image/jpeg")]
    assert _parts(["https://h/1"], "photo:video/mp4") == [_part("https://h/1", "video/mp4")]
    field = MediaField("uri", "image/webp", "mime_type")
    record = {"uri": "gs://b/a.png", "mime_type": "image/png"}
    assert parts_of(field, record["uri"], record) == [_part("gs://b/a.png", "image/webp")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("image/tiff", "image/tiff"),
        ("application/octet-stream", "image/png"),
        ("nonsense", "image/png"),
        ("", "image/png"),
        (None, "image/png"),
        (5, "image/png"),
    ],
)
def test_the_records_own_type(given: Any, expected: str) -> None:
    """The record's own type counts if it is a MIME type; else the extension decides."""
    field = MediaField("uri", mime_type_field="mime_type")
    assert parts_of(field, "gs://b/a.png", {"mime_type": given}) == [
        _part("gs://b/a.png", expected)
    ]
    assert parts_of(field, "gs://b/a.png", {}) == [_part("gs://b/a.png", "image/png")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "field 'photo': '' is not a gs:// or https:// URI"),
        ("a.jpg", "field 'photo': 'a.jpg' is not a gs:// or https:// URI"),
        ("http://h/a.jpg", "field 'photo': 'http://h/a.jpg' is not a gs:// or https:// URI"),
        ("https://h/a b.jpg", "field 'photo': 'https://h/a b.jpg' is not a gs:// or https:// URI"),
        ("https:///a.jpg", "field 'photo': 'https:///a.jpg' is not a gs:// or https:// URI"),
        ("gs://b", "field 'photo': 'gs://b' is not a gs:// or https:// URI"),
        ("gs://b/a.jpg\nx", "field 'photo': 'gs://b/a.jpg\\nx' is not a gs:// or https:// URI"),
        (
            "ftp://me:word@h/a.jpg?key=secret",
            "field 'photo': 'ftp://h/a.jpg' is not a gs:// or https:// URI",
        ),
        (7, "field 'photo': a value of type int is not a gs:// or https:// URI"),
        ({"uri": "gs://b/a"}, "field 'photo': a value of type dict is not a gs:// or https:// URI"),
        (["gs://b/a.jpg", None], "field 'photo', item 2: NULL is not a gs:// or https:// URI"),
        (
            "https://me:word@h/a?signature=secret.png",
            f"field 'photo': the MIME type of 'https://h/a' cannot be told from its name; {REMEDY}",
        ),
        (
            ["gs://b/a.what"],
            (
                "field 'photo', item 1: the MIME type of 'gs://b/a.what' cannot be told from its "
                f"name; {REMEDY}"
            ),
        ),
    ],
)
def test_invalid_uris(value: Any, message: str) -> None:
    """A value that is not media is rejected, cut and without secrets, with the remedy."""
    with pytest.raises(InvalidRequest) as raised:
        _parts(value)
    assert str(raised.value) == message


def test_an_empty_list_is_missing() -> None:
    """An empty list counts as missing, because BigQuery reads a NULL repeated column as one."""
    with pytest.raises(MissingField, match=r"^field 'photo' is an empty list$"):
        _parts([])


@given(JSON_VALUES)
def test_any_value_is_parts_or_an_error(value: Any) -> None:
    """Any value becomes parts or this error, never another one."""
    try:
        parts = _parts(value, "photo:image/png")
    except (InvalidRequest, MissingField):
        return
    assert [part["uri"] for part in parts] == (value if isinstance(value, list) else [value])


# MIME types


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("gs://b/a.jpeg", "image/jpeg"),
        ("gs://b/a.webp", "image/webp"),
        ("gs://b/a.heic", "image/heic"),
        ("gs://b/a.mp3", "audio/mpeg"),
        ("gs://b/a.wav", "audio/wav"),
        ("gs://b/a.flac", "audio/flac"),
        ("gs://b/a.m4a", "audio/m4a"),
        ("gs://b/a.opus", "audio/opus"),
        ("gs://b/a.mp4", "video/mp4"),
        ("gs://b/a.mov", "video/quicktime"),
        ("gs://b/a.3gp", "video/3gpp"),
        ("gs://b/what?.png", "image/png"),
        ("gs://b/a.png?x=.pdf", "application/pdf"),
        ("https://h/a.png#page.pdf", "image/png"),
        ("https://h.png", "image/png"),
        ("gs://b.png/a", None),
        ("gs://b/a.pdf.gz", None),
        ("gs://b/.png", None),
        ("gs://b/a.", None),
    ],
)
def test_guess_mime_type(uri: str, expected: str | None) -> None:
    """The extension of the path decides; only https URLs have a query."""
    assert guess_mime_type(uri) == expected


def test_the_machines_tables_do_not_count(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The type ignores the machine's tables, because it is part of the fingerprint."""
    (tmp_path / "mime.types").write_text("image/odd png xyz\n")
    mimetypes.init([str(tmp_path / "mime.types")])
    try:
        assert mimetypes.guess_type("a.xyz")[0] == "image/odd"
        assert guess_mime_type("gs://b/a.xyz") is None
        assert guess_mime_type("gs://b/a.png") == "image/png"
    finally:
        monkeypatch.undo()
        mimetypes.init()


@given(st.text(), st.text())
def test_shown_is_short_and_has_no_query(before: str, secret: str) -> None:
    """A URI is shown short and without its query."""
    text = shown(f"{before}?{secret}")
    assert text == shown(f"{before}?")
    assert len(shown("x" * 1000)) == media._SHOWN_CHARS + 2
