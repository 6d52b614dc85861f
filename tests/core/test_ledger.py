from hypothesis import given
from hypothesis import strategies as st

from proxy.core.exchange import PULSE, USE_BY, Demand, Exchange, Lane, Unsent
from proxy.core.ledger import HOLD, KEEP, Ledger
from proxy.core.letters import Call, News, terms_of
from proxy.core.model import MILLISECOND, SECOND
from tests.core.worlds import BOUND, World, check_conservation, lane, limit, pool, throttled, unsent

W = 60 * SECOND + 130 * MILLISECOND


def test_what_is_at_hand_goes_at_once() -> None:
    """Law 3: an exchange leaves nobody waiting whom a token at hand could serve."""
    world = World.of(pool(2, limit(5)))
    assert len(world.ask(12).grants) == 10
    assert world.waiting["r"][lane()] == 2


class AtOnce(World):
    """A world in which whoever comes while nobody waits is served without an exchange."""

    def ask(self, number: int, lane_: Lane | None = None, replica: str = "r") -> Exchange:
        """One request that is served as it comes, if it can be; else as usual."""
        chosen = lane_ or lane()
        weight = self.weights.get(chosen.client, 1)
        grant = self.ledger.at_once(self.now, replica, self.terms.name, chosen, weight) if number == 1 else None
        if grant is None:
            return super().ask(number, lane_, replica)
        return Exchange(0, (grant,), {}, (), None)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("rs"), st.integers(1, 3), st.integers(0, 900)), max_size=60
    )
)
def test_who_is_served_at_once_is_served_as_by_an_exchange(steps: list[tuple[str, str, int, int]]) -> None:
    """The same leases on the same quotas, then and later, for whom an exchange is made and for whom none is."""
    worlds = [kind.of(pool(2, limit(4, SECOND), limit(9, 3 * SECOND))) for kind in (World, AtOnce)]
    for client, replica, number, pause in steps:
        told = []
        for world in worlds:
            world.weights = {"a": 3, "b": 1, "c": 2}
            world.pass_(pause * MILLISECOND)
            before = world.call(replica).grants
            grants = world.ask(number, lane(client, (0, 1)), replica).grants
            world.call(replica, *world.spend(*before, *grants))
            told.append([(grant.lease, grant.lane, grant.quota, grant.probe) for grant in (*before, *grants)])
        assert told[0] == told[1]
    for world in worlds:
        check_conservation(world.ledger)


def test_nobody_is_served_at_once_while_somebody_waits() -> None:
    """Not before others of another lane, nor of another replica (law 4); nor on terms that nobody has told of."""
    world = World.of(pool(2, limit(1)))
    terms = world.terms.name
    assert world.ledger.at_once(world.now, "r", "others", lane("b"), 1) is None
    assert world.ledger.at_once(world.now, "stranger", terms, lane("b"), 1) is None
    world.ask(3, lane("a", (0,), "k0"), "far")
    assert world.ledger.at_once(world.now, "r", terms, lane("b"), 1) is None


def test_an_idle_replica_is_told_nothing() -> None:
    """Who neither waits nor holds leases need not come back."""
    assert World.of(pool()).call().again is None


def test_a_replica_with_leases_out_keeps_its_pulse() -> None:
    """A heartbeat is due within two seconds while leases are out."""
    assert World.of(pool()).ask(1).again == PULSE


def test_who_waits_comes_back_when_its_turn_is_due() -> None:
    """`again` is the first turn, so that replicas do not all wake for one token."""
    world = World.of(pool(1, limit(1, 1 * SECOND), guard=0))
    (grant,) = world.ask(1).grants
    world.call("r", *world.spend(grant))
    answer = world.ask(1)
    assert answer.again == answer.turns[lane()].at(0)
    world.pass_(answer.again or 0)
    assert world.call().grants


@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 200), st.integers(0, 30_000))
def test_the_turns_of_one_client_are_exact(quotas: int, size: int, more: int, spread: int) -> None:
    """Law 6: each turn that is told is the instant at which that request is served, when trips take what they did."""
    world = World.of(pool(quotas, limit(size, 10 * SECOND)))
    _spend_spread(world, quotas * size, spread * MILLISECOND // (quotas * size))
    grants = world.ask(quotas * size + more).grants
    answer = world.call("r", *world.spend(*grants, age=-world.ledger.buckets.trip))
    told = [answer.turns[lane()].at(position) for position in range(world.waiting["r"][lane()])]
    start = world.now
    served: list[int] = []
    while len(served) < len(told):
        assert answer.again is not None
        world.pass_(answer.again)
        answer = world.call()
        served += [world.now - start] * len(answer.grants)
        answer = world.call("r", *world.spend(*answer.grants, age=-world.ledger.buckets.trip))
    horizon = min(len(told), 64)
    for position in range(horizon):
        told_at = told[position]
        assert told_at is not None
        assert abs(told_at - served[position]) <= 2 * MILLISECOND
    last = told[-1]
    assert last is not None
    assert abs(last - served[-1]) <= 50 * MILLISECOND * (len(told) // (quotas * size) + 1)


def _spend_spread(world: World, number: int, gap: int) -> None:
    for _ in range(number):
        world.pass_(gap)
        world.call("r", *world.spend(*world.ask(1).grants, age=-world.ledger.buckets.trip))


def test_a_burst_beyond_two_windows_is_told_so() -> None:
    """With 60 a minute, of 150 at once the first 60 go now, 60 in a minute, 30 in two."""
    world = World.of(pool(1, limit(60)))
    grants = world.ask(150).grants
    answer = world.call("r", *world.spend(*grants))
    turns = answer.turns[lane()]
    trip = world.ledger.buckets.trip
    assert turns.at(0) == W
    assert turns.at(59) == W
    assert turns.at(60) == 2 * W + trip
    assert turns.at(89) == 2 * W + trip


def test_turns_share_the_calendar_by_weight() -> None:
    """Of two clients that wait, the one with twice the weight is told to come twice as often."""
    world = World.of(pool(1, limit(30, 30 * SECOND)))
    world.weights = {"heavy": 2, "light": 1}
    _spend_spread(world, 30, SECOND)
    world.ask(20, lane("heavy"))
    answer = world.ask(20, lane("light"))
    heavy, light = answer.turns[lane("heavy")], answer.turns[lane("light")]
    tenth = heavy.at(10)
    assert tenth is not None
    assert tenth == light.at(5) or abs((light.at(5) or 0) - tenth) <= 2 * SECOND


def test_turns_under_several_limits_wait_for_the_scarcest() -> None:
    """A request that falls under a narrow limit is told the narrow limit's time."""
    world = World.of(pool(1, limit(60), limit(2, 10 * SECOND)))
    first = world.ask(2, lane("a", (0, 1)))
    world.call("r", *world.spend(*first.grants))
    answer = world.ask(1, lane("a", (0, 1)))
    assert 10 * SECOND < (answer.turns[lane("a", (0, 1))].at(0) or 0) < 11 * SECOND


def test_a_parked_pool_is_told_until_it_opens() -> None:
    """While every quota is parked, the turn is the upstream's own time."""
    world = World.of(pool(1, limit(5)))
    (grant,) = world.ask(1).grants
    world.call("r", throttled(grant, 20 * SECOND))
    assert world.ask(1).turns[lane()].at(0) == 20 * SECOND


def test_the_budget_speaks_for_the_whole_pool() -> None:
    """Size, tokens at hand, and when the next one returns, over all quotas."""
    world = World.of(pool(3, limit(10, 10 * SECOND), guard=0))
    grants = world.ask(4).grants
    answer = world.call("r", *world.spend(*grants))
    (budget,) = answer.budgets
    assert (budget.size, budget.at_hand) == (30, 26)
    assert budget.returns == 10 * SECOND + 5 * MILLISECOND


def test_the_budget_leaves_out_what_the_upstream_has_closed() -> None:
    """Tokens of a parked quota cannot be had; when none can, the next can when the first opens or a token returns."""
    world = World.of(pool(2, limit(5, 10 * SECOND), guard=0))
    first, second = world.ask(2).grants
    (budget,) = world.call("r", throttled(first, 20 * SECOND)).budgets
    assert (budget.size, budget.at_hand) == (10, 4)
    (budget,) = world.call("r", throttled(second, 30 * SECOND)).budgets
    assert (budget.at_hand, budget.returns) == (0, 20 * SECOND)
    world.pass_(20 * SECOND)
    assert world.call().budgets[0].at_hand > 0


def test_a_new_era_tells_of_nothing_at_hand_before_all_have_spoken() -> None:
    """Law 8: until those that shared the pool have told what they hold, a replica counts on them, and on no token."""
    terms = terms_of(pool(1, limit(5)), BOUND)
    ledger = Ledger()

    def told(now: int, serial: int, era: str) -> tuple[int, int]:
        call = Call("r", serial, serial - 1, era, 0, 3, terms.name, held=(), spelled=terms)
        reply = ledger.exchange(now, "run", call)
        return reply.budgets[0].at_hand, reply.replicas

    assert told(SECOND, 1, "before") == (0, 3)
    assert told(SECOND + HOLD, 2, ledger.era) == (5, 1)


def test_a_probe_is_left_for_whose_turn_it_is() -> None:
    """Law 4: of a bucket that is not known one request goes out; it is the first one's, wherever that waits."""
    world = World(Ledger(), terms_of(pool(1, limit(5)), USE_BY + BOUND))
    (probe,) = world.ask(1, lane("c"), "near").grants
    assert not world.ask(2, lane("a"), "far").grants
    assert not world.ask(1, lane("b"), "near").grants
    assert not world.call("near", unsent(probe)).grants
    assert world.wake == ("far",)
    assert [grant.probe for grant in world.call("far").grants] == [True]
    check_conservation(world.ledger)


def test_nothing_is_left_of_a_limit_that_is_gone() -> None:
    """Once nobody's terms name it and its last token is back, however that came back."""
    world = World.of(pool(1, limit(2)))
    (grant,) = world.ask(1).grants
    new = terms_of(pool(1, limit(2, 20 * SECOND)), USE_BY + BOUND)
    for _ in range(2):
        world.send("r", terms=new)
        world.pass_(KEEP + 1)
    assert len(world.ledger.buckets.calendars) == 2
    world.send("r", (Unsent(grant.lease),), terms=new)
    assert list(world.ledger.buckets.calendars) == [new.limits[0].id]


def test_many_pinned_lanes_are_dealt_to_like_few() -> None:
    """Each gets its token, in fair order, however many insist on a quota of their own."""
    world = World.of(pool(40, limit(2)))
    for number in range(40):
        world.waiting["r"][lane(f"c{number % 3}", pinned=f"k{number}")] = 3
    grants = world.call().grants
    assert len(grants) == 80
    assert {grant.quota for grant in grants} == {f"k{number}" for number in range(40)}
    turns = [grant.lane.client for grant in grants]
    assert all(turns[at : at + 3].count(client) == 1 for at in range(0, 75, 3) for client in ("c0", "c1", "c2"))


def test_who_fetches_what_was_left_for_it_does_not_lag() -> None:
    """Others were served behind it in the same dealing, so nobody is moved on for its sake (law 4)."""
    world = World.of(pool(1, limit(40, 10 * SECOND)))
    world.call("r", *world.spend(*world.ask(40).grants))
    world.weights["b"] = 10
    world.ask(1, lane("b"), "s")
    world.ask(60)
    world.pass_(10 * SECOND)
    world.call("s")
    world.pass_(200 * MILLISECOND)
    served = len(world.call("r").grants)
    assert served == 39
    assert len(world.call("s").grants) == 1
    world.ask(5, lane("c"), "s")
    line = world.ledger.line
    assert [group.lift for group in line.groups.values()] == [0]
    assert line.share("a").tag - line.share("c").tag <= line.share("a").cost


def test_all_hear_what_is_at_hand_when_they_are_more_or_it_is_less() -> None:
    """With the exchange by which that comes about, and as of its tick; who is told has a place by name."""
    world = World.of(pool(2, limit(20)))
    alone, second, third = [world.send(replica) for replica in ("q", "p", "r")]
    (name,) = [one.id for one in world.terms.limits]
    assert [reply.rank for reply in (alone, second, third)] == [0, 0, 2]
    assert third.news == News(third.tick, third.replicas, ((name, 40),))
    few = world.send("p", demands=(Demand(lane(), 1, 3),))
    assert len(few.grants) == 3
    assert few.news is None
    many = world.send("p", demands=(Demand(lane(), 1, 30),))
    assert many.news == News(many.tick, many.replicas, ((name, 7),))
    world.pass_(USE_BY + BOUND + 1)
    left = world.send("q")
    assert (left.rank, left.replicas, left.news) == (0, 1, None)
