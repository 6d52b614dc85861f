"""The status page's data and files: a snapshot becomes the JSON document of `docs/status.md`, and page assets bytes.

Knows no HTTP library and no clock. Durations and instants (epoch) in a snapshot are microseconds; in the document they
are seconds and UTC in ISO 8601. There is no field for a secret: names, states, counts and times only (law 11).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal

from proxy.core.model import SECOND, Micros

VERSION = 1
"""Of the document. New fields may appear within a version; what a field means, and that it is there, stays."""

SLICES = 12
"""Into how many parts of its window a limit's calendar of returns is counted together, however large the limit is."""

KeyState = Literal["ready", "parked", "quarantined", "paused"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Count:
    """How often something happened: since the process began, and in the last minute."""

    total: int = 0
    minute: int = 0


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """A key: the state that it is in, why, since when, and until when if that is known."""

    name: str
    quota: str
    state: KeyState
    since: Micros
    reason: str = ""
    until: Micros | None = None
    month_remaining: int | None = None
    """What the upstream last said that the month's plan still holds."""


@dataclass(frozen=True, slots=True)
class Returning:
    """Tokens that are back within a time from now, and not within that of the entry before."""

    within: Micros
    tokens: int


@dataclass(frozen=True, slots=True)
class BucketStatus:
    """The tokens of one limit of one quota; what cools is told by when it returns (`calendar`)."""

    limit: str
    size: int
    window: Micros
    at_hand: int
    in_use: int
    cooling: Sequence[Returning] = ()


@dataclass(frozen=True, slots=True)
class QuotaStatus:
    """What the upstream counts against, and its buckets in the order of the pool's limits."""

    name: str
    buckets: Sequence[BucketStatus]


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """The requests of one client and one kind that wait."""

    limits: Sequence[str]
    waiting: int
    oldest: Micros
    """How long the one that came first has waited."""
    turn: Micros | None = None
    """In what time its head is expected to be served; `None` when no token is expected."""
    pinned: str | None = None


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """A client's part in a pool: what it got in the last minute, and its lanes."""

    name: str
    weight: int
    granted: int
    """Leases in the last minute."""
    lanes: Sequence[LaneStatus] = ()

    @property
    def active(self) -> bool:
        """Whether it got something in the last minute or waits: only then a share is due to it."""
        return bool(self.granted or self.lanes)


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool: its keys, its quotas, and its clients."""

    name: str
    keys: Sequence[KeyStatus]
    quotas: Sequence[QuotaStatus]
    clients: Sequence[ClientStatus]
    in_flight: int = 0
    refused: Count = Count()
    throttled: Count = Count()
    """Answers 429 of the upstream."""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Where the buckets live, whether it answers, since when, and the cause when it does not."""

    kind: str
    up: bool
    since: Micros
    replicas: int = 1
    """Seen by the store of late, this one counted."""
    cause: str = ""
    on_loss: str = ""


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """The last reload of the configuration, and why it was refused if it was."""

    at: Micros
    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """The process: what runs, since when, and why it is not ready if it is not."""

    replica: str
    version: str
    python: str
    started: Micros
    draining: bool = False
    unready: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the page shows, of one moment (`at`, epoch)."""

    at: Micros
    process: ProcessStatus
    store: StoreStatus
    pools: Sequence[PoolStatus]
    reload: ReloadStatus | None = None
    refused: Mapping[str, Count] = field(default_factory=dict)
    """By reason, also of callers that belong to no pool."""


def calendar(delays: Iterable[Micros], window: Micros) -> tuple[Returning, ...]:
    """Count tokens together by the slice of the window in which they return; at most `SLICES` + 1 entries.

    Args:
        delays: of each token, the time until it returns.
        window: the (stretched) window; what returns later than that is one entry of its own.
    """
    width = max(1, -(-window // SLICES))
    slices: dict[int, Returning] = {}
    for delay in sorted(max(0, delay) for delay in delays):
        index = min(delay // width, SLICES)
        before = slices.get(index)
        slices[index] = Returning(delay, before.tokens + 1 if before else 1)
    return tuple(slices.values())


def document(snapshot: Snapshot) -> dict[str, Any]:
    """The content of `status.json`: text, numbers, booleans and null, by the names of `docs/status.md`."""
    return {
        "version": VERSION,
        "at": _instant(snapshot.at),
        "process": _process(snapshot.process),
        "store": _store(snapshot.store),
        "reload": _reload(snapshot.reload),
        "refused": {reason: _count(count) for reason, count in sorted(snapshot.refused.items())},
        "pools": [_pool(pool) for pool in snapshot.pools],
    }


def _process(process: ProcessStatus) -> dict[str, Any]:
    return {
        "replica": process.replica,
        "version": process.version,
        "python": process.python,
        "started": _instant(process.started),
        "draining": process.draining,
        "unready": list(process.unready),
    }


def _store(store: StoreStatus) -> dict[str, Any]:
    return {
        "kind": store.kind,
        "up": store.up,
        "since": _instant(store.since),
        "replicas": store.replicas,
        "cause": store.cause,
        "on_loss": store.on_loss,
    }


def _reload(reload: ReloadStatus | None) -> dict[str, Any] | None:
    return None if reload is None else {"at": _instant(reload.at), "ok": reload.ok, "reason": reload.reason}


def _pool(pool: PoolStatus) -> dict[str, Any]:
    granted = sum(client.granted for client in pool.clients)
    weights = sum(client.weight for client in pool.clients if client.active)
    return {
        "name": pool.name,
        "in_flight": pool.in_flight,
        "refused": _count(pool.refused),
        "throttled": _count(pool.throttled),
        "keys": [_key(key) for key in pool.keys],
        "quotas": [{"name": quota.name, "limits": [_bucket(b) for b in quota.buckets]} for quota in pool.quotas],
        "clients": [_client(client, granted, weights) for client in pool.clients],
    }


def _key(key: KeyStatus) -> dict[str, Any]:
    return {
        "name": key.name,
        "quota": key.quota,
        "state": key.state,
        "reason": key.reason,
        "since": _instant(key.since),
        "until": None if key.until is None else _instant(key.until),
        "month_remaining": key.month_remaining,
    }


def _bucket(bucket: BucketStatus) -> dict[str, Any]:
    return {
        "name": bucket.limit,
        "size": bucket.size,
        "window": _seconds(bucket.window),
        "at_hand": bucket.at_hand,
        "in_use": bucket.in_use,
        "cooling": sum(entry.tokens for entry in bucket.cooling),
        "returns": [{"within": _seconds(entry.within), "tokens": entry.tokens} for entry in bucket.cooling],
    }


def _client(client: ClientStatus, granted: int, weights: int) -> dict[str, Any]:
    turns = [lane.turn for lane in client.lanes if lane.turn is not None]
    return {
        "name": client.name,
        "weight": client.weight,
        "granted": client.granted,
        "share": _ratio(client.granted, granted),
        "due": _ratio(client.weight, weights) if client.active else None,
        "waiting": sum(lane.waiting for lane in client.lanes),
        "oldest": _seconds(max((lane.oldest for lane in client.lanes), default=0)),
        "turn": _seconds(min(turns)) if turns else None,
        "lanes": [_lane(lane) for lane in client.lanes],
    }


def _lane(lane: LaneStatus) -> dict[str, Any]:
    return {
        "limits": list(lane.limits),
        "pinned": lane.pinned,
        "waiting": lane.waiting,
        "oldest": _seconds(lane.oldest),
        "turn": None if lane.turn is None else _seconds(lane.turn),
    }


def _count(count: Count) -> dict[str, int]:
    return {"total": count.total, "minute": count.minute}


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _seconds(duration: Micros) -> float:
    return round(duration / SECOND, 3)


def _instant(at: Micros) -> str:
    return (_EPOCH + timedelta(microseconds=at)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Asset:
    """A file to answer with, and its header fields."""

    body: bytes
    headers: Mapping[str, str]


GUARD = MappingProxyType(
    {
        # Nothing but this page's own files, no inline script or style, and no frame around it (CSP level 3).
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
)
"""Sent with everything that a browser reads here."""

_PAGE = MappingProxyType(
    {
        "/": ("index.html", "text/html; charset=utf-8"),
        "/status.css": ("status.css", "text/css; charset=utf-8"),
        "/status.js": ("status.js", "text/javascript; charset=utf-8"),
        "/icon.svg": ("icon.svg", "image/svg+xml"),
    }
)

PAGE_PATHS = tuple(_PAGE)
"""The paths at which `asset` has a file."""


@cache
def asset(path: str) -> Asset | None:
    """A file of the page by its path; `None` when there is none."""
    if path not in _PAGE:
        return None
    name, content_type = _PAGE[path]
    body = files("proxy.web").joinpath("page", name).read_bytes()
    # A new version of the proxy brings a new page: a browser asks each time, and the files are small.
    return Asset(body, {"Content-Type": content_type, "Cache-Control": "no-cache", **GUARD})


def status_json(snapshot: Snapshot) -> Asset:
    """The document as it is answered."""
    body = json.dumps(document(snapshot), separators=(",", ":")).encode() + b"\n"
    return Asset(body, {"Content-Type": "application/json", "Cache-Control": "no-store", **GUARD})
