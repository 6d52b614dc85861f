"""A Keyturn process: its parts, built from a configuration and tied together, and how long each of them lives.

No room keeps a copy of the configuration: each gets its part here, so that a reload can hand out new parts.
"""

import asyncio
import platform
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from proxy import __version__
from proxy.access import Access
from proxy.app.controls import Controls
from proxy.app.parts import (
    ADMIN_BOUNDS,
    inbound_bounds,
    inbound_tls,
    link_to_store,
    refuse_what_is_not_built,
    replica_name,
    upstream_settings,
)
from proxy.app.pools import Pools, Stations
from proxy.config import Config
from proxy.core.errors import StoreLost
from proxy.core.model import SECOND, Micros
from proxy.gateway import Gateway, Retries
from proxy.joining import Joining
from proxy.stores.links import Link
from proxy.tasks import finish, spawn
from proxy.telemetry import LogLevel, RequestLog, Telemetry
from proxy.upstream import Upstream
from proxy.web.admin import Admin
from proxy.web.forward import POSTMAN_HOSTS, Forward, ForwardSettings
from proxy.web.server import Listener
from proxy.web.status.glance import Glance, Sources
from proxy.web.status.model import ProcessStatus

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
        self._leaving = False
        """Whether it has been told to end; it still serves for `lame_duck`, until it drains."""
        self._draining = False
        self._started = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.log_level = LogLevel(config.log.level)
        self.telemetry = Telemetry(monotonic, wall, RequestLog(config.log.format, config.log.sample))
        self._upstream = Upstream(upstream_settings(config))
        self._link = link_to_store(config)
        replica = replica_name()
        stations = Stations(config, self._link, replica, clock=monotonic, observer=self.telemetry)
        self.pools = Pools(stations, config.pools_of_model())
        self._gateway = Gateway(
            self.pools.dispatches,
            self._upstream,
            retries=Retries(config.retry.attempts, config.retry.budget),
            observer=self.telemetry,
            clock=monotonic,
            wall=wall,
        )
        self._access = Access(
            config.client_models(),
            anonymous=config.anonymous_client(),
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
            self._forward_settings(()),
            clock=monotonic,
            leaving=lambda: self._leaving,
            draining=lambda: self._draining,
        )
        self._data = Listener(
            self._forward,
            config.listen,
            tls=inbound_tls(config),
            socket_mode=config.inbound.socket_mode,
            bounds=inbound_bounds(config),
            observer=self.telemetry,
        )
        self.glance = Glance(self._sources(replica), clock=monotonic, wall=wall)
        admin = Admin(
            self.telemetry.metrics,
            self.unready,
            self.glance,
            Controls(self.pools.dispatches, self.log_level, self.telemetry, monotonic),
            lambda: self._config.admin_token,
        )
        self._admin = Listener(admin, [config.admin], bounds=ADMIN_BOUNDS)

    def _sources(self, replica: str) -> Sources:
        anonymous = self._config.anonymous_client()
        clients = [*self._config.client_models(), *([anonymous] if anonymous else [])]
        process = ProcessStatus(replica, __version__, platform.python_version(), wall())
        return Sources(
            self.pools.stations,
            lambda: clients,
            lambda: replace(process, draining=self._draining, unready=self.unready()),
            lambda: self._data.connections,
            self.telemetry.history,
            "memory" if self._link is None else "redis",
            "" if self._link is None else self._config.store.on_loss,
        )

    def _forward_settings(self, own: tuple[str, ...]) -> ForwardSettings:
        names = {self._upstream.authority, *(url.partition("://")[2] for url in own)}
        return ForwardSettings(
            max_body=self._config.upstream.max_body,
            max_wait=self._config.queue.max_wait,
            max_wait_ceiling=self._config.queue.max_wait_ceiling,
            body_timeout=self._config.inbound.body_timeout,
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
        if self._leaving:
            return ("draining",)
        if self._config.store.on_loss == "refuse" and any(store.lost for store in self.pools.shared()):
            return ("the store does not answer",)
        empty = tuple(f"the pool {name} has no key" for name in self.pools.without_keys)
        return empty if empty or self.pools.can_serve else ("no key can serve: all are quarantined or paused",)

    async def _look_at_store(self, link: Link) -> None:
        """Say once what is wrong with a store that answers; that it does not answer is said when it is needed."""
        with suppress(StoreLost):
            for warning in await link.check(f"{self._config.store.prefix}:{{{next(iter(self.pools.dispatches))}}}"):
                self._log.warning("the store is not fit for its purpose", problem=warning)

    # Life

    async def start(self) -> None:
        """Open everything; when a part fails, what is open is closed again.

        Raises:
            StartError: a port is in use, a certificate cannot be read, and the like.
        """
        try:
            await self._upstream.open()
            await self._access.start()
            await self.pools.start()
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
        await self.pools.failure()

    async def drain(self) -> None:
        """Accept nothing new, and let what waits or is under way end within `drain`; the rest is refused with 503.

        Before that callers are served for `lame_duck`: it is not ready any more, and every answer ends its connection,
        so whoever balances callers has time to notice, and no caller's connection is closed while it is in use.
        """
        self._leaving = True
        if self._config.lame_duck:
            self._log.info("leaving", seconds=self._config.lame_duck / SECOND)
            await asyncio.sleep(self._config.lame_duck / SECOND)
        self._draining = True
        self._log.info("draining", seconds=self._config.drain / SECOND, waiting=self.pools.waiting)
        await self._data.stop_accepting()
        await self._data.quiet(self._config.drain / SECOND)
        self.pools.refuse_all()
        await self._data.quiet(LAST_WORDS)

    async def stop(self) -> None:
        """Close everything at once."""
        self._leaving = self._draining = True
        await self._data.stop(0)
        await self._joining.stop()
        await self._gateway.stop()
        await self.pools.stop()
        await finish(self._tasks)
        if self._link is not None:
            await self._link.close()
        await self._access.stop()
        await self._upstream.close()
        await self._admin.stop(0)
