"""The admin listener: whether the process lives and can serve, its metrics, its status, and a few things to do to it.

Anybody who reaches it may read, and no page shows a secret. Only the bearer of `admin_token` may change anything. Over
the loopback, browsers may not use a name that others can own, or web pages of that name could read, too.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from ipaddress import ip_address
from itertools import chain
from typing import NamedTuple, Protocol

from aiohttp.hdrs import ACCEPT, ACCEPT_LANGUAGE, AUTHORIZATION, HOST, UPGRADE
from aiohttp.helpers import rfc822_formatted_time

from keyturn.core.levels import Levels
from keyturn.core.model import Secret
from keyturn.tasks import encoded_in_steps
from keyturn.telemetry import Metrics
from keyturn.telemetry.exposition import ProcessMetrics, choose_form
from keyturn.web.connection import IncomingRequest
from keyturn.web.error_responses import error_body
from keyturn.web.relay import connection_fields
from keyturn.web.status.page import PAGE_PATHS, Asset, asset, status_json
from keyturn.web.status.replica_status import ReplicaStatus

_OURS = re.compile(r"(?:[\w-]*|(?:[\w-]+\.)*localhost|[\d.]+|\[[\da-f:.]+\])(?::\d*)?", re.ASCII | re.IGNORECASE)
"""Addresses, and names that are no domain's."""


class AdminResponse(NamedTuple):
    """A response of the admin listener."""

    status: int
    body: bytes
    fields: Mapping[str, str]


Page = Callable[[IncomingRequest], Awaitable[AdminResponse]]


class StatusSource(Protocol):
    """Provides the gauges and the status."""

    async def levels(self) -> Levels:
        """The gauges of this moment."""

    async def snapshot(self) -> ReplicaStatus:
        """Everything that the status shows."""


class Controls(Protocol):
    """The changes that the bearer of the token may make. Each returns whether its object exists."""

    def pause(self, pool: str, key: str) -> bool:
        """Use a key no more until it is resumed."""

    def resume(self, pool: str, key: str) -> bool:
        """Use a key again."""

    def log(self, level: str) -> bool:
        """Log from this severity on."""


class Admin:
    """Answers what Kubernetes, Prometheus and people ask.

    `unready` says why requests cannot be served now; empty when they can. `token` is the one that changing calls need;
    without it there are none.
    """

    def __init__(
        self,
        metrics: Metrics,
        unready: Callable[[], tuple[str, ...]],
        status: StatusSource,
        controls: Controls,
        token: Callable[[], Secret | None],
    ) -> None:
        self._metrics = metrics
        self._process = ProcessMetrics()
        self._unready = unready
        self._status_source = status
        self._controls = controls
        self._token = token
        self._pages: dict[str, Page] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._show_metrics,
            "/status.json": self._status,
            **dict.fromkeys(PAGE_PATHS, self._file),
        }

    async def __call__(self, request: IncomingRequest) -> bool:
        """Answer one request; returns whether its connection goes on."""
        response = await self._respond(request)
        close = not request.keep_alive or not request.content.is_eof() or UPGRADE in request.headers
        lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}", f"Date: {rfc822_formatted_time()}"]
        lines += [f"{name}: {value}" for name, value in response.fields.items()]
        lines.append(f"Content-Length: {len(response.body)}")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n" + connection_fields(request, close=close) + b"\r\n\r\n"
        request.write(head if request.method == "HEAD" else head + response.body)
        if request.connection.writing_paused:
            await request.connection.drain()
        return not close

    async def _respond(self, request: IncomingRequest) -> AdminResponse:
        if _is_misled(request):
            return _error(421, "misdirectedRequest", "On this machine the name of this listener is localhost.")
        if page := self._pages.get(request.path):
            return await page(request) if request.method in ("GET", "HEAD") else _not_allowed(request, "GET, HEAD")
        match request.path.split("/")[1:]:
            case ["keys", pool, key, ("pause" | "resume") as what]:
                return self._change(request, lambda: self._set(pool, key, what))
            case ["log", level]:
                return self._change(request, lambda: self._log(level))
            case _:
                return _error(404, "notFound", "Here are /, /status.json, /healthz, /readyz and /metrics.")

    # Looking

    async def _healthz(self, _: IncomingRequest) -> AdminResponse:
        return _json(200, {"status": "alive"})

    async def _readyz(self, _: IncomingRequest) -> AdminResponse:
        reasons = self._unready()
        if reasons:
            return _json(503, {"status": "unready", "reasons": list(reasons)})
        return _json(200, {"status": "ready"})

    async def _show_metrics(self, request: IncomingRequest) -> AdminResponse:
        # Several fields of one name are one list (RFC 9110, section 5.3).
        form = choose_form(",".join(request.headers.getall(ACCEPT, ())))
        process = await asyncio.to_thread(self._process.exposition, form)
        pieces = self._metrics.exposition(form, await self._status_source.levels())
        body = await encoded_in_steps(chain([process], pieces))
        return AdminResponse(200, body, {"Content-Type": form.value, "Cache-Control": "no-store"})

    async def _status(self, _: IncomingRequest) -> AdminResponse:
        return _file(await status_json(await self._status_source.snapshot()))

    async def _file(self, request: IncomingRequest) -> AdminResponse:
        found = asset(request.path)
        assert found is not None
        return _file(found)

    # Changing

    def _change(self, request: IncomingRequest, change: Callable[[], AdminResponse]) -> AdminResponse:
        if request.method != "POST":
            return _not_allowed(request, "POST")
        token = self._token()
        if token is None:
            return _error(
                403, "forbiddenError", "Nothing can be changed here: the configuration sets no `admin_token`."
            )
        scheme, _, given = request.headers.get(AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer" or Secret(given.strip()) != token:
            message = "Send the `admin_token` of the configuration as `Authorization: Bearer TOKEN`."
            return _error(401, "AuthenticationError", message, **{"WWW-Authenticate": "Bearer"})
        return change()

    def _set(self, pool: str, key: str, what: str) -> AdminResponse:
        if not (self._controls.pause if what == "pause" else self._controls.resume)(pool, key):
            return _error(404, "notFound", "There is no such key in such a pool; /status.json lists them.")
        return _json(200, {"pool": pool, "key": key, "done": what})

    def _log(self, level: str) -> AdminResponse:
        if not self._controls.log(level):
            return _error(404, "notFound", "The levels are debug, info, warning and error.")
        return _json(200, {"level": level})


def _is_misled(request: IncomingRequest) -> bool:
    """Whether a browser came here, over the loopback, by a domain name that was made to resolve to this machine.

    Browsers send `Accept-Language` with everything, which a page may change but not leave out; scrapers do not.
    """
    transport = request.transport
    address = transport.get_extra_info("sockname") if transport is not None else None
    if ACCEPT_LANGUAGE not in request.headers or not isinstance(address, tuple):
        return False
    loopback = ip_address(address[0].partition("%")[0]).is_loopback
    return loopback and not _OURS.fullmatch(request.headers.get(HOST, ""))


def _file(found: Asset) -> AdminResponse:
    return AdminResponse(200, found.body, found.headers)


def _not_allowed(request: IncomingRequest, methods: str) -> AdminResponse:
    return _error(405, "methodNotAllowed", f"{request.path} answers {methods.partition(',')[0]}.", Allow=methods)


def _error(status: int, name: str, message: str, **headers: str) -> AdminResponse:
    return _body(status, error_body(status, name, message), **headers)


def _json(status: int, document: object, **headers: str) -> AdminResponse:
    return _body(status, json.dumps(document).encode() + b"\n", **headers)


def _body(status: int, body: bytes, **headers: str) -> AdminResponse:
    return AdminResponse(status, body, {"Content-Type": "application/json", "Cache-Control": "no-store", **headers})
