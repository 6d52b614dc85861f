import asyncio
from bisect import bisect_left
from random import Random

import pytest

from proxy.core.exchange import USE_BY, Demand, Lane, Spent
from proxy.core.letters import Held, Terms, terms_of
from proxy.core.model import MILLISECOND, SECOND, Micros
from proxy.stores.share import Known, Share
from tests.core.worlds import BOUND, lane, limit, pool
from tests.virtual import micros, virtual

LIMIT, WINDOW = 20, 10 * SECOND
AHEAD = 1_700_000_000 * SECOND
"""How far the store's clock is ahead of the replicas' own."""

BEYOND = WINDOW + USE_BY + BOUND
"""When nothing that was spent before the loss counts any more, whoever spent it."""


def terms_for(quotas: int = 2) -> Terms:
    """A pool of keys with `LIMIT` in `WINDOW`."""
    return terms_of(pool(quotas, limit(LIMIT, WINDOW), guard=0), USE_BY + BOUND)


class Alone:
    """A replica that has lost the store, with its own clock stopped at the moment of the loss."""

    def __init__(
        self, name: str, spent: list[tuple[str, Micros]], hand: int, replicas: int, terms: Terms, rank: int = 0
    ) -> None:
        window = (terms.limits[0].id, terms.limits[0].window)
        held = tuple(Held(f"{name}{i}", quota, "a", (window,), age, age) for i, (quota, age) in enumerate(spent))
        self.sent = [(quota, micros() - age) for quota, age in spent]
        known = Known(name, rank, replicas, held, {terms.limits[0].id: hand}, 0, AHEAD)
        self.share = Share(terms, known, micros)
        self._settled: tuple[Spent, ...] = ()

    async def turn(self, waiting: int = 50, of: Lane | None = None) -> None:
        """Send all that may be sent now; an answer comes at once."""
        while True:
            answer = await self.share.exchange(self._settled, (Demand(of or lane(), 1, waiting),))
            self._settled = tuple(Spent(grant.lease, 0) for grant in answer.grants)
            self.sent += [(grant.quota, micros()) for grant in answer.grants]
            if not answer.grants:
                return


async def pass_(duration: Micros, *replicas: Alone, step: float = 0.05) -> None:
    """Let time go by; each replica sends whenever it may, which it looks after every so many seconds."""
    end = micros() + duration
    while micros() < end:
        for replica in replicas:
            await replica.turn()
        await asyncio.sleep(step)


def worst(terms: Terms, *replicas: Alone) -> int:
    """The most that was sent on one key in any window."""
    most = 0
    for quota in terms.quotas:
        instants = sorted(instant for one in replicas for key, instant in one.sent if key == quota)
        most = max(most, *(bisect_left(instants, at + WINDOW) - i for i, at in enumerate(instants)))
    return most


@pytest.mark.parametrize("seed", range(6))
def test_what_was_spent_unevenly_is_waited_for(seed: int) -> None:
    """However unevenly replicas had spent when the store was lost, together they stay below the limit (law 1)."""

    @virtual
    async def scenario() -> None:
        random, terms, names = Random(seed), terms_for(), ["a", "b", "c", "d"]
        spent: dict[str, list[tuple[str, Micros]]] = {name: [] for name in names}
        hand = 0
        for quota in terms.quotas:
            for _ in range(LIMIT):
                if random.random() < 0.2:
                    hand += 1
                else:
                    spent[random.choices(names, (9, 3, 1, 0))[0]].append((quota, random.randrange(WINDOW // 2)))
        replicas = [Alone(name, spent[name], hand, len(names), terms) for name in names]
        await pass_(2 * BEYOND, *replicas)
        assert worst(terms, *replicas) <= LIMIT
        late = [instant for one in replicas for _, instant in one.sent if instant > micros() - WINDOW]
        assert len(late) > len(terms.quotas) * LIMIT / 2, "what was set aside has come back"

    scenario()


@virtual
async def test_its_part_of_what_was_at_hand_is_used_at_once() -> None:
    """A replica that had spent nothing goes on at once, if nobody else had."""
    terms = terms_for()
    idle = Alone("a", [], 2 * LIMIT, 2, terms)
    await pass_(WINDOW, idle)
    assert len(idle.sent) >= 0.7 * LIMIT


@virtual
async def test_its_own_tokens_return_to_it() -> None:
    """What a replica has spent itself it may use again as it returns, although nothing else is at hand."""
    terms = terms_for(1)
    one = Alone("a", [("k0", age * SECOND) for age in range(8)], 0, 2, terms)
    before = len(one.sent)
    await pass_(WINDOW - SECOND, one)
    assert 4 <= len(one.sent) - before <= 8


@virtual
async def test_a_token_of_a_short_window_returns_to_all() -> None:
    """What a lease has brought back under one limit, while it is out under another, is not the replica's own there."""
    terms = terms_of(pool(1, limit(90, 60 * SECOND), limit(30, 5 * SECOND, "GET /me"), guard=0), USE_BY + BOUND)
    windows = tuple((one.id, one.window) for one in terms.limits)
    held = tuple(Held(f"a{number}", "k0", "a", windows, 20 * SECOND, 20 * SECOND) for number in range(10))
    hands = {terms.limits[0].id: 90, terms.limits[1].id: 0}
    share = Share(terms, Known("a", 0, 3, held, hands, 0, AHEAD), micros)
    for _ in range(2):
        answer = await share.exchange((), (Demand(lane("a", (0, 1)), 1, 9),))
        assert answer.grants == ()
        await asyncio.sleep(1)


@virtual
async def test_turns_are_told() -> None:
    """Who waits is told when its turn comes by the pace, in proportion to weight."""
    terms = terms_for(1)
    one = Alone("a", [], LIMIT, 2, terms)
    answer = await one.share.exchange((), (Demand(lane("a"), 1, 4), Demand(lane("b"), 3, 4)))
    assert len(answer.grants) == 1
    assert answer.again is not None
    assert MILLISECOND <= answer.again <= SECOND
    slow, fast = answer.turns[lane("a")].at(3), answer.turns[lane("b")].at(3)
    assert slow is not None
    assert fast is not None
    assert fast < slow


def fleet(size: int, terms: Terms) -> list[Alone]:
    """So many replicas that had spent nothing, of a pool of which everything was at hand."""
    names = [f"r{rank:03}" for rank in range(size)]
    hand = sum(one.requests for one in terms.limits) * len(terms.quotas)
    return [Alone(name, [], hand, size, terms, rank) for rank, name in enumerate(names)]


@pytest.mark.parametrize("quotas", [1, 3])
def test_a_limit_of_fewer_requests_than_replicas_is_kept(quotas: int) -> None:
    """All send in their slots: no window is over the limit, nobody is left out, and not much is left unused."""

    @virtual
    async def scenario() -> None:
        terms = terms_for(quotas)
        replicas = fleet(LIMIT + 4, terms)
        await pass_(6 * BEYOND, *replicas, step=0.25)
        assert worst(terms, *replicas) <= LIMIT
        assert all(replica.sent for replica in replicas)
        sent = sum(len(replica.sent) for replica in replicas)
        assert sent > 0.9 * 5 * quotas * LIMIT, "of what may be surely counted until each token's return"

    scenario()


@virtual
async def test_its_slots_are_foretold() -> None:
    """Who waits for a slot is told when it comes, and is served then, not before."""
    terms = terms_for(1)
    replica = fleet(LIMIT, terms)[5]
    last = 0
    for _ in range(3):
        answer = await replica.share.exchange((), (Demand(lane(), 1, 2),))
        assert answer.grants == ()
        first = answer.turns[lane()].at(0)
        assert first is not None
        assert first > last - micros()
        await asyncio.sleep(first / SECOND - 0.01)
        assert (await replica.share.exchange((), (Demand(lane(), 1, 2),))).grants == ()
        await asyncio.sleep(0.02)
        answer = await replica.share.exchange((), (Demand(lane(), 1, 2),))
        assert len(answer.grants) == 1
        assert answer.grants[0].lane == lane()
        last = micros()


@virtual
async def test_who_insists_on_a_key_waits_for_a_slot_of_it() -> None:
    """Others of its replica are served on other keys meanwhile; a key that is not there has no slot."""
    terms = terms_for(3)
    replica = fleet(3 * LIMIT, terms)[7]
    pinned, others = lane("a", pinned="k2"), lane("b")
    got: list[tuple[str, str]] = []
    end = micros() + 12 * BEYOND
    while micros() < end:
        answer = await replica.share.exchange((), (Demand(pinned, 1, 9), Demand(others, 1, 9)))
        got += [(grant.lane.client, grant.quota) for grant in answer.grants]
        await asyncio.sleep(0.2)
    assert {quota for client, quota in got if client == "a"} == {"k2"}
    assert {quota for client, quota in got if client == "b"} >= {"k0", "k1"}
    answer = await replica.share.exchange((), (Demand(lane("a", pinned="gone"), 1, 1),))
    assert len(answer.grants) == 1, "as the shared store would: somebody asks after a key that is out of use"


@virtual
async def test_lanes_of_a_client_take_turns_in_its_slots() -> None:
    """The one that insists on a key is not passed by for ever by the one that does not, nor the other way round."""
    replica = fleet(LIMIT, terms_for(1))[3]
    lanes = [lane("a"), lane("a", pinned="k0")]
    for demands in (lanes, lanes[::-1]):
        got: list[Lane] = []
        end = micros() + 15 * BEYOND
        while micros() < end:
            answer = await replica.share.exchange((), tuple(Demand(one, 1, 99) for one in demands))
            got += [grant.lane for grant in answer.grants]
            await replica.share.exchange(tuple(Spent(grant.lease, 0) for grant in answer.grants), ())
            await asyncio.sleep(0.25)
        assert len(got) > 10
        assert abs(got.count(lanes[0]) - got.count(lanes[1])) <= 1


@virtual
async def test_wide_and_narrow_limits_go_together() -> None:
    """A request under both is sent in a slot of the narrow one, if a token of the wide one is at hand then."""
    terms = terms_of(pool(1, limit(60, 60 * SECOND), limit(1, 5 * SECOND, "GET /me"), guard=0), USE_BY + BOUND)
    replica = fleet(3, terms)[0]
    both, wide = lane("a", (0, 1)), lane("b")
    got: list[tuple[str, Micros]] = []
    end = micros() + 600 * SECOND
    while micros() < end:
        answer = await replica.share.exchange((), (Demand(both, 1, 9), Demand(wide, 1, 9)))
        got += [(grant.lane.client, micros()) for grant in answer.grants]
        await replica.share.exchange(tuple(Spent(grant.lease, 0) for grant in answer.grants), ())
        await asyncio.sleep(0.1)
    narrow = [instant for client, instant in got if client == "a"]
    assert 8 <= len(narrow) <= 600 / (5 + 12) / 3 + 1
    assert 120 <= len(got) <= 600 * 0.9 / 3
