"""Gauges: values that are collected from their sources for each scrape."""

from collections.abc import Iterable, Iterator
from typing import get_args

from keyturn.core.health import State
from keyturn.core.levels import Levels
from keyturn.core.model import SECOND
from keyturn.telemetry.exposition import Gauge, Labels

STATES = get_args(State)


def gauges(levels: Levels) -> Iterator[Gauge]:
    """The gauges of one moment; their samples are computed while they are written."""
    yield _gauge(
        "waiting",
        "Requests that wait in this replica.",
        ("pool", "client"),
        (((one.pool, one.client), one.waiting) for one in levels.clients),
    )
    yield _gauge(
        "estimated_wait_seconds",
        "Time that a new request of this client would wait now.",
        ("pool", "client"),
        (
            ((one.pool, one.client), one.estimated_wait / SECOND)
            for one in levels.clients
            if one.estimated_wait is not None
        ),
    )
    yield _gauge(
        "in_flight",
        "Requests of this replica that hold a lease.",
        ("pool",),
        [((pool,), number) for pool, number in levels.in_flight],
    )
    yield from _limits(levels)
    yield from _keys(levels)
    yield _gauge(
        "breakers_open",
        "Open circuit breakers, by scope: of the pool, of clients, of routes of clients.",
        ("pool", "scope"),
        [((one.pool, one.scope), one.open) for one in levels.breakers],
    )
    yield from _connections(levels)
    yield _gauge(
        "buffered_bytes",
        "Bytes of incoming requests in memory that were not passed on yet.",
        (),
        [((), levels.buffered)],
    )
    yield _gauge(
        "body_bytes",
        "Bytes of request bodies that are kept until their requests end, in memory and in temporary files.",
        ("where",),
        [((where,), number) for where, number in levels.bodies],
    )
    yield _gauge("store_up", "1 while the store responds, else 0.", (), [((), int(levels.store_up))])
    yield _counter(
        "degraded_seconds",
        "Seconds that this replica has been without its store.",
        levels.degraded,
    )
    yield _counter(
        "log_lines_dropped",
        "Log lines that were dropped because they were not read in time or could not be written.",
        levels.log_lines_dropped,
    )


def _connections(levels: Levels) -> Iterator[Gauge]:
    yield _gauge("connections", "Open connections of callers.", (), [((), levels.connections)])
    yield _gauge(
        "upstream_connections",
        "Connections to the upstream in use or being opened.",
        (),
        [((), levels.upstream_connections)],
    )
    yield _gauge(
        "upstream_connections_limit",
        "The most connections to the upstream at once; beyond it requests wait for one.",
        (),
        [((), levels.upstream_connections_limit)],
    )


def _limits(levels: Levels) -> Iterator[Gauge]:
    bucket = ("pool", "quota", "limit")
    yield _gauge(
        "tokens_available",
        "Available tokens of a limit of a quota. Replicas that share a store report the same number.",
        bucket,
        (((one.pool, one.quota, one.limit), one.available) for one in levels.buckets),
    )
    yield _gauge(
        "tokens_limit",
        "Requests that a limit permits in its window, for each quota.",
        bucket,
        (((one.pool, one.quota, one.limit), one.size) for one in levels.buckets),
    )
    yield _gauge(
        "upstream_limit",
        "Requests that a limit permits by the upstream's own report, where that is more than configured.",
        ("pool", "limit"),
        [((pool, one.limit), one.reported) for pool, one in levels.higher],
    )


def _keys(levels: Levels) -> Iterator[Gauge]:
    yield _gauge(
        "key_state",
        "1 for the state of a key, 0 for the others: ready, parked (closed until a time that the upstream named), "
        "quarantined (not accepted by the upstream), paused (by an operator).",
        ("pool", "key", "state"),
        (((pool, key.name, state), int(key.state == state)) for pool, key in levels.keys for state in STATES),
    )
    yield _gauge(
        "month_remaining",
        "Requests left of the month's plan of a key, as the upstream last reported.",
        ("pool", "key"),
        (((pool, key.name), key.month_left) for pool, key in levels.keys if key.month_left is not None),
    )


def _gauge(name: str, text: str, names: Labels, samples: Iterable[tuple[Labels, float]]) -> Gauge:
    return Gauge(f"keyturn_{name}", text, names, samples)


def _counter(name: str, text: str, value: float) -> Gauge:
    return Gauge(f"keyturn_{name}", text, (), [((), value)], "counter")
