"""Rendering: each kind of request, stable fingerprints, one dead letter per bad record."""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms import JSON_OBJECTS, pipeline, record_of
from transforms.records import json_values
from transforms.records.errors import ConfigurationError, InvalidRequest, MissingField, RenderError
from transforms.records.media import TOKENS_PER_PART, MediaField
from transforms.records.records import DeadLetter, Record, Request
from transforms.requests.render import Renderer, RenderRequests, RequestSpec, render_request

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
PARAMS = {"generation_config": {"temperature": 0.5}, "output_schema": {"type": "object"}}


def _body(record: Record, **spec: Any) -> Mapping[str, Any]:
    return render_request(record, RequestSpec(**spec)).body


def _fingerprint(record: Record, **spec: Any) -> str:
    return render_request(record, RequestSpec(**spec)).fingerprint


def test_prompt() -> None:
    """The prompt is the last user message, and the record stays with it."""
    record = record_of(name="Ann")
    request = render_request(record, RequestSpec(prompt="Hello {{ name }}", params=PARAMS))
    assert request.record is record
    assert request.body == {"messages": [{"role": "user", "content": "Hello Ann"}]}
    assert request.params == PARAMS


def test_system_prompt() -> None:
    """The system prompt is rendered for each record, too, and comes first."""
    assert _body(record_of(a=1), prompt="{{ a }}", system_prompt="s{{ a }}") == {
        "messages": [{"role": "system", "content": "s1"}, {"role": "user", "content": "1"}]
    }


def test_messages_field() -> None:
    """A chat is sent unchanged, after the system prompt if there is one."""
    record = record_of(chat=CHAT, a=1)
    assert _body(record, messages_field="chat") == {"messages": CHAT}
    assert _body(record, messages_field="chat", system_prompt="s{{ a }}") == {
        "messages": [{"role": "system", "content": "s1"}, *CHAT]
    }
    assert record.fields["chat"] == CHAT


@pytest.mark.parametrize(
    "chat", ["Hello", {"role": "user"}, [], ["Hello"], [{"content": "Hello"}], [*CHAT, 1], 5]
)
def test_a_messages_field_without_a_chat(chat: Any) -> None:
    """A value that is not a chat is its record's invalid request."""
    with pytest.raises(
        InvalidRequest, match=r"^field 'chat' is not a list of messages with a role$"
    ):
        _body(record_of(chat=chat), messages_field="chat")


def test_request_field() -> None:
    """A whole request of a provider is sent unchanged."""
    whole = {"contents": [{"parts": [{"text": "{{ not a template }}"}]}], "x": None}
    assert _body(record_of(request=whole), request_field="request") == {"request": whole}


@pytest.mark.parametrize("whole", ["{}", [], 5, True])
def test_a_request_field_without_an_object(whole: Any) -> None:
    """A value that is not an object is its record's invalid request."""
    with pytest.raises(InvalidRequest, match=r"^field 'request' is not a JSON object$"):
        _body(record_of(request=whole), request_field="request")


def test_instance_fields() -> None:
    """The named fields make the instance, in the order of their naming."""
    body = _body(record_of(a=0, b="", c=3), instance_fields=("b", "a"))
    assert body == {"instance": {"b": "", "a": 0}}
    assert list(body["instance"]) == ["b", "a"]


@pytest.mark.parametrize(
    "spec",
    [{"messages_field": "f"}, {"request_field": "f"}, {"instance_fields": ("f",)}],
    ids=lambda spec: next(iter(spec)),
)
def test_a_missing_or_null_field(spec: dict[str, Any]) -> None:
    """The message distinguishes a missing field from a NULL one."""
    with pytest.raises(MissingField, match=r"^field 'f' is missing$"):
        _body(record_of(), **spec)
    with pytest.raises(MissingField, match=r"^field 'f' is NULL$"):
        _body(record_of(f=None), **spec)


def test_embed() -> None:
    """The rendered prompt is the text to embed; a system prompt is rejected."""
    spec = {"prompt": "{{ a }}!", "task": "embed", "system_prompt": "s"}
    assert _body(record_of(a="x"), **spec) == {"text": "x!"}


@pytest.mark.parametrize(
    ("prompt", "instance"),
    [
        ('{"x": {{ a }}}', {"x": 7}),
        (" [{{ a }}, 2]\n", [7, 2]),
        ("{{ record | tojson }}", {"a": 7}),
        ("{{ a }}", "7"),
        ("true", "true"),
        ('"{{ a }}"', '"7"'),
        ("{ {{ a }} }", "{ 7 }"),
        ("[{{ a }}", "[7"),
        ("[" * 500 + "]" * 500, "[" * 500 + "]" * 500),
        ("", ""),
    ],
)
def test_instance_prompt(prompt: str, instance: Any) -> None:
    """A rendered object or array is JSON and anything else text; rendering never fails."""
    body = _body(record_of(a=7), prompt=prompt or "{{ '' }}", instance=True)
    assert body == {"instance": instance}


PHOTO = {"type": "media", "uri": "gs://b/1.png", "mime_type": "image/png"}
SCAN = {"type": "media", "uri": "https://h/2?k=v", "mime_type": "application/pdf"}
MEDIA = (MediaField("photo"), MediaField("scans", "application/pdf"))


def test_media() -> None:
    """Media come before the prompt in the user's message, in the order of the flag."""
    record = record_of(scans=["https://h/2?k=v", "https://h/2?k=v"], photo="gs://b/1.png", a=1)
    body = _body(record, prompt="What is {{ a }}?", system_prompt="s", media_fields=MEDIA)
    text = {"type": "text", "text": "What is 1?"}
    assert body == {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [PHOTO, SCAN, SCAN, text]},
        ]
    }


def test_media_count_for_themselves() -> None:
    """Each medium counts a fixed number of tokens, however long its URI is."""
    spec = {"prompt": "{{ a }}", "media_fields": (MediaField("photo"),)}

    def tokens(a: str, *names: str) -> int:
        record = record_of(a=a, photo=[f"gs://b/{name}.png" for name in names])
        return render_request(record, RequestSpec(**spec)).estimated_tokens

    assert tokens("", "x") == tokens("", "x" * 1000)
    assert tokens("", "x", "y") - tokens("", "x") == TOKENS_PER_PART == 258
    assert tokens("x" * 400, "x") - tokens("", "x") == 100


def test_media_are_part_of_the_fingerprint() -> None:
    """URI and type are part of the fingerprint, which without media is as before."""
    spec = {"prompt": "Hi", "backend": "gemini", "model": "m"}
    record = record_of(photo="gs://b/1.png")
    prints = [
        _fingerprint(record, **spec),
        _fingerprint(record, **spec, media_fields=(MediaField("photo"),)),
        _fingerprint(record, **spec, media_fields=(MediaField("photo", "image/jpeg"),)),
        _fingerprint(record_of(photo="gs://b/2.png"), **spec, media_fields=(MediaField("photo"),)),
    ]
    assert len(set(prints)) == 4
    given = (MediaField("photo", "image/png"),)
    assert _fingerprint(record, **spec, media_fields=given) == prints[1]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, MissingField, "field 'photo' is missing"),
        ({"photo": None}, MissingField, "field 'photo' is NULL"),
        ({"photo": []}, MissingField, "field 'photo' is an empty list"),
        (
            {"photo": "1.png"},
            InvalidRequest,
            "field 'photo': '1.png' is not a gs:// or https:// URI",
        ),
    ],
)
def test_invalid_media(fields: Any, error: type[Exception], message: str) -> None:
    """Invalid media fail their own record."""
    with pytest.raises(error) as raised:
        _body(record_of(**fields), prompt="Hi", media_fields=(MediaField("photo"),))
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "spec",
    [
        {"messages_field": "f"},
        {"request_field": "f"},
        {"instance_fields": ("f",)},
        {"prompt": "x", "task": "embed"},
        {"prompt": "x", "instance": True},
    ],
)
def test_media_go_with_a_prompt_only(spec: dict[str, Any]) -> None:
    """Media are rejected without a prompt, since they would be dropped silently."""
    with pytest.raises(ConfigurationError) as raised:
        RequestSpec(**spec, media_fields=MEDIA).check()
    assert str(raised.value) == (
        "`media_fields` is 'photo,scans', but needs a prompt to generate from: remove it; "
        "chats and whole requests carry their own parts, embeddings and instances have none"
    )
    with pytest.raises(ConfigurationError, match="names 'photo' twice"):
        RequestSpec(prompt="x", media_fields=(*MEDIA, MediaField("photo"))).check()


def test_golden_fingerprint() -> None:
    """Fingerprints never change, because they are a ledger's keys; the JSON is written out here."""
    spec = {"prompt": "Hé {{ a }}", "params": PARAMS, "backend": "gemini", "model": "m-1"}
    canonical = (
        '{"backend":"gemini","body":{"messages":[{"content":"Hé 1","role":"user"}]},"model":"m-1",'
        '"params":{"generation_config":{"temperature":0.5},"output_schema":{"type":"object"}}}'
    )
    golden = "becf32b0597d1805e1f68f23db16a52696a87f8d277619859b2d3bca3ace2ccd"
    assert hashlib.sha256(canonical.encode()).hexdigest() == golden
    assert _fingerprint(record_of(a=1), **spec) == golden


@settings(deadline=None)
@given(JSON_OBJECTS, JSON_OBJECTS, st.text(), st.text())
def test_fingerprint(body: Any, params: Any, backend: str, model: str) -> None:
    """The fingerprint is the SHA-256 of the canonical JSON of these four parts."""
    spec = {"request_field": "r", "params": params, "backend": backend, "model": model}
    whole = {"backend": backend, "body": {"request": body}, "model": model, "params": params}
    expected = hashlib.sha256(json_values.canonical(whole)).hexdigest()
    record = record_of(r=body)
    assert _fingerprint(record, **spec) == expected
    assert (
        _fingerprint(Record("other", {"x": 1, "r": body}, {"k": "v"}, "s", 1), **spec) == expected
    )


def test_fingerprint_changes_with_each_part() -> None:
    """Backend, model, body and each parameter change the fingerprint; ids do not."""
    spec = {"prompt": "{{ a }}", "params": PARAMS, "backend": "b", "model": "m"}
    record = record_of(a=1)
    prints = [
        _fingerprint(record, **spec),
        _fingerprint(record_of(a=2), **spec),
        _fingerprint(record, **{**spec, "prompt": "{{ a }} "}),
        _fingerprint(record, **{**spec, "system_prompt": "s"}),
        _fingerprint(record, **{**spec, "task": "embed"}),
        _fingerprint(record, **{**spec, "instance": True}),
        _fingerprint(record, **{**spec, "backend": "c"}),
        _fingerprint(record, **{**spec, "model": "n"}),
        _fingerprint(record, **{**spec, "backend": "m", "model": "b"}),
        _fingerprint(record, **{**spec, "params": {}}),
        _fingerprint(record, **{**spec, "params": {**PARAMS, "output_schema": {}}}),
        _fingerprint(record, **{**spec, "params": {**PARAMS, "generation_config": {"seed": 1}}}),
    ]
    assert len(set(prints)) == len(prints)
    assert _fingerprint(record_of("2", a=1, b=2), **spec) == prints[0]
    reordered = {**spec, "params": dict(reversed(PARAMS.items()))}
    assert _fingerprint(record, **reordered) == prints[0]


def test_estimated_tokens() -> None:
    """Four UTF-8 bytes of the body count as a token, not four characters."""
    empty = render_request(record_of(a=""), RequestSpec(prompt="{{ a }}")).estimated_tokens
    plain = render_request(record_of(a="x" * 400), RequestSpec(prompt="{{ a }}")).estimated_tokens
    wide = render_request(record_of(a="é" * 400), RequestSpec(prompt="{{ a }}")).estimated_tokens
    assert empty == len('{"messages":[{"content":"","role":"user"}]}') // 4
    assert (plain - empty, wide - empty) == (100, 200)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"prompt": ""},
        {"prompt": "x", "messages_field": "f"},
        {"prompt": "x", "request_field": "f"},
        {"messages_field": "f", "request_field": "f"},
        {"request_field": "f", "instance_fields": ("f",)},
        {"system_prompt": "x"},
    ],
)
def test_exactly_one_source(spec: dict[str, Any]) -> None:
    """No source of requests, or two, are rejected with the names of the options."""
    for refused in (RequestSpec(**spec).check, lambda: RenderRequests(spec=RequestSpec(**spec))):
        with pytest.raises(ConfigurationError, match="exactly one of `prompt`, `messages_field`"):
            refused()


def test_an_empty_prompt_is_not_a_source() -> None:
    """An empty prompt is not a source of requests, for the check or the renderer."""
    spec = RequestSpec(prompt="", messages_field="chat")
    spec.check()
    assert Renderer(spec)(record_of(chat=CHAT)).body == {"messages": CHAT}


def test_syntax_errors_come_before_launch() -> None:
    """Syntax errors of both prompts come before the launch, with the option's name."""
    with pytest.raises(ConfigurationError, match=r"^p.jinja is not a valid template: line 1"):
        RenderRequests(spec=RequestSpec(prompt="{{", prompt_name="p.jinja"))
    with pytest.raises(
        ConfigurationError, match=r"^`system_prompt` is not a valid template: line 2"
    ):
        RenderRequests(spec=RequestSpec(prompt="x", system_prompt="\n{{"))


def test_render_errors_pass_through() -> None:
    """The pure function raises; only the transform makes dead letters."""
    with pytest.raises(RenderError):
        _body(record_of(), prompt="{{ 1 / 0 }}")


def test_transform() -> None:
    """Each record becomes the pure function's request or its own dead letter."""
    spec = RequestSpec(prompt="{{ 12 / (n | int) }} {{ t }}", backend="b", model="m")
    good = [record_of(str(n), n=n, t="x") for n in range(1, 4)]
    bad = [
        Record("5", {"n": 0, "t": "x"}, {"k": "v"}, "file", 29_000_000),
        record_of("6", n=1),
        record_of("7", n=1, t=None),
    ]
    with pipeline() as root:
        requests, unrendered = (
            root | beam.Create([good[0], *bad, *good[1:]]) | RenderRequests(spec=spec)
        )
        assert requests.element_type is Request
        assert unrendered.element_type is DeadLetter
        assert_that(requests, equal_to([render_request(record, spec) for record in good]))
        expected = [
            DeadLetter(
                "render",
                "render_error",
                "the template failed: ZeroDivisionError: division by zero",
                record_id="5",
                attributes={"k": "v"},
                read_minute=29_000_000,
                fields={"n": 0, "t": "x"},
            ),
            DeadLetter(
                "render",
                "missing_field",
                "field 't' is missing",
                record_id="6",
                fields={"n": 1},
            ),
            DeadLetter(
                "render",
                "missing_field",
                "field 't' is NULL",
                record_id="7",
                fields={"n": 1, "t": None},
            ),
        ]
        assert_that(unrendered, equal_to(expected), label="unrendered")


def test_transform_with_invalid_requests() -> None:
    """A field of the wrong kind fails its own record."""
    with pipeline() as root:
        requests, unrendered = (
            root
            | beam.Create([record_of("1", chat=CHAT), record_of("2", chat="Hello")])
            | RenderRequests(spec=RequestSpec(messages_field="chat"))
        )
        assert_that(requests | beam.Map(lambda r: r.body), equal_to([{"messages": CHAT}]))
        assert_that(
            unrendered | beam.Map(lambda d: (d.record_id, d.error_type, d.stage)),
            equal_to([("2", "invalid_request", "render")]),
            label="unrendered",
        )


def _boom(self: Renderer, record: Record) -> Request:
    del self
    raise KeyError(record.record_id)


def test_an_unexpected_error_is_internal(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error fails its record with a stack trace, not the bundle."""
    monkeypatch.setattr(Renderer, "__call__", _boom)
    with pipeline() as root:
        requests, unrendered = (
            root | beam.Create([record_of("1")]) | RenderRequests(spec=RequestSpec(prompt="x"))
        )
        assert_that(requests, equal_to([]))
        assert_that(
            unrendered
            | beam.Map(
                lambda d: (d.record_id, d.error_type, d.error_message, "_boom" in d.stacktrace)
            ),
            equal_to([("1", "internal", "KeyError: '1'", True)]),
            label="unrendered",
        )


def test_no_record_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Neither rendered text nor failing records reach the log."""
    secret = "a text that nobody shall read"
    with caplog.at_level(logging.DEBUG), pipeline() as root:
        records = root | beam.Create([record_of(a=secret), record_of(a=secret, b=0)])
        _ = records | RenderRequests(spec=RequestSpec(prompt="{{ a }} {{ 1 / b }}"))
    ours = [entry for entry in caplog.records if entry.name.startswith(("transforms", "root"))]
    assert secret not in json.dumps([entry.getMessage() for entry in ours])
