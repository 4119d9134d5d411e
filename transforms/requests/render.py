"""Rendering: turns a record and a template into one model request.

`render_request` is the pure function, `RenderRequests` the transform around it.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from transforms.records import json_values, media
from transforms.records.errors import ConfigurationError, InvalidRequest, MissingField
from transforms.records.records import DeadLetter, Json, Params, Record, Request
from transforms.requests.templating import PromptTemplate

BYTES_PER_TOKEN = 4
"""English text has about four bytes per token in today's vocabularies; only batching uses this."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpec:
    """How the requests of a run are rendered. Exactly one of the first four attributes is set.

    Attributes:
      prompt: A Jinja2 template; renders the last user message, or the text to embed.
      messages_field: The field that holds a chat: a list of ``{"role", "content"}``.
      request_field: The field that holds a whole provider request, sent unchanged.
      instance_fields: The fields that form a custom model's instance.
      system_prompt: A Jinja2 template for the system message.
      media_fields: The fields whose URIs become parts of the message, before the prompt.
      task: ``generate`` or ``embed``.
      instance: The rendered prompt is a custom model's instance: JSON where it is an object or
        an array, else a string.
      params: ``generation_config``, ``request_options``, ``output_schema``: sent with each request,
        kept as `Params`. Pass them to ``Infer(params=spec.params)`` as well, because requests
        travel with only the key of their params.
      backend: The backend's family, for the fingerprint.
      model: The model's name, for the fingerprint.
      prompt_name: The name of the prompt in error messages.
      system_prompt_name: The name of the system prompt in error messages.
    """

    prompt: str | None = None
    messages_field: str | None = None
    request_field: str | None = None
    instance_fields: tuple[str, ...] = ()
    system_prompt: str | None = None
    media_fields: tuple[media.MediaField, ...] = ()
    task: Literal["generate", "embed"] = "generate"
    instance: bool = False
    params: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    backend: str = ""
    model: str = ""
    prompt_name: str = "`prompt`"
    system_prompt_name: str = "`system_prompt`"

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", Params.of(self.params))

    def check(self) -> None:
        """Compiles the templates, so that a syntax error is found before launch.

        Raises:
          ConfigurationError: A template does not compile, the number of sources set is not one, or
            media fields are set for a request that cannot carry media.
        """
        sources = (self.prompt, self.messages_field, self.request_field, self.instance_fields)
        if sum(bool(source) for source in sources) != 1:
            raise ConfigurationError(
                "a request needs exactly one of `prompt`, `messages_field`, `request_field` and "
                "`instance_fields`"
            )
        media.check_fields(self.media_fields)
        if self.media_fields and (not self.prompt or self.task == "embed" or self.instance):
            names = ",".join(field.name for field in self.media_fields)
            raise ConfigurationError(
                f"`media_fields` is {names!r}, but needs a prompt to generate from: remove it; "
                "chats and whole requests carry their own parts, embeddings and instances have "
                "none"
            )
        Renderer(self)


class Renderer:
    """A compiled `RequestSpec`; calling it turns a record into a request. Not picklable."""

    def __init__(self, spec: RequestSpec) -> None:
        self._spec = spec
        self._system = (
            PromptTemplate(spec.system_prompt, spec.system_prompt_name)
            if spec.system_prompt
            else None
        )
        self._body: Callable[[Record], dict[str, Json]]
        if spec.prompt:
            self._template = PromptTemplate(spec.prompt, spec.prompt_name)
            self._body = self._from_prompt
        elif spec.messages_field:
            self._body = self._from_messages
        elif spec.request_field:
            self._body = self._from_request
        else:
            self._body = self._from_fields
        # The canonical JSON of {"backend", "body", "model", "params"}, in its three pieces.
        self._head = hashlib.sha256(
            b'{"backend":' + json_values.canonical(spec.backend) + b',"body":'
        )
        self._foot = b',"model":%b,"params":%b}' % (
            json_values.canonical(spec.model),
            json_values.canonical(dict(spec.params)),
        )

    def __call__(self, record: Record) -> Request:
        """The request of one record.

        Raises:
          RecordError: The record cannot be rendered.
        """
        body = self._body(record)
        encoded = json_values.canonical(body)
        digest = self._head.copy()
        digest.update(encoded)
        digest.update(self._foot)
        tokens = self._estimated_tokens(body, len(encoded))
        return Request(record, body, self._spec.params, digest.hexdigest(), tokens)

    def _estimated_tokens(self, body: Mapping[str, Json], size_bytes: int) -> int:
        if not self._spec.media_fields:
            return size_bytes // BYTES_PER_TOKEN
        parts = body["messages"][-1]["content"][:-1]
        text_bytes = size_bytes - len(json_values.canonical(parts))
        return text_bytes // BYTES_PER_TOKEN + media.TOKENS_PER_PART * len(parts)

    def _from_prompt(self, record: Record) -> dict[str, Json]:
        text = self._template.render(record.fields)
        if self._spec.instance:
            return {"instance": _instance(text)}
        if self._spec.task == "embed":
            return {"text": text}
        content: Json = text
        if self._spec.media_fields:
            content = [*self._media(record), {"type": "text", "text": text}]
        message = {"role": "user", "content": content}
        if self._system is None:
            return {"messages": [message]}
        system = {"role": "system", "content": self._system.render(record.fields)}
        return {"messages": [system, message]}

    def _media(self, record: Record) -> Iterator[dict[str, Json]]:
        for field in self._spec.media_fields:
            yield from media.parts_of(field, _field(record, field.name), record.fields)

    def _from_messages(self, record: Record) -> dict[str, Json]:
        messages = _field(record, self._spec.messages_field)
        if (
            not isinstance(messages, list)
            or not messages
            or not all(isinstance(message, dict) and "role" in message for message in messages)
        ):
            raise InvalidRequest(
                f"field {self._spec.messages_field!r} is not a list of messages with a role"
            )
        if self._system is not None:
            system = {"role": "system", "content": self._system.render(record.fields)}
            messages = [system, *messages]
        return {"messages": messages}

    def _from_request(self, record: Record) -> dict[str, Json]:
        request = _field(record, self._spec.request_field)
        if not isinstance(request, dict):
            raise InvalidRequest(f"field {self._spec.request_field!r} is not a JSON object")
        return {"request": request}

    def _from_fields(self, record: Record) -> dict[str, Json]:
        return {"instance": {name: _field(record, name) for name in self._spec.instance_fields}}


def _field(record: Record, name: str | None) -> Json:
    value = record.fields.get(name or "")
    if value is None:
        state = "NULL" if name in record.fields else "missing"
        raise MissingField(f"field {name!r} is {state}")
    return value


def _instance(text: str) -> Json:
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json_values.loads(text)
        except ValueError:
            return text
    return text


def render_request(record: Record, spec: RequestSpec) -> Request:
    """Renders one request, for tests and previews; a `Renderer` compiles templates only once."""
    return Renderer(spec)(record)


class _RenderDoFn(beam.DoFn):
    def __init__(self, spec: RequestSpec) -> None:
        self._spec = spec

    def setup(self) -> None:
        self._render = Renderer(self._spec)

    def process(
        self, record: Record
    ) -> Iterator[Request | TaggedOutput[Literal["unrendered"], DeadLetter]]:
        try:
            request = self._render(record)
        except Exception as error:  # an unforeseen error is this record's `internal`
            yield TaggedOutput("unrendered", DeadLetter.of(error, stage="render", record=record))
        else:
            yield request


@dataclasses.dataclass(kw_only=True, eq=False)
class RenderRequests(beam.PTransform):
    """Renders each record into one model request, in no particular order.

    Bounded and unbounded alike; stateless, so a retried bundle renders the same requests with the
    same fingerprints. A record that cannot be rendered is a dead letter of stage ``render``.

    Args:
      spec: How requests are rendered. Its templates are compiled, and a syntax error is raised,
        when the transform is constructed.

    Returns:
      ``(requests, unrendered)``: PCollections of `Request` and of `DeadLetter`.
    """

    spec: RequestSpec

    def __post_init__(self) -> None:
        super().__init__()
        self.spec.check()

    def expand(
        self, records: beam.PCollection[Record]
    ) -> tuple[beam.PCollection[Request], beam.PCollection[DeadLetter]]:
        rendered = records | "Render" >> beam.ParDo(_RenderDoFn(self.spec)).with_outputs(
            "unrendered", main="requests"
        )
        return rendered.requests, rendered.unrendered
