"""Error bodies in the words of Google, OpenAI and vLLM.

This does not prove which error a real service sends when. It is written from captures and vendor
documentation; no real endpoint was called.
"""

from tests.emulators.model_server.faults import Plan
from tests.emulators.model_server.wire import Json

STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
MESSAGES = {
    400: "Request contains an invalid argument.",
    401: "Request had invalid authentication credentials.",
    403: "Permission denied on resource, or it may not exist.",
    404: "The requested resource was not found.",
    408: "The request timed out.",
    429: "Resource exhausted, please try again later.",
    500: "Internal error encountered.",
    503: "The service is currently unavailable.",
    504: "Deadline expired before operation could complete.",
}
"""The message of a ``[[http:CODE]]`` marker."""

_OPENAI_KINDS = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "model_access_denied"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}
_VLLM_KINDS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}


def google(status: int, message: str, code: str | None, plan: Plan) -> Json:
    """Google's error body; a Retry-After is repeated as ``RetryInfo``."""
    name = STATUS_NAMES.get(status, "UNKNOWN")
    details: list[Json] = [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": code or name,
            "domain": "aiplatform.googleapis.com",
        }
    ]
    if plan.retry_after is not None:
        delay = f"{plan.retry_after}s"
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    return {"error": {"code": status, "message": message, "status": name, "details": details}}


def openai(status: int, message: str, code: str | None, plan: Plan) -> Json:
    """OpenAI's error body, or Google's or vLLM's where a marker asks for that wording."""
    if plan.style == "google":
        return google(status, message, code, plan)
    if plan.style == "vllm":
        kind = _VLLM_KINDS.get(status, "InternalServerError")
        return {"error": {"message": message, "type": kind, "param": None, "code": status}}
    server = "server_error" if status >= 500 else "invalid_request_error"
    kind, usual = _OPENAI_KINDS.get(status, (server, None))
    kind = code if code == "max_tokens_per_request" else kind  # as reported: type and code alike
    return {"error": {"message": message, "type": kind, "param": None, "code": code or usual}}
