"""What every answer teaches about limits (law 9): it can only take tokens away, and tell of a limit that is higher."""

import asyncio
from dataclasses import replace

from keyturn.core.events import LimitHigher, LimitLowered, MonthTold, SignalsIgnored
from keyturn.core.exchange import DemandClass, ObservedLimit
from keyturn.core.messages import same_limits
from keyturn.core.model import SECOND
from keyturn.core.signals import Signals
from keyturn.gateway.context import Means, PoolState, RequestContext
from keyturn.gateway.sending import UpstreamResponse
from keyturn.scheduler import Lease, Ticket
from keyturn.scheduler.refusals import too_late


class LimitPolicy:
    """The gateway's ear for what stands beside an answer."""

    def __init__(self, means: Means) -> None:
        self._means = means

    def seen(
        self, state: PoolState, context: RequestContext, lease: Lease, response: UpstreamResponse
    ) -> tuple[ObservedLimit, ...]:
        """What the answer tells of others' spending, to be settled with its lease; a lower limit is taken as such."""
        signals = response.signals
        if signals.ignored or signals.month_left is not None:
            self._beside(state, lease, response)
        if not signals.allowances:
            return ()
        limits = lease.pool.limits
        seen = signals.seen(lease.limits, limits)
        if seen:
            state.inference.agreed(lease.quota, [one.limit for one in seen])
        elif lower := signals.lower(lease.limits, limits):
            index, size = lower
            if state.inference.told_lower(lease.quota, index, size, context.route):
                self._lower(state, lease, index, size)
            return seen
        if len(signals.allowances) > len(seen):
            self._above(state, lease, signals)
        return seen

    def _above(self, state: PoolState, lease: Lease, signals: Signals) -> None:
        """Report a limit that is higher than configured; it is never raised (law 9)."""
        scheduler = state.scheduler
        for meant, size in signals.above(lease.limits, lease.pool.limits):
            index = meant
            if meant is not None and lease.pool is not scheduler.pool:
                index = same_limits(lease.pool, scheduler.pool).get(meant)
                if index is None:
                    continue
            if state.inference.told_higher(index, size):
                for higher in state.inference.higher(scheduler.pool.limits):
                    if higher.place == index:
                        self._means.observer.observe(LimitHigher(state.name, higher))

    def _lower(self, state: PoolState, lease: Lease, index: int, size: int) -> None:
        scheduler, limit = state.scheduler, lease.pool.limits[index]
        now = same_limits(lease.pool, scheduler.pool).get(index)
        if now is not None and size < scheduler.pool.limits[now].requests:
            scheduler.lower(now, size)
            self._means.observer.observe(LimitLowered(state.name, limit.name, limit.requests, size))

    def _beside(self, state: PoolState, lease: Lease, response: UpstreamResponse) -> None:
        """What the answer tells of the month, and what in it could not be read."""
        signals = response.signals
        if signals.ignored:
            self._means.observer.observe(SignalsIgnored(state.name, signals.ignored))
        left = signals.month_left
        if left is not None and signals.own and state.scheduler.health.month(lease.key.name, left):
            self._means.observer.observe(MonthTold(state.name, lease.key.name, left))


class RoutePolicy:
    """Leads requests around what showed to be closed."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def choose(self, state: PoolState, context: RequestContext) -> Ticket:
        """The ticket to wait with; holds a place of a narrower limit until `free`.

        Raises:
            TooMany: no place comes before the deadline.
        """
        ticket, narrows = context.ticket, state.route_limits
        while narrows:
            now, insists = self._means.clock(), ticket.demand_class.pinned
            quotas = state.scheduler.quotas if insists is None else (insists,)
            way = narrows.choose(context.route, quotas, now)
            if way.later is not None:
                if way.later >= ticket.deadline:
                    raise too_late(way.later - now)
                await asyncio.sleep((way.later - now) / SECOND)
                continue
            if way.quota is None:
                break
            if narrows.took(context.route, way.quota):
                context.route_limit = (narrows, way.quota)
            return replace(ticket, demand_class=DemandClass(ticket.demand_class.limits, way.quota))
        return ticket

    def free(self, context: RequestContext, *, counted: bool) -> None:
        """The request has been answered, or does not go out; whether the upstream may have counted it."""
        if context.route_limit is not None:
            narrows, quota = context.route_limit
            context.route_limit = None
            narrows.ended(context.route, quota, self._means.clock(), counted=counted)
