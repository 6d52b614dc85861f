"""Demands of one replica, and those among them that the store does not know yet.

The scheduler tells changes, and the store is told changes: an exchange costs nothing for flows that merely go on
waiting. After an exchange that was heard the store believes of each flow what was told, less what was granted.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import chain, islice

from keyturn.core.exchange import Flow, FlowDemand, LeaseGrant


class Demands:
    """The requests that wait in a replica, by flow."""

    def __init__(self) -> None:
        self.waiting: dict[Flow, FlowDemand] = {}
        """All flows of which requests wait; read only."""
        self.by_limit = Counter[int]()
        """How many requests wait under each limit."""
        self._pinned: dict[Flow, None] = {}
        self._believed: dict[Flow, FlowDemand | None] = {}
        """The store's last known numbers of the flows that have changed since."""
        self._unknown = True
        """Whether the store knows of nothing that waits."""
        self._turn = 0
        """Where the rotation of the pinned flows goes on."""

    def tell(self, demands: Iterable[FlowDemand], *, partial: bool) -> None:
        """Take over how many requests wait; with `partial` flows that are not named wait as before."""
        if partial:
            for demand in demands:
                self._put(demand.flow, demand)
            return
        named = {demand.flow: demand for demand in demands}
        gone = [flow for flow in self.waiting if flow not in named]
        for flow, demand in named.items():
            self._put(flow, demand)
        for flow in gone:
            self._put(flow, None)

    def _put(self, flow: Flow, demand: FlowDemand | None) -> None:
        demand = demand if demand and demand.waiting else None
        before = self.waiting.get(flow)
        if demand == before:
            return
        self._believed.setdefault(flow, before)
        self._set(flow, before, demand)

    def _set(self, flow: Flow, before: FlowDemand | None, demand: FlowDemand | None) -> None:
        more = (demand.waiting if demand else 0) - (before.waiting if before else 0)
        for limit in flow.demand_class.limits:
            self.by_limit[limit] += more
        if demand is None:
            del self.waiting[flow]
            self._pinned.pop(flow, None)
        else:
            self.waiting[flow] = demand
            if flow.demand_class.pinned:
                self._pinned[flow] = None

    def changes(self, *, full: bool) -> list[FlowDemand]:
        """Demands to report: flows that have changed, 0 for those that are gone; in a `full` request all."""
        if full:
            return list(self.waiting.values())
        told = []
        for flow, believed in self._believed.items():
            demand = self.waiting.get(flow)
            if demand != believed:
                told.append(demand or FlowDemand(flow, believed.weight if believed else 1, 0))
        return told

    def grown(self) -> list[Flow]:
        """Flows of which more requests wait than the store believes."""
        if self._unknown:
            return list(self.waiting)
        found = []
        for flow, believed in self._believed.items():
            demand = self.waiting.get(flow)
            if demand and demand.waiting > (believed.waiting if believed else 0):
                found.append(flow)
        return found

    def heard(self, grants: Iterable[LeaseGrant]) -> None:
        """The store has been told, and has granted."""
        self._believed.clear()
        self._unknown = False
        self.granted(grants)

    def granted(self, grants: Iterable[LeaseGrant]) -> None:
        """Requests wait no longer: whoever granted them knows."""
        for grant in grants:
            if before := self.waiting.get(grant.flow):
                left = FlowDemand(grant.flow, before.weight, before.waiting - 1) if before.waiting > 1 else None
                self._set(grant.flow, before, left)

    def forgotten(self) -> None:
        """The store knows of nothing that waits."""
        self._believed.clear()
        self._unknown = True

    def pins(self, first: Iterable[Flow], most: int) -> tuple[tuple[int, str], ...]:
        """Up to so many limits and quotas that flows insist on: those of `first`, then of others in rotation."""
        pinned = list(self._pinned)
        begin = self._turn = self._turn % len(pinned) if pinned else 0
        self._turn += most
        flows = chain(first, pinned[begin : begin + most], pinned[: min(begin, most)])
        classes = [flow.demand_class for flow in flows if flow.demand_class.pinned]
        found = dict.fromkeys([(limit, one.pinned) for one in classes for limit in one.limits])
        return tuple([(limit, pinned) for limit, pinned in islice(found, most) if pinned])
