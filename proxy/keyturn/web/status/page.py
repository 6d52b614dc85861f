"""The status page: its files, and `status.json`, by the names of `docs/status.md` (seconds; UTC by ISO 8601)."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.model import SECOND, Micros
from keyturn.core.recent import Count
from keyturn.tasks import encoded_in_steps
from keyturn.web.status.replica_status import (
    BucketStatus,
    ClientStatus,
    KeyStatus,
    OutageStatus,
    PoolStatus,
    ProcessStatus,
    QueueStatus,
    QuotaStatus,
    ReloadStatus,
    ReplicaStatus,
    StoreStatus,
)

VERSION = 2
"""The version of the document. Within a version fields may be added; none changes its meaning or is removed."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def document(snapshot: ReplicaStatus) -> Iterator[str]:
    """The text of `status.json`, by the names of `docs/status.md`, in pieces of one entry of a pool at the most."""
    yield from _object(
        {
            "version": VERSION,
            "at": _instant(snapshot.at),
            "process": _process(snapshot.process),
            "store": _store(snapshot.store),
            "reload": _reload(snapshot.reload),
            "refused": {reason: _counted(count) for reason, count in sorted(snapshot.refused.items())},
        },
        {"pools": map(_pool, snapshot.pools)},
    )
    yield "\n"


def _object(fields: dict[str, Any], lists: dict[str, Iterable[Iterable[str]]]) -> Iterator[str]:
    """An object of some fields, and of some lists whose entries come as text."""
    yield _text(fields).removesuffix("}")
    for name, entries in lists.items():
        yield f',"{name}":['
        for number, entry in enumerate(entries):
            yield "," if number else ""
            yield from entry
        yield "]"
    yield "}"


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


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


def _pool(pool: PoolStatus) -> Iterator[str]:
    granted = sum(client.granted for client in pool.clients)
    weights = sum(client.weight for client in pool.clients if client.active)
    return _object(
        {
            "name": pool.name,
            "in_flight": pool.in_flight,
            "refused": _counted(pool.refused),
            "throttled": _counted(pool.throttled),
            "failed": _counted(pool.failed),
            "failure": None if (last := pool.failure) is None else {"at": _instant(last.at), "cause": last.cause},
            "outage": None if pool.outage is None else _outage(pool.outage),
            "upstream_limits": [_higher(pool.name, one) for one in pool.higher],
            "failing": [{"client": one.client, "route": one.route or None, **_outage(one)} for one in pool.failing],
        },
        {
            "keys": ([_text(_key(key))] for key in pool.keys),
            "quotas": ([_text(_quota(quota))] for quota in pool.quotas),
            "clients": ([_text(_client(client, granted, weights))] for client in pool.clients),
        },
    )


def _outage(outage: OutageStatus) -> dict[str, Any]:
    return {"since": _instant(outage.since), "cause": outage.cause, "until": _instant(outage.until)}


def _higher(pool: str, one: HigherLimit) -> dict[str, Any]:
    return {"limit": one.limit, "configured": one.configured, "reported": one.reported, "setting": one.setting(pool)}


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


def _quota(quota: QuotaStatus) -> dict[str, Any]:
    return {"name": quota.name, "limits": [_bucket(bucket) for bucket in quota.buckets]}


def _bucket(bucket: BucketStatus) -> dict[str, Any]:
    return {
        "name": bucket.limit,
        "size": bucket.size,
        "window": _seconds(bucket.window),
        "available": bucket.available,
        "in_use": bucket.in_use,
        "cooling_down": sum(entry.tokens for entry in bucket.cooling_down),
        "returns": [{"within": _seconds(entry.within), "tokens": entry.tokens} for entry in bucket.cooling_down],
    }


def _client(client: ClientStatus, granted: int, weights: int) -> dict[str, Any]:
    waits = [queue.estimated_wait for queue in client.queues if queue.estimated_wait is not None]
    return {
        "name": client.name,
        "weight": client.weight,
        "granted": client.granted,
        "share": _ratio(client.granted, granted),
        "fair_share": _ratio(client.weight, weights) if client.active else None,
        "waiting": sum(queue.waiting for queue in client.queues),
        "longest_wait": _seconds(max((queue.longest_wait for queue in client.queues), default=0)),
        "estimated_wait": _seconds(min(waits)) if waits else None,
        "queues": [_queue(queue) for queue in client.queues],
    }


def _queue(queue: QueueStatus) -> dict[str, Any]:
    return {
        "limits": list(queue.limits),
        "pinned": queue.pinned,
        "waiting": queue.waiting,
        "longest_wait": _seconds(queue.longest_wait),
        "estimated_wait": None if queue.estimated_wait is None else _seconds(queue.estimated_wait),
    }


def _counted(count: Count) -> dict[str, int]:
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
        "/elements.js": ("elements.js", "text/javascript; charset=utf-8"),
        "/words.js": ("words.js", "text/javascript; charset=utf-8"),
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
    body = files("keyturn.web.status").joinpath("files", name).read_bytes()
    # A new version of the proxy brings a new page: a browser asks each time, and the files are small.
    return Asset(body, {"Content-Type": content_type, "Cache-Control": "no-cache", **GUARD})


async def status_json(snapshot: ReplicaStatus) -> Asset:
    """The document as it is answered; the event loop turns while it is written."""
    body = await encoded_in_steps(document(snapshot))
    return Asset(body, {"Content-Type": "application/json", "Cache-Control": "no-store", **GUARD})
