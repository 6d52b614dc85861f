from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.exchange import Flow, FlowDemand
from keyturn.core.flows import IDLERS, LAG, MOVED, ROLLOVER, UNIT, FairQueue
from keyturn.core.messages import RevisionClass
from keyturn.core.model import MILLISECOND, SECOND

from tests.core.worlds import World, flow, limit, pool, throttled, unsent

WIDE, NARROW = RevisionClass("r", (0,)), RevisionClass("r", (0, 1))


def serve_one_by_one(world: World, number: int, replicas: tuple[str, ...] = ("r",)) -> Counter[str]:
    """Let tokens return one at a time while each replica calls; return the clients that got them."""
    served: Counter[str] = Counter()
    while served.total() < number:
        world.pass_(100 * MILLISECOND)
        for replica in replicas:
            answer = world.call(replica)
            served.update(grant.flow.client for grant in answer.grants)
            world.call(replica, *world.spend(*answer.grants))
    return served


def serve_first(queue: FairQueue, demanded: RevisionClass, times: int) -> Counter[str]:
    """Serve the next client so many times; return which clients those were."""
    served: Counter[str] = Counter()
    for _ in range(times):
        client = queue.head(demanded.name)[1]
        queue.serve(demanded.name, client)
        served[client] += 1
    return served


# Shares (law 4)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 300), st.integers(1, 300))
def test_two_that_wait_share_by_weight_within_one_token_each(w1: int, w2: int, n1: int, n2: int) -> None:
    """Two waiting clients share by weight, however many requests each has queued (law 4)."""
    world = World.of(pool(1, limit(1, 50 * MILLISECOND), guard=0))
    world.weights = {"a": w1, "b": w2}
    world.waiting["r"] = {flow("a"): n1 + 400, flow("b"): n2 + 400}
    served = serve_one_by_one(world, 100)
    assert abs(served["a"] / w1 - served["b"] / w2) <= 1 / w1 + 1 / w2


@given(
    st.dictionaries(st.tuples(st.sampled_from(["r1", "r2", "r3"]), st.sampled_from("ab")), st.just(100), min_size=1),
    st.integers(1, 3),
    st.lists(st.permutations(["r1", "r2", "r3"]), min_size=30, max_size=30),
)
def test_two_clients_differ_by_one_token_each_at_any_time(
    waiting: dict[tuple[str, str], int], size: int, rounds: list[list[str]]
) -> None:
    """On any replicas, calling in any order, two clients are at most one token of each apart (law 4)."""
    world = World.of(pool(1, limit(size, 50 * MILLISECOND), guard=0))
    waiting |= {("r1", "a"): 100, ("r2", "b"): 100}
    world.ask(size, flow("other"))
    for replica, client in waiting:
        world.send(replica, (), (FlowDemand(flow(client), 1, 100),), full=replica not in world.serials)
    number = Counter(client for _, client in waiting)
    for replica in [replica for order in rounds for replica in order]:
        world.pass_(30 * MILLISECOND)
        settlements = world.spend(*world.out.values())
        world.out.clear()
        for grant in world.send(replica, settlements, full=replica not in world.serials).grants:
            world.out[grant.lease] = grant
        left = Counter[str]()
        for (_, client), waits in world.state.queue.totals.items():
            left[client] += waits
        served = Counter({client: number[client] * 100 - left[client] for client in "ab"})
        assert abs(served["a"] - served["b"]) <= 1
    assert served.total() > 10


def test_a_client_on_many_replicas_has_one_share() -> None:
    """A client on ten replicas gets as much as one on a single replica."""
    world = World.of(pool(1, limit(1, 50 * MILLISECOND), guard=0))
    spread = tuple(f"r{number}" for number in range(10))
    for replica in spread:
        world.waiting[replica] = {flow("wide"): 100}
    world.waiting["single"] = {flow("narrow"): 100}
    served = serve_one_by_one(world, 80, (*spread, "single"))
    assert abs(served["wide"] - served["narrow"]) <= 2


def test_a_client_with_two_classes_has_one_share() -> None:
    """A client with several demand classes gets as much as one with a single class."""
    world = World.of(pool(1, limit(1, 50 * MILLISECOND), limit(1, 60 * MILLISECOND), guard=0))
    world.waiting["r"] = {flow("two"): 100, flow("two", (0, 1)): 100, flow("one"): 100}
    served = serve_one_by_one(world, 60)
    assert abs(served["one"] - served["two"]) <= 2


@pytest.mark.parametrize("flows", [[(0,), (0, 1)], [(0, 1), (0,)], [(0, 1), (0, 2)], [(0,), (0, 1), (0, 1, 2)]])
def test_flows_of_one_client_are_all_served(flows: list[tuple[int, ...]]) -> None:
    """No flow of a client starves behind another one of it."""
    world = World.of(
        pool(1, limit(1, 50 * MILLISECOND), limit(1, 60 * MILLISECOND), limit(1, 70 * MILLISECOND), guard=0)
    )
    kinds = [flow("a", limits) for limits in flows]
    world.waiting["r"] = dict.fromkeys(kinds, 100)
    served: Counter[Flow] = Counter()
    while served.total() < 60:
        world.pass_(100 * MILLISECOND)
        answer = world.call("r")
        served.update(flow(grant.flow.client, grant.flow.demand_class.limits) for grant in answer.grants)
        world.call("r", *world.spend(*answer.grants))
    assert served == dict.fromkeys(kinds, 60 // len(kinds))


def test_the_replicas_of_a_flow_take_turns() -> None:
    """The replica of a flow that was served longest ago is first."""
    queue = FairQueue()
    for replica, waiting in (("r1", 3), ("r2", 1), ("r3", 9)):
        queue.put(replica, WIDE, "a", 1, waiting)
    assert [queue.serve(WIDE.name, "a") for _ in range(7)] == ["r1", "r2", "r3", "r1", "r3", "r1", "r3"]
    assert (queue.requests, queue.totals) == (6, {(WIDE.name, "a"): 6})


def test_a_client_that_comes_back_after_idling_gets_no_credit() -> None:
    """An hour of idling earns no credit."""
    world = World.of(pool(1, limit(1, 50 * MILLISECOND), guard=0))
    world.waiting["r"] = {flow("a"): 1000, flow("b"): 1}
    serve_one_by_one(world, 200)
    world.waiting["r"][flow("b")] = 500
    served = serve_one_by_one(world, 40)
    assert abs(served["a"] - served["b"]) <= 2


def test_a_client_gains_nothing_by_leaving() -> None:
    """A client that leaves while ahead is still ahead when it returns."""
    queue = FairQueue()
    queue.put("r", WIDE, "a", 1, 100)
    queue.put("r", WIDE, "b", 1, 100)
    serve_first(queue, WIDE, 11)
    for waiting in (0, 100):
        queue.put("r", WIDE, "a", 1, waiting)
        queue.forget_idle()
    assert queue.head(WIDE.name)[1] == "b"


def test_a_client_that_was_held_back_catches_up_but_starves_nobody() -> None:
    """A client that could not be served catches up on at most 64 requests."""
    world = World.of(pool(1, limit(10, SECOND), limit(1, 100 * SECOND), guard=0))
    world.waiting["r"] = {flow("held", (0, 1)): 500, flow("free"): 5000}
    serve_one_by_one(world, 990)
    world.waiting["r"][flow("held")] = 5000
    served = serve_one_by_one(world, 300)
    assert served["free"] >= 100
    assert served["held"] >= served["free"]


@pytest.mark.parametrize(("w1", "w2"), [(1, 9), (3, 1), (2, 2)])
def test_two_that_are_held_back_together_share_by_weight_all_the_same(w1: int, w2: int) -> None:
    """Clients held back by the same narrow limit share it by weight, however far behind they are (law 4)."""
    world = World.of(pool(1, limit(20, SECOND), limit(1, SECOND), guard=0))
    world.weights = {"a": w1, "b": w2}
    both = (0, 1)
    world.waiting["r"] = {flow("a", both): 1000, flow("b", both): 1000, flow("free"): 100_000}
    served: Counter[str] = Counter()
    ahead: list[float] = [0.0]
    for _ in range(40):
        served += serve_one_by_one(world, 20)
        ahead.append(served["a"] / w1 - served["b"] / w2)
    assert served["a"] + served["b"] >= 35, "they do get what there is"
    assert max(ahead) - min(ahead) <= 1 / w1 + 1 / w2 + 1e-9


def test_a_client_that_joins_those_that_are_held_back_is_served_with_them() -> None:
    """A newcomer to a class that lags shares with it; the others catch up to the lag bound only."""
    world = World.of(pool(1, limit(20, SECOND), limit(2, SECOND), guard=0))
    both = (0, 1)
    world.waiting["r"] = {flow("early", both): 1000, flow("free"): 100_000}
    serve_one_by_one(world, 300)
    world.waiting["r"][flow("late", both)] = 1000
    served = serve_one_by_one(world, 10 * (LAG + 20))
    assert LAG - 2 <= served["early"] - served["late"] <= LAG + 2 * 10, "10 are served from one of them to the next"
    assert served["late"] >= 2


def test_a_client_that_was_shut_out_makes_up_for_a_lag_and_leaves_the_rest_alone() -> None:
    """When a long closed limit opens, no client starves for those that had waited."""
    world = World.of(pool(1, limit(10, SECOND), limit(10, SECOND), guard=0))
    both = (0, 1)
    (probe,) = world.ask(1, flow("held", both)).grants
    world.call("r", throttled(probe, 30 * SECOND, 1))
    world.waiting["r"] = {flow("held", both): 10_000, flow("free"): 100_000}
    served = serve_one_by_one(world, 250)
    while not served["held"]:
        served = serve_one_by_one(world, 1)
    served += serve_one_by_one(world, 150)
    assert LAG - 3 <= served["held"] - served["free"] <= LAG + 3


def test_an_unsent_lease_is_not_charged() -> None:
    """A client is not charged for requests that were cancelled before they were sent."""
    world = World.of(pool(1, limit(1, 50 * MILLISECOND), guard=0))
    world.waiting["r"] = {flow("a"): 100, flow("b"): 100}
    used: Counter[str] = Counter()
    cancelled = 0
    while used.total() < 40:
        world.pass_(100 * MILLISECOND)
        for grant in world.call().grants:
            if grant.flow.client == "a" and used["a"] >= cancelled:
                cancelled += 1
                world.waiting["r"][flow("a")] += 1
                for other in world.call("r", unsent(grant)).grants:
                    used[other.flow.client] += 1
                    world.call("r", *world.spend(other))
            else:
                used[grant.flow.client] += 1
                world.call("r", *world.spend(grant))
    assert cancelled > 9
    assert abs(used["a"] - used["b"]) <= 2


@pytest.mark.parametrize("refunded", [False, True], ids=["grant", "refund"])
def test_a_client_in_many_classes_is_put_in_order_a_few_at_a_time(
    refunded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grant or a refund puts at most `MOVED` flows of its client in order, and the next one goes on with others."""
    queue = FairQueue()
    classes = [RevisionClass("r", (0,), f"k{number}") for number in range(3 * MOVED)]
    for demanded in classes:
        for client in "ab":
            queue.put("r", demanded, client, 1, 10)
    queue.virtual_time = 10 * LAG * UNIT
    queue.serve(classes[0].name, "b")  # that class lagged, and is moved on
    moved: list[str] = []
    monkeypatch.setattr(queue, "_rebase" if not refunded else "_put", lambda *flow: moved.append(flow[0]))
    for _ in range(3):
        before = len(moved)
        if refunded:
            queue.refund("a")
        else:
            queue.serve(classes[1].name, "a")
        assert len(moved) - before <= MOVED + 1
    assert {demanded.name for demanded in classes} <= set(moved)


def test_a_client_that_waits_alone_in_a_class_is_moved_on_itself() -> None:
    """A class of one client that lagged is not moved on as a whole: the client's start tag holds it."""
    queue = FairQueue()
    alone = RevisionClass("r", (0,), "k0")
    queue.put("r", alone, "a", 1, 10)
    queue.virtual_time = 10 * LAG * UNIT
    queue.serve(alone.name, "a")
    assert not queue._lifts
    assert queue.head(alone.name)[0] == (9 * LAG + 1) * UNIT


def test_a_client_that_did_not_have_to_wait_has_been_served() -> None:
    """Tokens that a client got without waiting count like those that it waited for."""
    queue = FairQueue()
    queue.pass_by("a", 1)
    for client in "ab":
        queue.put("r", WIDE, client, 1, 9)
    assert serve_first(queue, WIDE, 5) == {"b": 3, "a": 2}


# State that is kept


flows = st.tuples(
    st.sampled_from("rst"), st.sampled_from([WIDE, NARROW, RevisionClass("r", (0,), "k0")]), st.sampled_from("abc")
)


@given(st.lists(st.tuples(st.sampled_from(["put", "serve", "refund", "forget", "idle"]), flows, st.integers(0, 3))))
def test_nothing_is_kept_of_what_waits_no_longer(
    steps: list[tuple[str, tuple[str, RevisionClass, str], int]],
) -> None:
    """Totals and heads are those of all replicas; at the end only clients that are ahead are remembered."""
    queue = FairQueue()
    waiting: dict[tuple[str, RevisionClass, str], int] = {}
    for what, chosen, number in steps:
        replica, demanded, client = chosen
        if what == "put":
            queue.put(replica, demanded, client, 1 + number, number)
            waiting[chosen] = number
        elif what == "serve" and demanded.name in queue.classes:
            tag, client = queue.head(demanded.name)
            name = demanded.name
            places = [queue._place(name, other) for other in queue.waiting[name].scores]
            assert tag == min(places) + queue._lifts.get(name, 0)
            served = queue.serve(demanded.name, client)
            waiting[served, demanded, client] -= 1
        elif what == "refund":
            queue.refund(client)
        elif what == "forget":
            queue.forget(replica)
            waiting = {one: number for one, number in waiting.items() if one[0] != replica}
        elif what == "idle":
            queue.forget_idle()
        totals = Counter[tuple[str, str]]()
        for (_, kind, name), left in waiting.items():
            totals[kind.name, name] += left
        assert queue.totals == +totals
        assert queue.requests == totals.total()
        assert (
            set(queue.classes)
            == {name for name, _ in +totals}
            == {*queue.general} | {name for names in queue.pinned.values() for name in names}
        )
        assert {other for other in "rst" if queue.waits(other)} == {
            one for (one, _, _), left in waiting.items() if left
        }
    for replica in "rst":
        queue.forget(replica)
    queue.virtual_time = ROLLOVER + 1
    queue.forget_idle()
    kept = {name: value for name, value in vars(queue).items() if value and name not in ("_sequence", "requests")}
    assert kept == {}


def test_a_bounded_number_of_idle_clients_is_forgotten_in_one_exchange() -> None:
    """An exchange forgets a bounded number of idle clients and leaves the rest to the next."""
    queue = FairQueue()
    for number in range(IDLERS + 5):
        queue.pass_by(f"c{number}", 1)
    queue.virtual_time += UNIT
    queue.forget_idle()
    assert len(queue._tags) == 5


def test_virtual_time_starts_over_when_nobody_waits() -> None:
    """Virtual time starts over before it is too large for an exact floating-point number."""
    queue = FairQueue()
    queue.virtual_time = ROLLOVER + 1
    queue.put("r", WIDE, "a", 1, 1)
    queue.forget_idle()
    assert queue.virtual_time == ROLLOVER + 1
    queue.serve(WIDE.name, "a")
    queue.forget_idle()
    assert (queue.virtual_time, queue._tags) == (0, {})
    assert ROLLOVER + 1000 * LAG * UNIT < 1 << 53


def test_the_first_flows_of_a_class() -> None:
    """Flows are listed with client, start tag, cost and the numbers of waiting requests and queues."""
    queue = FairQueue()
    queue.put("r", WIDE, "a", 1, 2)
    queue.put("s", WIDE, "a", 1, 2)
    queue.put("r", WIDE, "b", 2, 1)
    queue.serve(WIDE.name, "a")
    assert sorted(queue.flows(WIDE.name, 9)) == [("a", UNIT, UNIT, 3, 2), ("b", 0, UNIT // 2, 1, 1)]
    assert len(list(queue.flows(WIDE.name, 1))) == 1
