"""A fleet whose server is replaced by one that lacks the last writes, as by Sentinel and clusters."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fleet.fleet import FOUND, LOST, NEW, Fleet, fleet
from tests.process import until
from tests.stores.servers import KINDS, Server, cluster, sentinel_of, server

CALLERS = 6
"""At each replica."""
LACKING = 40
"""Requests that are served while the server's replica hears nothing of them."""
LOST_BYTES = 10_000
"""Less than what is written for them."""


@pytest.mark.parametrize(("kind", "hangs"), [(KINDS[0], False), (KINDS[-1], True)])
async def test_sentinels_name_a_master_that_lacks_writes(tmp_path: Path, kind: str, hangs: bool) -> None:
    """No token is spent twice when the old master dies, or hangs and comes back as a master."""
    with server(kind) as master, server(kind, f"replicaof 127.0.0.1 {master.port}") as replica:
        await _follows(replica)
        with server(kind, sentinel=sentinel_of(master, patience=3000)) as sentinel:
            await until(lambda: sentinel.ask("SENTINEL", "REPLICAS", "main"), "the sentinel knows the replica")
            async with fleet(tmp_path, master, url=f"redis+sentinel://{sentinel.address}/main") as one:
                await _replaced(one, replica, hangs=hangs)


async def _replaced(one: Fleet, replica: Server, *, hangs: bool) -> None:
    _load(one)
    await one.serves(50)
    async with one.loss():
        with _cut_off(one.store, replica):
            await one.serves(LACKING)
            written = _written(one.store)
            if hangs:
                one.store.stop()
            else:
                one.store.kill()
            await one.lost()
        assert _written(replica) < written - LOST_BYTES
    if hangs:
        one.store.go_on()
        await until(lambda: "role:slave" in one.store.ask("INFO", "replication"), "the old master hears of it")
        await one.serves(50)
    await _judge(one)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_node_of_a_cluster_lacks_writes(tmp_path: Path, kind: str) -> None:
    """No token is spent twice when a replica without the last writes takes over a node's slots."""
    with cluster(kind) as nodes, server(kind, "cluster-enabled yes", "cluster-node-timeout 60000") as replica:
        slot = nodes[0].ask("CLUSTER", "KEYSLOT", "keyturn:2:{default}")
        master = nodes[slot * len(nodes) // 16384]
        await _join(replica, master)
        others = ",".join(node.address for node in nodes if node is not master)
        async with fleet(tmp_path, master, url=f"redis+cluster://{others}") as one:
            _load(one)
            await one.serves(50)
            async with one.loss():
                with _cut_off(master, replica):
                    await one.serves(LACKING)
                    written = _written(master)
                    master.kill()
                    await one.lost()
                assert _written(replica) < written - LOST_BYTES
                replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
            await _judge(one)


async def _join(replica: Server, master: Server) -> None:
    """Make the server a replica of that node of a cluster."""
    name = master.ask("CLUSTER", "MYID")
    replica.ask("CLUSTER", "MEET", "127.0.0.1", master.port)
    await until(lambda: name in replica.ask("CLUSTER", "NODES"), "they know each other")
    replica.ask("CLUSTER", "REPLICATE", name)
    await _follows(replica)


async def _follows(replica: Server) -> None:
    await until(lambda: "master_link_status:up" in replica.ask("INFO", "replication"), "the server's replica follows")


def _load(one: Fleet) -> None:
    for each in one.replicas:
        one.call(each, "pinner", CALLERS)


@contextmanager
def _cut_off(master: Server, replica: Server) -> Iterator[None]:
    """Keep the replica from all writes of this block."""
    with replica.paused():
        master.ask("CLIENT", "KILL", "TYPE", "replica")
        yield


def _written(store: Server) -> int:
    """Return how many bytes of writes a server knows."""
    fields = dict(line.split(":", 1) for line in store.ask("INFO", "replication").splitlines() if ":" in line)
    return int(fields["master_repl_offset"])


async def _judge(one: Fleet) -> None:
    await one.quiet()
    one.judge()
    assert [replica.said for replica in one.replicas] == [[LOST, NEW, FOUND]] * 4
