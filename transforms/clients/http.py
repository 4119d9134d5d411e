"""JSON over HTTP for every backend with a server, and one table from status to error.

aiohttp and orjson cost about a fifth of the CPU that a provider's SDK does per request, and one
client carries thousands of requests in flight. Nothing here retries, paces or times out:
`transforms.dispatch` does.

===========================  ===============  =========================================
status                       error            cause
===========================  ===============  =========================================
400 422, other 4xx           InvalidRequest   REQUEST
401 403                      Forbidden        CREDENTIALS
404 405, 3xx, no URL         InvalidRequest   NOT_SERVED
408 504                      RequestTimeout   TIMEOUT
413                          TooLarge         REQUEST
429                          RateLimited      RATE_LIMIT
429 insufficient_quota       Forbidden        ACCOUNT
503                          Unavailable      OVERLOADED
other 5xx                    Unavailable      SERVER_ERROR
2xx with an unreadable body  Unavailable      SERVER_ERROR
no connection                Unavailable      CONNECTION_REFUSED
connection lost              Unavailable      LOST_BEFORE_ANSWER, LOST_DURING_ANSWER
===========================  ===============  =========================================
"""

import datetime as dt
import email.utils
import http
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import aiohttp
import orjson
from yarl import URL

from transforms.records import json_values
from transforms.records.causes import Cause
from transforms.records.errors import (
    Blocked,
    Forbidden,
    InvalidRequest,
    RateLimited,
    RecordError,
    RequestTimeout,
    TooLarge,
    Unavailable,
)

USER_AGENT = "dataflow-batch-inference"
KEEPALIVE_S = 4.0
"""Below the 5 s after which vLLM closes an idle connection: the reverse loses the next request."""
CONNECT_TIMEOUT_S = 30.0
MESSAGE_CHARS = 500
"""How many characters of a server's message an error message keeps."""

T = TypeVar("T")


class ErrorKind(NamedTuple):
    """The meaning of a status: an error class and a cause; None for the class's usual cause."""

    error: type[RecordError]
    cause: Cause | None = None


# Codes that OpenAI's dialect sends in `error.code`; they are more specific than the status.
# `context_length_exceeded` and `content_filter` come as a plain 400, `insufficient_quota` (no
# credit left) as a 429 that waiting does not cure. vLLM's code only repeats the status; its
# parameter tells more: `input_tokens` or `input_text` for a prompt beyond the model's context.
_BY_CODE: Mapping[tuple[int, str], ErrorKind] = {
    (400, "context_length_exceeded"): ErrorKind(TooLarge),
    (400, "content_filter"): ErrorKind(Blocked),
    (400, "input_tokens"): ErrorKind(TooLarge),
    (400, "input_text"): ErrorKind(TooLarge),
    (429, "insufficient_quota"): ErrorKind(Forbidden, Cause.ACCOUNT),
}
_BY_STATUS: Mapping[int, ErrorKind] = {
    401: ErrorKind(Forbidden, Cause.CREDENTIALS),
    403: ErrorKind(Forbidden, Cause.CREDENTIALS),
    404: ErrorKind(InvalidRequest, Cause.NOT_SERVED),
    405: ErrorKind(InvalidRequest, Cause.NOT_SERVED),
    408: ErrorKind(RequestTimeout),
    413: ErrorKind(TooLarge),
    429: ErrorKind(RateLimited),
    503: ErrorKind(Unavailable, Cause.OVERLOADED),
    504: ErrorKind(RequestTimeout),
}
_BY_CLASS: Mapping[int, ErrorKind] = {
    3: ErrorKind(InvalidRequest, Cause.NOT_SERVED),  # never followed: a POST would become a GET
    4: ErrorKind(InvalidRequest),
    5: ErrorKind(Unavailable),
}


class Reply(NamedTuple):
    """A successful answer.

    Attributes:
      status: 200 to 299.
      headers: Case-insensitive.
      data: The body, parsed.
    """

    status: int
    headers: Mapping[str, str]
    data: Any


def parse_json(body: bytes) -> Any:
    """Parses a body as JSON; normalises values that orjson refuses (NaN, lone surrogates)."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return json_values.loads(body)


class JsonClient:
    """One pool of connections, without a limit of its own: the dispatcher limits calls in flight.

    Created inside a running event loop and used only on that loop.
    """

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            headers={"User-Agent": USER_AGENT},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def post(
        self,
        url: str,
        body: Any,
        headers: Mapping[str, str] | None = None,
        *,
        parse: Callable[[bytes], Any] = parse_json,
    ) -> Reply:
        """Posts a JSON value.

        Args:
          url: The URL; error messages omit its query.
          body: Any JSON value.
          headers: Additional headers, such as the authorization; never in an error message.
          parse: Parses the body of a success; a ValueError means that it is unreadable.

        Raises:
          RecordError: According to this module's table.
        """
        headers = {"Content-Type": "application/json", **(headers or {})}
        return await self._send("POST", url, headers, json_values.dumps(body), parse)

    async def get(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        parse: Callable[[bytes], Any] = parse_json,
    ) -> Reply:
        """Gets a JSON value, or the result of ``parse``; raises like `post`."""
        return await self._send("GET", url, headers or {}, None, parse)

    async def close(self) -> None:
        """Closes the connections; no request may be in flight."""
        await self._session.close()

    async def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        parse: Callable[[bytes], Any],
    ) -> Reply:
        answered = False
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                answered = True
                status, received = response.status, response.headers
                content = await response.read()
        except aiohttp.InvalidURL:
            raise InvalidRequest(f"{place(url)} is not a URL", cause=Cause.NOT_SERVED) from None
        except aiohttp.ClientConnectionError as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                cause = Cause.CONNECTION_REFUSED
            else:  # this record may be the cause
                cause = Cause.LOST_DURING_ANSWER if answered else Cause.LOST_BEFORE_ANSWER
            raise Unavailable(
                f"no connection to {place(url)}: {type(error).__name__}: {error}"[:MESSAGE_CHARS],
                cause=cause,
            ) from error
        except aiohttp.ClientError as error:  # the answer broke off, or is not HTTP
            raise Unavailable(f"{place(url)} broke off: {type(error).__name__}") from error
        if not 200 <= status < 300:
            raise error_of(status, received, content, url)
        try:
            return Reply(status, received, parse(content))
        except ValueError:
            raise Unavailable(
                f"HTTP {status} from {place(url)} with a body of {len(content)} bytes "
                "that cannot be read as JSON"
            ) from None


def shaped(read: Callable[[Any], T], data: Any, *, what: str) -> T:
    """Reads a reply.

    Raises:
      Unavailable: The reply does not have the expected shape. Retryable, because a proxy or a
        half-started server answers like that.
    """
    try:
        return read(data)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Unavailable(
            f"the reply of {what} does not have the expected shape ({type(error).__name__})"
        ) from error


def error_of(status: int, headers: Mapping[str, str], body: bytes, url: str) -> RecordError:
    """The classified error for a status other than success; the most specific rule wins."""
    message, code = _explanation(body)
    kind = (
        _BY_CODE.get((status, code))
        or _BY_STATUS.get(status)
        or _BY_CLASS.get(status // 100)
        or ErrorKind(Unavailable)
    )
    return kind.error(
        f"HTTP {status} from {place(url)}: {message or _phrase(status)}",
        retry_after_s=retry_after_s(headers.get("Retry-After")),
        cause=kind.cause,
    )


def retry_after_s(value: str | None, now: dt.datetime | None = None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or an HTTP date; None if unreadable.

    >>> retry_after_s("1.5")
    1.5
    >>> retry_after_s("soon")
    """
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.timezone.utc)
        seconds = (moment - (now or dt.datetime.now(dt.timezone.utc))).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None


def place(url: str) -> str:
    """Host and path of a URL: no user, no query, no fragment.

    >>> place("https://user:word@host:8443/v1/chat?key=secret")
    'host:8443/v1/chat'
    """
    try:
        parts = URL(url)
        host = parts.host or ""
        port = f":{parts.explicit_port}" if parts.explicit_port else ""
    except ValueError:
        return "the given address"
    return f"{host}{port}{parts.path}"


def _explanation(body: bytes) -> tuple[str, str]:
    """The server's message and its code field, if there are any."""
    try:
        data = parse_json(body)
    except ValueError:
        return body[: 4 * MESSAGE_CHARS].decode("utf-8", "replace")[:MESSAGE_CHARS].strip(), ""
    if isinstance(data, list) and data:  # Google wraps some errors in a list
        data = data[0]
    if not isinstance(data, dict):
        return "", ""
    inner = data.get("error")
    code = ""
    if isinstance(inner, dict):
        data, code = inner, str(inner.get("code") or "")
        if code.isdecimal():
            code = str(inner.get("param") or "")
    elif isinstance(inner, str):
        data = {"message": inner}
    text = data.get("message") or data.get("detail")
    if isinstance(text, list):  # FastAPI's validation errors also repeat the input: leave that out
        text = "; ".join(str(item.get("msg", "")) for item in text if isinstance(item, dict))
    if not isinstance(text, str):
        return "", code
    return json_values.clean_text(text)[:MESSAGE_CHARS], code


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "no explanation"


def token_count(value: Any) -> int | None:
    """A token count; proto3 JSON has integers, floats or strings. None for any other value."""
    try:
        count = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return count if 0 <= count < 2**63 else None
