"""The pools in use, each with its store and its scheduler, and what operators may do to their keys."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from keyturn.config import Config
from keyturn.core.errors import StoreLost
from keyturn.core.events import KeySwitched, Observer
from keyturn.core.exchange import LEASE_LIFETIME
from keyturn.core.model import SECOND, Client, Micros, Pool
from keyturn.core.placements import BEAT, MAX_WINDOW_REST, Placement, Rest, placement_of, rests
from keyturn.scheduler import ConcurrencyLimit, Scheduler
from keyturn.stores.memory import Memory, MemoryStore
from keyturn.tasks import finish, spawn
from keyturn.telemetry.logs import LogLevel

if TYPE_CHECKING:
    from keyturn.stores.links import Link
    from keyturn.stores.shared import SharedStore
    from keyturn.stores.shared_placements import Placements


@dataclass(frozen=True, slots=True)
class ActivePool:
    """A pool in use: its store and its scheduler."""

    store: "MemoryStore | SharedStore"
    scheduler: Scheduler

    async def start(self) -> None:
        """Start, with a first exchange at once: it shows what is available, and whether a shared store works."""
        self.store.listen(self.scheduler.wake)
        await self.scheduler.start()
        self.scheduler.wake()

    async def stop(self) -> None:
        """Reject waiting requests, report the last settlements, and stop."""
        await self.scheduler.stop()
        if not isinstance(self.store, MemoryStore):
            await self.store.close()


class PoolFactory:
    """Builds active pools from what they have in common."""

    def __init__(
        self, config: Config, link: "Link | None", replica: str, *, clock: Callable[[], Micros], observer: Observer
    ) -> None:
        self._config = config
        self._link = link
        self._replica = replica
        self._clock = clock
        self._observer = observer
        self._limit = ConcurrencyLimit(config.upstream.max_connections)

    def make(self, pool: Pool) -> ActivePool:
        """Build one, not started yet."""
        store = self._store(pool)
        scheduler = Scheduler(
            pool,
            store,
            settle_bound=self._config.upstream.settle_bound,
            max_waiting=self._config.queue.max_waiting,
            clock=self._clock,
            observer=self._observer,
            limit=self._limit,
        )
        return ActivePool(store, scheduler)

    def _store(self, pool: Pool) -> "MemoryStore | SharedStore":
        settle_bound = self._config.upstream.settle_bound
        if self._link is None:
            return MemoryStore(Memory(self._clock), pool, replica=self._replica, settle_bound=settle_bound)
        from keyturn.stores.redis import RedisStore  # noqa: PLC0415  # as for `link_to_store`
        from keyturn.stores.shared import SharedStore  # noqa: PLC0415

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
    """All pools in use, from `start` to `stop`."""

    def __init__(self, factory: PoolFactory, pools: Iterable[Pool]) -> None:
        self._make = factory.make
        self._active = {pool.name: factory.make(pool) for pool in pools}
        self._removed: dict[str, ActivePool] = {}
        """Pools that were removed: kept without keys, so that what was spent still counts if they come back."""
        self.schedulers = {name: active.scheduler for name, active in self._active.items()}
        """The schedulers by pool name; always the same mapping."""
        self._watchers: set[asyncio.Task[Any]] = set()
        self._failures: list[Exception] = []
        self._failed = asyncio.Event()

    # Life

    async def start(self) -> None:
        """Start all pools."""
        for active in self._active.values():
            await self._begin(active)

    async def _begin(self, active: ActivePool) -> None:
        await active.start()
        spawn(self._watch(active), name="watch a scheduler", owner=self._watchers)

    async def _watch(self, active: ActivePool) -> None:
        try:
            await active.scheduler.failure()
        except Exception as problem:  # noqa: BLE001  # raised again by `failure`
            self._failures.append(problem)
            self._failed.set()

    async def failure(self) -> None:
        """Wait until a scheduler fails.

        Raises:
            Exception: the error of the scheduler.
        """
        await self._failed.wait()
        raise self._failures[0]

    async def prepare(self, pools: Iterable[Pool]) -> Mapping[str, ActivePool]:
        """Build and start the pools that are new, without using them yet."""
        fresh = {}
        for pool in pools:
            if pool.name not in self._active and pool.name not in self._removed:
                fresh[pool.name] = active = self._make(pool)
                await self._begin(active)
        return fresh

    def adopt(
        self,
        pools: Iterable[Pool],
        clients: Mapping[str, Client],
        *,
        max_waiting: int,
        fresh: Mapping[str, ActivePool],
    ) -> None:
        """Use these pools from now on.

        Args:
            pools: all pools of the configuration.
            clients: all known clients, by name.
            max_waiting: requests that may wait in each pool.
            fresh: the new pools that `prepare` built.
        """
        known = {**self._active, **self._removed, **fresh}
        wanted = {pool.name: pool for pool in pools}
        self._active = {name: known[name] for name in wanted}
        self._removed = {name: active for name, active in known.items() if name not in wanted}
        self.schedulers.clear()
        self.schedulers.update({name: active.scheduler for name, active in self._active.items()})
        for active in self._removed.values():
            closed = replace(active.scheduler.pool, keys=())
            active.scheduler.adopt(closed, clients, max_waiting=max_waiting)
        for name, pool in wanted.items():
            self.schedulers[name].adopt(pool, clients, max_waiting=max_waiting)

    def refuse_all(self) -> None:
        """Reject waiting and new requests."""
        for active in (*self._active.values(), *self._removed.values()):
            active.scheduler.close()

    async def stop(self) -> None:
        """Reject waiting requests, report the last settlements, and stop."""
        await finish(self._watchers)
        for active in (*self._active.values(), *self._removed.values()):
            await active.stop()

    # Views for other components

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(scheduler.waiting for scheduler in self.schedulers.values())

    @property
    def without_keys(self) -> list[str]:
        """Names of the pools without a key."""
        return [name for name, scheduler in self.schedulers.items() if not scheduler.pool.keys]

    @property
    def can_serve(self) -> bool:
        """Whether any pool has a key that is usable, or may turn out to be."""
        return any(scheduler.health.refusal(scheduler.clock()) is None for scheduler in self.schedulers.values())

    def shared(self) -> "list[SharedStore]":
        """The stores that are shared with other replicas."""
        return [active.store for active in self._active.values() if not isinstance(active.store, MemoryStore)]

    def active(self) -> list[ActivePool]:
        """The pools of the current configuration."""
        return list(self._active.values())


class PlacementSync:
    """Announces this replica's revision to the others, and lets keys rest that have changed their pool.

    A key rests as long as requests of its other pool count (`core.placements`).
    """

    def __init__(
        self,
        placements: "Placements",
        schedulers: Mapping[str, Scheduler],
        settle_bound: Micros,
        clock: Callable[[], Micros],
    ) -> None:
        self._placements = placements
        self._schedulers = schedulers
        self._settle_bound = settle_bound
        self._clock = clock
        self._placement: Placement = {}
        self._resting = False
        """Whether any key rests."""
        self._spans: Mapping[str, Micros] = {}

    async def prepare(self, pools: Iterable[Pool]) -> Mapping[str, Rest]:
        """Announce these pools; return the keys that have to rest, for `apply` once the pools are in use.

        While the store does not respond no key rests, since other replicas are not known (`store.on_loss`).
        """
        pools = tuple(pools)
        self._placement = placement_of(pools)
        self._spans = {pool.name: self._span(pool) for pool in pools}
        return await self._rests() or {}

    def apply(self, found: Mapping[str, Rest]) -> None:
        """Let exactly these keys rest."""
        if not found and not self._resting:
            return
        self._resting = bool(found)
        now = self._clock()
        for scheduler in self._schedulers.values():
            if scheduler.health.rest(found, now):
                scheduler.apply_health()

    async def run(self) -> None:
        """Keep the resting keys up to date until cancelled."""
        while True:
            await asyncio.sleep(BEAT / SECOND)
            found = await self._rests()
            if found is not None:
                self.apply(found)

    async def _rests(self) -> Mapping[str, Rest] | None:
        """The keys that have to rest; `None` if the store did not respond or other pools were prepared meanwhile."""
        placement = self._placement
        with suppress(StoreLost):
            own, others = await self._placements.name(placement)
            if placement is self._placement:
                return rests(own, others, self._spans)
        return None

    def _span(self, pool: Pool) -> Micros:
        """The time after its sending for which a request may count in this pool."""
        windows = [min(MAX_WINDOW_REST, pool.stretched(limit)) for limit in pool.limits]
        return max(windows, default=0) + LEASE_LIFETIME + self._settle_bound


class OperatorControls:
    """Actions of an operator on this replica."""

    def __init__(
        self, schedulers: Mapping[str, Scheduler], level: LogLevel, observer: Observer, clock: Callable[[], Micros]
    ) -> None:
        self._schedulers = schedulers
        self._level = level
        self._observer = observer
        self._clock = clock

    def pause(self, pool: str, key: str) -> bool:
        """Stop using a key until it is resumed; requests in flight continue. Return whether the key exists."""
        scheduler = self._schedulers.get(pool)
        if scheduler is None or not scheduler.health.pause(key, self._clock()):
            return False
        scheduler.apply_health()
        self._observer.observe(KeySwitched(pool, key, paused=True))
        return True

    def resume(self, pool: str, key: str) -> bool:
        """Use a key again. Return whether the key exists."""
        scheduler = self._schedulers.get(pool)
        if scheduler is None or not scheduler.health.resume(key, self._clock()):
            return False
        scheduler.apply_health()
        self._observer.observe(KeySwitched(pool, key, paused=False))
        return True

    def log(self, level: str) -> bool:
        """Set the log level. Return whether it exists."""
        return self._level.set(level)
