"""What to ask the model: the flags of prompts, chats, whole requests and parameters."""

from typing import Any

from pipeline.options.command_line import Values
from pipeline.options.media import media_fields
from pipeline.options.messages import read_text
from transforms.backends.base import Backend, capabilities_of
from transforms.records.errors import ConfigurationError
from transforms.records.records import Json
from transforms.requests.render import RequestSpec
from transforms.sources.base import Source


def request_spec(
    values: Values, backend: Backend, schema: dict[str, Any] | None, source: Source
) -> RequestSpec:
    """How records become requests, by the flags.

    Raises:
      ConfigurationError: It is not clear what to ask, or flags do not go together.
    """
    prompt, prompt_name = _text_or_file(values, "prompt")
    system, _ = _text_or_file(values, "system_prompt")
    sources = [
        name
        for name in (
            "prompt",
            "prompt_file",
            "messages_field",
            "request_field",
            "instance_fields",
        )
        if values.text(name)
    ]
    if len(sources) != 1:
        given = f"--{' and --'.join(sources)} are given" if sources else "none is given"
        raise ConfigurationError(
            f"what to ask is not clear: {given}; use exactly one of --prompt, --prompt_file, "
            "--messages_field, --request_field, --instance_fields"
        )
    generation = values.json_object("generation_config")
    for name, value in (
        ("max_output_tokens", values.integer("max_output_tokens")),
        ("temperature", values.number("temperature")),
    ):
        if value is not None:
            if generation.get(name, value) != value:
                raise ConfigurationError(
                    f"--{name} is {value}, but --generation_config says {generation[name]}: "
                    "give one of them"
                )
            generation[name] = value
    capabilities = capabilities_of(backend)
    options = values.json_object("request_options") if capabilities.request_options else {}
    params: dict[str, Json] = {
        "generation_config": generation,
        "request_options": options,
        "output_schema": schema,
    }
    params = {name: part for name, part in params.items() if part}
    if values.text("request_field"):
        for name in ("system_prompt", "generation_config", "request_options"):
            if (name == "system_prompt" and system) or params.get(name):
                raise ConfigurationError(
                    f"--request_field sends each request as it stands: remove --{name} "
                    "(or --max_output_tokens, --temperature)"
                )
        params = {}
    return RequestSpec(
        prompt=prompt,
        prompt_name=prompt_name,
        messages_field=values.text("messages_field"),
        request_field=values.text("request_field"),
        instance_fields=values.items("instance_fields"),
        system_prompt=system,
        media_fields=media_fields(values, backend, source),
        task=values.text("task") or "generate",
        instance=capabilities.instances,
        params=params,
        backend=backend.family,
        model=backend.model,
    )


def _text_or_file(values: Values, name: str) -> tuple[str | None, str]:
    text, uri = values.text(name), values.text(f"{name}_file")
    if text and uri:
        raise ConfigurationError(f"--{name} and --{name}_file are both given: remove one")
    if uri is None:
        return text, f"--{name}"
    return read_text(uri, f"--{name}_file"), uri
