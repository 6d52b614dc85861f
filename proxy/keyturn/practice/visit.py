"""A request that was let in, and how its body is read."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import HttpVersion10, web

from keyturn.practice.answers import ApiError
from keyturn.practice.catalogue import Kind
from keyturn.practice.target import Target

_KINDS: dict[str, Kind] = {"collections": "collection", "environments": "environment"}
_MAX_BODY: dict[Kind, int] = {"collection": 100 * 2**20, "environment": 30 * 2**20}
_LARGE = 2**18  # bytes of JSON that are better read beside the event loop


@dataclass(slots=True)
class Visit:
    """One request that was let in: what it asks for, who asks, and by which key's secret and name."""

    request: web.BaseRequest
    target: Target
    user: str
    key: str
    key_name: str

    @property
    def method(self) -> str:
        """Its method; HEAD asks for what GET does (RFC 9110, section 9.3.2)."""
        return "GET" if self.request.method == "HEAD" else self.request.method

    @property
    def segments(self) -> tuple[str, ...]:
        """The decoded segments of its path."""
        return self.target.segments

    @property
    def kind(self) -> Kind:
        """Whether it is about collections or environments."""
        return _KINDS[self.segments[0]]


Handler = Callable[[Visit], Awaitable[web.StreamResponse]]


async def body_of(request: web.BaseRequest) -> AsyncIterator[bytes]:
    """The body piece by piece, asked for if the caller waits to be asked (RFC 9110, section 10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version > HttpVersion10:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    async for piece in request.content.iter_any():
        yield piece


async def read_content(visit: Visit) -> dict[str, Any]:
    """What the body holds under the name of its kind, whatever type it was sent as.

    Raises:
        ApiError: It is too long, or it is no such JSON.
    """
    most = _MAX_BODY[visit.kind]
    too_large = ApiError(413, "requestEntityTooLarge", f"The body is larger than {most} bytes.")
    if (visit.request.content_length or 0) > most:
        raise too_large
    body = bytearray()
    async for piece in body_of(visit.request):
        body += piece
        if len(body) > most:
            raise too_large
    try:
        data = await asyncio.to_thread(json.loads, body) if len(body) > _LARGE else json.loads(body)
    except (ValueError, RecursionError):
        raise malformed(visit.kind) from None
    content = data.get(visit.kind) if isinstance(data, dict) else None
    if not isinstance(content, dict):
        raise malformed(visit.kind)
    return content


def malformed(kind: Kind) -> ApiError:
    """The refusal of a body that cannot be used."""
    return ApiError(400, "malformedRequestError", f"The body must be a JSON object with a valid {kind}.")
