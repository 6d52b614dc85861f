"""The keys that a waiting room hands out: of each quota in turn, and none that must not be used."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle

from keyturn.core.backoff import SERVICE_TIME, Pace
from keyturn.core.errors import NoKey
from keyturn.core.exchange import DemandClass
from keyturn.core.health import KeyHealth
from keyturn.core.model import Key, Micros, Pool, Secret
from keyturn.scheduler.tickets import Ticket

NO_KEY = Key("", Secret(""), "")
"""Placeholder for a lease that is returned unused."""


class Keys:
    """A pool's keys by their health, and the pool as the store is to see it now."""

    def __init__(self, pool: Pool, health: KeyHealth) -> None:
        self.pool = pool
        self.health = health
        self._turns: Mapping[str, Iterator[Key]] = {}
        self.serving = pool
        """The pool with the keys that may be used only: a quota whose keys are all out of use is not asked for."""
        self.sort()

    def adopt(self, pool: Pool) -> None:
        """Go on with another configuration."""
        self.pool = pool
        self.sort()

    def sort(self) -> bool:
        """Look at the keys' health anew; whether the store has to be told of other quotas or limits."""
        before = self.serving
        used = tuple(key for key in self.pool.keys if self.health.usable(key.name))
        self.serving = self.pool if len(used) == len(self.pool.keys) else replace(self.pool, keys=used)
        self._turns = {quota: cycle(keys) for quota, keys in self.serving.keys_of.items()}
        return self.serving.quotas != before.quotas or self.serving.limits != before.limits

    def refusal(self, ticket: Ticket, now: Micros) -> NoKey | None:
        """Why no key can serve a request; one of the proxy's own is about a key, in whatever state that is."""
        return None if ticket.own else self.health.refusal(now, ticket.pinned)

    def paces(self, demand_class: DemandClass) -> Sequence[Pace]:
        """How often the tokens of each limit can be spent that requests of this demand_class fall under."""
        serving = self.serving
        quotas = 1 if demand_class.pinned is not None else max(1, len(serving.quotas))
        limits = [serving.limits[index] for index in demand_class.limits]
        return [Pace(limit.requests * quotas, serving.stretched(limit) + SERVICE_TIME) for limit in limits]

    def pick(self, quota: str, ticket: Ticket) -> Key | None:
        """The key for a request that was granted a quota; `None` when none of it may be used any more."""
        if ticket.pinned is None:
            turns = self._turns.get(quota)
            return next(turns) if turns else None
        key = self.pool.key(ticket.pinned)
        serves = key is not None and key.quota == quota and (ticket.own or self.health.usable(key.name))
        return key if serves else None
