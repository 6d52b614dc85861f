import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest
from keyturn.core.errors import StoreLost
from keyturn.core.exchange import HEARTBEAT, ExchangeResult, FlowDemand, ObservedLimit, Settlement, Spent, Unsent
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, Snapshot
from keyturn.core.model import MILLISECOND, SECOND, Micros, Pool
from keyturn.core.session import SNAPSHOT_INTERVAL, SNAPSHOT_LIFETIME
from keyturn.core.snapshots import snapshot
from keyturn.core.state import RECOVERY_GRACE, SharedState
from keyturn.stores.base import ESTIMATES_RECENT, IDLE, MAX_ROUND_TRIPS, REVIEWED, Pins, SessionStore

from tests.core.worlds import BOUND, flow, know, limit, pool

TRIP: Micros = 2 * MILLISECOND
"""Time of a round trip."""

WINDOW = 10 * SECOND


class Network:
    """A state that is reached by messages, some of which are lost; its clock is independent of the replicas'."""

    def __init__(self) -> None:
        self.state = SharedState()
        self.run = "first"
        self.now: Micros = 1_000 * SECOND
        self.ahead: Micros = 700 * SECOND

    def clock(self) -> Micros:
        """Return the replicas' time."""
        return self.now

    def store_clock(self) -> Micros:
        """Return the state's time."""
        return self.now + self.ahead


class Carrier(SessionStore):
    """A replica's transport over that network."""

    def __init__(self, network: Network, pool_: Pool, replica: str = "r") -> None:
        super().__init__(pool_, replica=replica, settle_bound=BOUND, clock=network.clock)
        self.network = network
        self.said: list[str] = []
        """Messages so far: `exchange`, `both` (with a snapshot) or `snapshot`."""
        self.asked: list[ExchangeRequest] = []
        self.lost: list[StoreLost] = []
        """Errors by which the answers of the next exchanges are lost after they were carried out."""
        self.no_snapshot = False
        self.epochs = 0

    def epoch_began(self) -> None:
        self.epochs += 1

    async def send(self, request: ExchangeRequest, pins: Pins | None) -> tuple[ExchangeResponse, Snapshot | None]:
        self.said.append("exchange" if pins is None else "both")
        self.asked.append(request)
        network = self.network
        network.now += TRIP // 2
        response = network.state.exchange(network.store_clock(), network.run, request)
        told = None if pins is None or response.asks else self._snapshot(request.revision, pins)
        network.now += TRIP // 2
        if self.lost:
            raise self.lost.pop()
        return response, told

    async def fetch(self, revision: str, pins: Pins) -> Snapshot | None:
        self.said.append("snapshot")
        self.network.now += TRIP
        if self.no_snapshot:
            raise StoreLost("Come back.", cause="silence")
        return self._snapshot(revision, pins)

    def _snapshot(self, revision: str, pins: Pins) -> Snapshot | None:
        state = self.network.state
        return (
            snapshot(state, self.network.store_clock(), revision, pins) if revision in state.revisions.views else None
        )

    async def ask(self, waiting: int, *settlements: Settlement, client: str = "a") -> ExchangeResult:
        """Make one exchange while so many requests wait; `said` and `asked` record what it took."""
        self.said.clear()
        self.asked.clear()
        return await self.exchange(settlements, (FlowDemand(flow(client), 1, waiting),) if waiting else ())


async def joined(network: Network, *limits: int, keys: int = 1) -> Carrier:
    """Return a replica that has spoken once, of a pool with known buckets."""
    carrier = Carrier(network, pool(keys, *[limit(requests, WINDOW) for requests in limits or (2,)]))
    await carrier.ask(0)
    know(network.state)
    return carrier


def play(scenario: Callable[[Network], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a scenario over a network."""

    @wraps(scenario)
    def sync() -> None:
        asyncio.run(scenario(Network()))

    del sync.__wrapped__  # or pytest would ask for a fixture of that name
    return sync


def spent(answer: ExchangeResult) -> tuple[Settlement, ...]:
    """Return settlements of all grants as spent."""
    return tuple(Spent(grant.lease, 0) for grant in answer.grants)


def broke() -> StoreLost:
    """Return the error of a connection that closed."""
    return StoreLost("It closed the connection.", cause="closed", broke=True)


# Requests of the store


@play
async def test_an_exchange_is_one_round_trip(network: Network) -> None:
    """An exchange is one round trip, except the first, which has to send the revision."""
    carrier = Carrier(network, pool())
    await carrier.ask(0)
    first, second = carrier.asked
    assert (first.spelled, second.spelled) == (None, carrier.revision)
    for _ in range(3):
        await carrier.ask(0)
        assert [request.spelled for request in carrier.asked] == [None]


@play
async def test_another_configuration_is_spelled_out_once(network: Network) -> None:
    """A new revision is sent once, with all demands; spent tokens stay spent."""
    carrier = await joined(network)
    answer = await carrier.ask(2)
    carrier.adopt(pool(1, limit(3, WINDOW)))
    answer = await carrier.ask(5, *spent(answer))
    assert len(answer.grants) == 1
    assert [request.full for request in carrier.asked] == [True, True]
    assert carrier.asked[-1].spelled == carrier.revision
    await carrier.ask(4)
    assert len(carrier.asked) == 1


@play
async def test_a_configuration_that_changes_during_an_exchange_is_that_of_the_next(network: Network) -> None:
    """A revision that changes during an exchange counts from the next one on."""
    carrier = await joined(network)
    before, send = carrier.revision, carrier.send

    async def reload(request: ExchangeRequest, pins: Pins | None) -> tuple[ExchangeResponse, Snapshot | None]:
        carrier.adopt(pool(1, limit(3, WINDOW)))
        return await send(request, pins)

    carrier.send = reload  # type: ignore[method-assign]
    await carrier.ask(9)
    assert {request.revision for request in carrier.asked} == {before.name}
    await carrier.ask(9)
    assert {request.revision for request in carrier.asked} == {carrier.revision.name}


@play
async def test_a_store_that_has_lost_everything_is_told_again(network: Network) -> None:
    """An empty store gets revision, report and demands, and grants nothing before the recovery grace is over."""
    carrier = await joined(network)
    answer = await carrier.ask(1)
    network.state, network.run = SharedState(), "second"
    answer = await carrier.ask(2, *spent(answer))
    assert carrier.asked[-1].spelled == carrier.revision
    assert [row.quota for row in carrier.asked[-1].held or ()] == ["k0"]
    assert (answer.grants, answer.available[0].available, carrier.epochs) == ((), 0, 1)
    network.now += RECOVERY_GRACE
    answer = await carrier.ask(2)
    assert [grant.probe for grant in answer.grants] == [True]
    assert carrier.epochs == 1


@play
async def test_the_first_epoch_is_no_news(network: Network) -> None:
    """The first epoch of a replica is no loss."""
    carrier = await joined(network)
    assert carrier.epochs == 0


@play
async def test_demands_that_were_forgotten_are_told_again(network: Network) -> None:
    """A replica that was silent for too long sends all its demands again."""
    carrier = await joined(network)
    other = Carrier(network, pool(1, limit(2, WINDOW)), "other")
    answer = await carrier.ask(2)
    await other.ask(3, client="b")
    await carrier.ask(1, *[Unsent(grant.lease) for grant in answer.grants])  # b's tokens are reserved
    network.now += SECOND
    await carrier.ask(1)
    await other.ask(3, client="b")
    assert [request.full for request in other.asked] == [False, True]


@play
async def test_a_clock_that_stepped_is_not_believed(network: Network) -> None:
    """Grants of a response that shows a clock step are not used, and a new epoch begins."""
    carrier = await joined(network)
    answer = await carrier.ask(2)
    await carrier.ask(1, *spent(answer))
    network.ahead += 30 * SECOND
    answer = await carrier.ask(1)
    assert answer.grants == ()
    assert [request.stepped > 0 for request in carrier.asked] == [False, True, True]
    assert carrier.epochs == 1


@play
async def test_a_store_that_never_comes_to_terms_is_lost(network: Network) -> None:
    """A store that keeps asking is lost after a bounded number of rounds."""
    carrier = Carrier(network, pool())

    async def insist(request: ExchangeRequest, _: Pins | None) -> tuple[ExchangeResponse, Snapshot | None]:
        carrier.asked.append(request)
        return ExchangeResponse("e", 1, 1, ("revision",)), None

    carrier.send = insist  # type: ignore[method-assign, assignment]
    with pytest.raises(StoreLost) as caught:
        await carrier.ask(1)
    assert len(carrier.asked) == MAX_ROUND_TRIPS
    assert "two servers behind one name" in caught.value.cause


@play
async def test_all_that_may_go_wrong_at_once_takes_no_more_rounds_than_there_are(network: Network) -> None:
    """A broken connection, a new store and a clock step at once are handled within the rounds."""
    carrier = await joined(network)
    answer = await carrier.ask(1)
    network.state, network.run = SharedState(), "second"
    network.ahead += 30 * SECOND
    carrier.lost = [broke()]
    carrier.adopt(pool(1, limit(3, WINDOW)))
    await carrier.ask(1, *spent(answer))
    assert len(carrier.asked) <= MAX_ROUND_TRIPS


# Connections


@play
async def test_a_connection_that_breaks_is_no_loss(network: Network) -> None:
    """After one broken connection the request is repeated, and grants count once."""
    carrier = await joined(network)
    carrier.lost = [broke()]
    answer = await carrier.ask(2)
    assert len(answer.grants) == 2
    assert [request.full for request in carrier.asked] == [False, True]
    assert len(network.state.tokens.leases) == 2


@play
async def test_what_was_settled_over_a_connection_that_broke_has_ended(network: Network) -> None:
    """A settlement over a broken connection counts once when it is repeated."""
    carrier = await joined(network, 3)
    answer = await carrier.ask(2)
    carrier.lost = [broke()]
    await carrier.ask(0, Spent(answer.grants[0].lease, 0), Unsent(answer.grants[1].lease))
    assert len((await carrier.ask(9)).grants) == 2


@play
async def test_a_connection_that_breaks_twice_in_an_exchange_is_a_loss(network: Network) -> None:
    """Two broken connections in one exchange are a loss; the next exchange takes lost grants back."""
    carrier = await joined(network)
    carrier.lost = [broke(), broke()]
    with pytest.raises(StoreLost, match="closed the connection"):
        await carrier.ask(2)
    answer = await carrier.ask(2)
    assert len(answer.grants) == 2
    assert [request.full for request in carrier.asked] == [True]


@play
async def test_no_answer_is_a_loss_at_once(network: Network) -> None:
    """A timeout is a loss at once; grants meanwhile are taken back with the next request."""
    carrier = await joined(network)
    carrier.lost = [StoreLost("Come back.", cause="silence")]
    with pytest.raises(StoreLost):
        await carrier.ask(2)
    assert len(carrier.asked) == 1
    assert len((await carrier.ask(2)).grants) == 2


# Snapshots and estimates


@play
async def test_newcomers_that_have_to_wait_get_estimates_in_the_same_round_trip(network: Network) -> None:
    """Newcomers that have to wait get a snapshot in the same round trip."""
    carrier = await joined(network)
    answer = await carrier.ask(2)
    answer = await carrier.ask(3, *spent(answer))
    assert carrier.said == ["both"]
    assert answer.estimates[flow()].at(0) == pytest.approx(WINDOW, rel=0.05)


@play
async def test_newcomers_for_whom_there_is_plenty_need_none(network: Network) -> None:
    """No snapshot is fetched while tokens are plentiful or nothing waits."""
    carrier = await joined(network, 9)
    for _ in range(3):
        answer = await carrier.ask(1)
        assert (carrier.said, answer.estimates) == (["exchange"], {})


@play
async def test_newcomers_that_turn_out_to_wait_get_estimates_all_the_same(network: Network) -> None:
    """Newcomers whose tokens another replica took get a snapshot after the exchange."""
    carrier, other = await joined(network), Carrier(network, pool(1, limit(2, WINDOW)), "other")
    await other.ask(2, client="b")
    answer = await carrier.ask(1)
    assert (carrier.said, answer.grants) == (["exchange", "snapshot"], ())
    assert answer.estimates[flow()].at(0) is not None


@play
async def test_a_snapshot_is_renewed_when_it_is_old(network: Network) -> None:
    """A snapshot is renewed after a quarter of a second if leases were dealt, else after two."""
    carrier = await joined(network, 5)
    answer = await carrier.ask(9)
    network.now += SNAPSHOT_INTERVAL
    assert (await carrier.ask(4)).estimates == {}
    assert carrier.said == ["exchange"]
    network.now += SNAPSHOT_LIFETIME
    assert flow() in (await carrier.ask(4)).estimates
    assert carrier.said == ["exchange", "snapshot"]
    network.now += SNAPSHOT_INTERVAL
    answer = await carrier.ask(4, Unsent(answer.grants[0].lease))
    assert (carrier.said, len(answer.grants)) == (["exchange", "snapshot"], 1)
    assert answer.estimates[flow()].at(2) is not None
    assert (await carrier.ask(3)).estimates == {}


@play
async def test_requests_that_come_are_estimated_without_a_message(network: Network) -> None:
    """A recent snapshot is enough, also for a flow that does not wait; its age is told."""
    carrier = await joined(network)
    assert carrier.estimate(flow(), 1, 1) is None
    answer = await carrier.ask(4)
    carrier.said.clear()
    for one, waiting in ((flow(), 3), (flow("b"), 1)):
        found = carrier.estimate(one, waiting, 1)
        assert found is not None
        assert found[1] == network.now - answer_time(carrier)
    known = carrier.estimate(flow(), 2, 1)
    assert known is not None
    assert known[0].at(1) == answer.estimates[flow()].at(1)
    assert carrier.said == []
    carrier.adopt(pool(1, limit(9, WINDOW)))
    assert carrier.estimate(flow(), 3, 1) is None
    carrier.adopt(pool(1, limit(2, WINDOW)))
    network.now += ESTIMATES_RECENT
    assert carrier.estimate(flow(), 3, 1) is None


def answer_time(carrier: Carrier) -> Micros:
    """Return when the newest snapshot was taken."""
    return carrier.network.now - carrier.session.snapshot_age(carrier.network.now)


@play
async def test_grants_are_never_lost_when_a_snapshot_cannot_be_had(network: Network) -> None:
    """Grants are kept when fetching the snapshot fails, and the next exchange fetches it again."""
    carrier = await joined(network)
    other = Carrier(network, pool(1, limit(2, WINDOW)), "other")
    (other_grant,) = (await other.ask(1, client="b")).grants
    carrier.no_snapshot = True
    answer = await carrier.ask(2)
    assert (carrier.said, len(answer.grants), answer.estimates) == (["exchange", "snapshot"], 1, {})
    assert len(carrier.session.held) == 1
    carrier.no_snapshot = False
    answer = await carrier.ask(1)
    assert (carrier.said, answer.grants) == (["exchange", "snapshot"], ())
    assert flow() in answer.estimates
    await other.ask(0, Unsent(other_grant.lease))
    assert len((await carrier.ask(1)).grants) == 1


@play
async def test_flows_that_are_served_have_no_estimates(network: Network) -> None:
    """Only flows that still wait have estimates."""
    carrier = await joined(network, 3)
    await carrier.ask(2)
    waiting = (FlowDemand(flow("a"), 1, 3), FlowDemand(flow("b"), 1, 1))
    answer = await carrier.exchange((), waiting)
    assert {grant.flow for grant in answer.grants} | set(answer.estimates) == {flow("a"), flow("b")}
    assert all(
        [grant.flow for grant in answer.grants].count(one.flow) < one.waiting
        for one in waiting
        if one.flow in answer.estimates
    )


@play
async def test_a_flow_that_insists_on_a_key_is_estimated_by_the_returns_of_that_key(network: Network) -> None:
    """A pinned flow is estimated by its quota's returns, in either way of fetching them."""
    carrier = await joined(network, keys=2)
    pinned = flow(pinned="k1")
    answer = await carrier.exchange((), (FlowDemand(pinned, 1, 3),))
    assert [grant.quota for grant in answer.grants] == ["k1", "k1"]
    network.now += SNAPSHOT_LIFETIME
    answer = await carrier.exchange(spent(answer), (FlowDemand(pinned, 1, 1),))
    assert answer.estimates[pinned].at(0) == pytest.approx(WINDOW, rel=0.05)


# When to call again, and the rest of the answer


@play
async def test_how_often_a_replica_speaks(network: Network) -> None:
    """A replica calls at least every two seconds while it holds leases, every five otherwise."""
    carrier = await joined(network)
    assert (await carrier.ask(0)).again == IDLE
    (grant,) = (await carrier.ask(1)).grants
    assert (await carrier.ask(0)).again == HEARTBEAT
    assert (await carrier.ask(0, Spent(grant.lease, 0))).again == HEARTBEAT
    network.now += 2 * WINDOW
    assert (await carrier.ask(0)).again == IDLE


@play
async def test_what_the_store_found_out_is_handed_on(network: Network) -> None:
    """Budgets, the number of replicas and what others spent are passed on (law 9)."""
    carrier = await joined(network, 9)
    await Carrier(network, pool(1, limit(9, WINDOW)), "other").ask(0)
    (grant,) = (await carrier.ask(1)).grants
    answer = await carrier.ask(0, Spent(grant.lease, 0, (ObservedLimit(0, 5, SECOND),)))
    assert answer.foreign == (("k0", 3),)
    assert (answer.replicas, carrier.replicas) == (2, 2)
    assert [(budget.size, budget.available) for budget in answer.available] == [(9, 5)]


@play
async def test_answers_have_numbers_that_grow(network: Network) -> None:
    """Answers are numbered, so that old ones can be recognised."""
    carrier = await joined(network)
    ticks = [(await carrier.ask(0)).version for _ in range(3)]
    assert ticks == sorted(set(ticks))


@play
async def test_estimates_of_many_flows_are_made_in_parts(network: Network) -> None:
    """Estimates of many flows are made in parts, newcomers first, then in rotation."""
    carrier = Carrier(network, pool(1, limit(1)))
    demands = tuple(FlowDemand(flow(f"c{number}"), 1, 1) for number in range(250))
    told = [await carrier.exchange((), demands) for _ in range(3)]
    assert [len(answer.estimates) for answer in told] == [100, 100, 50 + REVIEWED]
    assert len({flow for answer in told for flow in answer.estimates}) == 250
    assert [answer.again == MILLISECOND for answer in told] == [True, True, False]
