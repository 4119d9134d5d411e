"""Vertex AI's custom endpoints: the resource, predict and rawPredict.

Each instance has one prediction: a string for a string, ``{"output", "score"}`` for any other. An
instance's markers are those of the last string in it; a hard fault of one instance fails the whole
request, ``no-candidates`` omits its prediction, ``empty`` makes it null.

This does not prove that Vertex AI or any container answers like this. It is written from captures
and vendor documentation; no real endpoint was called.
"""

from collections.abc import Iterable
from typing import Any

from tests.emulators.model_server import answers, errors, openai
from tests.emulators.model_server.answers import Asked
from tests.emulators.model_server.faults import Plan
from tests.emulators.model_server.wire import Call, Json, Operation, dump, instances_of

PROJECT_NUMBER = "123456789012"
DEPLOYED_MODEL_ID = "1"


def _last_text(value: Any) -> str:
    """The last string anywhere in a JSON value, depth first; ``""`` if there is none."""
    if isinstance(value, str):
        return value
    items: Iterable[Any] = value.values() if isinstance(value, dict) else ()
    items = value if isinstance(value, list) else items
    return next((text for text in map(_last_text, reversed(list(items))) if text), "")


def _endpoint_texts(call: Call) -> list[str]:
    return [_last_text(instance) for instance in instances_of(call)]


def _prediction(instance: Any, text: str, call: Call, plan: Plan) -> Any:
    if plan.fault == "empty":
        return None
    source = text or dump(instance).decode()
    answer = answers.compose(source, Asked(), plan.fault, call.answer_mode).text
    if isinstance(instance, str):
        return answer
    return {"output": answer, "score": int(answers.digest(source)[:4], 16) / 0xFFFF}


def _endpoint_predict(call: Call) -> Json:
    texts = _endpoint_texts(call)
    predictions = [
        _prediction(instance, text, call, plan)
        for instance, text, plan in zip(instances_of(call), texts, call.plans, strict=True)
        if plan.fault != "no-candidates"
    ]
    where = f"projects/{PROJECT_NUMBER}/locations/{call.path['location']}"
    return {
        "predictions": predictions,
        "deployedModelId": DEPLOYED_MODEL_ID,
        "model": f"{where}/models/simulated-model",
        "modelDisplayName": "simulated-model",
        "modelVersionId": "1",
    }


def _raw_texts(call: Call) -> list[str]:
    if "messages" in call.body:
        return openai.CHAT.texts(call)
    return _endpoint_texts(call) if "instances" in call.body else [_last_text(call.body)]


def _raw_predict(call: Call) -> Json:
    """The container's reply: a chat completion, predictions, or the input and an answer."""
    if "messages" in call.body:
        return openai.CHAT.answer(call)
    if "instances" in call.body:
        return {"predictions": _endpoint_predict(call)["predictions"]}
    answer = answers.compose(_last_text(call.body), Asked(), call.plan.fault, call.answer_mode)
    return {"output": answer.text, "input": call.body}


def endpoint(call: Call) -> Json:
    """The endpoint resource; it is dedicated if and only if its id starts with ``dedicated``."""
    project, location, name = (call.path[part] for part in ("project", "location", "endpoint"))
    number = project if project.isdigit() else PROJECT_NUMBER
    where = f"projects/{number}/locations/{location}"
    dedicated = name.startswith("dedicated")
    resource: Json = {
        "name": f"{where}/endpoints/{name}",
        "displayName": f"simulated-{name}",
        "deployedModels": [
            {
                "id": DEPLOYED_MODEL_ID,
                "model": f"{where}/models/simulated-model",
                "displayName": "simulated-model",
                "modelVersionId": "1",
            }
        ],
        "trafficSplit": {DEPLOYED_MODEL_ID: 100},
        "dedicatedEndpointEnabled": dedicated,
    }
    if dedicated:
        host = f"{name}.{location}-{number}.prediction.vertexai.goog"
        resource["dedicatedEndpointDns"] = host
    return resource


PREDICT = Operation(_endpoint_texts, _endpoint_predict, errors.google)
RAW_PREDICT = Operation(
    _raw_texts,
    _raw_predict,
    errors.google,
    headers={
        "X-Vertex-AI-Deployed-Model-Id": DEPLOYED_MODEL_ID,
        "X-Vertex-AI-Model": f"projects/{PROJECT_NUMBER}/locations/l/models/simulated-model",
    },
)
