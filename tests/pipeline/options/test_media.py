"""The fields that hold media: those of the flag or a whole object, and values that are rejected."""

from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from pipeline.options.request import OBJECT
from transforms.records.errors import ConfigurationError
from transforms.records.media import MediaField

ROWS = ("--input_files=a.jsonl", "--output_path=/out")
OBJECTS = ("--input_files=gs://b/*.png", "--input_format=objects", "--output_path=/out")
ASK, FAKE = "--prompt=What is this?", "--backend=fake"
OPENAI = ("--backend=openai", "--model=m", "--endpoint=http://h/v1")
ENDPOINT = ("--backend=vertex_endpoint", "--endpoint=projects/p/locations/l/endpoints/1")


def _fields(*argv: str) -> tuple[MediaField, ...]:
    return RunConfig.from_options(parse_flags(argv)).request.media_fields


def _refused(*argv: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        _fields(*argv)
    return str(raised.value)


def test_fields_of_the_flag() -> None:
    """The flag's fields keep their order, with or without a type; by default there are none."""
    assert _fields(*ROWS, ASK, FAKE) == ()
    assert _fields(*ROWS, ASK, FAKE, "--media_fields=a, b:image/jpeg") == (
        MediaField("a"),
        MediaField("b", "image/jpeg"),
    )
    assert _fields(*ROWS, ASK, *OPENAI, "--media_fields=uri") == (MediaField("uri"),)


def test_a_whole_object_is_the_medium() -> None:
    """A whole object is the medium by default; a type in the flag overrides the record's."""
    assert _fields(*OBJECTS, ASK, FAKE) == (OBJECT,)
    assert _fields(*OBJECTS, ASK, FAKE, "--media_fields=uri") == (OBJECT,)
    assert _fields(*OBJECTS, ASK, FAKE, "--media_fields=uri:image/png") == (
        MediaField("uri", "image/png"),
    )
    assert MediaField("uri", None, "mime_type") == OBJECT


@pytest.mark.parametrize(
    "argv", [(ASK, FAKE, "--task=embed"), (ASK, *ENDPOINT), ("--messages_field=m", FAKE)]
)
def test_objects_of_requests_with_text_only(argv: Any) -> None:
    """An embedding, an instance or a chat of an object has text only."""
    assert _fields(*OBJECTS, *argv) == ()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            (ASK, FAKE, "--media_fields=photo:jpeg"),
            (
                "--media_fields has 'photo:jpeg', which is neither a field nor a field with a MIME "
                "type: write it as photo:image/jpeg"
            ),
        ),
        (
            (ASK, FAKE, "--media_fields=a,a:image/png"),
            "--media_fields names 'a' twice: remove one",
        ),
    ],
)
def test_values_that_name_no_fields(argv: Any, message: str) -> None:
    """A value that names no field is rejected with the value and the remedy."""
    assert _refused(*ROWS, *argv) == message


@pytest.mark.parametrize(
    "argv",
    [
        ("--messages_field=m", FAKE),
        ("--request_field=r", FAKE),
        ("--instance_fields=a", *ENDPOINT),
        (ASK, *ENDPOINT),
        (ASK, FAKE, "--task=embed"),
        (ASK, "--task=embed", "--backend=sentence_transformers", "--model=m"),
    ],
)
def test_requests_without_a_place_for_media(argv: Any) -> None:
    """A request without a place for media rejects the flag instead of ignoring it."""
    assert _refused(*ROWS, *argv, "--media_fields=photo") == (
        "--media_fields is 'photo', but needs a prompt to generate from: remove it; "
        "chats and whole requests carry their own parts, embeddings and instances have none"
    )


def test_objects_that_the_model_cannot_read() -> None:
    """Local files are rejected, and so are gs:// objects for servers of the OpenAI dialect."""
    local = ("--input_files=photos/*.png", *OBJECTS[1:])
    assert _refused(*local, ASK, FAKE) == (
        "--input_files is 'photos/*.png', but the model reads each object by its URI: copy the "
        "files to a bucket and set --input_files=gs://…"
    )
    for argv in (OPENAI, ("--backend=vllm", "--model=m")):
        assert _refused(*OBJECTS, ASK, *argv) == (
            f"--input_files is 'gs://b/*.png', but backend {argv[0][10:]} cannot read gs:// "
            "objects: use --backend=gemini, or records with https:// URLs and --media_fields"
        )
