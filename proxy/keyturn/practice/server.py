"""The practice API as a server: its lifetime, its certificates, and a request's way through it."""

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import trustme
from aiohttp import web

from keyturn.core.errors import StartError
from keyturn.practice.accounts import Accounts
from keyturn.practice.answers import error_answer, failure
from keyturn.practice.catalogue import Catalogue
from keyturn.practice.contents import PRACTICE_RUN
from keyturn.practice.endpoints import Endpoints
from keyturn.practice.gate import Arrival, ArrivalLog, Case, Gate
from keyturn.practice.settings import FaultKind, PracticeSettings

_NAMES = ("127.0.0.1", "localhost", "::1", "api.getpostman.com", "api.postman.com")


class Certificates:
    """An authority, and a certificate of its for this machine and for the real API's names."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self._leaf = authority.issue_cert(*_NAMES)
        self.ca_pem: bytes = authority.cert_pem.bytes()

    def server_context(self) -> ssl.SSLContext:
        """The TLS context of an HTTPS server."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        self._leaf.configure_cert(context)
        return context


_NO_LINGER = struct.pack("ii", 1, 0)
_SHUTDOWN = 0.2  # seconds for connections whose last request is being read to the end
_TLS_TIMEOUTS = {"ssl_handshake_timeout": 10.0, "ssl_shutdown_timeout": 1.0}
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared with, not bound to


class PracticeApi:
    """A practice Postman API; an async context manager that runs from `start` to `stop`.

    It counts a request when its head has arrived, whether or not its caller stays for the answer. Windows, data and log
    outlive a stop: a second start goes on at the same address with the same certificate.

    Args:
        settings: What it is like.
        clock: The time by which it counts, in seconds; never goes backwards.

    Attributes:
        latency: Called twice for each request, before it is counted and before its answer begins, for the seconds that
            it is to be held up there.
    """

    def __init__(self, settings: PracticeSettings | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings or PracticeSettings()
        self.latency: Callable[[], float] | None = None
        self._clock = clock
        self._accounts = Accounts(self.settings)
        self._log = ArrivalLog()
        self._gate = Gate(self.settings, self._accounts, self._log)
        self._catalogue = Catalogue(self.settings.seed, lambda: self.settings.base_url or self.url)
        self._endpoints = Endpoints(self.settings, self._catalogue)
        self._certificates = Certificates() if self.settings.tls else None
        self._faults: deque[FaultKind] = deque()
        self._broken: tuple[FaultKind, int | None] | None = None
        self._busy: dict[asyncio.Task[Any], web.RequestHandler] = {}
        self._port = self.settings.port
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None

    def __repr__(self) -> str:
        where = self.url if self._port else "not started"
        return f"PracticeApi({where}, {self.settings.limit}/{self.settings.window:g}s {self.settings.kind})"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # Its life

    async def start(self) -> None:
        """Listen.

        Raises:
            StartError: The address cannot be listened on.
        """
        if self._listener is not None:
            return
        server = web.Server(
            self._handle, access_log=None, auto_decompress=False, keepalive_timeout=self.settings.keep_alive
        )
        tls: dict[str, Any] = {}
        if self._certificates is not None:
            tls = {"ssl": self._certificates.server_context(), **_TLS_TIMEOUTS}
        try:
            listener = await asyncio.get_running_loop().create_server(
                server, self.settings.host, self._port, backlog=1024, **tls
            )
        except OSError as error:
            raise StartError(
                f"cannot listen on {self.settings.host}:{self._port}: {error.strerror or error}"
            ) from error
        self._server, self._listener = server, listener
        self._port = listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, abort requests in flight and close every connection."""
        if self._listener is None or self._server is None:
            return
        self._listener.close()
        server, self._server, self._listener = self._server, None, None
        transports = [protocol.transport for protocol in server.connections]
        busy = list(self._busy)
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        server.pre_shutdown()
        await server.shutdown(_SHUTDOWN)
        for transport in transports:
            if transport is not None:
                transport.abort()
        for _layer in ("socket", "TLS", "HTTP"):  # each tells the next of the end in a turn of its own
            await asyncio.sleep(0)

    @property
    def port(self) -> int:
        """The port that it listens on; the one asked for before it does."""
        return self._port

    @property
    def url(self) -> str:
        """Where it is, without a slash at the end.

        Raises:
            RuntimeError: It was never started and has no port yet.
        """
        if not self._port:
            raise RuntimeError("the practice API has no address before it is started")
        host = _WILDCARDS.get(self.settings.host, self.settings.host)
        return f"{'https' if self.settings.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def ca_pem(self) -> bytes | None:
        """The certificate of the authority that its own is to be checked with; nothing without TLS."""
        return None if self._certificates is None else self._certificates.ca_pem

    def write_ca(self, path: Path) -> None:
        """Write that certificate into a file.

        Raises:
            RuntimeError: It does not speak TLS.
        """
        if self._certificates is None:
            raise RuntimeError("a practice API without TLS has no certificate authority")
        path.write_bytes(self._certificates.ca_pem)

    # Observations

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """The last 200,000 requests in the order in which they were counted."""
        return self._log.arrivals

    @property
    def throttled(self) -> int:
        """How many requests its limits refused with 429."""
        return self._log.throttled

    def worst(self, window: float, per: Literal["key", "user"] = "key") -> dict[str, int]:
        """For each key (or user) the most requests, refused ones too, in any half-open interval of `window` seconds."""
        return self._log.worst(window, per)

    def name_of(self, key: str) -> str:
        """The name that stands for a key in the log."""
        return self._accounts.name_of(key)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return 0 if self._server is None else len(self._server.connections)

    @property
    def run_collection(self) -> str:
        """The uid of the collection that newman can run."""
        return self._catalogue.named("collection", PRACTICE_RUN).uid

    @property
    def run_environment(self) -> str:
        """The uid of the environment that goes with it."""
        return self._catalogue.named("environment", PRACTICE_RUN).uid

    # Control

    def revoke(self, key: str) -> None:
        """Accept a key no longer."""
        self._accounts.revoke(key)

    def disable(self, key: str) -> None:
        """Know a key, and refuse it with 403."""
        self._accounts.disable(key)

    def restore(self, key: str) -> None:
        """Accept a revoked or disabled key again."""
        self._accounts.restore(key)

    def use_up(self, key: str) -> None:
        """Let the month's plan of a key's user have no requests left."""
        account = self._accounts.find(key)
        if account is not None:
            account.bucket.plan = 0

    def spend(self, key: str, count: int, path: str = "/me") -> int:
        """Somebody else sends requests with a key: they take their places now, and are in no log; returns how many."""
        account = self._accounts.find(key)
        if account is None:
            return 0
        segments = path.strip("/").split("/")
        endpoint = ("GET", segments[0], len(segments))
        return sum(account.bucket.admit(endpoint, self._clock()).allowed for _ in range(count))

    def fail_next(self, count: int, how: FaultKind = "503") -> None:
        """Let the next requests that are counted fail: answered with an error, or their connection reset.

        Raises:
            ValueError: There is no such fault.
        """
        if how not in get_args(FaultKind):
            raise ValueError(f"how must be one of {', '.join(get_args(FaultKind))}")
        self._faults.extend([how] * count)

    def break_down(self, how: FaultKind = "503", *, retry_after: int | None = None) -> None:
        """Let every request that is counted fail from now on, until `recover`.

        Raises:
            ValueError: There is no such fault.
        """
        if how not in get_args(FaultKind):
            raise ValueError(f"how must be one of {', '.join(get_args(FaultKind))}")
        self._broken = (how, retry_after)

    def recover(self) -> None:
        """Answer as before."""
        self._broken = None

    def close_idle_connections(self) -> int:
        """Close the connections on which no request is in flight, as a server may at any time; returns how many."""
        if self._server is None:
            return 0
        busy = set(self._busy.values())
        idle = [protocol for protocol in self._server.connections if protocol not in busy]
        for protocol in idle:
            protocol.force_close()
        return len(idle)

    # A request's way

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._busy[task] = request.protocol
        task.add_done_callback(self._busy.pop)
        try:
            return await self._respond(request)
        except (ConnectionError, web.RequestPayloadError):
            # The caller left, or is to be left; whatever is answered goes nowhere.
            if request.transport is not None:
                request.transport.abort()
            return web.Response()

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        await self._travel()
        case = self._gate.arrive(request, self._clock())
        answer = await self._answer(request, case)
        await self._travel()
        case.record.status = answer.status
        answer.headers.update(case.headers)
        return answer

    async def _travel(self) -> None:
        if self.latency is not None:
            await asyncio.sleep(max(self.latency(), 0))

    async def _answer(self, request: web.BaseRequest, case: Case) -> web.StreamResponse:
        if case.refusal is not None:
            return error_answer(request, case.refusal)
        how, retry_after = self._fault()
        if how is None:
            return await self._endpoints.answer(case.visit)
        if how == "reset":
            _reset(request)
        answer = error_answer(request, failure(int(how)))
        if retry_after is not None:
            answer.headers["Retry-After"] = str(retry_after)
        return answer

    def _fault(self) -> tuple[FaultKind | None, int | None]:
        """How this request fails, and what its answer asks to wait for."""
        if self._faults:
            return self._faults.popleft(), None
        return self._broken or (None, None)


def _reset(request: web.BaseRequest) -> None:
    """Have the connection end in a reset instead of an orderly close.

    Raises:
        ConnectionResetError: Always.
    """
    carrier = request.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError, NotImplementedError):
        carrier.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    raise ConnectionResetError
