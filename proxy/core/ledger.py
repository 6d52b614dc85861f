"""The one operation between a replica and the store: settle, remember who waits, deal, foretell.

Laws kept here: 3 (what is at hand goes at once to whoever waits), 4 (in the order of `core.line`), 6 (every lane is
told its turns), 7 (the caller brings the store's one clock; only durations leave). `core.buckets` keeps 1, 2 and 9.

Tokens that fall to a lane of another replica are left for it: it is woken, and fetches them in its own exchange; a
replica that does not come back within its grace holds no place any longer.
"""

from proxy.core.buckets import Buckets, Out
from proxy.core.exchange import GRACE, PULSE, Budget, Demand, Exchange, Grant, Kind, Lane, Settlement, Unsent
from proxy.core.forecast import Forecast, Forecaster, turns
from proxy.core.line import Line, Rehearsal
from proxy.core.model import MILLISECOND, Micros, Pool
from proxy.core.sortedset import SortedSet

WAKE_MARGIN: Micros = 20 * MILLISECOND
"""A replica is woken when its turn has come this much earlier than it was told."""


class Ledger:
    """The buckets of one pool, and who waits for them."""

    def __init__(self, pool: Pool, settle_bound: Micros) -> None:
        self.buckets = Buckets(pool, settle_bound)
        self.line = Line()
        self._words: SortedSet[str, Micros] = SortedSet()
        self._tick = 0
        self._leases = 0

    def exchange(
        self, now: Micros, replica: str, settlements: tuple[Settlement, ...], demands: tuple[Demand, ...]
    ) -> Exchange:
        """One round trip; see `core.exchange.Store`. `now` is the store's clock and never goes back."""
        self._tick += 1
        self._hear(now, replica)
        for settlement in settlements:
            self._settle(now, settlement)
        self.buckets.mature(now)
        self.line.remember(replica, demands)
        rehearsal = Rehearsal(self.line)
        grants, lent = self._deal(now, replica, rehearsal)
        forecast = self._foretell(now, rehearsal, lent)
        for grant in grants:
            self.line.serve(replica, grant.lane)
        return self._answer(now, replica, grants, forecast)

    def _hear(self, now: Micros, replica: str) -> None:
        self._words.put(replica, now)
        while (first := self._words.first()) and self.buckets.silent_until(first[0]) <= now:
            word, gone = self._words.pop_first()
            self.buckets.lapse(gone, word)
        self.line.expire(now)

    def _settle(self, now: Micros, settlement: Settlement) -> None:
        out = self.buckets.settle(now, settlement)
        if out and isinstance(settlement, Unsent):
            self.line.refund(out.client)

    def _deal(self, now: Micros, replica: str, rehearsal: Rehearsal) -> tuple[list[Grant], list[tuple[str, Kind, str]]]:
        """Give what is at hand in fair order: to the caller as grants, to others as loans that are given back below."""
        grants: list[Grant] = []
        lent: list[tuple[str, Kind, str]] = []
        kinds = rehearsal.kinds()
        while choice := self._choose(kinds, rehearsal):
            kind, client, quota = choice
            owner = rehearsal.serve(kind, client)
            if owner == replica:
                grants.append(self._grant(now, replica, Lane(client, kind), quota))
            else:
                self.buckets.move(quota, kind.limits, -1)
                lent.append((quota, kind, owner))
        return grants, lent

    def _choose(self, kinds: list[Kind], rehearsal: Rehearsal) -> tuple[Kind, str, str] | None:
        best: tuple[int, str] | None = None
        chosen: tuple[Kind, str] | None = None
        for kind in kinds:
            quota = self.buckets.best(kind)
            first = rehearsal.first(kind) if quota is not None else None
            if quota is not None and first and (best is None or first < best):
                best, chosen = first, (kind, quota)
        return (chosen[0], best[1], chosen[1]) if chosen and best else None

    def _grant(self, now: Micros, replica: str, lane: Lane, quota: str) -> Grant:
        self._leases += 1
        self.buckets.take(self._leases, Out(quota, lane.kind.limits, now, replica, lane.client))
        return Grant(self._leases, lane, quota)

    def _foretell(self, now: Micros, rehearsal: Rehearsal, lent: list[tuple[str, Kind, str]]) -> Forecast:
        """Deal on into the future, then give back what was lent."""
        still_waits = any(rehearsal.first(kind) for kind in rehearsal.kinds())
        forecast = Forecaster(self.buckets, rehearsal, now).play() if still_waits else Forecast()
        for quota, kind, owner in lent:
            self.buckets.move(quota, kind.limits, +1)
            forecast.first[owner] = now
        return forecast

    def _answer(self, now: Micros, replica: str, grants: list[Grant], forecast: Forecast) -> Exchange:
        lanes = self.line.lanes(replica)
        told = {lane: turns(forecast, self.line, self.buckets, replica=replica, lane=lane, now=now) for lane in lanes}
        again: Micros | None = None
        if told:
            again = max(MILLISECOND, min(forecast.first.get(replica, now + PULSE) - now, PULSE))
            self.line.expect(replica, now + again, now + again + GRACE)
        elif self.buckets.holds(replica):
            again = PULSE
        return Exchange(self._tick, tuple(grants), told, self._budgets(now), again, self._early(replica, forecast))

    def _early(self, caller: str, forecast: Forecast) -> tuple[str, ...]:
        """The replicas whose turn comes earlier than they were told; they are told so now."""
        woken = []
        for replica, first in forecast.first.items():
            due = self.line.due(replica)
            if replica != caller and due is not None and first + WAKE_MARGIN < due:
                woken.append(replica)
                self.line.expect(replica, first, first + GRACE)
        return tuple(woken)

    def _budgets(self, now: Micros) -> tuple[Budget, ...]:
        size = len(self.buckets.quotas)
        return tuple(
            Budget(
                calendar.size * size,
                max(0, calendar.hand),
                self.buckets.nth_return(limit, max(0, calendar.hand), now) - now,
            )
            for limit, calendar in enumerate(self.buckets.calendars)
        )
