"""A Keyturn process: its parts, built from a configuration and connected, and their lifetimes.

No part keeps a copy of the configuration: each gets its settings here, so that a reload can replace them.
"""

import asyncio
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import replace
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Any

from keyturn import __version__
from keyturn.access import Access
from keyturn.app.pools import OperatorControls, PlacementSync, PoolFactory, Pools
from keyturn.app.reload import Reloader
from keyturn.app.resolved_config import (
    ADMIN_BOUNDS,
    ResolvedConfig,
    body_settings,
    inbound_bounds,
    link_to_store,
    replica_name,
    traces,
    upstream_settings,
)
from keyturn.app.resources import trim_memory_periodically
from keyturn.bodies import Bodies, Spool
from keyturn.config import Config, load
from keyturn.core.errors import ConfigError, Problem, StartError
from keyturn.core.model import SECOND, Client, Micros
from keyturn.gateway import Gateway, RetryPolicy
from keyturn.joining import Joining
from keyturn.logger import structlog
from keyturn.stores.memory import LocalPlacements
from keyturn.tasks import finish, spawn
from keyturn.telemetry import AccessLog, LogLevel, LogWriter, Telemetry
from keyturn.upstream import Upstream
from keyturn.web.admin import Admin
from keyturn.web.forward import Forward, ForwardSettings
from keyturn.web.incoming import postman_hosts
from keyturn.web.listener import Listener
from keyturn.web.overload import ByteBudget
from keyturn.web.status.collector import StatusCollector, StatusSources
from keyturn.web.status.replica_status import ProcessStatus

if TYPE_CHECKING:
    from keyturn.stores.links import Link
    from keyturn.stores.shared_placements import Placements

FINAL_RESPONSES_TIMEOUT = 1.0
"""Seconds for the 503s to requests that still wait at the end of the drain."""


def monotonic() -> Micros:
    """The process's monotonic clock, in microseconds."""
    return monotonic_ns() // 1000


def wall() -> Micros:
    """Wall clock time in epoch microseconds, for dates in HTTP and logs; never for limits."""
    return time_ns() // 1000


class App:
    """A Keyturn process: built from a configuration, started, drained, stopped.

    `log` receives the lines of requests; stderr by default.
    """

    def __init__(self, config: Config, environ: Mapping[str, str] = os.environ, log: LogWriter | None = None) -> None:
        self._resolved = resolved = ResolvedConfig.of(config)
        self._environ = environ
        self._log = structlog.get_logger("keyturn")
        self._leaving = False
        """Whether the process was told to end; it serves on for `lame_duck` before it drains."""
        self._draining = False
        self.cut = 0
        """Requests that were not complete at the end of the drain."""
        self._started = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watching: set[asyncio.Task[Any]] = set()
        self.log_level = LogLevel(config.log.level)
        self._access_log = AccessLog(config.log.format, config.log.sample, stream=log)
        self.telemetry = Telemetry(monotonic, wall, self._access_log)
        self._upstream = Upstream(upstream_settings(config), resolved.trust)
        self._link = link_to_store(config)
        replica = replica_name()
        factory = PoolFactory(config, self._link, replica, clock=monotonic, observer=self.telemetry)
        self.pools = Pools(factory, resolved.pools)
        self._placement_sync = self._make_placement_sync(config)
        self._bodies = Bodies(body_settings(config), self.telemetry, monotonic, Spool())
        self._gateway = self._make_gateway(config)
        self._access = Access(
            resolved.clients,
            anonymous=resolved.anonymous,
            key_header=config.upstream.key_header,
            key_query=config.upstream.key_query,
            observer=self.telemetry,
            clock=monotonic,
            wall=wall,
        )
        self._joining = Joining(self._gateway, enabled=config.queue.join, clock=monotonic, observer=self.telemetry)
        self._forward = Forward(
            self._access,
            self._joining,
            self.telemetry,
            self._forward_settings(resolved, ()),
            clock=monotonic,
            leaving=lambda: self._leaving,
            draining=lambda: self._draining,
        )
        self._traces = traces(config, replica)
        if self._traces is not None:
            self._forward.tracer = self._traces
        self._buffers = ByteBudget(config.inbound.max_buffered)
        self._data = self._data_listener(resolved)
        self.status = StatusCollector(self._status_sources(replica, log), clock=monotonic, wall=wall)
        self._admin = Listener(self._admin_pages(), [config.admin], bounds=ADMIN_BOUNDS, buffers=self._buffers)
        self._reloader = Reloader(resolved, self._read_again, self.adopt, self.telemetry)

    def _data_listener(self, resolved: ResolvedConfig) -> Listener:
        config = resolved.config
        return Listener(
            self._forward,
            config.listen,
            tls=resolved.tls,
            socket_mode=config.inbound.socket_mode,
            bounds=inbound_bounds(config),
            buffers=self._buffers,
            observer=self.telemetry,
            proxies=resolved.proxies,
        )

    def _make_gateway(self, config: Config) -> Gateway:
        return Gateway(
            self.pools.schedulers,
            self._upstream,
            retries=RetryPolicy(config.retry.attempts, config.retry.budget),
            observer=self.telemetry,
            clock=monotonic,
            wall=wall,
            bodies=self._bodies,
        )

    def _make_placement_sync(self, config: Config) -> PlacementSync:
        return PlacementSync(self._placements(config), self.pools.schedulers, config.upstream.settle_bound, monotonic)

    def _placements(self, config: Config) -> "Placements":
        if self._link is None:
            return LocalPlacements(monotonic)
        from keyturn.stores.shared_placements import SharedPlacements  # noqa: PLC0415  # as for `link_to_store`

        return SharedPlacements(self._link, config.store.prefix)

    def _admin_pages(self) -> Admin:
        return Admin(
            self.telemetry.metrics,
            self.unready,
            self.status,
            OperatorControls(self.pools.schedulers, self.log_level, self.telemetry, monotonic),
            lambda: self._config.admin_token,
        )

    @property
    def _config(self) -> Config:
        return self._resolved.config

    def _status_sources(self, replica: str, log: LogWriter | None) -> StatusSources:
        process = ProcessStatus(replica, __version__, platform.python_version(), wall())
        return StatusSources(
            self.pools.active,
            self._clients,
            lambda: replace(process, draining=self._leaving, unready=self.unready()),
            lambda: self._data.connections,
            lambda: self._buffers.held,
            lambda: (self._upstream.in_use, self._upstream.limit),
            lambda: 0 if log is None else log.dropped,
            self._gateway.outages,
            lambda: self._bodies.taken,
            self._gateway.higher,
            self.telemetry.history,
            "memory" if self._link is None else "redis",
            "" if self._link is None else self._config.store.on_loss,
        )

    def _clients(self) -> Iterable[Client]:
        return self._resolved.everybody.values()

    def _forward_settings(self, resolved: ResolvedConfig, own: Iterable[str]) -> ForwardSettings:
        config = resolved.config
        names = {self._upstream.authority, *(url.partition("://")[2] for url in own)}
        return ForwardSettings(
            max_body=config.upstream.max_body,
            max_wait=config.queue.max_wait,
            max_wait_ceiling=config.queue.max_wait_ceiling,
            body_timeout=config.inbound.body_timeout,
            hosts=postman_hosts(self._upstream.authority) | {name.lower().encode() for name in names},
            proxies=resolved.proxies,
            forwarded=config.upstream.forwarded,
        )

    # State

    @property
    def data_addresses(self) -> list[str]:
        """Addresses of the data listeners."""
        return self._data.addresses

    @property
    def admin_addresses(self) -> list[str]:
        """Addresses of the admin listener."""
        return self._admin.addresses

    def unready(self) -> tuple[str, ...]:
        """Reasons why requests cannot be served now; an empty bucket is not one."""
        if not self._started:
            return ("starting",)
        if self._leaving:
            return ("draining",)
        if self._config.store.on_loss == "refuse" and any(store.lost for store in self.pools.shared()):
            return ("the store does not respond",)
        if self.pools.can_serve:
            return ()
        empty = tuple(f"the pool {name} has no key" for name in self.pools.without_keys)
        with_keys = len(self.pools.schedulers) > len(empty)
        return (*empty, "no key can serve: all are quarantined or paused") if with_keys else empty

    async def _watch_store(self, link: "Link") -> None:
        from keyturn.stores.fitness import watch  # noqa: PLC0415  # as for `link_to_store`

        def tell(problem: str) -> None:
            self._log.warning("the store is not set up as it should be", problem=problem)

        await watch(link, f"{self._config.store.prefix}:{{{next(iter(self.pools.schedulers))}}}", tell)

    # Reload

    def reload(self) -> None:
        """Read the configuration again now, whether its files have changed or not."""
        self._reloader.request()

    def _read_again(self) -> ResolvedConfig:
        return self._resolved.follow(load(self._config.files.document, self._environ))

    async def adopt(self, resolved: ResolvedConfig) -> None:
        """Apply another configuration as a whole.

        Raises:
            ConfigError: the store's URL is invalid with the new password; then nothing has changed.
        """
        before, config = self._resolved, resolved.config
        self._renew_link(before.config, config)
        fresh = await self.pools.prepare(resolved.pools)
        resting = await self._placement_sync.prepare(resolved.pools)
        # Nothing below is awaited or can fail, so every request sees exactly one configuration.
        self._resolved = resolved
        self.pools.adopt(resolved.pools, resolved.everybody, max_waiting=config.queue.max_waiting, fresh=fresh)
        self._placement_sync.apply(resting)
        self._access.replace(
            resolved.clients,
            anonymous=resolved.anonymous,
            key_header=config.upstream.key_header,
            key_query=config.upstream.key_query,
        )
        self._gateway.adopt(RetryPolicy(config.retry.attempts, config.retry.budget))
        self._bodies.adopt(body_settings(config))
        self._joining.enabled = config.queue.join
        self._upstream.adopt(upstream_settings(config), resolved.trust if resolved.trust_differs(before) else None)
        self._forward.settings = self._forward_settings(resolved, self._data.addresses)
        self._data.adopt(inbound_bounds(config), resolved.proxies)
        self._buffers.limit = config.inbound.max_buffered
        if resolved.tls is not None and resolved.tls_differs(before):
            self._data.renew(resolved.tls)
        self._access_log.sample = config.log.sample
        self.log_level.configured = config.log.level
        if config.log.level != before.config.log.level:
            self.log_level.set(config.log.level)

    def _renew_link(self, before: Config, config: Config) -> None:
        """Use the store's new password, from its own file, for new connections."""
        if self._link is None or config.store_url == before.store_url:
            return
        try:
            self._link.renew(config.store_url.reveal())
        except StartError as error:
            raise ConfigError((Problem("store.url", str(error).removeprefix("store.url: ")),)) from None

    # Lifetime

    async def start(self) -> None:
        """Start everything; if a part fails, stop those that were started.

        Raises:
            StartError: a port is in use, a certificate cannot be read, and so on.
        """
        try:
            await self._upstream.open()
            await self._access.start()
            self._placement_sync.apply(await self._placement_sync.prepare(self._resolved.pools))
            await self._bodies.open()
            await self.pools.start()
            spawn(self._placement_sync.run(), name="place keys", owner=self._tasks)
            if self._link is not None:
                spawn(self._watch_store(self._link), name="watch the store", owner=self._tasks)
            await self._admin.start()
            await self._data.start()
        except BaseException:
            await self.stop()
            raise
        self._forward.settings = self._forward_settings(self._resolved, self._data.addresses)
        self._started = True
        spawn(self._reloader.run(), name="watch the configuration", owner=self._watching)
        trimming = trim_memory_periodically(self._data.most, lambda: self._data.connections)
        spawn(trimming, name="trim memory", owner=self._tasks)

    async def failure(self) -> None:
        """Wait until a part fails that has to run all the time.

        Raises:
            Exception: the error of that part.
        """
        await self.pools.failure()

    async def drain(self) -> None:
        """Let requests complete within `drain`; reject the rest, and new ones, with 503.

        Before that the process serves for `lame_duck` while it is not ready, and closes each connection after a
        response. So load balancers have time to notice, and no connection is closed while it is in use.
        """
        self._leaving = True
        if self._config.lame_duck:
            self._log.info(
                "shutting down: serving on until load balancers notice", seconds=self._config.lame_duck / SECOND
            )
            await asyncio.sleep(self._config.lame_duck / SECOND)
        self._draining = True
        await finish(self._watching)
        self._log.info("draining", seconds=self._config.drain / SECOND, waiting=self.pools.waiting)
        self._data.retire()
        await self._data.quiet(self._config.drain / SECOND)
        self.pools.refuse_all()
        await self._data.quiet(FINAL_RESPONSES_TIMEOUT)
        self.cut = self._data.unfinished
        if self.cut:
            self._log.warning(
                "the drain is over and requests in flight are cut: raise `drain` to give them more time",
                requests=self.cut,
            )

    async def stop(self) -> None:
        """Stop everything at once."""
        self._leaving = self._draining = True
        await finish(self._watching)
        await self._data.stop(0)
        await self._joining.stop()
        await self._gateway.stop()
        await self.pools.stop()
        self._bodies.close()
        await finish(self._tasks)
        if self._link is not None:
            await self._link.close()
        await self._access.stop()
        await self._upstream.close()
        await self._admin.stop(0)
        if self._traces is not None:
            await asyncio.to_thread(self._traces.stop)
