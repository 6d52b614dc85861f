"""Which events somebody has to know of, and in which words: what changed, and what to do about it.

Each change is told once, when it happens, never for each request that it touches. `error` is for what needs somebody,
`warning` for what may need somebody or is over, `info` and `debug` for whoever reads along.
"""

from typing import Any, Literal, NamedTuple

from keyturn.core.events import (
    BreakerMoved,
    EpochBegan,
    Event,
    ForeignSpent,
    KeyChanged,
    KeySwitched,
    LimitHigher,
    LimitLowered,
    LocalTroubleMet,
    Reloaded,
    Retried,
    SignalsIgnored,
    SpoolFailed,
    StoreChanged,
    StoreMute,
    ThrottledTogether,
    UpstreamThrottled,
)
from keyturn.core.model import SECOND


class Line(NamedTuple):
    """A line of the log: how grave it is, its words, and the values beside them."""

    level: Literal["debug", "info", "warning", "error"]
    text: str
    values: dict[str, Any]


def told(event: Event) -> Line | None:
    """The line of an event; `None` for those that are only counted."""
    match event:
        case StoreChanged() | EpochBegan() | StoreMute():
            return _store(event)
        case KeyChanged() | KeySwitched():
            return _key(event)
        case SpoolFailed(is_new=True) | LocalTroubleMet(is_new=True):
            return _machine(event)
        case Reloaded(ok=True):
            return Line("info", "the configuration was reloaded", {})
        case Reloaded(reasons=reasons):
            text = "the new configuration is refused, the old one goes on: correct the file, it is read again at once"
            return Line("error", text, {"problems": list(reasons)})
        case _:
            return _upstream(event)


def _machine(event: SpoolFailed | LocalTroubleMet) -> Line:
    """What this machine lacks."""
    match event:
        case SpoolFailed(cause):
            text = (
                "bodies of requests cannot be written to temporary files, so larger ones stream under a lease: give "
                "the folder of temporary files (TMPDIR) room and permissions, or set `inbound.spool_size` to 0"
            )
            return Line("warning", text, {"cause": cause})
        case LocalTroubleMet(cause, message):
            text = "this machine could not make a connection, which says nothing about the upstream"
            return Line("error", text, {"cause": cause, "problem": message})


def _store(event: StoreChanged | EpochBegan | StoreMute) -> Line:
    match event:
        case StoreMute(pool, cause):
            text = "the store answers but cannot call this replica, whose turns come late: let it subscribe"
            return Line("warning", text, {"pool": pool, "cause": cause})
        case EpochBegan(pool):
            text = "the store is new, restarted or behind: each key is tried with one request before it is used on"
            return Line("warning", text, {"pool": pool})
        case StoreChanged(pool, up=True, seconds=seconds):
            return Line("warning", "the store answers again", {"pool": pool, "lost_seconds": round(seconds, 1)})
        case StoreChanged(pool, cause=cause, on_loss=on_loss):
            return Line("error", _LOST[on_loss], {"pool": pool, "cause": cause})


def _key(event: KeyChanged | KeySwitched) -> Line:
    values = {"pool": event.pool, "key": event.key}
    match event:
        case KeyChanged(state="quarantined", reason=reason):
            text = "a key is not accepted any more and not used: give it a valid secret, or resume it upstream"
            return Line("error", text, {**values, "reason": reason})
        case KeyChanged():
            return Line("warning", "a key is accepted again and used", values)
        case KeySwitched(paused=True):
            return Line("warning", "a key was paused by an operator and is not used until it is resumed", values)
        case KeySwitched():
            return Line("warning", "a key was resumed by an operator", values)


def _upstream(event: Event) -> Line | None:
    """What the upstream's answers tell of limits and outages."""
    match event:
        case UpstreamThrottled(pool, key, quota, kind, wait, limit, is_new=True):
            values = {"pool": pool, "key": key, "quota": quota, "kind": kind, "limit": limit}
            return Line("warning", _THROTTLED[kind], {**values, "wait_seconds": wait / SECOND})
        case LimitLowered() | LimitHigher():
            return _limit(event)
        case ThrottledTogether(pool, quotas=0):
            return Line("warning", "the upstream does not answer 429 to everything any more", {"pool": pool})
        case ThrottledTogether(pool, quotas, wait):
            text = (
                "the upstream answers 429 to several keys at once: a limit of this address, or of an account they share"
            )
            return Line("error", text, {"pool": pool, "quotas": quotas, "next_probe_seconds": wait / SECOND})
        case BreakerMoved():
            return _breaker(event)
        case _:
            return _detail(event)


def _limit(event: LimitLowered | LimitHigher) -> Line:
    match event:
        case LimitLowered(pool, limit, configured, lower):
            text = "the upstream's limit is lower than configured, and taken so: change the setting"
            values = {"setting": f"pools.{pool}.limits", "limit": limit}
            return Line("warning", text, {**values, "configured": configured, "reported": lower})
        case LimitHigher(pool, limit):
            text = "the upstream's limit is higher than configured, so callers wait longer than they need: set it"
            values = {"setting": limit.setting(pool), "limit": limit.limit}
            return Line("warning", text, {**values, "configured": limit.configured, "reported": limit.told})


def _breaker(event: BreakerMoved) -> Line:
    values: dict[str, Any] = {"pool": event.pool}
    if event.scope.client:
        values["client"] = event.scope.client
    if event.scope.route is not None:
        values["route"] = str(event.scope.route)
    if event.opened:
        values |= {"cause": event.cause, "next_probe_seconds": event.wait / SECOND}
    text = _OUT_OF_ORDER[event.scope.kind] if event.opened else _IN_ORDER[event.scope.kind]
    if not event.is_new:
        return Line("debug", text, values)
    if event.scope.client:
        return Line("warning" if event.opened else "info", text, values)
    return Line("error" if event.opened else "warning", text, values)


def _detail(event: Event) -> Line | None:
    """What only somebody who looks for the cause of something wants to read, for it may come with every request."""
    match event:
        case Retried(pool, reason):
            return Line("debug", "a request goes out once more", {"pool": pool, "reason": reason})
        case ForeignSpent(pool, quota, tokens):
            text = "somebody else spent requests of this quota"
            return Line("debug", text, {"pool": pool, "quota": quota, "requests": tokens})
        case SignalsIgnored(pool, fields):
            text = "fields of an answer were ignored: malformed or absurd"
            return Line("debug", text, {"pool": pool, "fields": list(fields)})
        case _:
            return None


_LOST = {
    "share": "the store does not answer: going on with this replica's share of the limits; bring it back",
    "wait": "the store does not answer: requests wait for it; bring it back",
    "refuse": "the store does not answer: requests are refused with 503; bring it back",
}

_OUT_OF_ORDER = {
    "pool": "the upstream is out of order: requests are refused with 503 until it answers",
    "client": "the upstream is out of order for one client: its requests are refused with 503 until one is answered",
    "route": "the upstream is out of order for one route of one client: it is refused with 503 until it is answered",
}

_IN_ORDER = {
    "pool": "the upstream answers again",
    "client": "the upstream answers a client again",
    "route": "the upstream answers a route of a client again",
}

_THROTTLED = {
    "window": "the upstream answered 429: somebody else uses this key, or its limit is lower than configured",
    "endpoint": "the upstream answered 429 by a narrower limit on some endpoints: add it to `limits`, with `match`",
    "plan": "the upstream answered 429: the plan of this key's team is used up, which no waiting cures",
}
