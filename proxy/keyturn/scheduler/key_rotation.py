"""The keys that go with leases: those of a quota in turn, and none that must not be used."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle

from keyturn.core.backoff import SERVICE_TIME, Pace
from keyturn.core.errors import NoKey
from keyturn.core.exchange import DemandClass
from keyturn.core.health import KeyHealth
from keyturn.core.model import Key, Micros, Pool, Secret
from keyturn.scheduler.waiter import INTERNAL, Queue, Waiter

NO_KEY = Key("", Secret(""), "")
"""Placeholder for a lease that is returned unused."""


class KeyRotation:
    """A pool's keys by their health, and the pool as the store is to see it now."""

    def __init__(self, pool: Pool, health: KeyHealth) -> None:
        self.pool = pool
        self.health = health
        self.serving = pool
        """The pool with the usable keys only: of a quota whose keys are all out of use, nothing is demanded."""
        self._next: Mapping[str, Iterator[Key]] = {}
        self.refresh()

    def adopt(self, pool: Pool) -> None:
        """Use another configuration."""
        self.pool = pool
        self.refresh()

    def refresh(self) -> bool:
        """Take up the keys' health; returns whether the store has to be told of other quotas or limits."""
        before = self.serving
        usable = tuple(key for key in self.pool.keys if self.health.usable(key.name))
        self.serving = self.pool if len(usable) == len(self.pool.keys) else replace(self.pool, keys=usable)
        self._next = {quota: cycle(keys) for quota, keys in self.serving.keys_of.items()}
        return self.serving.quotas != before.quotas or self.serving.limits != before.limits

    def refusal(self, waiter: Waiter, now: Micros) -> NoKey | None:
        """Why no key can serve a request; a health check may use its key in whatever state that is."""
        return None if waiter.internal else self.health.refusal(now, waiter.pinned)

    def may_serve(self, queue: Queue) -> bool:
        """Whether grants to a queue could be used: one that insists on a quota out of use waits without demanding."""
        pinned = queue.flow.demand_class.pinned
        return pinned is None or queue.flow.client == INTERNAL.name or pinned in self.serving.keys_of

    def paces(self, demand_class: DemandClass) -> Sequence[Pace]:
        """How often the tokens of each limit can be spent that requests of this class fall under."""
        serving = self.serving
        quotas = 1 if demand_class.pinned is not None else max(1, len(serving.quotas))
        limits = [serving.limits[index] for index in demand_class.limits]
        return [Pace(limit.requests * quotas, serving.stretched(limit) + SERVICE_TIME) for limit in limits]

    def pick(self, quota: str, waiter: Waiter) -> Key | None:
        """The key for a request that was granted a quota; `None` when none of it may be used any more."""
        if waiter.pinned is None:
            keys = self._next.get(quota)
            return next(keys) if keys else None
        key = self.pool.key(waiter.pinned)
        serves = key is not None and key.quota == quota and (waiter.internal or self.health.usable(key.name))
        return key if serves else None
