"""What becomes of a 429: what is full is closed, and the request tries elsewhere or waits.

    window    a limit of the configuration, or any of the request's: its bucket is parked in the store until the
              upstream's time, for all replicas
    endpoint  a narrower limit that is not configured: the route is held back on this quota (`core.narrows`)
    plan      no waiting cures it: another plan's quota is tried, else the caller hears the upstream itself

A 429 was not processed, so any request whose body can be sent again is.
"""

from proxy.core.causes import Causes
from proxy.core.events import UpstreamThrottled
from proxy.core.model import SECOND, Micros, Pool
from proxy.core.narrows import GUARD, UNTOLD
from proxy.core.signals import Throttle
from proxy.core.translate import whole_seconds
from proxy.dispatch import Lease
from proxy.dispatch.refusals import too_late
from proxy.gateway.desk import Again, Desk, Means, Outcome, Relay
from proxy.gateway.passage import Passage
from proxy.gateway.sending import Heard

DOUBLINGS = 5
"""How often the least wait of a quota that is refused again and again is doubled: 0, 1, 3, 7, 15, 31 s."""


class Throttling:
    """The gateway's ways with answers 429."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._causes = Causes()

    def refused(self, desk: Desk, passage: Passage, lease: Lease, heard: Heard) -> Outcome:
        """Settle the lease of a 429; the request goes on unless that cannot help.

        Raises:
            TooMany: it does not, and the upstream's answer broke off.
        """
        pool = lease.pool
        told = heard.signals.throttle(lease.limits, pool.limits)
        wait = told.wait if told.wait is not None else _window(told, pool)
        if told.kind != "plan":
            wait = self._at_least(desk, lease, wait)
        self._tell(passage, lease, told, wait)
        known = wait + max(pool.guard, GUARD) if told.kind != "plan" else told.wait
        match told.kind:
            case "window":
                helps = bool(told.limits)
                self._park(desk, lease, told, wait)
            case "endpoint":
                helps = True
                lease.spent()
                self._hold(desk, passage, lease, heard, wait)
            case "plan":
                lease.spent()
                helps = self._avoid(desk, passage, lease, told)
        if helps and passage.replayable:
            return Again("throttled", held=heard.hold())
        if not heard.whole:
            raise too_late(known or 0)
        return Relay(heard.answer, max(1, whole_seconds(known)) if known is not None else None, turn=helps)

    def _park(self, desk: Desk, lease: Lease, told: Throttle, wait: Micros) -> None:
        """Close what is full, for all replicas."""
        pool = lease.pool
        if not told.limits:
            lease.spent()
            return
        park = wait + pool.guard
        lease.throttled(park, told.limits)
        now = self._means.clock()
        names = ", ".join(pool.limits[index].name for index in told.limits)
        desk.dispatch.health.parked(lease.quota, now, now + park, f"the upstream answered 429 ({names})")

    def _hold(self, desk: Desk, passage: Passage, lease: Lease, heard: Heard, wait: Micros) -> None:
        """Hold the route back on this quota."""
        full = [allowance for allowance in heard.signals.allowances if not allowance.left and allowance.size]
        tightest = min(full, key=lambda allowance: allowance.size or 0, default=None)
        size, window = (tightest.size, tightest.window) if tightest else (None, None)
        desk.narrows.refused(passage.route, lease.quota, self._means.clock(), wait, size, window)

    def _at_least(self, desk: Desk, lease: Lease, wait: Micros) -> Micros:
        """What a quota is closed for: longer than it was told to be, if that has not helped time and again.

        Requests that were under way together are refused together, and count once.
        """
        now = self._means.clock()
        row, until = desk.refusals.get(lease.quota, (-1, now))
        row += now >= until
        wait = max(wait, ((1 << min(row, DOUBLINGS)) - 1) * SECOND)
        desk.refusals[lease.quota] = (row, max(until, now + wait + GUARD))
        return wait

    def _avoid(self, desk: Desk, passage: Passage, lease: Lease, told: Throttle) -> bool:
        """Leave out the quota of this plan; whether there may be one of another plan."""
        now = self._means.clock()
        desk.narrows.used_up(passage.route, lease.quota, now, told.wait)
        passage.plans += 1
        if passage.ticket.pinned is not None or passage.plans >= self._means.retries.attempts:
            return False
        return desk.narrows.way(passage.route, desk.dispatch.quotas, now).quota is not None

    def _tell(self, passage: Passage, lease: Lease, told: Throttle, wait: Micros) -> None:
        pool = lease.pool
        what = told.limits if told.kind == "window" else passage.route if told.kind == "endpoint" else ()
        news = self._causes.news((pool.name, lease.quota, told.kind, what), self._means.clock())
        limit = ", ".join(pool.limits[index].name for index in told.limits)
        self._means.observer.observe(
            UpstreamThrottled(pool.name, lease.key.name, pool.label(lease.quota), told.kind, wait, limit, news)
        )


def _window(told: Throttle, pool: Pool) -> Micros:
    """How long to wait when the upstream does not say."""
    if told.kind == "endpoint":
        return UNTOLD
    return max((pool.limits[index].window for index in told.limits), default=SECOND)
