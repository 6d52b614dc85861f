"""A gateway over a real waiting room and an upstream that plays a script, on virtual time."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from keyturn.core.errors import Broken
from keyturn.core.events import RequestLog
from keyturn.core.health import KeySnapshot
from keyturn.core.http import Answer, Body, Fields, Request
from keyturn.core.model import SECOND, Client, Limit, Micros, Secret
from keyturn.gateway import Gateway, RetryPolicy
from keyturn.gateway.sending import REFUSAL_PATIENCE

from tests.core.worlds import limit, pool
from tests.schedulers import RunningScheduler, running_scheduler
from tests.virtual import micros

PLAIN_429 = b'{"error":{"name":"rateLimitError","message":"Rate Limit exceeded."}}'
PLAN_429 = b'{"error":{"name":"serviceLimitExhausted","message":"Plan limit.","details":{"retryAfter":604800}}}'


@dataclass
class FakeBody:
    """An answer's body in parts."""

    parts: list[bytes]
    aborted: bool = False

    async def read(self) -> bytes:
        return self.parts.pop(0) if self.parts else b""

    async def discard(self) -> None:
        self.parts.clear()

    def abort(self) -> None:
        self.aborted = True


class Slow(FakeBody):
    """A body that does not end."""

    async def read(self) -> bytes:
        await asyncio.sleep(REFUSAL_PATIENCE / 2)
        return b"x"


class Breaking(FakeBody):
    """A body that breaks off behind its parts."""

    async def read(self) -> bytes:
        if not self.parts:
            raise Broken("broke off")
        return self.parts.pop(0)


def answer(status: int = 200, body: bytes = b"{}", *fields: tuple[bytes, bytes]) -> Answer:
    """An answer of the upstream."""
    return Answer(status, b"", fields, FakeBody([body]))


def error(name: str, message: str = "", **more: object) -> bytes:
    """The body of an error in the API's own shape."""
    return json.dumps({"error": {"name": name, "message": message, **more}}).encode()


KEY_INVALID = error("AuthenticationError", "Invalid API Key. Every request requires a valid API Key to be sent.")
NOT_AUTHORIZED = error("Unauthorized", "You are not authorized to perform this action.")

Happened = TypeVar("Happened")
Step = Answer | Exception | Callable[[], Awaitable[Answer]]


@dataclass
class FakeUpstream:
    """Plays a script: an answer, an error, or what is to be awaited, for each time that bytes go out."""

    script: list[Step]
    connecting: list[Exception | float] = field(default_factory=list)
    """For each connection: an error, or how long it takes."""
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    """Key and body of each request that went out."""
    put_backs: int = 0
    fresh: int = 0
    """Connections that had to be new."""
    trip: float = 0.1
    """Seconds from the request to the head of its answer."""
    rule: Callable[[str, Request], Answer | Exception | None] = lambda _key, _request: None
    """Answer to a key and a request at the end of the script; `None`: 200."""
    arrived: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Key, method and target of each request that went out."""
    limit: int = 1
    full: bool = False
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a connection is free again."""

    def idle_connection(self) -> None:
        """Every connection is asked for."""

    async def wait_until_free(self) -> None:
        await self.freed.wait()

    async def connect(self, *, fresh: bool = False) -> "FakeUpstream":
        self.fresh += fresh
        step = self.connecting.pop(0) if self.connecting else 0.0
        if isinstance(step, Exception):
            raise step
        await asyncio.sleep(step)
        return self

    def put_back(self) -> None:
        self.put_backs += 1

    async def send(
        self, request: Request, key: Secret, extra: Fields, *, body: Body | None, on_written: Callable[[], None]
    ) -> Answer:
        number = len(self.sent)
        self.sent.append((key.reveal(), b""))
        self.arrived.append((key.reveal(), request.method, request.target))
        if body is not None:
            data = b"".join([part async for part in body.chunks()])
            self.sent[number] = (key.reveal(), data)
        on_written()
        await asyncio.sleep(self.trip)
        step = self.script.pop(0) if self.script else self.rule(key.reveal(), request) or answer()
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, Answer) else await step()


@dataclass
class Bytes:
    """A request's body."""

    data: bytes

    @property
    def length(self) -> int | None:
        return len(self.data)

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.data), 65_536):
            yield self.data[start : start + 65_536]


@dataclass
class Setting:
    """A gateway over a fake upstream."""

    room: RunningScheduler
    upstream: FakeUpstream
    gateway: Gateway
    log: RequestLog = field(default_factory=lambda: RequestLog(id="id-1"))

    @property
    def keys(self) -> list[str]:
        """The keys that went out, in order."""
        return [key for key, _, _ in self.upstream.arrived]

    def request(
        self,
        method: str = "GET",
        body: Body | None = None,
        *,
        path: str = "/me",
        wait: Micros = 300 * SECOND,
        pinned: str | None = None,
        client: str = "a",
    ) -> Request:
        return Request("id-1", Client(client, pin=True), method, path.encode(), path, (), body, 3, wait, pinned)

    async def ask(self, request: Request | None = None) -> Answer:
        async with self.gateway.handle(request or self.request(), self.log) as got:
            return got

    def looks(self) -> tuple[KeySnapshot, ...]:
        """Every key as it stands."""
        return tuple(self.room.scheduler.health.snapshots(micros()))

    def pause(self, key: str) -> None:
        """As an operator does."""
        assert self.room.scheduler.health.pause(key, micros())
        self.room.scheduler.apply_health()

    def resume(self, key: str) -> None:
        """As an operator does."""
        assert self.room.scheduler.health.resume(key, micros())
        self.room.scheduler.apply_health()

    def happened(self, kind: type[Happened]) -> list[Happened]:
        return [event for event in self.room.recorder.events if isinstance(event, kind)]


@asynccontextmanager
async def setting(
    *script: Step,
    quotas: int = 2,
    requests: int = 3,
    limits: tuple[Limit, ...] = (),
    retries: RetryPolicy | None = None,
) -> AsyncIterator[Setting]:
    """A gateway over a room and an upstream that plays the script; in the end everything is accounted for."""
    async with running_scheduler(pool(quotas, *(limits or (limit(requests),)))) as it:
        upstream = FakeUpstream(list(script))
        gateway = Gateway(
            {"default": it.scheduler},
            upstream,
            retries=retries or RetryPolicy(),
            observer=it.recorder,
            clock=micros,
            wall=micros,
            chance=lambda: 0.5,
        )
        yield Setting(it, upstream, gateway)
        await gateway.stop()
        await it.settled()
        it.check_empty()
