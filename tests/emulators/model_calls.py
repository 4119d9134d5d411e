"""Plain JSON calls of the simulated model server, for tests of exact bodies.

This does not prove anything about a real service; no real endpoint was called.
"""

import http.client
import json
import urllib.parse
from typing import Any

from tests.emulators.model_fixtures import SimulatedModelServer

PARENT = "/v1/projects/p/locations/us-central1"
GENERATE = f"{PARENT}/publishers/google/models/gemini-2.5-flash:generateContent"
TICKET = "My invoice is wrong, I was charged twice! Please refund me immediately."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "category": {"enum": ["billing", "shipping", "technical", "account", "other"]},
        "priority": {"type": "string", "enum": ["low", "normal", "high", "urgent"]},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "summary": {"type": "string", "maxLength": 40},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
        "customer": {
            "type": "object",
            "properties": {"angry": {"type": "boolean"}, "email": {"type": ["string", "null"]}},
            "required": ["angry", "email"],
        },
    },
    "required": ["category", "priority", "confidence", "summary", "tags", "customer"],
    "additionalProperties": False,
}


def post(
    server: SimulatedModelServer, path: str, body: Any, token: str | None = "t", **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and parsed body of one POST; the raw bytes if they are not JSON."""
    host = urllib.parse.urlsplit(server.base_url).netloc
    connection = http.client.HTTPConnection(host, timeout=30)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    try:
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        raw = response.read()
    finally:
        connection.close()
    try:
        parsed = json.loads(raw)
    except ValueError:
        parsed = raw
    return response.status, {k.lower(): v for k, v in response.getheaders()}, parsed


def gemini(
    server: SimulatedModelServer, text: str, config: dict[str, Any] | None = None
) -> tuple[int, dict[str, str], Any]:
    """One generateContent call, as plain JSON."""
    body: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": text}]}]}
    if config is not None:
        body["generationConfig"] = config
    return post(server, GENERATE, body)


def chat(
    server: SimulatedModelServer, text: str, form: dict[str, Any] | None = None
) -> tuple[int, dict[str, str], Any]:
    """One chat completion, as plain JSON."""
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": text}]}
    if form is not None:
        body["response_format"] = form
    return post(server, "/v1/chat/completions", body)


def texts(server: SimulatedModelServer, text: str, schema: Any = SCHEMA) -> tuple[str, str]:
    """The texts in both dialects' answers to a prompt with an output schema."""
    config = {"responseMimeType": "application/json", "responseJsonSchema": schema}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    candidate = gemini(server, text, config)[2]["candidates"][0]
    choice = chat(server, text, form)[2]["choices"][0]
    return candidate["content"]["parts"][0]["text"], choice["message"]["content"]
