"""The pools at work: each with the store of its buckets and its waiting room."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from proxy.config import Config
from proxy.core.events import Observer
from proxy.core.model import Micros, Pool
from proxy.dispatch import Dispatch
from proxy.stores.links import Link
from proxy.stores.memory import Memory, MemoryStore
from proxy.stores.redis import RedisStore
from proxy.stores.shared import SharedStore


@dataclass(frozen=True, slots=True)
class Station:
    """Where one pool is at work."""

    store: MemoryStore | SharedStore
    dispatch: Dispatch

    async def start(self) -> None:
        """Begin to exchange."""
        self.store.listen(self.dispatch.wake)
        await self.dispatch.start()

    async def stop(self) -> None:
        """Refuse whoever waits, report the last settlements, and end."""
        await self.dispatch.stop()
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

    def make(self, pool: Pool) -> Station:
        """A new one, not started yet."""
        store = self._store(pool)
        dispatch = Dispatch(
            pool,
            store,
            settle_bound=self._config.upstream.settle_bound,
            max_waiting=self._config.queue.max_waiting,
            clock=self._clock,
            observer=self._observer,
        )
        return Station(store, dispatch)

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
        self._stations = {pool.name: stations.make(pool) for pool in pools}
        self.dispatches = {name: station.dispatch for name, station in self._stations.items()}
        """The waiting rooms by the names of their pools."""

    # Life

    async def start(self) -> None:
        """Begin to exchange with the stores."""
        for station in self._stations.values():
            await station.start()

    async def failure(self) -> None:
        """Wait until a waiting room breaks down.

        Raises:
            Exception: what it broke down with.
        """
        await asyncio.gather(*(dispatch.failure() for dispatch in self.dispatches.values()))

    def refuse_all(self) -> None:
        """Refuse whoever waits and whoever comes."""
        for dispatch in self.dispatches.values():
            dispatch.refuse_all()

    async def stop(self) -> None:
        """Refuse whoever waits, report the last settlements, and end."""
        for station in self._stations.values():
            await station.stop()

    # What others see

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(dispatch.waiting for dispatch in self.dispatches.values())

    @property
    def without_keys(self) -> list[str]:
        """The pools that cannot serve anything."""
        return [name for name, dispatch in self.dispatches.items() if not dispatch.pool.keys]

    @property
    def can_serve(self) -> bool:
        """Whether any pool has a key that may be used, or may turn out to be."""
        return any(dispatch.health.refusal(dispatch.clock()) is None for dispatch in self.dispatches.values())

    def shared(self) -> list[SharedStore]:
        """The stores that other replicas share."""
        return [station.store for station in self._stations.values() if isinstance(station.store, SharedStore)]

    def stations(self) -> list[Station]:
        """Each of them."""
        return list(self._stations.values())
