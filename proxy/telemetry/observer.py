"""The observer of a process: what lower floors emit becomes metrics, log lines, and what is remembered of them."""

import time
from collections.abc import Callable

import structlog

from proxy.core.events import (
    BreakerMoved,
    EraBegan,
    Event,
    KeyChanged,
    LimitLowered,
    Reloaded,
    StoreChanged,
    UpstreamThrottled,
)
from proxy.core.model import SECOND, Micros
from proxy.telemetry.history import History
from proxy.telemetry.metrics import Metrics


def _monotonic() -> Micros:
    return time.monotonic_ns() // 1000


def _wall() -> Micros:
    return time.time_ns() // 1000  # people read it


class Telemetry:
    """Counts every event, remembers the last of some, and logs what somebody has to know.

    `clock` is monotonic, `wall` epoch, both in microseconds.
    """

    def __init__(self, clock: Callable[[], Micros] = _monotonic, wall: Callable[[], Micros] = _wall) -> None:
        self.metrics = Metrics()
        self.history = History(clock, wall)
        self._log = structlog.get_logger("keyturn")

    def observe(self, event: Event) -> None:
        """See `core.events.Observer`."""
        self.metrics.observe(event)
        self.history.observe(event)
        if isinstance(event, StoreChanged):
            self._store(event)
        elif isinstance(event, EraBegan):
            self._log.warning(
                "the store is new, restarted or behind: each key is tried with one request before it is used on",
                pool=event.pool,
            )
        elif isinstance(event, Reloaded) and event.ok:
            self._log.info("the configuration was reloaded")
        elif isinstance(event, Reloaded):
            self._log.error("the new configuration is refused, the old one goes on", problems=list(event.reasons))
        else:
            self._truth(event)

    def _truth(self, event: Event) -> None:
        """What the upstream's answers tell of limits, keys and outages."""
        match event:
            case UpstreamThrottled(pool, key, quota, kind, wait, limit, news=True):
                told = {"pool": pool, "key": key, "quota": quota, "kind": kind, "limit": limit}
                self._log.warning(_THROTTLED[kind], **told, wait_seconds=wait / SECOND)
            case LimitLowered(pool, limit, configured, told):
                self._log.warning(
                    "the upstream's limit is lower than configured, and taken so: change the setting",
                    setting=f"pools.{pool}.limits",
                    limit=limit,
                    configured=configured,
                    told=told,
                )
            case KeyChanged(pool, key, "quarantined", reason):
                self._log.error(
                    "a key is not accepted any more and not used: give it a valid secret, or resume it upstream",
                    pool=pool,
                    key=key,
                    reason=reason,
                )
            case KeyChanged(pool, key):
                self._log.warning("a key is accepted again and used", pool=pool, key=key)
            case BreakerMoved(pool, opened=True, wait=wait, cause=cause):
                self._log.error(
                    "the upstream is out of order: requests are refused with 503 until it answers",
                    pool=pool,
                    cause=cause,
                    next_trial_seconds=wait / SECOND,
                )
            case BreakerMoved(pool):
                self._log.warning("the upstream answers again", pool=pool)

    def _store(self, event: StoreChanged) -> None:
        if event.up:
            self._log.warning("the store answers again", pool=event.pool, lost_seconds=round(event.seconds, 1))
        else:
            self._log.error(_LOST[event.on_loss], pool=event.pool, cause=event.cause)


_LOST = {
    "share": "the store does not answer: going on with this replica's share of the limits",
    "wait": "the store does not answer: requests wait for it",
    "refuse": "the store does not answer: requests are refused with 503",
}

_THROTTLED = {
    "window": "the upstream answered 429: somebody else uses this key, or its limit is lower than configured",
    "endpoint": "the upstream answered 429 by a narrower limit on some endpoints: add it to `limits`, with `match`",
    "plan": "the upstream answered 429: the plan of this key's team is used up, which no waiting cures",
}
