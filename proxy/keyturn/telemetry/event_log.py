"""Log lines for events: what changed, and what to do about it.

A change is logged once, when it happens, and not for each request that it affects. `error` needs action, `warning` may
need action or reports that a condition is over, `info` and `debug` are for the curious.
"""

from typing import Any, Literal, NamedTuple

from keyturn.core.events import (
    BreakerChanged,
    EpochBegan,
    Event,
    ForeignSpent,
    KeyChanged,
    KeySwitched,
    LimitHigher,
    LimitLowered,
    LocalErrorMet,
    PoolThrottled,
    Reloaded,
    Retried,
    SignalsIgnored,
    SpoolFailed,
    StoreCannotWake,
    StoreChanged,
    UpstreamThrottled,
)
from keyturn.core.model import SECOND


class LogLine(NamedTuple):
    """A line of the log: its level, its text, and its fields."""

    level: Literal["debug", "info", "warning", "error"]
    text: str
    values: dict[str, Any]


def line_of(event: Event) -> LogLine | None:
    """The line of an event; `None` for events that are only counted."""
    match event:
        case StoreChanged() | EpochBegan() | StoreCannotWake():
            return _store(event)
        case KeyChanged() | KeySwitched():
            return _key(event)
        case SpoolFailed(is_new=True) | LocalErrorMet(is_new=True):
            return _machine(event)
        case Reloaded(ok=True):
            return LogLine("info", "the configuration was reloaded", {})
        case Reloaded(reasons=reasons):
            text = "the new configuration was rejected and the previous one stays in use: correct the file"
            return LogLine("error", text, {"problems": list(reasons)})
        case _:
            return _upstream(event)


def _machine(event: SpoolFailed | LocalErrorMet) -> LogLine:
    """Conditions of this machine."""
    match event:
        case SpoolFailed(cause):
            text = (
                "request bodies cannot be written to temporary files, so large ones are streamed and cannot be sent "
                "again: make room and write permission in TMPDIR, or set `inbound.spool_size` to 0"
            )
            return LogLine("warning", text, {"cause": cause})
        case LocalErrorMet(cause, message):
            text = "this machine could not open a connection, which is no failure of the upstream: see `problem`"
            return LogLine("error", text, {"cause": cause, "problem": message})


def _store(event: StoreChanged | EpochBegan | StoreCannotWake) -> LogLine:
    match event:
        case StoreCannotWake(pool, cause):
            text = "the store cannot notify this replica, whose requests are served late: permit it to subscribe"
            return LogLine("warning", text, {"pool": pool, "cause": cause})
        case EpochBegan(pool):
            text = (
                "the store is new, was restarted or lost data: each key is probed with one request before further use"
            )
            return LogLine("warning", text, {"pool": pool})
        case StoreChanged(pool, up=True, seconds=seconds):
            return LogLine("warning", "the store responds again", {"pool": pool, "lost_seconds": round(seconds, 1)})
        case StoreChanged(pool, cause=cause, on_loss=on_loss):
            return LogLine("error", _STORE_LOST[on_loss], {"pool": pool, "cause": cause})


def _key(event: KeyChanged | KeySwitched) -> LogLine:
    values = {"pool": event.pool, "key": event.key}
    match event:
        case KeyChanged(state="quarantined", reason=reason):
            text = (
                "a key is not accepted by the upstream and was quarantined: replace its secret, or enable it in Postman"
            )
            return LogLine("error", text, {**values, "reason": reason})
        case KeyChanged():
            return LogLine("warning", "a quarantined key is accepted again and in use", values)
        case KeySwitched(paused=True):
            return LogLine("warning", "an operator paused a key: it is not used until it is resumed", values)
        case KeySwitched():
            return LogLine("warning", "an operator resumed a key", values)


def _upstream(event: Event) -> LogLine | None:
    """Limits and outages that the upstream's responses show."""
    match event:
        case UpstreamThrottled(pool, key, quota, kind, wait, limit, is_new=True):
            values = {"pool": pool, "key": key, "quota": quota, "kind": kind, "limit": limit}
            return LogLine("warning", _THROTTLED[kind], {**values, "wait_seconds": wait / SECOND})
        case LimitLowered() | LimitHigher():
            return _limit(event)
        case PoolThrottled(pool, quotas=0):
            return LogLine("warning", "the upstream no longer responds 429 to several keys at once", {"pool": pool})
        case PoolThrottled(pool, quotas, wait):
            text = "the upstream responds 429 to several keys at once: check for a limit of this address or account"
            return LogLine("error", text, {"pool": pool, "quotas": quotas, "next_probe_seconds": wait / SECOND})
        case BreakerChanged():
            return _breaker(event)
        case _:
            return _detail(event)


def _limit(event: LimitLowered | LimitHigher) -> LogLine:
    match event:
        case LimitLowered(pool, limit, configured, lower):
            text = "the upstream's limit is lower than configured and was adopted: correct the setting"
            values = {"setting": f"pools.{pool}.limits", "limit": limit}
            return LogLine("warning", text, {**values, "configured": configured, "reported": lower})
        case LimitHigher(pool, limit):
            text = (
                "the upstream's limit is higher than configured, so requests wait longer than needed: raise the setting"
            )
            values = {"setting": limit.setting(pool), "limit": limit.limit}
            return LogLine("warning", text, {**values, "configured": limit.configured, "reported": limit.reported})


def _breaker(event: BreakerChanged) -> LogLine:
    values: dict[str, Any] = {"pool": event.pool}
    if event.scope.client:
        values["client"] = event.scope.client
    if event.scope.route is not None:
        values["route"] = str(event.scope.route)
    if event.opened:
        values |= {"cause": event.cause, "next_probe_seconds": event.wait / SECOND}
    text = _FAILING[event.scope.kind] if event.opened else _RESPONDING[event.scope.kind]
    if not event.is_new:
        return LogLine("debug", text, values)
    if event.scope.client:
        return LogLine("warning" if event.opened else "info", text, values)
    return LogLine("error" if event.opened else "warning", text, values)


def _detail(event: Event) -> LogLine | None:
    """Lines that may come with every request, for debugging."""
    match event:
        case Retried(pool, reason):
            return LogLine("debug", "a request is retried", {"pool": pool, "reason": reason})
        case ForeignSpent(pool, quota, tokens):
            text = "requests of another user were counted on this quota"
            return LogLine("debug", text, {"pool": pool, "quota": quota, "requests": tokens})
        case SignalsIgnored(pool, fields):
            text = "malformed or out-of-range fields of a response were ignored"
            return LogLine("debug", text, {"pool": pool, "fields": list(fields)})
        case _:
            return None


_STORE_LOST = {
    "share": "the store does not respond: restore it. Until then, this replica uses its share of the limits",
    "wait": "the store does not respond: restore it. Until then, requests wait",
    "refuse": "the store does not respond: restore it. Until then, requests are rejected with 503",
}

_FAILING = {
    "pool": "the upstream is failing: requests are rejected with 503 until a probe succeeds",
    "client": "the upstream is failing for one client: its requests are rejected with 503 until a probe succeeds",
    "route": "the upstream is failing for one route of one client: it is rejected with 503 until a probe succeeds",
}

_RESPONDING = {
    "pool": "the upstream responds again",
    "client": "the upstream responds to a client again",
    "route": "the upstream responds on a route of a client again",
}

_THROTTLED = {
    "window": "the upstream responded 429: another user has this key, or its limit is lower than configured",
    "endpoint": "the upstream responded 429 for a narrower limit on some endpoints: add it to `limits`, with `match`",
    "plan": "the upstream responded 429: the plan of this key's team is used up; raise the plan or use other keys",
}
