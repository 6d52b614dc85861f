"""The composition root: the only place that builds things, and owns how long they live.

No room keeps a copy of the configuration: each gets its part here, so that a reload can hand out new parts.
"""

import asyncio
import gc
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import structlog

from proxy.access import Access
from proxy.config import Config
from proxy.core.errors import ConfigError, Problem, StartError, StoreLost
from proxy.core.events import BucketLevel, Levels
from proxy.core.model import SECOND, Micros, Pool
from proxy.dispatch import Dispatch
from proxy.gateway import Gateway, Retries
from proxy.stores.links import Link
from proxy.stores.memory import Memory, MemoryStore
from proxy.stores.redis import RedisStore
from proxy.stores.shared import SharedStore
from proxy.tasks import finish, spawn
from proxy.telemetry import Telemetry
from proxy.upstream import Upstream, UpstreamSettings
from proxy.web.admin import Admin
from proxy.web.forward import POSTMAN_HOSTS, Forward, ForwardSettings
from proxy.web.server import Listener

LAST_WORDS = 1.0
"""Seconds for the 503s to those who still wait when the drain is over."""


def monotonic() -> Micros:
    """The process's monotonic clock, in microseconds."""
    return time.monotonic_ns() // 1000


def wall() -> Micros:
    """Local time in epoch microseconds, for what HTTP writes as a date; never for limits."""
    return time.time_ns() // 1000


class App:
    """A Keyturn process: built from a configuration, started, drained, stopped."""

    def __init__(self, config: Config) -> None:
        refuse_what_is_not_built(config)
        self._config = config
        self._log = structlog.get_logger("keyturn")
        self._draining = False
        self._started = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.telemetry = Telemetry()
        self._upstream = Upstream(
            UpstreamSettings(
                url=config.upstream.url,
                ca=config.upstream.ca,
                connect_timeout=config.upstream.connect_timeout,
                response_timeout=config.upstream.response_timeout,
                max_connections=config.upstream.max_connections,
                key_header=config.upstream.key_header,
            )
        )
        self._pools = config.pools_of_model()
        self._link = _link(config)
        replica = _replica()
        self._stores = {pool.name: self._store(pool, replica) for pool in self._pools}
        self.dispatches = {pool.name: self._dispatch(pool) for pool in self._pools}
        gateway = Gateway(
            self.dispatches,
            self._upstream,
            retries=Retries(config.retry.attempts, config.retry.budget),
            observer=self.telemetry,
            clock=monotonic,
            wall=wall,
        )
        access = Access(
            config.client_models(),
            anonymous=config.anonymous_client(),
            key_header=config.upstream.key_header,
            key_query=config.upstream.key_query,
            observer=self.telemetry,
            clock=monotonic,
            wall=wall,
        )
        self._access = access
        self._forward = Forward(
            access,
            gateway,
            self.telemetry,
            self._forward_settings(()),
            clock=monotonic,
            draining=lambda: self._draining,
        )
        self._data = Listener(self._forward, config.listen, tls=_inbound_tls(config))
        self._admin = Listener(Admin(self.telemetry.metrics, self.unready), [config.admin])
        self.telemetry.metrics.watch(self.levels)

    def _store(self, pool: Pool, replica: str) -> MemoryStore | SharedStore:
        settle_bound = self._config.upstream.settle_bound
        if self._link is None:
            return MemoryStore(Memory(monotonic), pool, replica=replica, settle_bound=settle_bound)
        store = RedisStore(
            self._link,
            pool,
            prefix=self._config.store.prefix,
            replica=replica,
            settle_bound=settle_bound,
            clock=monotonic,
            observer=self.telemetry,
        )
        return SharedStore(store, on_loss=self._config.store.on_loss, clock=monotonic, observer=self.telemetry)

    def _dispatch(self, pool: Pool) -> Dispatch:
        return Dispatch(
            pool,
            self._stores[pool.name],
            settle_bound=self._config.upstream.settle_bound,
            max_waiting=self._config.queue.max_waiting,
            clock=monotonic,
            observer=self.telemetry,
        )

    def _forward_settings(self, own: tuple[str, ...]) -> ForwardSettings:
        names = {self._upstream.authority, *(url.partition("://")[2] for url in own)}
        return ForwardSettings(
            max_body=self._config.upstream.max_body,
            max_wait=self._config.queue.max_wait,
            max_wait_ceiling=self._config.queue.max_wait_ceiling,
            hosts=POSTMAN_HOSTS | {name.lower().encode() for name in names},
        )

    # What others see

    @property
    def data_addresses(self) -> list[str]:
        """Where callers connect."""
        return self._data.addresses

    @property
    def admin_addresses(self) -> list[str]:
        """Where health and metrics are."""
        return self._admin.addresses

    def unready(self) -> tuple[str, ...]:
        """Why requests cannot be served now; an empty bucket is no reason."""
        if not self._started:
            return ("starting",)
        if self._draining:
            return ("draining",)
        if self._config.store.on_loss == "refuse" and any(store.lost for store in self._shared()):
            return ("the store does not answer",)
        return tuple(f"the pool {pool.name} has no key" for pool in self._pools if not pool.keys)

    def _shared(self) -> list[SharedStore]:
        return [store for store in self._stores.values() if isinstance(store, SharedStore)]

    async def _look_at_store(self, link: Link) -> None:
        """Say once what is wrong with a store that answers; that it does not answer is said when it is needed."""
        with suppress(StoreLost):
            for warning in await link.check(f"{self._config.store.prefix}:{{{self._pools[0].name}}}"):
                self._log.warning("the store is not fit for its purpose", problem=warning)

    def levels(self) -> Levels:
        """The gauges of this moment."""
        return Levels(
            buckets=[level for pool in self._pools for level in self._buckets(pool)],
            lanes=[level for dispatch in self.dispatches.values() for level in dispatch.levels()],
            in_flight=[(name, dispatch.in_flight) for name, dispatch in self.dispatches.items()],
            store_up=not any(store.lost for store in self._shared()),
            degraded=max((store.degraded for store in self._shared()), default=0.0),
        )

    def _buckets(self, pool: Pool) -> Iterator[BucketLevel]:
        store = self._stores[pool.name]
        if isinstance(store, SharedStore):
            return
        for quota, index, at_hand in store.levels():
            limit = pool.limits[index]
            yield BucketLevel(pool.name, quota, limit.name, at_hand, limit.requests)

    # Life

    async def start(self) -> None:
        """Open everything; when a part fails, what is open is closed again.

        Raises:
            StartError: a port is in use, a certificate cannot be read, and the like.
        """
        try:
            await self._upstream.open()
            await self._access.start()
            for name, dispatch in self.dispatches.items():
                self._stores[name].listen(dispatch.wake)
                await dispatch.start()
            if self._link is not None:
                spawn(self._look_at_store(self._link), name="look at the store", owner=self._tasks)
            await self._admin.start()
            await self._data.start()
        except BaseException:
            await self.stop()
            raise
        self._forward.settings = self._forward_settings(tuple(self._data.addresses))
        self._started = True

    async def failure(self) -> None:
        """Wait until a part that must not end breaks down.

        Raises:
            Exception: what it broke down with.
        """
        await asyncio.gather(*(dispatch.failure() for dispatch in self.dispatches.values()))

    async def drain(self) -> None:
        """Accept nothing new, and let what waits or is under way end within `drain`; the rest is refused with 503."""
        self._draining = True
        self._log.info("draining", seconds=self._config.drain / SECOND, waiting=self._waiting())
        await self._data.stop_accepting()
        await self._data.quiet(self._config.drain / SECOND)
        for dispatch in self.dispatches.values():
            dispatch.refuse_all()
        await self._data.quiet(LAST_WORDS)

    def _waiting(self) -> int:
        return sum(dispatch.waiting for dispatch in self.dispatches.values())

    async def stop(self) -> None:
        """Close everything at once."""
        self._draining = True
        await self._data.stop(0)
        for dispatch in self.dispatches.values():
            await dispatch.stop()
        await finish(self._tasks)
        for store in self._shared():
            await store.close()
        if self._link is not None:
            await self._link.close()
        await self._access.stop()
        await self._upstream.close()
        await self._admin.stop(0)


async def serve_until_told(app: App, announce: Callable[[str], None]) -> int:
    """Run until SIGTERM or SIGINT, drain, and return the exit code; a second signal ends at once with 1."""
    told, again = asyncio.Event(), asyncio.Event()
    with _signals(lambda: again.set() if told.is_set() else told.set()):
        await app.start()
        _settle_memory()
        try:
            announce(f"ready data={','.join(app.data_addresses)} admin={','.join(app.admin_addresses)}")
            await _first(told.wait(), app.failure())
            return await _drain_unless(app, again)
        finally:
            await app.stop()


def _settle_memory() -> None:
    """Leave what was made at start out of every later garbage collection: it stays for good."""
    gc.collect()
    gc.freeze()


async def until_told(begin: Callable[[], None]) -> None:
    """Call `begin`, then wait for SIGTERM or SIGINT; one that comes early is not missed."""
    told = asyncio.Event()
    with _signals(told.set):
        begin()
        await told.wait()


async def _drain_unless(app: App, again: asyncio.Event) -> int:
    """Drain; 0 when it came to its end, 1 when it was cut short."""
    await _first(app.drain(), again.wait())
    return 1 if again.is_set() else 0


async def _first(*alternatives: Coroutine[Any, Any, object]) -> None:
    """Run them beside each other until the first has ended, and end the others; raises what that one raised."""
    tasks: set[asyncio.Task[Any]] = set()
    try:
        running = [spawn(work, name="until told", owner=tasks) for work in alternatives]
        ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        await finish(tasks)


@contextmanager
def _signals(handle: Callable[[], object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            with suppress(ValueError):
                loop.remove_signal_handler(number)


def _replica() -> str:
    """A name that no other process has, not even an earlier one of this container."""
    host = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in socket.gethostname())
    return f"{host or 'host'}-{os.getpid()}-{os.urandom(4).hex()}"


def _link(config: Config) -> Link | None:
    url = config.store.url
    if url.scheme == "memory":
        return None
    try:
        return Link(url.reveal(), shown=url.shown, timeout=config.store.timeout)
    except StartError as problem:
        raise ConfigError((Problem("store.url", str(problem).removeprefix("store.url: ")),)) from None


def _inbound_tls(config: Config) -> ssl.SSLContext | None:
    if config.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.tls.cert, config.tls.key)
    except (OSError, ssl.SSLError) as error:
        message = f"no certificate and private key that belong together, in PEM ({type(error).__name__})"
        raise ConfigError((Problem("tls", message),)) from None
    if config.tls.client_ca is not None:
        try:
            context.load_verify_locations(config.tls.client_ca)
        except (OSError, ssl.SSLError):
            raise ConfigError((Problem("tls.client_ca", "no certificate in PEM"),)) from None
        optional = config.tls.client_certificate == "optional"
        context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
    return context


def refuse_what_is_not_built(config: Config) -> None:
    """Refuse settings that this version reads but cannot carry out: better than to ignore them.

    Raises:
        ConfigError: with a problem for each.
    """
    problems: list[Problem] = []
    if config.upstream.forwarded:
        problems.append(Problem("upstream.forwarded", "this version does not tell callers' addresses: leave it out"))
    if problems:
        raise ConfigError(tuple(problems))
