"""What every store does, whatever it is made of: a suite that each store's test module runs by inheriting from it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from proxy.core.exchange import Demand, Exchange, Settlement, Spent, Throttled, Unsent
from proxy.core.model import SECOND, Micros, Pool
from tests.core.worlds import lane, limit, pool

W: Micros = 10 * SECOND + 105_000
"""The stretched window of 10 s."""


class Opened(Protocol):
    """A store whose buckets are known, with a clock that the test moves."""

    async def exchange(
        self, replica: str, settlements: tuple[Settlement, ...], demands: tuple[Demand, ...]
    ) -> Exchange:
        """One exchange of a replica of that name."""

    def pass_(self, duration: Micros) -> None:
        """Move the store's clock."""


def wants(number: int, client: str = "a", weight: int = 1) -> Demand:
    """A demand of so many requests."""
    return Demand(lane(client), weight, number)


class StoreConformance:
    """Inherit, and open the store."""

    def open(self, pool_: Pool) -> Opened:
        """A new store for the pool."""
        raise NotImplementedError

    def play(self, scenario: Callable[[Opened], Awaitable[None]], *, requests: int = 2) -> None:
        async def run() -> None:
            await scenario(self.open(pool(1, limit(requests, 10 * SECOND))))

        asyncio.run(run())

    def test_grants_up_to_the_limit(self) -> None:
        """No more tokens than the limit permits, however many wait."""

        async def scenario(store: Opened) -> None:
            answer = await store.exchange("r", (), (wants(5),))
            assert len(answer.grants) == 2
            assert {grant.quota for grant in answer.grants} == {"k0"}

        self.play(scenario)

    def test_spent_tokens_return_a_window_after_they_were_counted(self) -> None:
        """Not a microsecond earlier."""

        async def scenario(store: Opened) -> None:
            (grant,) = (await store.exchange("r", (), (wants(1),))).grants
            await store.exchange("r", (Spent(grant.lease, 0),), ())
            store.pass_(W - 1)
            assert not (await store.exchange("r", (), (wants(1),))).grants
            store.pass_(1)
            assert (await store.exchange("r", (), (wants(1),))).grants

        self.play(scenario, requests=1)

    def test_unsent_tokens_return_at_once(self) -> None:
        """What was not sent is free again in the same exchange."""

        async def scenario(store: Opened) -> None:
            (grant,) = (await store.exchange("r", (), (wants(1),))).grants
            assert (await store.exchange("r", (Unsent(grant.lease),), (wants(1),))).grants

        self.play(scenario, requests=1)

    def test_settlements_are_taken_once(self) -> None:
        """A repeated one changes nothing."""

        async def scenario(store: Opened) -> None:
            (grant,) = (await store.exchange("r", (), (wants(1),))).grants
            await store.exchange("r", (Spent(grant.lease, 0), Unsent(grant.lease)), ())
            assert not (await store.exchange("r", (Unsent(grant.lease),), (wants(1),))).grants

        self.play(scenario, requests=1)

    def test_throttled_quotas_are_parked(self) -> None:
        """Until the upstream's own time."""

        async def scenario(store: Opened) -> None:
            (grant,) = (await store.exchange("r", (), (wants(1),))).grants
            parked = await store.exchange("r", (Throttled(grant.lease, 0, 30 * SECOND, (0,)),), (wants(1),))
            assert not parked.grants
            assert parked.turns[lane()].at(0) == 30 * SECOND
            store.pass_(30 * SECOND)
            assert (await store.exchange("r", (), (wants(1),))).grants

        self.play(scenario)

    def test_who_waits_is_told_its_turns(self) -> None:
        """With when to call again, and the budget of the pool."""

        async def scenario(store: Opened) -> None:
            grants = (await store.exchange("r", (), (wants(2),))).grants
            answer = await store.exchange("r", tuple(Spent(grant.lease, 0) for grant in grants), (wants(2),))
            assert [answer.turns[lane()].at(position) for position in range(2)] == [W, W]
            assert answer.again is not None
            assert answer.again <= 2 * SECOND
            (budget,) = answer.budgets
            assert (budget.size, budget.at_hand, budget.returns) == (2, 0, W)

        self.play(scenario)

    def test_two_clients_share_by_weight(self) -> None:
        """Of six tokens, weight 2 gets four and weight 1 two."""

        async def scenario(store: Opened) -> None:
            answer = await store.exchange("r", (), (wants(9, "a", 2), wants(9, "b", 1)))
            got = [grant.lane.client for grant in answer.grants]
            assert (got.count("a"), got.count("b")) == (4, 2)

        self.play(scenario, requests=6)

    def test_ticks_grow(self) -> None:
        """Each exchange has a number of its own."""

        async def scenario(store: Opened) -> None:
            ticks = [(await store.exchange("r", (), ())).tick for _ in range(3)]
            assert ticks == sorted(set(ticks))

        self.play(scenario)
