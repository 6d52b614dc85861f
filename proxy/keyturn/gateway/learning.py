"""What every answer teaches about limits (law 9): it can only take tokens away, and tell of a limit that is higher."""

from keyturn.core.events import LimitHigher, LimitLowered, MonthTold, SignalsIgnored
from keyturn.core.exchange import ObservedLimit
from keyturn.core.messages import same_limits
from keyturn.core.signals import Signals
from keyturn.gateway.desk import Desk, Means
from keyturn.gateway.passage import Passage
from keyturn.gateway.sending import Heard
from keyturn.scheduler import Lease


class Learning:
    """The gateway's ear for what stands beside an answer."""

    def __init__(self, means: Means) -> None:
        self._means = means

    def seen(self, desk: Desk, passage: Passage, lease: Lease, heard: Heard) -> tuple[ObservedLimit, ...]:
        """What the answer tells of others' spending, to be settled with its lease; a lower limit is taken as such."""
        signals = heard.signals
        if signals.ignored or signals.month_left is not None:
            self._beside(desk, lease, heard)
        if not signals.allowances:
            return ()
        limits = lease.pool.limits
        seen = signals.seen(lease.limits, limits)
        if seen:
            desk.lessons.agreed(lease.quota, [one.limit for one in seen])
        elif lower := signals.lower(lease.limits, limits):
            index, size = lower
            if desk.lessons.told(lease.quota, index, size, passage.route):
                self._lower(desk, lease, index, size)
            return seen
        if len(signals.allowances) > len(seen):
            self._above(desk, lease, signals)
        return seen

    def _above(self, desk: Desk, lease: Lease, signals: Signals) -> None:
        """Report a limit that is higher than configured; it is never raised (law 9)."""
        scheduler = desk.scheduler
        for meant, size in signals.above(lease.limits, lease.pool.limits):
            index = meant
            if meant is not None and lease.pool is not scheduler.pool:
                index = same_limits(lease.pool, scheduler.pool).get(meant)
                if index is None:
                    continue
            if desk.lessons.above(index, size):
                for higher in desk.lessons.higher(scheduler.pool.limits):
                    if higher.place == index:
                        self._means.observer.observe(LimitHigher(desk.name, higher))

    def _lower(self, desk: Desk, lease: Lease, index: int, size: int) -> None:
        scheduler, limit = desk.scheduler, lease.pool.limits[index]
        now = same_limits(lease.pool, scheduler.pool).get(index)
        if now is not None and size < scheduler.pool.limits[now].requests:
            scheduler.lower(now, size)
            self._means.observer.observe(LimitLowered(desk.name, limit.name, limit.requests, size))

    def _beside(self, desk: Desk, lease: Lease, heard: Heard) -> None:
        """What the answer tells of the month, and what in it could not be read."""
        signals = heard.signals
        if signals.ignored:
            self._means.observer.observe(SignalsIgnored(desk.name, signals.ignored))
        left = signals.month_left
        if left is not None and signals.own and desk.scheduler.health.month(lease.key.name, left):
            self._means.observer.observe(MonthTold(desk.name, lease.key.name, left))
