"""The pools at work: each with the store of its buckets and its waiting room."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from keyturn.config import Config
from keyturn.core.events import Observer
from keyturn.core.model import Client, Micros, Pool
from keyturn.scheduler import Capacity, Scheduler
from keyturn.stores.links import Link
from keyturn.stores.memory import Memory, MemoryStore
from keyturn.stores.redis import RedisStore
from keyturn.stores.shared import SharedStore
from keyturn.tasks import finish, spawn


@dataclass(frozen=True, slots=True)
class Station:
    """Where one pool is at work."""

    store: MemoryStore | SharedStore
    scheduler: Scheduler

    async def start(self) -> None:
        """Begin to exchange, at once: every answer tells what is left, and of a shared store what is wrong."""
        self.store.listen(self.scheduler.wake)
        await self.scheduler.start()
        self.scheduler.wake()

    async def stop(self) -> None:
        """Refuse whoever waits, report the last settlements, and end."""
        await self.scheduler.stop()
        if isinstance(self.store, SharedStore):
            await self.store.close()


class Stations:
    """Builds stations: everything that they have in common."""

    def __init__(
        self, config: Config, link: Link | None, replica: str, *, clock: Callable[[], Micros], observer: Observer
    ) -> None:
        self._config = config
        self._link = link
        self._replica = replica
        self._clock = clock
        self._observer = observer
        self._capacity = Capacity(config.upstream.max_connections)

    def make(self, pool: Pool) -> Station:
        """A new one, not started yet."""
        store = self._store(pool)
        scheduler = Scheduler(
            pool,
            store,
            settle_bound=self._config.upstream.settle_bound,
            max_waiting=self._config.queue.max_waiting,
            clock=self._clock,
            observer=self._observer,
            capacity=self._capacity,
        )
        return Station(store, scheduler)

    def _store(self, pool: Pool) -> MemoryStore | SharedStore:
        settle_bound = self._config.upstream.settle_bound
        if self._link is None:
            return MemoryStore(Memory(self._clock), pool, replica=self._replica, settle_bound=settle_bound)
        store = RedisStore(
            self._link,
            pool,
            prefix=self._config.store.prefix,
            replica=self._replica,
            settle_bound=settle_bound,
            clock=self._clock,
            observer=self._observer,
        )
        return SharedStore(store, on_loss=self._config.store.on_loss, clock=self._clock, observer=self._observer)


class Pools:
    """All of them, from `start` to `stop`."""

    def __init__(self, stations: Stations, pools: Iterable[Pool]) -> None:
        self._make = stations.make
        self._stations = {pool.name: stations.make(pool) for pool in pools}
        self._away: dict[str, Station] = {}
        """Of pools that were taken out: without keys and out of sight, until they come back to what was spent."""
        self.schedulers = {name: station.scheduler for name, station in self._stations.items()}
        """The waiting rooms by the names of their pools; always the same mapping."""
        self._guards: set[asyncio.Task[Any]] = set()
        self._broken: list[Exception] = []
        self._break = asyncio.Event()

    # Life

    async def start(self) -> None:
        """Begin to exchange with the stores."""
        for station in self._stations.values():
            await self._begin(station)

    async def _begin(self, station: Station) -> None:
        await station.start()
        spawn(self._guard(station), name="guard a waiting room", owner=self._guards)

    async def _guard(self, station: Station) -> None:
        try:
            await station.scheduler.failure()
        except Exception as problem:  # noqa: BLE001  # whatever it is, it is told
            self._broken.append(problem)
            self._break.set()

    async def failure(self) -> None:
        """Wait until a waiting room breaks down.

        Raises:
            Exception: what it broke down with.
        """
        await self._break.wait()
        raise self._broken[0]

    async def prepare(self, pools: Iterable[Pool]) -> Mapping[str, Station]:
        """Stations for those of these pools that were never there: at work, but without anybody who knows of them."""
        fresh = {}
        for pool in pools:
            if pool.name not in self._stations and pool.name not in self._away:
                fresh[pool.name] = station = self._make(pool)
                await self._begin(station)
        return fresh

    def adopt(
        self,
        pools: Iterable[Pool],
        clients: Mapping[str, Client],
        *,
        max_waiting: int,
        fresh: Mapping[str, Station],
    ) -> None:
        """Go on with these pools.

        Args:
            pools: all of them.
            clients: everybody who is known, by name.
            max_waiting: requests that may wait in each.
            fresh: what `prepare` has made of those that are new.
        """
        known = {**self._stations, **self._away, **fresh}
        wanted = {pool.name: pool for pool in pools}
        self._stations = {name: known[name] for name in wanted}
        self._away = {name: station for name, station in known.items() if name not in wanted}
        self.schedulers.clear()
        self.schedulers.update({name: station.scheduler for name, station in self._stations.items()})
        for station in self._away.values():
            closed = replace(station.scheduler.pool, keys=())
            station.scheduler.adopt(closed, clients, max_waiting=max_waiting)
        for name, pool in wanted.items():
            self.schedulers[name].adopt(pool, clients, max_waiting=max_waiting)

    def refuse_all(self) -> None:
        """Refuse whoever waits and whoever comes."""
        for station in (*self._stations.values(), *self._away.values()):
            station.scheduler.refuse_all()

    async def stop(self) -> None:
        """Refuse whoever waits, report the last settlements, and end."""
        await finish(self._guards)
        for station in (*self._stations.values(), *self._away.values()):
            await station.stop()

    # What others see

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(scheduler.waiting for scheduler in self.schedulers.values())

    @property
    def without_keys(self) -> list[str]:
        """The pools that cannot serve anything."""
        return [name for name, scheduler in self.schedulers.items() if not scheduler.pool.keys]

    @property
    def can_serve(self) -> bool:
        """Whether any pool has a key that may be used, or may turn out to be."""
        return any(scheduler.health.refusal(scheduler.clock()) is None for scheduler in self.schedulers.values())

    def shared(self) -> list[SharedStore]:
        """The stores that other replicas share."""
        return [station.store for station in self._stations.values() if isinstance(station.store, SharedStore)]

    def stations(self) -> list[Station]:
        """Each of them."""
        return list(self._stations.values())
