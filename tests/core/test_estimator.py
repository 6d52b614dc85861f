from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace
from itertools import islice, pairwise

from hypothesis import assume, given
from hypothesis import strategies as st
from keyturn.core.estimator import (
    DETAILED,
    FAR_SAMPLES,
    MAX_EXACT_ESTIMATES,
    MAX_SAMPLED_ESTIMATES,
    NEWCOMER_POSITIONS,
    Estimator,
)
from keyturn.core.exchange import DemandClass, EstimatedWaits, Flow
from keyturn.core.flows import UNIT
from keyturn.core.messages import LimitReturns, Revision, RevisionLimit, Snapshot, WaitingFlow
from keyturn.core.model import SECOND, Micros

WINDOW, SERVICE = 60 * SECOND, SECOND // 3
PERIOD = WINDOW + SERVICE
NARROW = 20 * SECOND
FIRST = DemandClass((0,))
LONE = LimitReturns(1, 0, 0)
"""One token, available: requests are served one period after the other, so that a delay tells the rank."""


def revision(*windows: Micros, quotas: tuple[str, ...] = ("q",)) -> Revision:
    """Return a revision with a limit for each window."""
    return Revision("r", quotas, tuple([RevisionLimit(str(n), 9, window) for n, window in enumerate(windows)]), SECOND)


def flow(
    client: str, waiting: int, tag: int = 0, weight: int = 1, kind: DemandClass = FIRST, queues: int = 1
) -> WaitingFlow:
    """Return a flow for a snapshot."""
    return WaitingFlow(client, *kind, tag, UNIT // weight, waiting, queues)


def snapshot(
    *flows: WaitingFlow, limits: tuple[LimitReturns, ...] = (LONE,), others: tuple[int, int] = (0, 0)
) -> Snapshot:
    """Return a snapshot with the flows by start tag."""
    return Snapshot(0, limits, (), tuple(sorted(flows, key=lambda one: one.tag)), *others, SERVICE)


def told(view: Snapshot, client: str, own: int, kind: DemandClass = FIRST, weight: int = 1) -> EstimatedWaits:
    """Return the estimates for a queue under a revision with one limit."""
    turns = Estimator(view, revision(WINDOW, WINDOW)).estimate(Flow(client, kind), own, weight)
    assert turns is not None
    return turns


def samples(turns: EstimatedWaits) -> Iterator[tuple[int, Micros]]:
    """Return all estimated positions, without interpolated ones."""
    yield from enumerate(turns.soon)
    yield from turns.later


def ranks(turns: EstimatedWaits, count: int) -> list[int]:
    """Return the ranks of the first positions when there is one token."""
    return [wait // PERIOD for wait in turns.soon[:count]]


def dealt(delays: list[Micros], flows: Mapping[str, tuple[int, int, int]], client: str) -> Iterator[Micros]:
    """Deal token by token to the lowest start tag; yield when a client that always waits is served."""
    tokens = list(delays)
    heapify(tokens)
    state = {name: list(values) for name, values in flows.items()}
    while True:
        waiting = [(tag, name) for name, (tag, _, left) in state.items() if left or name == client]
        name = min(waiting)[1]
        state[name][0] += state[name][1]
        state[name][2] -= state[name][2] > 0
        if name == client:
            yield tokens[0]
        heapreplace(tokens, tokens[0] + PERIOD)


delays = st.integers(1, WINDOW)
clients = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.tuples(st.integers(0, 3 * UNIT), st.sampled_from([UNIT, UNIT // 2, UNIT // 3, UNIT // 7]), st.integers(1, 40)),
    min_size=1,
    max_size=20,
)


@given(
    st.integers(0, 9),
    st.lists(
        st.one_of(delays, st.integers(1, 5).map(lambda n: n * 10 * SECOND), st.integers(1, 9 * PERIOD)), max_size=30
    ),
    st.integers(0, 9),
    st.integers(0, 30),
    clients,
    st.data(),
)
def test_estimates_are_what_dealing_token_by_token_comes_to(
    available: int,
    cooling: list[Micros],
    in_use: int,
    listed: int,
    flows: dict[str, tuple[int, int, int]],
    data: st.DataObject,
) -> None:
    """Under one limit an estimate is when start-time fair queueing serves the position, to the microsecond."""
    assume(available + len(cooling) + in_use)
    client = data.draw(st.sampled_from(sorted(flows)))
    cooling = sorted(cooling)
    rest = tuple([(rank, delay) for rank, delay in enumerate(cooling) if rank >= listed])
    returns = LimitReturns(available, len(cooling), in_use, tuple(cooling[:listed]), rest)
    view = snapshot(
        *[WaitingFlow(name, (0,), None, *values) for name, values in flows.items()],
        limits=(returns,),
    )
    tokens = [0] * available + cooling + [WINDOW] * in_use
    own = flows[client][2]
    served = list(islice(dealt(tokens, flows, client), own + NEWCOMER_POSITIONS + 1))
    found = [(position, wait) for position, wait in samples(told(view, client, own)) if position < len(served)]
    assert len(found) > min(own, MAX_EXACT_ESTIMATES)
    assert found == [(position, served[position]) for position, _ in found]


@given(st.lists(delays, min_size=1, max_size=9), clients, st.data())
def test_far_positions_are_extrapolated_by_whole_periods(
    tokens: list[Micros], flows: dict[str, tuple[int, int, int]], data: st.DataObject
) -> None:
    """Thousands of positions back, each period serves one request for each token, in order."""
    client = data.draw(st.sampled_from(sorted(flows)))
    limits = (LimitReturns(0, len(tokens), 0, tuple(sorted(tokens))),)
    view = snapshot(*[WaitingFlow(name, (0,), None, *values) for name, values in flows.items()], limits=limits)
    own = flows[client][2]
    turns = told(view, client, own)
    for position in (own + 2000, own + 3000, own + 4000):
        rank = position + sum(left for name, (_, _, left) in flows.items() if name != client)
        exact = sorted(tokens)[rank % len(tokens)] + rank // len(tokens) * PERIOD
        assert abs((turns.at(position) or 0) - exact) <= PERIOD
    waits = [turns.at(position) or 0 for position in range(own + 500)]
    assert all(early <= late for early, late in pairwise(waits))
    (low, early), (high, late) = turns.later[-2:]
    assert (late - early) * len(tokens) == (high - low) * PERIOD


def test_far_positions_lie_whole_periods_of_the_slowest_limit_apart() -> None:
    """With limits of eleven a second and ten a minute, the second one decides for far positions."""
    kind, limits = DemandClass((0, 1)), (LimitReturns(11, 0, 0), LimitReturns(10, 0, 0))
    turns = Estimator(snapshot(flow("a", 9, kind=kind), limits=limits), revision(SECOND, WINDOW)).estimate(
        Flow("a", kind), 9
    )
    assert turns is not None
    (low, early), (high, late) = turns.later[-2:]
    assert (late - early) * 10 == (high - low) * PERIOD


def test_a_long_queue_is_sampled_where_its_tokens_return_together() -> None:
    """A few samples of a thousand positions show the steps between bursts of 60 exactly."""
    view = snapshot(flow("a", 200), limits=(LimitReturns(0, 60, 0, tuple([SECOND] * 60)),))
    turns = told(view, "a", 200)
    assert len(turns.soon) <= MAX_EXACT_ESTIMATES
    assert len(turns.later) <= MAX_SAMPLED_ESTIMATES
    assert [turns.at(position) for position in (59, 60, 119, 120, 179, 180)] == [
        SECOND + number * PERIOD for number in (0, 1, 1, 2, 2, 3)
    ]


def test_where_time_hardly_passes_there_are_few_samples() -> None:
    """Positions that are all served at once take only the first and the last sample."""
    turns = told(snapshot(flow("a", 200), limits=(LimitReturns(300, 0, 0),)), "a", 200)
    assert len(turns.later) == 1 + FAR_SAMPLES


def test_many_long_queues_are_sampled_coarsely() -> None:
    """The work for one snapshot is bounded: after some estimates each queue gets only a few more."""
    names = [f"c{number:03}" for number in range(256)]
    estimator = Estimator(snapshot(*[flow(name, 50) for name in names]), revision(WINDOW))
    sizes = [sum(1 for _ in samples(turns)) for name in names if (turns := estimator.estimate(Flow(name, FIRST), 50))]
    assert max(sizes) > 3 * sizes[-1]
    assert sum(sizes) <= DETAILED + max(sizes) + 20 * len(names)


def test_weights_divide_the_tokens() -> None:
    """A client of weight 2 is served twice as often; of equal start tags the lower name is first."""
    view = snapshot(flow("a", 9), flow("b", 9, weight=2))
    assert ranks(told(view, "a", 9), 3) == [0, 3, 6]
    assert ranks(told(view, "b", 9), 5) == [1, 2, 4, 5, 7]


def test_start_tags_decide_who_is_first() -> None:
    """A client whose tag is two costs ahead waits until the other has been served twice."""
    view = snapshot(flow("a", 9, tag=2 * UNIT), flow("b", 3))
    assert ranks(told(view, "a", 9), 3) == [2, 4, 5]


def test_two_flows_of_a_client_share_its_part() -> None:
    """Two flows of one client alternate and together get one client's share."""
    kind = DemandClass((0, 1))
    view = snapshot(flow("a", 4), flow("a", 4, kind=kind), flow("b", 4), limits=(LONE, LimitReturns(99, 0, 0)))
    assert ranks(told(view, "a", 4), 3) == [0, 4, 8]
    assert ranks(told(view, "b", 4), 3) == [1, 3, 5]


def test_the_samples_of_ranks_are_interpolated() -> None:
    """Between two samples tokens return evenly; those in use return after a window."""
    returns = LimitReturns(1, 11, 2, (SECOND, 2 * SECOND), ((6, 12 * SECOND), (10, 20 * SECOND)))
    turns = told(snapshot(flow("a", 20), limits=(returns,)), "a", 20)
    seconds = [0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert turns.soon[:12] == tuple([second * SECOND for second in seconds])
    assert turns.soon[12:16] == (WINDOW, WINDOW, PERIOD, PERIOD + SECOND)


def test_tokens_that_cool_untold_return_within_the_window() -> None:
    """Cooling tokens that a snapshot counts without times are spread over the rest of the window."""
    returns = LimitReturns(0, 3, 0, (20 * SECOND,))
    assert told(snapshot(flow("a", 9), limits=(returns,)), "a", 9).soon[:4] == (
        20 * SECOND,
        40 * SECOND,
        60 * SECOND,
        20 * SECOND + PERIOD,
    )


def test_a_quota_closed_for_long_does_not_keep_the_others_from_serving() -> None:
    """With one token now and one in ten periods, the first serves all requests until then."""
    returns = LimitReturns(1, 1, 0, (10 * PERIOD - SECOND,))
    turns = told(snapshot(flow("a", 20), limits=(returns,)), "a", 20)
    assert turns.soon[:10] == tuple([number * PERIOD for number in range(10)])
    assert turns.soon[10:14] == (10 * PERIOD - SECOND, 10 * PERIOD, 11 * PERIOD - SECOND, 11 * PERIOD)


def test_tokens_between_two_samples_do_not_return_before_their_period() -> None:
    """All tokens of a span that reaches into the second period are expected there."""
    returns = LimitReturns(0, 3, 0, (SECOND,), ((2, PERIOD + 10 * SECOND),))
    turns = told(snapshot(flow("a", 20), limits=(returns,)), "a", 20)
    assert turns.soon[:5] == (SECOND, *[PERIOD + second * SECOND for second in (1, 5, 10)], 2 * PERIOD + SECOND)


def test_of_several_limits_the_latest_counts() -> None:
    """Each position waits for the slowest of its limits, behind only the flows that compete there."""
    both, first = DemandClass((0, 1)), DemandClass((0,))
    limits = LimitReturns(2, 0, 0), LimitReturns(0, 1, 0, (90 * SECOND,))
    view = snapshot(flow("a", 9, kind=both), flow("b", 9, kind=first), limits=limits)
    terms = revision(WINDOW, 5 * SECOND)
    turns = Estimator(view, terms).estimate(Flow("a", both), 9)
    assert turns is not None
    # Under the first limit it has the ranks 0, 2, 4, ... of two tokens a period; under the second 0, 1, 2, ... of one.
    short = 5 * SECOND + SERVICE
    assert turns.soon[:5] == tuple([max(n * PERIOD, 90 * SECOND + max(0, n * short)) for n in range(5)])
    alone = [
        Estimator(view, terms).estimate(Flow("a", DemandClass((limit,))), 9) for limit in (0, 1)
    ]  # an unlisted flow of the same client
    assert all(single is not None and single.soon[0] <= turns.soon[0] for single in alone)


@dataclass
class Waits:
    """The waiting requests of a client under some limits, in the fair queue that `served_when` plays."""

    client: str
    limits: tuple[int, ...]
    waiting: int
    tag: int = 0


def served_when(tokens: list[list[Micros]], flows: list[Waits], client: str) -> list[Micros]:
    """Serve the lowest start tag that can be, whenever a token returns; returns when this client was served."""
    returns, found = [sorted(limit) for limit in tokens], []
    while any(one.waiting for one in flows if one.client == client):
        able = [
            (max(returns[limit][0] for limit in one.limits), one.tag, one.client, one) for one in flows if one.waiting
        ]
        now, _, _, one = min(able, key=lambda row: row[:3])
        for limit in one.limits:
            returns[limit] = sorted([*returns[limit][1:], now + (PERIOD if limit == 0 else NARROW + SERVICE)])
        one.waiting, one.tag = one.waiting - 1, one.tag + UNIT
        if one.client == client:
            found.append(now)
    return found


@given(st.integers(12, 30), st.integers(1, 3), st.integers(1, 60), st.integers(1, 30), st.integers(0, 30))
def test_requests_that_another_limit_holds_back_do_not_count_in_full(
    wide: int, narrow: int, held: int, own: int, beside: int
) -> None:
    """Others are served in their place, and are told so.

    A token of the narrower limit that returns waits for one of the wider limit, which no estimate follows; so it is off
    by two tokens and a quarter of the position, and late rather than early.
    """
    apart = PERIOD // wide
    delays = [apart * number for number in range(1, wide + 1)]
    tokens = [delays, [0] * narrow]
    flows = [Waits("held", (0, 1), held), Waits("own", (0,), own)] + [Waits("other", (0,), beside)] * (beside > 0)
    waiting = [flow(one.client, one.waiting, kind=DemandClass(one.limits)) for one in flows]
    limits = LimitReturns(0, wide, 0, tuple(delays)), LimitReturns(narrow, 0, 0)
    estimator = Estimator(snapshot(*waiting, limits=limits), revision(WINDOW, NARROW))
    estimates = estimator.estimate(Flow("own", FIRST), own)
    assert estimates is not None
    exact = served_when(tokens, flows, "own")
    for position, (wait, instant) in enumerate(zip(estimates.soon, exact, strict=False)):
        assert -apart - wide <= wait - instant <= (2 + position / 4) * apart + wide


@given(clients, st.lists(delays, min_size=1, max_size=9), st.lists(delays, min_size=1, max_size=9), st.data())
def test_several_limits_are_never_earlier_than_one(
    flows: dict[str, tuple[int, int, int]], one: list[Micros], other: list[Micros], data: st.DataObject
) -> None:
    """With the same flows under both limits, an estimate is the later one at each position."""
    client = data.draw(st.sampled_from(sorted(flows)))
    returns = [LimitReturns(0, len(tokens), 0, tuple(sorted(tokens))) for tokens in (one, other)]
    own = flows[client][2]

    def estimated(*limits: LimitReturns) -> EstimatedWaits:
        kind = DemandClass(tuple(range(len(limits))))
        waiting = [WaitingFlow(name, *kind, *values) for name, values in flows.items()]
        return told(snapshot(*waiting, limits=limits), client, own, kind)

    singles = [estimated(limit).soon for limit in returns]
    assert estimated(*returns).soon == tuple(map(max, *singles))


def test_pinned_flows_count_in_full_for_others_and_among_themselves() -> None:
    """A pinned flow waits for its quota's tokens, behind a part only of the unpinned requests."""
    mine, elsewhere, free = DemandClass((0,), "q"), DemandClass((0,), "p"), DemandClass((0,))
    flows = flow("a", 9, kind=mine), flow("b", 9, kind=elsewhere), flow("c", 9), flow("d", 9), flow("e", 9, kind=mine)
    view = replace(snapshot(*flows), pinned=((0, "q", LimitReturns(0, 1, 0, (SECOND,))),))
    estimator = Estimator(view, revision(WINDOW, quotas=("p", "q")))
    pinned, unpinned = estimator.estimate(Flow("e", mine), 9), estimator.estimate(Flow("c", free), 9)
    assert pinned is not None
    assert unpinned is not None
    # Before "e" come "a", pinned to the same quota, and half of "c" and "d"; "b" does not compete.
    assert pinned.soon[:3] == tuple([SECOND + rank * PERIOD for rank in (2, 5, 8)])
    assert ranks(unpinned, 2) == [2, 7]


def test_a_quota_that_the_snapshot_does_not_tell_of() -> None:
    """A quota missing in the snapshot has no estimate; of one missing in the revision no token is expected."""
    estimator = Estimator(snapshot(flow("a", 1)), revision(WINDOW))
    assert estimator.estimate(Flow("a", DemandClass((0,), "q")), 1) is None
    assert estimator.estimate(Flow("a", DemandClass((0,), "gone")), 1) == EstimatedWaits()


def test_requests_that_are_not_listed_start_with_the_last_that_is() -> None:
    """Unlisted flows start with the last listed one and are served by weight."""
    view = snapshot(flow("a", 9), flow("b", 1, tag=UNIT), others=(6, 4))
    # "a" is served at 0, 1, 2, 3: "b" and the others begin at 1, and before 2 there are 4 of them, before 3 all 6.
    assert ranks(told(view, "a", 9), 4) == [0, 1, 7, 10]


def test_an_unlisted_queue_is_not_counted_against_itself() -> None:
    """An unlisted flow is not counted twice: it is one of the others."""
    view = snapshot(flow("a", 3, tag=UNIT), others=(4, 4))
    assert ranks(told(view, "z", 4), 3) == [1, 3, 5]
    assert ranks(told(view, "z", 4, weight=2), 3) == [1, 2, 4]


def test_an_unlisted_queue_of_a_listed_client_starts_at_its_tag() -> None:
    """A queue that the store does not know yet starts at its client's tag, not earlier."""
    view = snapshot(flow("a", 1, tag=3 * UNIT, weight=2), flow("b", 9), others=(3, 0))
    view = replace(view, limits=(LONE, LimitReturns(99, 0, 0)))
    assert ranks(told(view, "a", 2, DemandClass((0, 1))), 3) == [3, 6, 8]


def test_queues_alike_of_clients_not_listed_are_told_the_same() -> None:
    """Unlisted queues of equal class, length and weight are estimated once."""
    estimator = Estimator(snapshot(flow("a", 1, tag=UNIT), others=(40, 9)), revision(WINDOW))
    one, same, longer, heavier = [
        estimator.estimate(Flow(client, FIRST), own, weight)
        for client, own, weight in (("x", 2, 1), ("y", 2, 1), ("z", 3, 1), ("z", 2, 2))
    ]
    assert one is same
    assert one != longer
    assert one != heavier


def test_the_same_flow_under_two_revisions_is_one() -> None:
    """Requests of one client under two revisions with the same limits count together."""
    view = snapshot(flow("a", 2), flow("a", 3), flow("b", 9, tag=4 * UNIT))
    assert ranks(told(view, "b", 9), 2) == [5, 6]
    assert ranks(told(view, "a", 1), 2) == [0, 2], "they are two queues"


def test_newcomers_stand_behind_their_flow() -> None:
    """A new client starts at the virtual time, a known one behind its own requests."""
    view = snapshot(flow("a", 5), flow("b", 2))
    assert ranks(told(view, "c", 0), 3) == [2, 5, 7]
    assert ranks(told(view, "a", 5), 8) == [0, 2, 4, 5, 6, 7, 8, 9]
    assert ranks(told(view, "a", 0), 2) == [2, 5], "behind the other queue's next requests"


@given(st.integers(0, 6), st.integers(0, 8), st.integers(1, 20), st.integers(0, 40))
def test_the_queues_of_a_flow_are_served_in_rotation(others: int, longer: int, own: int, position: int) -> None:
    """Each queue has its turn until it is empty; the others are as long as this one or longer."""
    each = own + longer
    queues = [[(0, turn) for turn in range(max(own, position + 1))]]
    queues += [[(number, turn) for turn in range(each)] for number in range(1, others + 1)]
    order = [queue[turn] for turn in range(100) for queue in queues if turn < len(queue)]
    view = snapshot(flow("a", own + others * each, queues=others + 1))
    exact = order.index((0, position)) * PERIOD
    assert dict(samples(told(view, "a", own))).get(position, exact) == exact


def test_queues_of_very_unequal_lengths() -> None:
    """With 39, 39 and 2 requests the first two have every second token nearly from the beginning."""
    view = snapshot(flow("a", 80, queues=3))
    assert ranks(told(view, "a", 39), 31)[::10] == [0, 20, 41, 61]
    assert ranks(told(view, "a", 2), 2) == [0, 3]


def test_a_queue_longer_than_the_snapshot_knows() -> None:
    """Requests that came after the snapshot are estimated behind the others."""
    view = snapshot(flow("a", 2), flow("b", 2))
    assert ranks(told(view, "a", 5), 5) == [0, 2, 4, 5, 6]


def test_no_limits_no_wait() -> None:
    """A request under no limit is served at once, at any position."""
    turns = told(snapshot(flow("a", 3, kind=DemandClass(()))), "a", 3, DemandClass(()))
    assert [turns.at(position) for position in (0, 2, 1000)] == [0, 0, 0]


def test_no_token_is_expected_of_a_limit_without_any() -> None:
    """A request under a limit without tokens is never served."""
    view = snapshot(flow("a", 3), limits=(LONE, LimitReturns(0, 0, 0)))
    assert told(view, "a", 3, DemandClass((0, 1))) == EstimatedWaits()


def test_nobody_waits() -> None:
    """With an empty snapshot a newcomer takes available tokens, then those that return next."""
    view = Snapshot(0, (LimitReturns(2, 1, 0, (SECOND,)),), service=SERVICE)
    assert told(view, "a", 0).soon == (0, 0, SECOND)
