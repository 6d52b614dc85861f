from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.exchange import EstimatedWaits
from keyturn.core.model import SECOND, Client
from keyturn.scheduler.queues import Queues
from keyturn.scheduler.waiter import Queue, Waiter

from tests.core.worlds import flow
from tests.schedulers import waiting
from tests.virtual import run


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=30))
def test_a_queue_is_in_order_of_return_urgency_and_arrival(arrivals: list[tuple[bool, int]]) -> None:
    """Law 5: who comes back first, then by urgency, then by arrival; every position is found again."""

    async def scenario() -> None:
        queue = Queue(flow())
        waiters = []
        for number, (back, urgency) in enumerate(arrivals):
            waiters.append(waiting(Client("a"), number, urgency=urgency, back=back))
            queue.add(waiters[-1])
        expected = sorted(waiters, key=lambda waiter: waiter.order)
        assert queue.waiters == expected
        assert [queue.position(waiter) for waiter in expected] == list(range(len(expected)))
        for waiter in waiters:
            assert queue.next() is queue.waiters[0]
            queue.remove(waiter)
        assert not queue.waiters
        assert not queue.unjudged

    run(scenario())


def test_who_was_cancelled_in_this_tick_is_passed_over() -> None:
    """The next is the first whose caller is still there."""

    async def scenario() -> None:
        queue = Queue(flow())
        first, second = (waiting(Client("a"), number) for number in range(2))
        queue.add(first)
        queue.add(second)
        first.future.cancel()
        assert queue.next() is second

    run(scenario())


WEIGHTS = {"a": 1, "b": 2, "c": 10}

steps = st.tuples(st.sampled_from(["come", "leave"]), st.sampled_from("abc"))


@given(st.lists(steps, max_size=40))
def test_a_clients_part_is_its_weight_among_those_that_wait(history: list[tuple[str, str]]) -> None:
    """Each client counts once by its weight, as long as any of its requests waits."""

    async def scenario() -> None:
        queues = Queues()
        present: dict[str, list[Waiter]] = {name: [] for name in WEIGHTS}
        for name, weight in WEIGHTS.items():
            queues.note(Client(name, weight=weight))
        for what, name in history:
            if what == "come":
                present[name].append(waiting(Client(name, weight=WEIGHTS[name]), 0))
                queues.add(present[name][-1])
            elif present[name]:
                queues.remove(present[name].pop())
            for own, weight in WEIGHTS.items():
                contend = {one for one in WEIGHTS if present[one]} | {own}
                assert queues.weights.share(own) == (weight, sum(WEIGHTS[one] for one in contend))

    run(scenario())


def test_a_refused_request_is_told_the_estimate_behind_all_places_kept() -> None:
    """Estimates age meanwhile; a place ends at the time that its caller was told."""
    queue = Queue(flow(), estimates=EstimatedWaits((4 * SECOND, 8 * SECOND, 12 * SECOND, 16 * SECOND)))
    assert [Queues().back_off(queue, 1, 0, ()) // SECOND for _ in range(3)] == [8, 12, 16]
    assert Queues().back_off(queue, 0, 10 * SECOND, ()) == SECOND
    assert queue.estimate(0, 10 * SECOND) == 0
    assert Queues().back_off(Queue(flow()), 0, 0, ()) == SECOND


def test_estimates_count_positions_as_of_when_they_were_made() -> None:
    """Those before it that were served since have had theirs."""

    async def scenario() -> None:
        queues = Queues()
        waiters = [waiting(Client("a"), number) for number in range(2)]
        for waiter in waiters:
            queues.add(waiter)
        queue = queues.get(flow())
        queue.take_estimates(EstimatedWaits((4 * SECOND, 8 * SECOND)), 0)
        queues.serve(waiters[0])
        assert queue.estimate(queue.position(waiters[1]), 0) == 8 * SECOND

    run(scenario())


def test_what_the_store_does_not_know_is_marked() -> None:
    """Queues with newcomers and departures, also where a client is capped; those served are known to be."""

    async def scenario() -> None:
        queues = Queues()
        waiters = [waiting(Client("a", max_in_flight=1), number) for number in range(3)]
        for waiter in waiters:
            queues.add(waiter)
        queue = queues.get(flow())
        assert queues.announce() == waiters
        assert queues.announce() == []
        assert list(queues.changed) == list(queues.capped) == [queue]
        queues.changed.clear()
        queues.serve(waiters[0])
        assert not queues.changed
        queues.remove(waiters[1])
        assert list(queues.changed) == [queue]
        queues.remove(waiters[2])
        queues.remove(waiters[2])
        assert (queues.total, queues.busy, queues.capped) == (0, {}, {})

    run(scenario())


def test_what_a_debugger_shows() -> None:
    """Names and numbers, of each queue and of all."""

    async def scenario() -> None:
        queues = Queues()
        waiter = waiting(Client("a"), 0, deadline=7)
        assert repr(waiter) == "<Waiter of a, urgency 3, deadline 7, not waiting>"
        queues.add(waiter)
        assert repr(waiter) == "<Waiter of a, urgency 3, deadline 7, waiting>"
        assert repr(queues) == "<Queues 1 waiting in 1 queues, 1 changed>"
        assert repr(queues.get(flow())) == "<Queue of a, limits (0,): 1 waiting>"
        assert repr(queues.get(flow(pinned="k0"))) == "<Queue of a, limits (0,) on k0: 0 waiting>"

    run(scenario())
