"""Responses of the practice API: pages, errors in the real API's shapes, rate limit fields."""

import gzip
import json
import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterable
from functools import cached_property
from hashlib import sha1
from typing import Any

from aiohttp import web

from keyturn.practice.accounts import Verdict
from keyturn.practice.settings import HeaderStyle

_JSON = "application/json"  # has no charset (RFC 8259, section 11), and the official SDK knows no other form of it
_PROBLEM = "application/problem+json"
_MILLISECONDS = 1000
_REFUSED = re.compile(r"\s*q\s*=\s*0(\.0*)?\s*")

GATEWAY_TIMEOUT_PAGE = (
    b"<html>\r\n<head><title>504 Gateway Time-out</title></head>\r\n<body>\r\n"
    b"<center><h1>504 Gateway Time-out</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)


class ApiError(Exception):
    """An answer that is an error: the real API's status, name and message; `detail` is its text as a problem."""

    def __init__(self, status: int, name: str, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.name = name
        self.message = message
        self.detail = detail or message


KEY_MISSING = "API Key missing. Every request requires an API Key to be sent."
KEY_INVALID = "Invalid API Key. Every request requires a valid API Key to be sent."
_KEY_DETAIL = "A valid API key must be provided in the request header."


def unauthenticated(*, missing: bool) -> ApiError:
    """The refusal of a request without a key, or with one that is not accepted."""
    return ApiError(401, "AuthenticationError", KEY_MISSING if missing else KEY_INVALID, _KEY_DETAIL)


def key_disabled() -> ApiError:
    """The refusal of a request with a key that its owner's team has disabled: one of few 403 that are about the key."""
    return ApiError(403, "AuthenticationError", "This API key has been disabled by an administrator of its team.")


def not_found(what: str) -> ApiError:
    """The refusal of what does not exist."""
    return ApiError(404, "notFound", f"{what} was not found.")


def throttled(retry_ms: int) -> ApiError:
    """The refusal of a request over the limit; `retry_ms` is in epoch milliseconds."""
    return ApiError(429, "rateLimitError", f"Rate Limit exceeded. Please retry at {retry_ms}")


def failure(status: int) -> ApiError:
    """The real API's error for a status that concerns neither the key nor a limit."""
    name, message = _FAILURES.get(status, ("error", f"This is an answer with the status {status}."))
    return ApiError(status, name, message)


_FAILURES = {
    401: ("Unauthorized", "You are not authorized to perform this action."),
    403: ("forbiddenError", "You do not have enough permissions to perform this action."),
    404: ("notFound", "The requested resource was not found."),
    429: ("serviceLimitExhausted", "You have used up your team's API calls of this month."),
    500: ("serverError", "Something went wrong with the server."),
    503: (
        "serviceUnavailable",
        "An unexpected spike in traffic. We are usually operational within the next 5 minutes.",
    ),
}


class Page:
    """JSON that is written out once and sent often."""

    def __init__(self, data: Any) -> None:
        self.body: bytes = dumps(data)

    @cached_property
    def compressed(self) -> bytes:
        """The same in gzip."""
        return gzip.compress(self.body, compresslevel=6, mtime=0)

    @cached_property
    def etag(self) -> str:
        """A weak validator, the same for both forms."""
        digest = b64encode(sha1(self.body, usedforsecurity=False).digest()).decode().rstrip("=")
        return f'W/"{len(self.body):x}-{digest}"'


def dumps(data: Any) -> bytes:
    """JSON without needless spaces."""
    return json.dumps(data, separators=(",", ":")).encode()


def json_answer(data: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer made for one request."""
    return web.Response(body=dumps(data), status=status, headers={"Content-Type": _JSON, **(headers or {})})


def page_answer(request: web.BaseRequest, page: Page) -> web.Response:
    """A page in the form that the request accepts, or 304 if the caller has it (RFC 9110, section 13.1.2)."""
    headers = {"ETag": page.etag, "Vary": "Accept-Encoding"}
    if _holds(request.headers.get("If-None-Match", ""), page.etag):
        return web.Response(status=304, headers=headers)
    headers["Content-Type"] = _JSON
    if accepts_gzip(request.headers.get("Accept-Encoding", "")):
        headers["Content-Encoding"] = "gzip"
        return web.Response(body=page.compressed, headers=headers)
    return web.Response(body=page.body, headers=headers)


def error_answer(request: web.BaseRequest, error: ApiError) -> web.Response:
    """An error in the real API's shape, or as a problem (RFC 9457) for those who accept that and not JSON."""
    if error.status == 504:  # noqa: PLR2004  # the one error that the gateway makes, not the API
        return web.Response(body=GATEWAY_TIMEOUT_PAGE, status=504, content_type="text/html")
    accept = request.headers.get("Accept", "")
    if _PROBLEM in accept and "application/json" not in accept:
        return web.Response(body=dumps(_problem(error)), status=error.status, content_type=_PROBLEM)
    return json_answer({"error": {"name": error.name, "message": error.message}}, status=error.status)


def _problem(error: ApiError) -> dict[str, Any]:
    return {"type": "about:blank", "title": error.name, "status": error.status, "detail": error.detail}


def _holds(if_none_match: str, etag: str) -> bool:
    if not if_none_match:
        return False
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in known or etag.removeprefix("W/") in known


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether gzip is named and not refused by `q=0`; `*` is not taken as a wish (RFC 9110, section 12.5.3)."""
    for item in accept_encoding.lower().split(","):
        coding, _semicolon, quality = item.partition(";")
        if coding.strip() in {"gzip", "x-gzip"}:
            return _REFUSED.fullmatch(quality) is None
    return False


class Pour(web.StreamResponse):
    """An answer whose body flows from an iterator as fast as the reader takes it.

    With `cut` the connection ends after the last piece, whatever length the head announced.
    """

    def __init__(self, pieces: Iterable[bytes | memoryview], headers: dict[str, str], *, cut: bool = False) -> None:
        super().__init__(headers=headers)
        self._pieces = pieces
        self._cut = cut

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the pieces, then end."""
        for piece in self._pieces:
            await self.write(piece)
        if self._cut:
            self.force_close()
        await super().write_eof(data)


def rate_headers(style: HeaderStyle, verdict: Verdict, now: float, epoch: float) -> dict[str, str]:
    """The rate limit headers for a verdict; `now` is on its clock, `epoch` the wall time then, in seconds."""
    return _STYLES[style](verdict, now, epoch)


def _x_ratelimit(verdict: Verdict, now: float, epoch: float) -> dict[str, str]:
    # Rounded down, as captured: the reset is exactly one window after the answer's Date, which is rounded down too.
    return {
        "X-RateLimit-Limit": str(verdict.limit),
        "X-RateLimit-Remaining": str(verdict.remaining),
        "X-RateLimit-Reset": str(int(epoch + verdict.reset - now)),
    }


def _ratelimit(verdict: Verdict, now: float, _epoch: float) -> dict[str, str]:
    return {
        "RateLimit-Limit": str(verdict.limit),
        "RateLimit-Remaining": str(verdict.remaining),
        "RateLimit-Reset": str(_delta(verdict.reset, now)),
    }


def _draft7(verdict: Verdict, now: float, _epoch: float) -> dict[str, str]:
    reset = _delta(verdict.reset, now)
    return {
        "RateLimit": f"limit={verdict.limit}, remaining={verdict.remaining}, reset={reset}",
        "RateLimit-Policy": f"{verdict.limit};w={math.ceil(verdict.window)}",
    }


def _draft8(verdict: Verdict, now: float, _epoch: float) -> dict[str, str]:
    return {
        "RateLimit": f'"default";r={verdict.remaining};t={_delta(verdict.reset, now)}',
        "RateLimit-Policy": f'"default";q={verdict.limit};w={math.ceil(verdict.window)}',
    }


def month_headers(limit: int, left: int) -> dict[str, str]:
    """The headers for a plan's month."""
    return {"X-RateLimit-Limit-Month": str(limit), "X-RateLimit-Remaining-Month": str(left)}


def _none(_verdict: Verdict, _now: float, _epoch: float) -> dict[str, str]:
    return {}


_STYLES: dict[HeaderStyle, Callable[[Verdict, float, float], dict[str, str]]] = {
    "x-ratelimit": _x_ratelimit,
    "ratelimit": _ratelimit,
    "draft7": _draft7,
    "draft8": _draft8,
    "none": _none,
}


def _delta(instant: float, now: float) -> int:
    return max(math.ceil(instant - now), 0)


def refusal_of(verdict: Verdict, now: float, epoch: float) -> tuple[ApiError, int]:
    """The error of a request over the limit, and its Retry-After in whole seconds, both rounded up."""
    wait = verdict.retry - now
    return throttled(math.ceil((epoch + wait) * _MILLISECONDS)), max(math.ceil(wait), 1)
