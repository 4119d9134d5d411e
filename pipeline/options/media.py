"""Which fields of a record hold media: those of the flag, or a whole object itself."""

from pipeline.options.command_line import Values
from transforms.backends.base import Backend, capabilities_of
from transforms.records.errors import ConfigurationError
from transforms.records.media import MediaField
from transforms.sources.base import Source
from transforms.sources.files import FileSource

OBJECT = MediaField("uri", mime_type_field="mime_type")
"""What a record of ``--input_format=objects`` is about."""


def media_fields(values: Values, backend: Backend, source: Source) -> tuple[MediaField, ...]:
    """The fields of ``--media_fields``; without it, the object that a prompt asks about.

    Raises:
      ConfigurationError: A value that names no field, or objects that the model cannot read.
    """
    fields = tuple(map(MediaField.parse, values.items("media_fields")))
    if not isinstance(source, FileSource) or source.format != "objects":
        return fields
    if not fields and _asks_about_media(values, backend):
        fields = (OBJECT,)
    fields = tuple(OBJECT if field == MediaField(OBJECT.name) else field for field in fields)
    if any(field.name == OBJECT.name for field in fields):
        _check_readable(source.pattern, backend)
    return fields


def _asks_about_media(values: Values, backend: Backend) -> bool:
    prompt = values.text("prompt") or values.text("prompt_file")
    reads = capabilities_of(backend).media_schemes
    return bool(prompt and reads) and values.text("task") != "embed"


def _check_readable(pattern: str, backend: Backend) -> None:
    if not pattern.startswith("gs://"):
        raise ConfigurationError(
            f"--input_files is {pattern!r}, but the model reads each object by its URI: copy the "
            "files to a bucket and set --input_files=gs://…"
        )
    if "gs" not in capabilities_of(backend).media_schemes:
        raise ConfigurationError(
            f"--input_files is {pattern!r}, but backend {backend.family} cannot read gs:// objects: "
            "use --backend=gemini, or records with https:// URLs and --media_fields"
        )
