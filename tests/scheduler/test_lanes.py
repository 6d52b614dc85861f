import asyncio

from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.exchange import DemandClass, EstimatedWaits
from keyturn.core.model import SECOND, Client
from keyturn.scheduler.lanes import Lanes, Queue, Waiter
from keyturn.scheduler.tickets import Ticket

from tests.core.worlds import flow
from tests.virtual import run


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=30))
def test_a_lane_is_in_order_of_return_urgency_and_arrival(arrivals: list[tuple[bool, int]]) -> None:
    """Law 5: who comes back first, then by urgency, then by arrival; every position is found again."""

    async def scenario() -> None:
        queue = Queue(flow())
        waiters = []
        for number, (back, urgency) in enumerate(arrivals):
            ticket = Ticket(Client("a"), DemandClass((0,)), 0, urgency)
            order = (not back, urgency, number)
            waiters.append(Waiter(order, ticket, asyncio.get_running_loop().create_future()))
            queue.add(waiters[-1])
        expected = sorted(waiters, key=lambda waiter: waiter.order)
        assert queue.waiters == expected
        assert [queue.position(waiter) for waiter in expected] == list(range(len(expected)))
        for waiter in waiters:
            assert queue.next() is queue.waiters[0]
            queue.remove(waiter)
        assert not queue.waiters
        assert not queue.fresh

    run(scenario())


def test_who_was_cancelled_in_this_tick_is_passed_over() -> None:
    """The next is the first whose caller is still there."""

    async def scenario() -> None:
        queue = Queue(flow())
        ticket = Ticket(Client("a"), DemandClass((0,)), 0)
        first, second = (
            Waiter((1, 3, number), ticket, asyncio.get_running_loop().create_future()) for number in range(2)
        )
        queue.add(first)
        queue.add(second)
        first.future.cancel()
        assert queue.next() is second

    run(scenario())


WEIGHTS = {"a": 1, "b": 2, "c": 10}

steps = st.tuples(st.sampled_from(["seat", "leave"]), st.sampled_from("abc"))


@given(st.lists(steps, max_size=40))
def test_a_clients_part_is_its_weight_among_those_that_wait(history: list[tuple[str, str]]) -> None:
    """Each client counts once by its weight, as long as any of its requests waits."""

    async def scenario() -> None:
        lanes = Lanes()
        waiting: dict[str, list[Waiter]] = {name: [] for name in WEIGHTS}
        for name, weight in WEIGHTS.items():
            lanes.know(Client(name, weight=weight))
        for what, name in history:
            ticket = Ticket(Client(name, weight=WEIGHTS[name]), DemandClass((0,)), 0)
            if what == "seat":
                waiting[name].append(Waiter((1, 3, 0), ticket, asyncio.get_running_loop().create_future()))
                lanes.seat(waiting[name][-1])
            elif waiting[name]:
                lanes.remove(waiting[name].pop())
            for own, weight in WEIGHTS.items():
                contend = {one for one in WEIGHTS if waiting[one]} | {own}
                assert lanes.part(own) == (weight, sum(WEIGHTS[one] for one in contend))

    run(scenario())


def test_a_refused_request_is_told_the_estimate_behind_all_places_kept() -> None:
    """Estimates age meanwhile; a place ends at the time that its caller was told."""
    queue = Queue(flow(), turns=EstimatedWaits((4 * SECOND, 8 * SECOND, 12 * SECOND, 16 * SECOND)))
    assert [Lanes().back_off(queue, 1, 0, ()) // SECOND for _ in range(3)] == [8, 12, 16]
    assert Lanes().back_off(queue, 0, 10 * SECOND, ()) == SECOND
    assert queue.estimate(0, 10 * SECOND) == 0
    assert Lanes().back_off(Queue(flow()), 0, 0, ()) == SECOND


def test_a_request_has_the_turn_of_the_place_that_it_had_when_turns_were_told() -> None:
    """Those before it that were served since have had theirs."""

    async def scenario() -> None:
        lanes = Lanes()
        waiters = [
            Waiter(
                (1, 3, number), Ticket(Client("a"), DemandClass((0,)), 0), asyncio.get_running_loop().create_future()
            )
            for number in range(2)
        ]
        for waiter in waiters:
            lanes.seat(waiter)
        queue = lanes.queue(flow())
        queue.turns = EstimatedWaits((4 * SECOND, 8 * SECOND))
        lanes.serve(waiters[0])
        assert queue.estimate(queue.position(waiters[1]), 0) == 8 * SECOND

    run(scenario())
