"""Replicas at the edges of what has to be shown: nothing, very much, and names as long as they may be."""

from dataclasses import replace

from keyturn.core.model import SECOND
from keyturn.core.recent import Count
from keyturn.web.status.replica_status import (
    ClientStatus,
    KeyStatus,
    PoolStatus,
    QueueStatus,
    QuotaStatus,
    ReplicaStatus,
)

from tests.observability.samples import AT, MINUTE, bucket, quiet

LONG = "X" * 64
"""The longest name that the configuration takes, with no place to break it."""

KEYS, CLIENTS, WAITING = 200, 500, 450
"""How many there are, and of how many clients somebody waits."""


def empty() -> ReplicaStatus:
    """A pool to which nobody has given a key, and that nobody has called."""
    snapshot = quiet()
    process = replace(snapshot.process, unready=("the pool default has no key",))
    return replace(snapshot, process=process, pools=(PoolStatus("default", (), (), ()),))


def crowd() -> ReplicaStatus:
    """Two hundred keys, four of them quarantined, and five hundred clients, of which most wait."""
    keys = [_key(index) for index in range(KEYS)]
    quotas = [
        QuotaStatus(key.quota, () if key.state == "quarantined" else (bucket("60/60s", 60, index % 50, index % 5),))
        for index, key in enumerate(keys)
    ]
    clients = [
        ClientStatus(f"client-{index:03}", 1 + index % 3, index % 7, _queues(index) if index < WAITING else ())
        for index in range(CLIENTS)
    ]
    clients = [client if index < WAITING else replace(client, granted=0) for index, client in enumerate(clients)]
    return replace(quiet(), pools=(PoolStatus("default", keys, quotas, clients, 120),))


def _key(index: int) -> KeyStatus:
    name = f"team-{index:03}"
    if index % 50 == 7:  # one in fifty
        return KeyStatus(name, name, "quarantined", AT - MINUTE, "the upstream does not accept it", AT + MINUTE)
    return KeyStatus(name, name, "ready", AT - MINUTE, month_remaining=1000 * index + 1)


def _queues(index: int) -> tuple[QueueStatus, ...]:
    return (QueueStatus(("60/60s",), 1 + index % 9, index % 40 * SECOND, index % 20 * SECOND),)


def long_names() -> ReplicaStatus:
    """Everything that has a name has the longest one; and the month of a key is used up."""
    keys = (
        KeyStatus(LONG, LONG, "ready", AT - MINUTE, month_remaining=1_234_567_890),
        KeyStatus(f"{LONG[1:]}2", f"{LONG[1:]}2", "ready", AT - MINUTE, month_remaining=0),
    )
    queues = (
        QueueStatus(("60/60s",), 4000, 300 * SECOND, 250 * SECOND),
        QueueStatus(("60/60s", LONG), 4, 30 * SECOND, 0, LONG),
    )
    quotas = [QuotaStatus(key.quota, (bucket("60/60s", 60, 20, 3), bucket(LONG, 300, 20, 3))) for key in keys]
    pool = PoolStatus(LONG, keys, quotas, (ClientStatus(LONG, 1000, 50, queues),), 4, Count(10**6, 5000), Count(2, 1))
    snapshot = quiet()
    return replace(snapshot, process=replace(snapshot.process, replica=LONG), pools=(pool,))
