"""Lets keys rest that have changed their pool, as long as requests of the other pool count (`core.placements`)."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from keyturn.core.errors import StoreLost
from keyturn.core.exchange import LEASE_LIFETIME
from keyturn.core.model import SECOND, Micros, Pool
from keyturn.core.placements import BEAT, LONGEST, Placement, Rest, placement_of, rests
from keyturn.scheduler import Scheduler
from keyturn.stores.placements import Placements


class Placing:
    """Names this replica's revision to the others, and keeps the rests of its keys up to date."""

    def __init__(
        self,
        placements: Placements,
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
        """Go by these pools from now on; returns the keys that have to rest, for `apply` once they are adopted.

        While the store does not answer no key rests: what it would tell of others is not known (`store.on_loss`).
        """
        pools = tuple(pools)
        self._placement = placement_of(pools)
        self._spans = {pool.name: self._span(pool) for pool in pools}
        return await self._rests() or {}

    def apply(self, found: Mapping[str, Rest]) -> None:
        """Let these keys rest, and no others."""
        if not found and not self._resting:
            return
        self._resting = bool(found)
        now = self._clock()
        for scheduler in self._schedulers.values():
            if scheduler.health.rest(found, now):
                scheduler.heed()

    async def run(self) -> None:
        """Keep it up to date, until it is cancelled."""
        while True:
            await asyncio.sleep(BEAT / SECOND)
            found = await self._rests()
            if found is not None:
                self.apply(found)

    async def _rests(self) -> Mapping[str, Rest] | None:
        """The keys that have to rest; `None` when nothing was heard, or other pools were prepared meanwhile."""
        placement = self._placement
        with suppress(StoreLost):
            own, others = await self._placements.name(placement)
            if placement is self._placement:
                return rests(own, others, self._spans)
        return None

    def _span(self, pool: Pool) -> Micros:
        """How long after its sending a request may count in this pool."""
        windows = [min(LONGEST, pool.stretched(limit)) for limit in pool.limits]
        return max(windows, default=0) + LEASE_LIFETIME + self._settle_bound
