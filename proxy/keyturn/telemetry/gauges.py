"""Gauges: numbers that are not kept here but were read from where they are just before somebody asked."""

from collections.abc import Iterable, Iterator
from typing import get_args

from keyturn.core.health import State
from keyturn.core.levels import Levels
from keyturn.core.model import SECOND
from keyturn.telemetry.series import Gauge, Labels

STATES = get_args(State)


def gauges(levels: Levels) -> Iterator[Gauge]:
    """The gauges of one moment; their samples are worked out while they are written."""
    yield _gauge(
        "waiting",
        "Requests that wait for their turn in this replica.",
        ("pool", "client"),
        (((lane.pool, lane.client), lane.waiting) for lane in levels.lanes),
    )
    yield _gauge(
        "estimated_wait_seconds",
        "What a new request of this client would wait for its turn now.",
        ("pool", "client"),
        (((lane.pool, lane.client), lane.turn / SECOND) for lane in levels.lanes if lane.turn is not None),
    )
    yield _gauge(
        "in_flight",
        "Requests of this replica that hold a key: sent, or about to be.",
        ("pool",),
        [((pool,), number) for pool, number in levels.in_flight],
    )
    yield from _limits(levels)
    yield from _keys(levels)
    yield _gauge(
        "breakers_open",
        "Breakers that are open because the upstream fails: of the whole pool, of clients, of routes of clients.",
        ("pool", "scope"),
        [((one.pool, one.scope), one.open) for one in levels.breakers],
    )
    yield from _connections(levels)
    yield _gauge("buffered_bytes", "Memory that requests hold on their way in.", (), [((), levels.buffered)])
    yield _gauge(
        "body_bytes",
        "Bytes that bodies of requests take until their requests end, in memory and in temporary files.",
        ("where",),
        [((where,), number) for where, number in levels.bodies],
    )
    yield _gauge(
        "store_up", "1 while the store of the shared limits answers, else 0.", (), [((), int(levels.store_up))]
    )
    yield _counter(
        "degraded_seconds",
        "Seconds that this replica has spent without the store of the shared limits.",
        levels.degraded,
    )
    yield _counter(
        "log_lines_dropped",
        "Lines of the log that were dropped because nobody read them in time, or because they could not be written.",
        levels.log_lines_dropped,
    )


def _connections(levels: Levels) -> Iterator[Gauge]:
    yield _gauge("connections", "Callers' connections that are open.", (), [((), levels.connections)])
    yield _gauge(
        "upstream_connections",
        "Connections to the upstream that are in use, or being made.",
        (),
        [((), levels.upstream_connections)],
    )
    yield _gauge(
        "upstream_connections_limit",
        "Connections to the upstream that may be in use at once: then requests wait for one.",
        (),
        [((), levels.upstream_connections_limit)],
    )


def _limits(levels: Levels) -> Iterator[Gauge]:
    bucket = ("pool", "quota", "limit")
    yield _gauge(
        "tokens_available",
        "Requests that may be sent now under a limit of a quota. Replicas that share a store tell the same number.",
        bucket,
        (((one.pool, one.quota, one.limit), one.at_hand) for one in levels.buckets),
    )
    yield _gauge(
        "tokens_limit",
        "Requests that a limit permits in its window on each quota.",
        bucket,
        (((one.pool, one.quota, one.limit), one.size) for one in levels.buckets),
    )
    yield _gauge(
        "upstream_limit",
        "Requests that the upstream says a limit permits, of limits for which that is more than is configured.",
        ("pool", "limit"),
        [((pool, one.limit), one.told) for pool, one in levels.higher],
    )


def _keys(levels: Levels) -> Iterator[Gauge]:
    yield _gauge(
        "key_state",
        "1 for the state that a key is in, 0 for the others: ready, parked until the upstream's own time, quarantined "
        "because the upstream does not accept it, or paused by an operator.",
        ("pool", "key", "state"),
        (((key.pool, key.look.name, state), int(key.look.state == state)) for key in levels.keys for state in STATES),
    )
    yield _gauge(
        "month_remaining",
        "Requests that the month's plan behind a key still holds, by the upstream's last word.",
        ("pool", "key"),
        (((key.pool, key.look.name), key.look.month_left) for key in levels.keys if key.look.month_left is not None),
    )


def _gauge(name: str, text: str, names: Labels, samples: Iterable[tuple[Labels, float]]) -> Gauge:
    return Gauge(f"keyturn_{name}", text, names, samples)


def _counter(name: str, text: str, value: float) -> Gauge:
    return Gauge(f"keyturn_{name}", text, (), [((), value)], "counter")
