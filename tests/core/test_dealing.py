from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core import dealing
from keyturn.core.dealing import MAX_CANDIDATES, MAX_EVENTS
from keyturn.core.exchange import FlowDemand, ObservedLimit, Spent, Throttled
from keyturn.core.messages import ExchangeResponse, RevisionClass
from keyturn.core.model import MILLISECOND, SECOND
from keyturn.core.revisions import RevisionView
from keyturn.core.state import DEALT, WAKE_MARGIN
from keyturn.core.tokens import TokenBuckets

from tests.core.worlds import World, check_conservation, flow, know, limit, pool, throttled, unsent


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of candidates looked at in each exchange."""
    counts: list[int] = []
    choices, best = dealing.Dealer.choices, TokenBuckets.best

    def dealt(dealer: dealing.Dealer, most: int) -> Iterator[tuple[RevisionClass, RevisionView, str, str]]:
        counts.append(0)
        return choices(dealer, most)

    def looked(tokens: TokenBuckets, view: RevisionView, limits: tuple[int, ...], pinned: str | None) -> str | None:
        if counts:
            counts[-1] += 1
        return best(tokens, view, limits, pinned)

    monkeypatch.setattr(dealing.Dealer, "choices", dealt)
    monkeypatch.setattr(TokenBuckets, "best", looked)
    return counts


def test_many_flows_that_insist_on_quotas_are_dealt_to_like_few() -> None:
    """Each of many pinned flows gets its token, in fair order."""
    world = World.of(pool(40, limit(2)))
    for number in range(40):
        world.waiting["r"][flow(f"c{number % 3}", pinned=f"k{number}")] = 3
    grants = world.call().grants
    assert len(grants) == 80
    assert {grant.quota for grant in grants} == {f"k{number}" for number in range(40)}
    turns = [grant.flow.client for grant in grants]
    assert all(turns[at : at + 3].count(client) == 1 for at in range(0, 75, 3) for client in ("c0", "c1", "c2"))


def test_a_client_that_insists_on_300_quotas_has_them_all(steps: list[int]) -> None:
    """Pinned requests of one client to 300 quotas are served in several exchanges of bounded work."""
    world = World.of(pool(300, limit(1)))
    response = world.send("r", (), tuple(FlowDemand(flow("a", pinned=f"k{number}"), 1, 2) for number in range(300)))
    grants = list(response.grants)
    while response.again == MILLISECOND:
        assert response.grants
        response = world.send("r", full=False)
        grants += response.grants
    assert Counter(grant.quota for grant in grants) == {f"k{number}": 1 for number in range(300)}
    assert max(steps) <= MAX_CANDIDATES + 300, "and those whose quota changed"
    steps.clear()
    (grant,) = world.send("r", (unsent(grants[7]),), full=False).grants
    assert grant.quota == grants[7].quota
    assert max(steps) <= 3


def test_a_bounded_number_of_candidates_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange looks at a bounded number of candidates and asks for the next one at once."""
    monkeypatch.setattr(dealing, "MAX_CANDIDATES", 10)
    world = World.of(pool(1, limit(100)))
    first = world.ask(30)
    assert (len(first.grants), first.again) == (9, MILLISECOND)
    assert world.call().grants


def test_a_bounded_number_of_leases_is_granted_in_one_exchange() -> None:
    """An exchange grants a bounded number of leases and asks for the next one at once."""
    world = World.of(pool(1, limit(DEALT + 5)))
    first = world.ask(DEALT + 5)
    assert (len(first.grants), first.again) == (DEALT, MILLISECOND)
    assert len(world.call().grants) == 5


def test_a_limit_that_is_spent_holds_back_its_own_class_only() -> None:
    """A spent limit holds back its own class only, even if that one's head comes first."""
    world = World.of(pool(1, limit(9), limit(1, 10 * SECOND)))
    world.waiting["r"] = {flow("a", (0, 1)): 5, flow("b"): 3}
    assert Counter(grant.flow.client for grant in world.call().grants) == {"a": 1, "b": 3}


# Looking ahead (law 3)


def soon(response: ExchangeResponse) -> int:
    """Return when the caller is to call."""
    assert response.again is not None
    return response.again


def test_the_next_return_that_serves_somebody_is_found() -> None:
    """The next return that serves a waiting request is found, not one of a limit or quota without any."""
    world = World.of(pool(2, limit(1, SECOND // 2), limit(1, SECOND), guard=0))
    mine = world.ask(1, flow("a", (1,), "k0")).grants
    others = [*world.ask(1, flow("a", (0,), "k0")).grants, *world.ask(1, flow("b", (1,), "k1")).grants]
    world.call("r", *world.spend(*others))
    world.pass_(100 * MILLISECOND)
    world.call("r", *world.spend(*mine))
    response = world.ask(1, flow("c", (1,), "k0"))
    assert soon(response) == SECOND + SECOND // 2000
    world.pass_(soon(response))
    assert [grant.flow.client for grant in world.call().grants] == ["c"]


def test_a_request_under_several_limits_waits_for_the_last_of_them() -> None:
    """A request under two spent limits waits for the later return."""
    world = World.of(pool(1, limit(1, SECOND // 2), limit(1, SECOND), guard=0))
    world.call("r", *world.spend(*world.ask(1, flow("a", (0, 1))).grants))
    response = world.ask(1, flow("a", (0, 1)))
    assert soon(response) == SECOND + SECOND // 2000


def test_a_bucket_beyond_its_limit_waits_for_as_many_returns() -> None:
    """A bucket from which others spent too much serves nobody until as many tokens have returned."""
    world = World.of(pool(1, limit(2, SECOND), guard=0))
    grants = world.ask(2).grants
    for grant in grants:
        world.call("r", Spent(grant.lease, 0, (ObservedLimit(0, -1, SECOND // 2),)))
        world.pass_(100 * MILLISECOND)
    assert soon(world.ask(1)) == SECOND + SECOND // 2000 - 200 * MILLISECOND


def test_a_return_while_its_bucket_is_closed_serves_nobody_and_one_after_it_does() -> None:
    """A token that returns to a closed bucket is available when the bucket opens."""
    for park, expected in ((SECOND // 2, SECOND + SECOND // 2000), (1500 * MILLISECOND, 1500 * MILLISECOND)):
        world = World.of(pool(1, limit(1, SECOND), guard=0))
        (grant,) = world.ask(1).grants
        world.call("r", throttled(grant, park))
        response = world.ask(1)
        assert soon(response) == expected
        world.pass_(soon(response))
        assert world.call().grants


def test_a_caller_looks_again_behind_what_was_looked_at() -> None:
    """If none of the next events serves a request, the caller calls again after the last of them."""
    world = World.of(pool(MAX_EVENTS + 9, limit(1, SECOND), guard=0))
    for number in range(MAX_EVENTS + 9):
        world.pass_(MILLISECOND)
        world.call("r", *world.spend(*world.ask(1, flow("x", pinned=f"k{number}")).grants))
    response = world.ask(1, flow("a", pinned=f"k{MAX_EVENTS + 8}"))
    assert soon(response) == SECOND + SECOND // 2000 - 9 * MILLISECOND
    world.pass_(soon(response))
    assert soon(world.call()) == 9 * MILLISECOND


@given(st.integers(0, 10**6), st.integers(1, 3), st.booleans())
def test_nothing_idles_while_it_could_serve(seed: int, quotas: int, narrow: bool) -> None:
    """After an exchange no waiting request could be served, and the replica that is next calls in time (law 3)."""
    random = Random(seed)
    limits = (limit(2, SECOND), limit(2, 2 * SECOND)) if narrow else (limit(2, SECOND),)
    world = World.of(pool(quotas, *limits))
    due: dict[str, int] = {}
    out: dict[str, str] = {}
    kinds = [
        flow(client, limits_, pinned)
        for client in "ab"
        for limits_ in ((0,), (0, 1)[: len(limits)])
        for pinned in (None, "k0")
    ]

    def call(
        replica: str, settlements: tuple[Spent | Throttled, ...] = (), demands: tuple[FlowDemand, ...] = ()
    ) -> None:
        """Make an exchange, and those of the replicas that it wakes; leases are settled later."""
        fresh = replica not in world.serials
        response = world.send(replica, settlements, demands, full=fresh)
        know(world.state)
        due.pop(replica, None)
        if response.again is not None:
            due[replica] = world.now + response.again
        out.update({grant.lease: replica for grant in response.grants})
        for other, delay in response.wake:
            due[other] = min(due.get(other, world.now + delay), world.now + delay)
        check_conservation(world.state)
        if response.again != MILLISECOND:
            assert not any(can_be_served(world))

    for _ in range(60):
        until = world.now + random.randrange(400) * MILLISECOND
        while due and min(due.values()) <= until:
            replica = min(due, key=lambda name: (due[name], name))
            world.now = max(world.now, due[replica])
            call(replica)
        world.now = until
        world.state.tokens.replenish(world.now - WAKE_MARGIN)
        assert not any(can_be_served(world)), "somebody called when a token returned"
        replica = random.choice(["r1", "r2", "r3"])
        if out and random.random() < 0.6:
            lease = random.choice(sorted(out))
            park = random.randrange(1500) * MILLISECOND
            call(out.pop(lease), (Throttled(lease, 0, park, (0,)) if random.random() < 0.2 else Spent(lease, 0),))
        else:
            chosen = random.choice(kinds)
            name = [one for one, demanded in world.state.queue.classes.items() if demanded[1:] == chosen.demand_class]
            waits = world.state.queue._counts.get((*name[:1], chosen.client, replica), 0) if name else 0  # type: ignore[arg-type]
            call(replica, (), (FlowDemand(chosen, 1, waits + random.randrange(1, 3)),))


def can_be_served(world: World) -> list[str]:
    """Return the waiting classes that could be served."""
    state = world.state
    return [
        name
        for name, demanded in state.queue.classes.items()
        if state.tokens.best(state.revisions.views[demanded.revision], demanded.limits, demanded.pinned)
    ]
