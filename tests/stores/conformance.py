"""The behaviour of every store: a suite that each store's test module runs by inheriting from it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from keyturn.core.exchange import (
    LEASE_LIFETIME,
    ExchangeResult,
    FlowDemand,
    ObservedLimit,
    Settlement,
    Spent,
    Throttled,
    Unsent,
)
from keyturn.core.model import SECOND, Micros, Pool
from keyturn.core.session import SNAPSHOT_LIFETIME
from keyturn.core.state import COLLECT

from tests.core.worlds import BOUND, flow, limit, pool

W: Micros = 10 * SECOND + 105_000
"""The stretched window of 10 s."""


class Opened(Protocol):
    """A store whose buckets are known, with a clock that the test moves."""

    async def exchange(
        self, replica: str, settlements: tuple[Settlement, ...], demands: tuple[FlowDemand, ...]
    ) -> ExchangeResult:
        """Make one exchange of a replica of that name."""

    def adopt(self, replica: str, pool_: Pool) -> None:
        """Let a replica of that name go on with another configuration."""

    def pass_(self, duration: Micros) -> None:
        """Move the store's clock."""

    async def close(self) -> None:
        """Close the store."""


def wants(number: int, client: str = "a", weight: int = 1) -> FlowDemand:
    """Return a demand of so many requests."""
    return FlowDemand(flow(client), weight, number)


class StoreConformance:
    """Inherit, and open the store."""

    async def open(self, pool_: Pool) -> Opened:
        """Open a new store for the pool."""
        raise NotImplementedError

    def play(self, scenario: Callable[[Opened], Awaitable[None]], *, requests: int = 2, keys: int = 1) -> None:
        async def run() -> None:
            store = await self.open(pool(keys, limit(requests, 10 * SECOND)))
            try:
                await scenario(store)
            finally:
                await store.close()

        asyncio.run(run())

    def test_grants_up_to_the_limit(self) -> None:
        """No more tokens are granted than the limit permits."""

        async def scenario(store: Opened) -> None:
            answer = await store.exchange("r", (), (wants(5),))
            assert len(answer.grants) == 2
            assert {grant.quota for grant in answer.grants} == {"k0"}

        self.play(scenario)

    def test_spent_tokens_return_a_window_after_they_were_counted(self) -> None:
        """A spent token returns one window after it was counted and no earlier."""

        async def scenario(store: Opened) -> None:
            (grant,) = (await store.exchange("r", (), (wants(1),))).grants
            await store.exchange("r", (Spent(grant.lease, 0),), ())
            store.pass_(W - 1)
            assert not (await store.exchange("r", (), (wants(1),))).grants
            store.pass_(1)
            assert (await store.exchange("r", (), (wants(1),))).grants

        self.play(scenario, requests=1)

    def test_unsent_tokens_return_at_once(self) -> None:
        """An unsent token is granted again in the same exchange."""

        async def scenario(store: Opened) -> None:
            (grant,) = (await store.exchange("r", (), (wants(1),))).grants
            assert (await store.exchange("r", (Unsent(grant.lease),), (wants(1),))).grants

        self.play(scenario, requests=1)

    def test_settlements_are_taken_once(self) -> None:
        """A repeated settlement changes nothing."""

        async def scenario(store: Opened) -> None:
            (grant,) = (await store.exchange("r", (), (wants(1),))).grants
            await store.exchange("r", (Spent(grant.lease, 0), Unsent(grant.lease)), ())
            assert not (await store.exchange("r", (Unsent(grant.lease),), (wants(1),))).grants

        self.play(scenario, requests=1)

    def test_throttled_quotas_are_closed(self) -> None:
        """A throttled bucket is closed until the upstream's time."""

        async def scenario(store: Opened) -> None:
            (grant,) = (await store.exchange("r", (), (wants(1),))).grants
            parked = await store.exchange("r", (Throttled(grant.lease, 0, 30 * SECOND, (0,)),), (wants(1),))
            assert not parked.grants
            assert parked.estimates[flow()].at(0) == 30 * SECOND
            store.pass_(30 * SECOND)
            assert (await store.exchange("r", (), (wants(1),))).grants

        self.play(scenario)

    def test_waiting_requests_get_estimates(self) -> None:
        """Waiting requests get estimates, the time of the next call and the pool's budget."""

        async def scenario(store: Opened) -> None:
            grants = (await store.exchange("r", (), (wants(2),))).grants
            answer = await store.exchange("r", tuple(Spent(grant.lease, 0) for grant in grants), (wants(2),))
            assert [answer.estimates[flow()].at(position) for position in range(2)] == [W, W]
            assert answer.again is not None
            assert answer.again <= 2 * SECOND
            (budget,) = answer.available
            assert (budget.size, budget.available, budget.returns) == (2, 0, W)

        self.play(scenario)

    def test_two_clients_share_by_weight(self) -> None:
        """Weight 2 gets four of six tokens, weight 1 two."""

        async def scenario(store: Opened) -> None:
            answer = await store.exchange("r", (), (wants(9, "a", 2), wants(9, "b", 1)))
            got = [grant.flow.client for grant in answer.grants]
            assert (got.count("a"), got.count("b")) == (4, 2)

        self.play(scenario, requests=6)

    def test_versions_grow(self) -> None:
        """Each exchange has a larger number than the one before."""

        async def scenario(store: Opened) -> None:
            ticks = [(await store.exchange("r", (), ())).version for _ in range(3)]
            assert ticks == sorted(set(ticks))

        self.play(scenario)

    def test_a_bucket_that_is_not_known_opens_by_a_probe(self) -> None:
        """An unknown bucket grants one request until that is settled (law 8)."""

        async def scenario(store: Opened) -> None:
            store.adopt("r", pool(2, limit(3, 20 * SECOND)))
            probes = (await store.exchange("r", (), (wants(9),))).grants
            assert [(grant.quota, grant.probe) for grant in probes] == [("k0", True), ("k1", True)]
            answer = await store.exchange("r", (Spent(probes[0].lease, 0),), (wants(7),))
            assert [(grant.quota, grant.probe) for grant in answer.grants] == [("k0", False)] * 2

        self.play(scenario)

    def test_replicas_share_by_the_weights_of_their_clients(self) -> None:
        """Clients on different replicas share by weight (law 4)."""

        async def scenario(store: Opened) -> None:
            waiting = {"r": wants(9, "a", 2), "q": wants(9, "b", 1)}
            got = await returned(store, waiting, 6)
            assert (got["r"], got["q"]) == (4, 2)

        self.play(scenario, requests=6)

    def test_a_client_of_many_replicas_has_one_share(self) -> None:
        """A client on three replicas gets as much as one on a single replica."""

        async def scenario(store: Opened) -> None:
            waiting = {"p": wants(9, "a"), "q": wants(9, "a"), "r": wants(9, "a"), "s": wants(9, "b")}
            got = await returned(store, waiting, 6)
            assert got["s"] == 3
            assert sum(got.values()) == 6

        self.play(scenario, requests=6)

    def test_a_token_is_reserved_for_the_replica_that_is_next(self) -> None:
        """A token that one replica returns is reserved for the replica that is next (law 4)."""

        async def scenario(store: Opened) -> None:
            (grant,) = (await store.exchange("r", (), (wants(1, "z"),))).grants
            assert not (await store.exchange("q", (), (wants(1, "b"),))).grants
            assert not (await store.exchange("r", (Spent(grant.lease, 0),), (wants(1, "z"),))).grants
            store.pass_(W)
            assert not (await store.exchange("r", (), (wants(1, "z"),))).grants
            (collected,) = (await store.exchange("q", (), (wants(1, "b"),))).grants
            assert collected.flow == flow("b")

        self.play(scenario, requests=1)

    def test_the_place_of_a_dead_replica_lapses(self) -> None:
        """A token that is not collected goes to the next flow, and its replica's demands are forgotten."""

        async def scenario(store: Opened) -> None:
            (grant,) = (await store.exchange("r", (), (wants(1, "z"),))).grants
            assert not (await store.exchange("q", (), (wants(1, "b"),))).grants
            assert not (await store.exchange("r", (Unsent(grant.lease),), (wants(1, "z"),))).grants
            store.pass_(COLLECT - 1)
            assert not (await store.exchange("r", (), (wants(1, "z"),))).grants
            store.pass_(1)
            (grant,) = (await store.exchange("r", (), (wants(1, "z"),))).grants
            back = await store.exchange("q", (), (wants(1, "b"),))
            assert not back.grants
            assert back.estimates[flow("b")].at(0) is not None
            await store.exchange("r", (Unsent(grant.lease),), ())
            assert (await store.exchange("q", (), (wants(1, "b"),))).grants

        self.play(scenario, requests=1)

    def test_the_tokens_of_a_dead_replica_return(self) -> None:
        """A dead replica's token returns a window after its request may last have been counted."""

        async def scenario(store: Opened) -> None:
            assert (await store.exchange("q", (), (wants(1),))).grants
            store.pass_(LEASE_LIFETIME + BOUND + W - 1)
            assert not (await store.exchange("r", (), (wants(1),))).grants
            store.pass_(1)
            assert (await store.exchange("r", (), (wants(1),))).grants

        self.play(scenario, requests=1)

    def test_a_key_that_comes_back_keeps_its_window(self) -> None:
        """Spent tokens stay spent while their key is out of the configuration."""

        async def scenario(store: Opened) -> None:
            grants = (await store.exchange("r", (), (wants(2),))).grants
            await store.exchange("r", tuple(Spent(grant.lease, 0) for grant in grants), ())
            for keys in (1, 2):
                store.adopt("r", pool(keys, limit(1, 10 * SECOND)))
                assert not (await store.exchange("r", (), (wants(1),))).grants
            store.pass_(W)
            assert (await store.exchange("r", (), (wants(1),))).grants

        self.play(scenario, requests=1, keys=2)

    def test_limits_change_with_what_was_spent(self) -> None:
        """A higher limit has more available at once, a lower one less; taken tokens count under both."""

        async def scenario(store: Opened) -> None:
            grants = (await store.exchange("r", (), (wants(2),))).grants
            await store.exchange("r", tuple(Spent(grant.lease, 0) for grant in grants), ())
            store.adopt("r", pool(1, limit(3, 10 * SECOND)))
            assert len((await store.exchange("r", (), (wants(9),))).grants) == 1
            store.adopt("r", pool(1, limit(1, 10 * SECOND)))
            store.pass_(W)
            assert not (await store.exchange("r", (), (wants(9),))).grants

        self.play(scenario)

    def test_what_others_spend_is_taken_out(self) -> None:
        """When an answer shows fewer tokens than available, the difference is taken out until its reset (law 9)."""

        async def scenario(store: Opened) -> None:
            (grant,) = (await store.exchange("r", (), (wants(1),))).grants
            answer = await store.exchange(
                "r", (Spent(grant.lease, 0, (ObservedLimit(0, 1, 5 * SECOND),)),), (wants(9),)
            )
            assert answer.foreign == (("k0", 2),)
            assert len(answer.grants) == 1
            store.pass_(5 * SECOND)
            assert len((await store.exchange("r", (), (wants(9),))).grants) == 2

        self.play(scenario, requests=4)

    def test_a_flow_may_be_pinned_to_a_quota(self) -> None:
        """A pinned flow is served by its own quota only."""

        async def scenario(store: Opened) -> None:
            answer = await store.exchange("r", (), (FlowDemand(flow("a", pinned="k1"), 1, 9),))
            assert [grant.quota for grant in answer.grants] == ["k1", "k1"]

        self.play(scenario, keys=3)

    def test_a_quota_outside_the_revision_serves_pinned_flows_only(self) -> None:
        """A quota outside a replica's revision serves only flows pinned to it (law 10)."""

        async def scenario(store: Opened) -> None:
            await store.exchange("other", (), ())
            store.adopt("r", pool(0, limit(2, 10 * SECOND)))
            own = FlowDemand(flow("own", (0,), "k0"), 1, 1)
            answer = await store.exchange("r", (), (wants(5), own))
            assert [(grant.flow.client, grant.quota) for grant in answer.grants] == [("own", "k0")]
            assert answer.estimates[flow("a")].at(0) is None
            other = await store.exchange("other", (), (wants(5),))
            assert [grant.quota for grant in other.grants] == ["k0"]
            await store.exchange("other", (), ())
            store.adopt("r", pool(1, limit(2, 10 * SECOND)))
            back = await store.exchange("r", (Unsent(answer.grants[0].lease),), (wants(5),))
            assert len(back.grants) == 1

        self.play(scenario)

    def test_estimates_come_with_a_snapshot(self) -> None:
        """Newcomers get estimates at once; the next ones come when another snapshot is due."""

        async def scenario(store: Opened) -> None:
            (grant,) = (await store.exchange("r", (), (wants(1),))).grants
            assert flow() in (await store.exchange("r", (Spent(grant.lease, 0),), (wants(1),))).estimates
            assert not (await store.exchange("r", (), (wants(1),))).estimates
            assert flow() in (await store.exchange("r", (), (wants(2),))).estimates
            store.pass_(SNAPSHOT_LIFETIME - 1)
            assert not (await store.exchange("r", (), (wants(2),))).estimates
            store.pass_(1)
            assert flow() in (await store.exchange("r", (), (wants(2),))).estimates

        self.play(scenario, requests=1)

    def test_how_many_share_the_pool_is_told(self) -> None:
        """An exchange tells how many replicas have spoken lately."""

        async def scenario(store: Opened) -> None:
            assert [(await store.exchange(name, (), ())).replicas for name in ("p", "q", "q")] == [1, 2, 2]
            store.pass_(LEASE_LIFETIME + BOUND + 1)
            assert (await store.exchange("r", (), ())).replicas == 1

        self.play(scenario)


async def returned(store: Opened, waiting: dict[str, FlowDemand], tokens: int) -> dict[str, int]:
    """Return how many of a pool's tokens each waiting replica gets when they return."""
    grants = (await store.exchange("first", (), (wants(tokens, "z"),))).grants
    await store.exchange("first", tuple(Spent(grant.lease, 0) for grant in grants), ())
    got = dict.fromkeys(waiting, 0)
    for passed in (0, *[W // 5] * 5):  # each speaks at least every two seconds
        store.pass_(passed)
        for replica, demand in waiting.items():
            got[replica] += len((await store.exchange(replica, (), (demand,))).grants)
    return got
