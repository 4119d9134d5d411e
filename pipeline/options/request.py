"""The flags of requests: their content and their parameters."""

from collections.abc import Mapping
from typing import Any

from pipeline.options.flag import Flag, Form, Kind, Place
from pipeline.options.kinds import (
    BOOLEAN,
    COUNT,
    DECIMAL,
    JSON_OBJECT,
    LIST_PATTERN,
    NAMES,
    TEXT,
    URI,
    items,
    json_object,
    list_text,
    one_of_field,
)
from pipeline.options.messages import read_text
from pipeline.options.source import INPUT_FILES
from pipeline.options.values import Values
from transforms.backends import base
from transforms.backends.base import Backend, capabilities_of
from transforms.records.errors import ConfigurationError
from transforms.records.media import MediaField
from transforms.records.records import Json
from transforms.requests.render import RequestSpec
from transforms.results.validate import check_schema
from transforms.sources.base import DEFAULT_ID_FIELD, IdRule, Source
from transforms.sources.files import FileSource

GROUP = "Request"


def _media_fields(text: str, flag: str) -> tuple[MediaField, ...]:  # noqa: ARG001 - as all parse
    return tuple(map(MediaField.parse, items(text)))


def _schema(text: str, flag: str) -> dict[str, Any]:
    schema = JSON_OBJECT.parse(text, flag)
    check_schema(schema, flag)
    return schema


_SCHEMA = json_object("URI", "gs://bucket/schemas/classify.json")

PROMPT: Flag[str | None] = Flag(
    "prompt",
    GROUP,
    "The prompt: a Jinja2 template whose variables are the record's fields.",
    TEXT,
    of=RequestSpec,
)
PROMPT_FILE: Flag[str | None] = Flag("prompt_file", GROUP, "A file that holds the prompt.", URI)
MESSAGES_FIELD: Flag[str | None] = Flag(
    "messages_field",
    GROUP,
    "The field that holds a chat: a list of messages.",
    TEXT,
    of=RequestSpec,
)
REQUEST_FIELD: Flag[str | None] = Flag(
    "request_field",
    GROUP,
    "The field that holds a whole request in the provider's format.",
    TEXT,
    of=RequestSpec,
)
INSTANCE_FIELDS: Flag[tuple[str, ...]] = Flag(
    "instance_fields",
    GROUP,
    "The fields that form the instance for a custom model (backend vertex_endpoint).",
    NAMES,
    of=RequestSpec,
)
SYSTEM_PROMPT: Flag[str | None] = Flag(
    "system_prompt", GROUP, "The system message: a Jinja2 template.", TEXT, of=RequestSpec
)
SYSTEM_PROMPT_FILE: Flag[str | None] = Flag(
    "system_prompt_file", GROUP, "A file that holds the system message.", URI
)
MEDIA_FIELDS: Flag[tuple[MediaField, ...]] = Flag(
    "media_fields",
    GROUP,
    "Fields with gs:// or https:// URIs of images, PDFs, audio or video to send along with the "
    "prompt; with a MIME type if the URI does not imply one, as in photo:image/jpeg.",
    Kind(
        _media_fields,
        "A,B:TYPE",
        Form("TEXT", LIST_PATTERN, "photo:image/jpeg"),
        text=list_text,
    ),
    of=RequestSpec,
)
MAX_OUTPUT_TOKENS: Flag[int | None] = Flag(
    "max_output_tokens", GROUP, "The longest answer, in tokens.", COUNT
)
TEMPERATURE: Flag[float | None] = Flag("temperature", GROUP, "The sampling temperature.", DECIMAL)
GENERATION_CONFIG: Flag[Mapping[str, Any]] = Flag(
    "generation_config",
    GROUP,
    "Generation parameters: max_output_tokens, temperature, top_p, stop and seed are translated to "
    "each provider's names; others are passed through.",
    JSON_OBJECT,
    default={},
)
REQUEST_OPTIONS: Flag[Mapping[str, Any]] = Flag(
    "request_options",
    GROUP,
    "Further fields of each request: safety settings, labels, tools; for the fake backend, its "
    "latency_ms and faults.",
    JSON_OBJECT,
    default={},
)
OUTPUT_SCHEMA: Flag[Mapping[str, Any] | None] = Flag(
    "output_schema",
    GROUP,
    "A JSON Schema for the answers: sent to the model, then checked; answers that do not satisfy it "
    "become dead letters.",
    Kind(_schema, _SCHEMA.metavar, _SCHEMA.form),
)
ACCEPT_TRUNCATED: Flag[bool] = Flag(
    "accept_truncated",
    GROUP,
    "Keep answers that ended at a token limit as results.",
    BOOLEAN,
    default=base.ACCEPT_TRUNCATED,
)
ID_FIELD: Flag[str | None] = Flag(
    "id_field",
    GROUP,
    f"The field, or message attribute, that identifies a record. Default: `{DEFAULT_ID_FIELD}` "
    "where it exists, else the message id or a hash.",
    TEXT,
)
TASK: Flag[Any] = Flag(
    "task",
    GROUP,
    "The model's task.",
    one_of_field(RequestSpec, "task"),
    of=RequestSpec,
)
PREVIEW: Flag[int | None] = Flag(
    "preview",
    GROUP,
    "Render this many requests and print them; send nothing.",
    COUNT,
    place=Place(templates=()),  # nobody reads a launcher's output
)

REQUEST_FLAGS: tuple[Flag[Any], ...] = (
    PROMPT,
    PROMPT_FILE,
    MESSAGES_FIELD,
    REQUEST_FIELD,
    INSTANCE_FIELDS,
    SYSTEM_PROMPT,
    SYSTEM_PROMPT_FILE,
    MEDIA_FIELDS,
    MAX_OUTPUT_TOKENS,
    TEMPERATURE,
    GENERATION_CONFIG,
    REQUEST_OPTIONS,
    OUTPUT_SCHEMA,
    ACCEPT_TRUNCATED,
    ID_FIELD,
    TASK,
    PREVIEW,
)

OBJECT = MediaField("uri", mime_type_field="mime_type")
"""The medium of a record of ``--input_format=objects``: the file itself."""


def id_rule(values: Values) -> IdRule:
    """The rule for record ids; a field that the user names is required."""
    field = values[ID_FIELD]
    return IdRule() if field is None else IdRule(field, required=True)


def request_spec(values: Values, backend: Backend, source: Source) -> RequestSpec:
    """How records become requests.

    Raises:
      ConfigurationError: It is not clear what to send, or flags exclude each other.
    """
    ways = (PROMPT, PROMPT_FILE, MESSAGES_FIELD, REQUEST_FIELD, INSTANCE_FIELDS)
    prompt, prompt_name = _text_or_file(values, PROMPT, PROMPT_FILE)
    system, system_name = _text_or_file(values, SYSTEM_PROMPT, SYSTEM_PROMPT_FILE)
    chosen = [str(flag) for flag in ways if values.is_set(flag)]
    if len(chosen) != 1:
        given = f"{' and '.join(chosen)} are set" if chosen else "none is set"
        raise ConfigurationError(
            f"it is not clear what to send to the model: {given}; set exactly one of "
            f"{', '.join(map(str, ways))}"
        )
    params = _params(values, backend)
    if values.is_set(REQUEST_FIELD):
        for flag, sent in (
            (SYSTEM_PROMPT, system),
            (GENERATION_CONFIG, params.get("generation_config")),
            (REQUEST_OPTIONS, params.get("request_options")),
        ):
            if sent:
                raise ConfigurationError(
                    f"{REQUEST_FIELD} sends each request unchanged: remove {flag} "
                    f"(or {MAX_OUTPUT_TOKENS}, {TEMPERATURE})"
                )
        params = {}
    spec = RequestSpec(
        prompt=prompt,
        prompt_name=prompt_name,
        messages_field=values[MESSAGES_FIELD],
        request_field=values[REQUEST_FIELD],
        instance_fields=values[INSTANCE_FIELDS],
        system_prompt=system,
        system_prompt_name=system_name,
        media_fields=_media(values, backend, source),
        task=values[TASK],
        instance=capabilities_of(backend).instances,
        params=params,
        backend=backend.family,
        model=backend.model,
    )
    spec.check()
    return spec


def _text_or_file(
    values: Values, text: Flag[str | None], file: Flag[str | None]
) -> tuple[str | None, str]:
    """A text, from one of the two flags, and its name in error messages."""
    uri = values[file]
    if uri is None:
        return values[text], f"`{text.field}`"
    if values[text]:
        raise ConfigurationError(f"{text} and {file} are both set: remove one")
    content = read_text(uri, str(file))
    if not content:
        raise ConfigurationError(f"{file}: {uri!r} is empty")
    return content, uri


def _params(values: Values, backend: Backend) -> dict[str, Json]:
    """The parameters sent with each request, in addition to its content."""
    generation = dict(values[GENERATION_CONFIG])
    flag: Flag[Any]
    for flag in (MAX_OUTPUT_TOKENS, TEMPERATURE):
        value = values[flag]
        if value is not None:
            if generation.get(flag.name, value) != value:
                raise ConfigurationError(
                    f"{flag} is {value}, but {GENERATION_CONFIG} says {generation[flag.name]}: "
                    "set one of them"
                )
            generation[flag.name] = value
    schema = values[OUTPUT_SCHEMA]
    params: dict[str, Json] = {
        "generation_config": generation,
        "request_options": dict(values[REQUEST_OPTIONS])
        if capabilities_of(backend).request_options
        else {},
        "output_schema": schema and dict(schema),
    }
    return {name: part for name, part in params.items() if part}


def _media(values: Values, backend: Backend, source: Source) -> tuple[MediaField, ...]:
    """The fields of ``--media_fields``; without it, the object that a prompt is about.

    Raises:
      ConfigurationError: The model cannot read the objects.
    """
    fields = values[MEDIA_FIELDS]
    if not isinstance(source, FileSource) or source.format != "objects":
        return fields
    if not fields and _asks_about_media(values, backend):
        fields = (OBJECT,)
    fields = tuple(OBJECT if field == MediaField(OBJECT.name) else field for field in fields)
    if any(field.name == OBJECT.name for field in fields):
        _check_readable(source.pattern, backend)
    return fields


def _asks_about_media(values: Values, backend: Backend) -> bool:
    prompt = values.is_set(PROMPT) or values.is_set(PROMPT_FILE)
    return prompt and values[TASK] != "embed" and bool(capabilities_of(backend).media_schemes)


def _check_readable(pattern: str, backend: Backend) -> None:
    if not pattern.startswith("gs://"):
        raise ConfigurationError(
            f"{INPUT_FILES} is {pattern!r}, but the model reads each object by its URI: copy the "
            f"files to a bucket and set {INPUT_FILES}=gs://…"
        )
    if "gs" not in capabilities_of(backend).media_schemes:
        raise ConfigurationError(
            f"{INPUT_FILES} is {pattern!r}, but backend {backend.family} cannot read gs:// objects: "
            f"use --backend=gemini, or records with https:// URLs and {MEDIA_FIELDS}"
        )
