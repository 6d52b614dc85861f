"""A made-up replica for tests of whatever shows a status: snapshots, and a small server that answers as it would."""

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from keyturn.core.health import State
from keyturn.core.model import SECOND, Micros
from keyturn.core.recent import Count
from keyturn.web.status import page as documents
from keyturn.web.status.page import Asset, asset, status_json
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
    Returning,
    StoreStatus,
    calendar,
)

MINUTE: Micros = 60 * SECOND
AT: Micros = 1_790_000_000 * SECOND
"""2026-09-21T14:13:20Z."""


def document(snapshot: ReplicaStatus) -> dict[str, Any]:
    """The document of a snapshot, as its reader has it."""
    read: dict[str, Any] = json.loads("".join(documents.document(snapshot)))
    return read


def bucket(
    limit: str, size: int, available: int, in_use: int, *, window: Micros = MINUTE, phase: int = 0
) -> BucketStatus:
    """A bucket of which what is neither available nor in use returns evenly over its window."""
    out = size - available - in_use
    delays = [(index * 7 + phase) % max(out, 1) * window // max(out, 1) for index in range(out)]
    return BucketStatus(limit, size, window, available, in_use, calendar(delays, window))


def quiet(at: Micros = AT) -> ReplicaStatus:
    """Nothing has happened yet: one key, the memory store, no caller."""
    pool = PoolStatus(
        "default",
        keys=(KeyStatus("key-1", "key-1", "ready", at - SECOND),),
        quotas=(QuotaStatus("key-1", (bucket("60/60s", 60, 60, 0),)),),
        clients=(),
    )
    return ReplicaStatus(
        at,
        ProcessStatus("host-1", "0.1.0", "3.11.9", at - SECOND),
        StoreStatus("memory", up=True, since=at - SECOND),
        (pool,),
    )


def busy(step: int = 0, *, lost: bool = False, quarantined: bool = True, out: bool = False) -> ReplicaStatus:
    """A pool of four keys under load, `step` seconds later, and one with a large limit that idles."""
    at = AT + step * SECOND
    state: State = "quarantined" if quarantined else "ready"
    why = "401 AuthenticationError: the upstream does not know this key" if quarantined else ""
    pool = PoolStatus(
        "default",
        keys=(
            KeyStatus("team-a", "team-a", "ready", AT - 400 * MINUTE, month_remaining=81_240),
            KeyStatus("team-b", "shared-user", "ready", AT - 400 * MINUTE),
            KeyStatus("team-b2", "shared-user", "paused", AT - 9 * MINUTE, "paused on the admin listener"),
            KeyStatus("team-c", "team-c", "parked", AT - 12 * SECOND, "429 of the upstream", AT + 40 * SECOND, 312),
            KeyStatus("team-d", "team-d", state, AT - 3 * MINUTE, why, AT + 27 * MINUTE if quarantined else None),
        ),
        quotas=(
            QuotaStatus("team-a", (bucket("60/60s", 60, (14 + 5 * step) % 30, 4, phase=step), _short(6, 1))),
            QuotaStatus("shared-user", (bucket("60/60s", 60, 3, 2, phase=step), _short(0, 2))),
            QuotaStatus("team-c", (_parked(40 * SECOND - step * SECOND), _short(10, 0))),
            QuotaStatus("team-d", (bucket("60/60s", 60, 60, 0), _short(10, 0))),
        ),
        clients=_clients(step),
        in_flight=6,
        refused=Count(412, 9),
        throttled=Count(3, 1),
        outage=OutageStatus(at - 20 * SECOND, "503 three times in a row", at + 40 * SECOND) if out else None,
        failing=(
            OutageStatus(at - 9 * SECOND, "status 504", at + 2 * SECOND, "reports", "POST /monitors/{}/run"),
            OutageStatus(at - 5 * SECOND, "timed out", at + 3 * SECOND, "nightly"),
        )
        if out
        else (),
    )
    return ReplicaStatus(
        at,
        ProcessStatus("keyturn-7d9f8b6c5-x2lqp", "0.2.0", "3.13.1", AT - 400 * MINUTE),
        StoreStatus("redis", not lost, at - 20 * SECOND, 3, "no answer within 500 ms" if lost else "", "share"),
        (pool, _large()),
        ReloadStatus(AT - 31 * MINUTE, ok=False, reason="clients[2].weight: a whole number from 1 to 1000"),
        {
            "deadline": Count(380, 8),
            "queue_full": Count(2, 0),
            "client_rate": Count(30, 1),
            "unauthenticated": Count(4, 0),
        },
    )


def _short(available: int, in_use: int) -> BucketStatus:
    return bucket("10/10s", 10, available, in_use, window=10 * SECOND)


def _parked(until: Micros) -> BucketStatus:
    return BucketStatus("60/60s", 60, MINUTE, 0, 0, (Returning(max(0, until), 60),))


def _clients(step: int) -> Sequence[ClientStatus]:
    return (
        ClientStatus("portal", 3, 96, (QueueStatus(("60/60s",), 2, 800_000, 250_000),)),
        ClientStatus(
            "crawler",
            1,
            71,
            (
                QueueStatus(("60/60s",), 140 + 7 * step, 24 * SECOND, 1_400_000),
                QueueStatus(("60/60s", "10/10s"), 18, 29 * SECOND, 9 * SECOND),
            ),
        ),
        ClientStatus("pipeline", 1, 12, (QueueStatus(("60/60s",), 3, 4 * SECOND, None, "team-d"),)),
        ClientStatus("nightly-export", 2, 0),
        ClientStatus("reports", 1, 0),
    )


def _large() -> PoolStatus:
    return PoolStatus(
        "enterprise",
        keys=(KeyStatus("org", "org", "ready", AT - 400 * MINUTE),),
        quotas=(QuotaStatus("org", (bucket("300/60s", 300, 211, 9),)),),
        clients=(ClientStatus("warehouse", 1, 80),),
        in_flight=9,
    )


class Replica:
    """The small server's answer; a test changes it."""

    def __init__(self, *snapshots: ReplicaStatus) -> None:
        self.snapshots = list(snapshots)
        """The next at each question; the last one stays."""
        self.failing = False
        self.asked: list[str] = []


@contextmanager
def serving(replica: Replica, port: int = 0) -> Iterator[str]:
    """The page and its data on the loopback; the address, with its closing slash."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler(replica))
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _found(replica: Replica, path: str) -> Asset | None:
    if path != "/status.json":
        return asset(path)
    if replica.failing:
        return None
    snapshot = replica.snapshots.pop(0) if len(replica.snapshots) > 1 else replica.snapshots[0]
    return asyncio.run(status_json(snapshot))


def _handler(replica: Replica) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            replica.asked.append(self.path)
            found = _found(replica, self.path)
            self.send_response(404 if found is None else 200)
            for name, value in ({} if found is None else found.headers).items():
                self.send_header(name, value)
            body = b"" if found is None else found.body
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's own name
            pass

    return Handler
