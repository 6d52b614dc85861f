import asyncio

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.exchange import Kind
from proxy.core.model import Client
from proxy.dispatch.lanes import Lanes, Queue, Waiter
from proxy.dispatch.tickets import Ticket
from tests.core.worlds import lane
from tests.virtual import run


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=30))
def test_a_lane_is_in_order_of_return_urgency_and_arrival(arrivals: list[tuple[bool, int]]) -> None:
    """Law 5: who comes back first, then by urgency, then by arrival; every position is found again."""

    async def scenario() -> None:
        queue = Queue(lane())
        waiters = []
        for number, (back, urgency) in enumerate(arrivals):
            ticket = Ticket(Client("a"), Kind((0,)), 0, urgency)
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
        queue = Queue(lane())
        ticket = Ticket(Client("a"), Kind((0,)), 0)
        first, second = (
            Waiter((1, 3, number), ticket, asyncio.get_running_loop().create_future()) for number in range(2)
        )
        queue.add(first)
        queue.add(second)
        first.future.cancel()
        assert queue.next() is second

    run(scenario())


WEIGHTS = {"a": 1, "b": 2, "c": 10}

steps = st.tuples(st.sampled_from(["seat", "leave", "expect", "pass"]), st.sampled_from("abc"), st.integers(1, 10))


@given(st.lists(steps, max_size=40))
def test_who_contends_waits_or_is_to_come_back(history: list[tuple[str, str, int]]) -> None:
    """Each client counts once by its weight, as long as any of it waits or some of it are to come back."""

    async def scenario() -> None:
        lanes, now = Lanes(), 0
        waiting: dict[str, list[Waiter]] = {name: [] for name in WEIGHTS}
        until = dict.fromkeys(WEIGHTS, 0)
        for name, weight in WEIGHTS.items():
            lanes.know(lane(name), Ticket(Client(name, weight=weight), Kind((0,)), 0), now)
        for what, name, seconds in history:
            now += seconds if what == "pass" else 0
            ticket = Ticket(Client(name, weight=WEIGHTS[name]), Kind((0,)), 0)
            if what == "seat":
                waiting[name].append(Waiter((1, 3, 0), ticket, asyncio.get_running_loop().create_future()))
                lanes.seat(waiting[name][-1])
            elif what == "leave" and waiting[name]:
                lanes.remove(waiting[name].pop())
            elif what == "expect":
                until[name] = max(until[name], now + seconds)
                lanes.expect(ticket, now + seconds)
            for own, weight in WEIGHTS.items():
                contend = {one for one in WEIGHTS if waiting[one] or until[one] > now} | {own}
                assert lanes.contended(own, now) == (weight, sum(WEIGHTS[one] for one in contend))

    run(scenario())
