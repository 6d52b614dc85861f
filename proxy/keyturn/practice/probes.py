"""Endpoints that the real API has not: they show what arrived, or answer in a way that a proxy must get right."""

import asyncio
from collections.abc import Iterator
from hashlib import sha256
from random import Random
from typing import Any

from aiohttp import web

from keyturn.practice.answers import Pour, dumps, failure, json_answer, not_found
from keyturn.practice.settings import PracticeSettings
from keyturn.practice.target import Endpoint
from keyturn.practice.visit import Handler, Visit, body_of

_PIECE = 2**16
_NOISE = 2**18
_MAX_DIGITS = 12
_NO_BODY = frozenset({204, 205, 304})
_STATUSES = range(200, 600)
_ERRORS_FROM = 400


class Probes:
    """These endpoints, with the bytes that they pour."""

    def __init__(self, settings: PracticeSettings) -> None:
        self._settings = settings
        self._noise = memoryview(noise(settings.seed))

    def routes(self) -> dict[Endpoint, Handler]:
        """What each of them answers to, but for `/echo`, which answers to all."""
        return {
            ("GET", "bytes", 2): self._bytes,
            ("GET", "chunked", 2): self._chunked,
            ("GET", "truncate", 2): self._truncate,
            ("GET", "slow", 2): self._slow,
            ("GET", "status", 2): self._status,
            ("GET", "redirect", 1): self._redirect,
            ("GET", "nothing", 1): self._nothing,
        }

    async def echo(self, visit: Visit) -> web.StreamResponse:
        """Say what arrived; the body is read as a stream and its digest told."""
        digest = sha256()
        length = 0
        async for piece in body_of(visit.request):
            digest.update(piece)
            length += len(piece)
        said = {
            "method": visit.request.method,
            "target": visit.target.raw,
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in visit.request.raw_headers],
            "length": length,
            "sha256": digest.hexdigest(),
        }
        return web.Response(body=self._masked(visit, said), content_type="application/json")

    def _masked(self, visit: Visit, said: dict[str, Any]) -> bytes:
        if not self._settings.echo_secrets:
            said["target"] = visit.target.shown
            said["headers"] = [[name, value.replace(visit.key, visit.key_name)] for name, value in said["headers"]]
        return dumps(said)

    async def _bytes(self, visit: Visit) -> web.StreamResponse:
        length = _number(visit)
        return self._pour(visit, length, length)

    async def _chunked(self, visit: Visit) -> web.StreamResponse:
        return self._pour(visit, _number(visit), None)

    async def _truncate(self, visit: Visit) -> web.StreamResponse:
        length = _number(visit)
        return self._pour(visit, length // 2, length)

    def _pour(self, visit: Visit, sent: int, announced: int | None) -> web.StreamResponse:
        headers = {"Content-Type": "application/octet-stream"}
        if announced is not None:
            headers["Content-Length"] = str(announced)
        pieces = _pieces(self._noise, 0 if visit.request.method == "HEAD" else sent)
        return Pour(pieces, headers, cut=announced is not None and sent < announced)

    async def _slow(self, visit: Visit) -> web.StreamResponse:
        milliseconds = _number(visit)
        await asyncio.sleep(milliseconds / 1000)
        return json_answer({"slept": milliseconds})

    async def _status(self, visit: Visit) -> web.StreamResponse:
        status = _number(visit)
        if status not in _STATUSES:
            raise not_found("A status outside 200 to 599")
        if status in _NO_BODY:
            return web.Response(status=status)
        if status >= _ERRORS_FROM:
            raise failure(status)
        return json_answer({"status": status}, status=status)

    async def _redirect(self, _visit: Visit) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/echo/redirected"})

    async def _nothing(self, _visit: Visit) -> web.StreamResponse:
        return web.Response(status=204)


def noise(seed: int) -> bytes:
    """The pseudo-random bytes that `/bytes` and its like repeat."""
    return Random(f"{seed}/noise").randbytes(_NOISE)


def _pieces(source: memoryview, length: int) -> Iterator[memoryview]:
    sent = 0
    while sent < length:
        start = sent % len(source)
        piece = source[start : min(start + _PIECE, start + length - sent)]
        sent += len(piece)
        yield piece


def _number(visit: Visit) -> int:
    text = visit.segments[1]
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise not_found("A number in the path")
    return int(text)
