"""Policies for limits that answers tell and the configuration does not (`core.inferred_limits`).

`LimitPolicy` learns from every answer (law 9): that can only take tokens away, and report a limit that is higher than
configured. `RoutePolicy` leads requests around routes that showed a narrower limit on some quotas.
"""

import asyncio

from keyturn.core.events import LimitHigher, LimitLowered, MonthRemaining, SignalsIgnored
from keyturn.core.exchange import ObservedLimit
from keyturn.core.messages import same_limits
from keyturn.core.model import SECOND
from keyturn.core.signals import Signals
from keyturn.gateway.context import Environment, PoolState, RequestContext
from keyturn.scheduler import Lease, Waiter
from keyturn.scheduler.admission import too_late


class LimitPolicy:
    """Policy for the limits that an answer reports."""

    def __init__(self, environment: Environment) -> None:
        self._observer = environment.observer

    def learn(self, context: RequestContext, lease: Lease, signals: Signals) -> tuple[ObservedLimit, ...]:
        """Note what an answer tells; returns what to settle its lease with. A lower limit is obeyed from now on."""
        state = context.state
        if signals.ignored or signals.month_left is not None:
            self._report(state, lease, signals)
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
            self._report_higher(state, lease, signals)
        return seen

    def _report_higher(self, state: PoolState, lease: Lease, signals: Signals) -> None:
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
                        self._observer.observe(LimitHigher(state.name, higher))

    def _lower(self, state: PoolState, lease: Lease, index: int, size: int) -> None:
        scheduler, limit = state.scheduler, lease.pool.limits[index]
        now = same_limits(lease.pool, scheduler.pool).get(index)
        if now is not None and size < scheduler.pool.limits[now].requests:
            scheduler.lower_limit(now, size)
            self._observer.observe(LimitLowered(state.name, limit.name, limit.requests, size))

    def _report(self, state: PoolState, lease: Lease, signals: Signals) -> None:
        """Report what is left of the month's plan, and the fields that could not be read."""
        if signals.ignored:
            self._observer.observe(SignalsIgnored(state.name, signals.ignored))
        left = signals.month_left
        if left is not None and signals.own and state.scheduler.health.month(lease.key.name, left):
            self._observer.observe(MonthRemaining(state.name, lease.key.name, left))


class RoutePolicy:
    """Chooses quotas by the limits of single routes."""

    def __init__(self, environment: Environment) -> None:
        self._clock = environment.clock

    async def choose(self, context: RequestContext) -> Waiter:
        """The waiter to queue, for a quota whose route limit the request counts against until `leave`.

        Raises:
            TooMany: the route limits let no request through before the deadline.
        """
        waiter, limits = context.waiter, context.state.route_limits
        while limits:
            now, pinned = self._clock(), waiter.flow.demand_class.pinned
            quotas = context.state.scheduler.quotas if pinned is None else (pinned,)
            choice = limits.choose(context.route, quotas, now)
            if choice.later is not None:
                if choice.later >= waiter.deadline:
                    raise too_late(choice.later - now)
                await asyncio.sleep((choice.later - now) / SECOND)
                continue
            if choice.quota is None:
                break
            if limits.took(context.route, choice.quota):
                context.route_limit = (limits, choice.quota)
            return waiter.on_quota(choice.quota)
        return waiter

    def leave(self, context: RequestContext, *, counted: bool) -> None:
        """End the try, or give up waiting; `counted`: whether the upstream may have counted it."""
        if context.route_limit is not None:
            limits, quota = context.route_limit
            context.route_limit = None
            limits.ended(context.route, quota, self._clock(), counted=counted)
