"""A Keyturn process: its parts, built from a configuration and tied together, and how long each of them lives.

No room keeps a copy of the configuration: each gets its part here, so that a reload can hand out new parts.
"""

import asyncio
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import replace
from time import monotonic_ns, time_ns
from typing import Any

import structlog

from keyturn import __version__
from keyturn.access import Access
from keyturn.app.controls import Controls
from keyturn.app.parts import (
    ADMIN_BOUNDS,
    body_settings,
    inbound_bounds,
    link_to_store,
    replica_name,
    traces,
    upstream_settings,
)
from keyturn.app.placing import Placing
from keyturn.app.plan import Plan
from keyturn.app.pools import Pools, Stations
from keyturn.app.trimming import trim_behind_crowds
from keyturn.bodies import Bodies, Spool
from keyturn.config import Config, load
from keyturn.core.errors import ConfigError, Problem, StartError
from keyturn.core.model import SECOND, Client, Micros
from keyturn.gateway import Gateway, RetryPolicy
from keyturn.joining import Joining
from keyturn.reload import Reloader
from keyturn.stores.fitness import watch
from keyturn.stores.links import Link
from keyturn.stores.placements import placements_of
from keyturn.tasks import finish, spawn
from keyturn.telemetry import AccessLog, LogLevel, LogWriter, Telemetry
from keyturn.upstream import Upstream
from keyturn.web.admin import Admin
from keyturn.web.forward import Forward, ForwardSettings
from keyturn.web.incoming import postman_hosts
from keyturn.web.listener import Listener
from keyturn.web.overload import ByteBudget
from keyturn.web.status.glance import Glance, Sources
from keyturn.web.status.model import ProcessStatus

LAST_WORDS = 1.0
"""Seconds for the 503s to those who still wait when the drain is over."""


def monotonic() -> Micros:
    """The process's monotonic clock, in microseconds."""
    return monotonic_ns() // 1000


def wall() -> Micros:
    """Local time in epoch microseconds, for what HTTP writes as a date; never for limits."""
    return time_ns() // 1000


class App:
    """A Keyturn process: built from a configuration, started, drained, stopped.

    `log` is where the lines of its requests go, else to stderr.
    """

    def __init__(self, config: Config, environ: Mapping[str, str] = os.environ, log: LogWriter | None = None) -> None:
        self._plan = plan = Plan.of(config)
        self._environ = environ
        self._log = structlog.get_logger("keyturn")
        self._leaving = False
        """Whether it has been told to end; it still serves for `lame_duck`, until it drains."""
        self._draining = False
        self.cut = 0
        """Requests that were not answered as a whole when the drain was over."""
        self._started = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watching: set[asyncio.Task[Any]] = set()
        self.log_level = LogLevel(config.log.level)
        self._access_log = AccessLog(config.log.format, config.log.sample, stream=log)
        self.telemetry = Telemetry(monotonic, wall, self._access_log)
        self._upstream = Upstream(upstream_settings(config), plan.trust)
        self._link = link_to_store(config)
        replica = replica_name()
        stations = Stations(config, self._link, replica, clock=monotonic, observer=self.telemetry)
        self.pools = Pools(stations, plan.pools)
        self._placing = self._keys_placed(config)
        self._bodies = Bodies(body_settings(config), self.telemetry, monotonic, Spool())
        self._gateway = self._make_gateway(config)
        self._access = Access(
            plan.clients,
            anonymous=plan.anonymous,
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
            self._forward_settings(plan, ()),
            clock=monotonic,
            leaving=lambda: self._leaving,
            draining=lambda: self._draining,
        )
        self._traces = traces(config, replica)
        if self._traces is not None:
            self._forward.tracer = self._traces
        self._buffers = ByteBudget(config.inbound.max_buffered)
        self._data = self._data_listener(plan)
        self.glance = Glance(self._sources(replica, log), clock=monotonic, wall=wall)
        self._admin = Listener(self._admin_pages(), [config.admin], bounds=ADMIN_BOUNDS, buffers=self._buffers)
        self._reloader = Reloader(plan, self._read_again, self.adopt, self.telemetry)

    def _data_listener(self, plan: Plan) -> Listener:
        config = plan.config
        return Listener(
            self._forward,
            config.listen,
            tls=plan.tls,
            socket_mode=config.inbound.socket_mode,
            bounds=inbound_bounds(config),
            buffers=self._buffers,
            observer=self.telemetry,
            proxies=plan.proxies,
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

    def _keys_placed(self, config: Config) -> Placing:
        placements = placements_of(self._link, config.store.prefix, monotonic)
        return Placing(placements, self.pools.schedulers, config.upstream.settle_bound, monotonic)

    def _admin_pages(self) -> Admin:
        return Admin(
            self.telemetry.metrics,
            self.unready,
            self.glance,
            Controls(self.pools.schedulers, self.log_level, self.telemetry, monotonic),
            lambda: self._config.admin_token,
        )

    @property
    def _config(self) -> Config:
        return self._plan.config

    def _sources(self, replica: str, log: LogWriter | None) -> Sources:
        process = ProcessStatus(replica, __version__, platform.python_version(), wall())
        return Sources(
            self.pools.stations,
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
        return self._plan.everybody.values()

    def _forward_settings(self, plan: Plan, own: Iterable[str]) -> ForwardSettings:
        config = plan.config
        names = {self._upstream.authority, *(url.partition("://")[2] for url in own)}
        return ForwardSettings(
            max_body=config.upstream.max_body,
            max_wait=config.queue.max_wait,
            max_wait_ceiling=config.queue.max_wait_ceiling,
            body_timeout=config.inbound.body_timeout,
            hosts=postman_hosts(self._upstream.authority) | {name.lower().encode() for name in names},
            proxies=plan.proxies,
            forwarded=config.upstream.forwarded,
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
        if self._leaving:
            return ("draining",)
        if self._config.store.on_loss == "refuse" and any(store.lost for store in self.pools.shared()):
            return ("the store does not answer",)
        if self.pools.can_serve:
            return ()
        empty = tuple(f"the pool {name} has no key" for name in self.pools.without_keys)
        with_keys = len(self.pools.schedulers) > len(empty)
        return (*empty, "no key can serve: all are quarantined or paused") if with_keys else empty

    async def _watch_store(self, link: Link) -> None:
        def tell(problem: str) -> None:
            self._log.warning("the store is not fit for its purpose", problem=problem)

        await watch(link, f"{self._config.store.prefix}:{{{next(iter(self.pools.schedulers))}}}", tell)

    # Another configuration

    def reload(self) -> None:
        """Read the configuration again now, whether its files have changed or not."""
        self._reloader.ask()

    def _read_again(self) -> Plan:
        return self._plan.follow(load(self._config.files.document, self._environ))

    async def adopt(self, plan: Plan) -> None:
        """Go on with another configuration, as a whole.

        Raises:
            ConfigError: the store's URL with another password is none; then nothing has changed.
        """
        before, config = self._plan, plan.config
        self._renew_link(before.config, config)
        fresh = await self.pools.prepare(plan.pools)
        resting = await self._placing.prepare(plan.pools)
        # From here on nothing is awaited, so that every request meets one configuration, and nothing can fail.
        self._plan = plan
        self.pools.adopt(plan.pools, plan.everybody, max_waiting=config.queue.max_waiting, fresh=fresh)
        self._placing.apply(resting)
        self._access.replace(
            plan.clients,
            anonymous=plan.anonymous,
            key_header=config.upstream.key_header,
            key_query=config.upstream.key_query,
        )
        self._gateway.adopt(RetryPolicy(config.retry.attempts, config.retry.budget))
        self._bodies.adopt(body_settings(config))
        self._joining.enabled = config.queue.join
        self._upstream.adopt(upstream_settings(config), plan.trust if plan.trust_differs(before) else None)
        self._forward.settings = self._forward_settings(plan, self._data.addresses)
        self._data.adopt(inbound_bounds(config), plan.proxies)
        self._buffers.limit = config.inbound.max_buffered
        if plan.tls is not None and plan.tls_differs(before):
            self._data.renew(plan.tls)
        self._access_log.sample = config.log.sample
        self.log_level.configured = config.log.level
        if config.log.level != before.config.log.level:
            self.log_level.set(config.log.level)

    def _renew_link(self, before: Config, config: Config) -> None:
        """Take the store's new password, which stands in a file of its own, for the next connection."""
        if self._link is None or config.store_url == before.store_url:
            return
        try:
            self._link.renew(config.store_url.reveal())
        except StartError as error:
            raise ConfigError((Problem("store.url", str(error).removeprefix("store.url: ")),)) from None

    # Life

    async def start(self) -> None:
        """Open everything; when a part fails, what is open is closed again.

        Raises:
            StartError: a port is in use, a certificate cannot be read, and the like.
        """
        try:
            await self._upstream.open()
            await self._access.start()
            self._placing.apply(await self._placing.prepare(self._plan.pools))
            await self._bodies.open()
            await self.pools.start()
            spawn(self._placing.run(), name="place keys", owner=self._tasks)
            if self._link is not None:
                spawn(self._watch_store(self._link), name="watch the store", owner=self._tasks)
            await self._admin.start()
            await self._data.start()
        except BaseException:
            await self.stop()
            raise
        self._forward.settings = self._forward_settings(self._plan, self._data.addresses)
        self._started = True
        spawn(self._reloader.run(), name="watch the configuration", owner=self._watching)
        trimming = trim_behind_crowds(self._data.most, lambda: self._data.connections)
        spawn(trimming, name="give memory back", owner=self._tasks)

    async def failure(self) -> None:
        """Wait until a part that must not end breaks down.

        Raises:
            Exception: what it broke down with.
        """
        await self.pools.failure()

    async def drain(self) -> None:
        """Let what waits or is under way end within `drain`; the rest, and whoever still comes, is refused with 503.

        Before that callers are served for `lame_duck`: it is not ready any more, and every answer ends its connection,
        so whoever balances callers has time to notice, and no caller's connection is closed while it is in use.
        """
        self._leaving = True
        if self._config.lame_duck:
            self._log.info("leaving", seconds=self._config.lame_duck / SECOND)
            await asyncio.sleep(self._config.lame_duck / SECOND)
        self._draining = True
        await finish(self._watching)
        self._log.info("draining", seconds=self._config.drain / SECOND, waiting=self.pools.waiting)
        self._data.retire()
        await self._data.quiet(self._config.drain / SECOND)
        self.pools.refuse_all()
        await self._data.quiet(LAST_WORDS)
        self.cut = self._data.unfinished
        if self.cut:
            self._log.warning("the drain is over: what is under way is cut. See `drain`", requests=self.cut)

    async def stop(self) -> None:
        """Close everything at once."""
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
