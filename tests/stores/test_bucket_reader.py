import asyncio
import re
from collections.abc import AsyncIterator, Iterator

import pytest
from keyturn.core.bucket_snapshots import BucketSnapshot
from keyturn.core.exchange import LEASE_LIFETIME, DemandClass, Flow, FlowDemand, LeaseGrant, Spent, Throttled
from keyturn.core.model import SECOND, Key, Pool, Secret
from keyturn.stores import bucket_reader
from keyturn.stores.links import Link
from keyturn.stores.redis import RedisStore

from tests.core.worlds import BOUND, limit, pool
from tests.schedulers import Recorder
from tests.stores.servers import KINDS, Server, server
from tests.virtual import micros

POOL = pool(2, limit(5, 600 * SECOND))


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Run a server."""
    with server(request.param) as one:
        yield one


@pytest.fixture
async def store(running: Server, request: pytest.FixtureRequest) -> AsyncIterator[RedisStore]:
    """Return a store with buckets of its own on that server."""
    link = Link(f"redis://127.0.0.1:{running.port}", shown="redis://here", timeout=30 * SECOND)
    prefix = re.sub(r"\W", "-", request.node.name)
    yield RedisStore(link, POOL, prefix=prefix, replica="r", settle_bound=BOUND, clock=micros, observer=Recorder())
    await link.close()


def wants(number: int) -> FlowDemand:
    """Return a demand of so many requests."""
    return FlowDemand(Flow("a", DemandClass((0,))), 1, number)


def counts(buckets: tuple[BucketSnapshot, ...]) -> list[tuple[str, int, int, int]]:
    """Return quota, available, used and cooling tokens."""
    return [(bucket.quota, bucket.available, bucket.in_use, len(bucket.cooling)) for bucket in buckets]


async def test_a_store_that_nobody_has_used_is_full(store: RedisStore) -> None:
    """An unused store has all tokens available."""
    assert counts(await store.buckets()) == [("k0", 5, 0, 0), ("k1", 5, 0, 0)]


@pytest.mark.parametrize("most", [5_000, 1])
async def test_tokens_are_seen_in_all_their_states(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Tokens in use, cooling and in closed buckets are seen, in one call or many."""
    monkeypatch.setattr(bucket_reader, "PAGE_SIZE", most)
    granted: list[LeaseGrant] = []
    while len(granted) < 6:  # each quota opens with the answer to its probe
        grants = (await store.exchange((), (wants(6 - len(granted)),))).grants
        granted += grants
        await store.exchange(tuple(Spent(grant.lease, 0) for grant in grants if grant.probe), ())
    out = [grant for grant in granted if not grant.probe]
    first = next(grant for grant in out if grant.quota == "k0")
    await store.exchange((Throttled(first.lease, 0, 100 * SECOND, (0,)),), ())
    seen = {bucket.quota: bucket for bucket in await store.buckets()}
    for quota, bucket in seen.items():
        in_use = sum(grant.quota == quota and grant is not first for grant in out)
        assert bucket.in_use == in_use
        assert bucket.available + bucket.in_use + len(bucket.cooling) == 5
    assert seen["k0"].available == 0
    assert seen["k1"].available > 0
    assert 90 * SECOND < seen["k0"].cooling[0] <= 100 * SECOND
    assert 590 * SECOND < seen["k1"].cooling[-1] <= 601 * SECOND


async def test_a_quota_that_rests_is_closed_for_each_limit(store: RedisStore) -> None:
    """A resting quota is closed for each limit until its other use counts no more."""
    keys = tuple(Key(name, Secret(f"s-{name}"), "shared") for name in ("k0", "k1"))
    moved = Pool("default", keys, POOL.limits, POOL.guard)
    other = RedisStore(
        store.link,
        moved,
        prefix=store.key.partition(":")[0],
        replica="q",
        settle_bound=BOUND,
        clock=micros,
        observer=Recorder(),
    )
    assert (await store.exchange((), (wants(1),))).grants
    assert not (await other.exchange((), (wants(1),))).grants
    (shared,) = await other.buckets()
    assert (shared.quota, shared.available, shared.in_use) == ("shared", 0, 0)
    assert len(shared.cooling) == 5
    assert 600 * SECOND < shared.cooling[0] <= 600 * SECOND + LEASE_LIFETIME + 2 * BOUND


async def test_what_has_returned_is_available_before_the_next_exchange(store: RedisStore) -> None:
    """A token whose time has come is available, also before the next exchange."""
    store.adopt(pool(1, limit(5, SECOND)))
    (grant,) = (await store.exchange((), (wants(1),))).grants
    await store.exchange((Spent(grant.lease, SECOND),), ())
    await until_counts(store, [("k0", 5, 0, 0)])


async def until_counts(store: RedisStore, expected: list[tuple[str, int, int, int]]) -> None:
    """Wait until the view has so many entries."""
    async with asyncio.timeout(30):
        while counts(await store.buckets()) != expected:
            await asyncio.sleep(0.005)


async def test_looking_changes_nothing(store: RedisStore) -> None:
    """Reading changes neither later views nor grants."""
    await store.exchange((), (wants(1),))
    assert counts(await store.buckets()) == counts(await store.buckets())
    assert sum(in_use for _, _, in_use, _ in counts(await store.buckets())) == 1
