import asyncio
from collections.abc import Callable

from keyturn.core.errors import TooMany
from keyturn.core.exchange import DemandClass, EstimatedWaits
from keyturn.core.health import KeyHealth
from keyturn.core.model import SECOND, Client, Micros
from keyturn.scheduler.deadlines import REVIEW, Deadlines
from keyturn.scheduler.keys import Keys
from keyturn.scheduler.lanes import Lanes, Queue, Waiter
from keyturn.scheduler.tickets import Ticket

from tests.core.worlds import flow, limit, pool
from tests.virtual import micros, virtual

POOL = pool(1, limit(1, 2 * SECOND))


class Lane:
    """One flow, its deadlines, and who was refused."""

    def __init__(self, *patience: Micros) -> None:
        self.queue = Queue(flow())
        self.refused: list[tuple[int, int | None]] = []
        """The arrival and the `Retry-After` of each."""
        self.freed = 0
        self.deadlines = Deadlines(micros, Keys(POOL, KeyHealth(POOL, micros())), Lanes(), self._refuse, self._free)
        self.come(*patience)

    def come(self, *patience: Micros) -> None:
        """Requests come that may wait so long."""
        for number, wait in enumerate(patience):
            ticket = Ticket(Client("a"), DemandClass((0,)), micros() + wait)
            waiter = Waiter((1, 3, number), ticket, asyncio.get_running_loop().create_future(), micros())
            self.queue.add(waiter)
            self.deadlines.watch(waiter)

    def _refuse(self, waiter: Waiter, refusal: TooMany) -> None:
        self.queue.remove(waiter)
        self.refused.append((waiter.order[2], refusal.retry_after))

    def _free(self) -> None:
        self.freed += 1

    def told(self, *turns: Micros) -> None:
        """The store has told the turns of all who wait."""
        for waiter in self.queue.waiters:
            waiter.asked = True
        self.deadlines.heard(micros())
        self.queue.turns, self.queue.told = EstimatedWaits(turns), micros()
        self.deadlines.judge(self.queue, micros())


def in_loop(test: Callable[[], None]) -> Callable[[], None]:
    """Run it with a loop that has a clock."""

    @virtual
    async def scenario() -> None:
        test()

    return scenario


@in_loop
def test_whose_turn_comes_too_late_is_refused_at_once() -> None:
    """Positions count among those who stay; what is told counts those refused before, for they come back, too."""
    it = Lane(5 * SECOND, SECOND, SECOND, 60 * SECOND)
    it.told(SECOND, 4 * SECOND, 7 * SECOND, 10 * SECOND)
    assert it.refused == [(1, 4), (2, 7)]
    assert it.freed == 1
    assert len(it.queue.waiters) == 2


@in_loop
def test_who_is_not_known_to_the_store_is_not_judged() -> None:
    """Its turn is not among those that were told."""
    it = Lane(0)
    it.queue.turns = EstimatedWaits((9 * SECOND,))
    it.deadlines.judge(it.queue, micros())
    assert it.refused == []


@in_loop
def test_whose_turn_is_now_but_who_was_not_served_is_looked_at_again_at_once() -> None:
    """The store deals so many tokens at a time, and tells whoever is left of a turn only when all are dealt."""
    it = Lane(SECOND, SECOND)
    it.told(0, 0)
    assert it.refused == []
    it.told(30 * SECOND, 33 * SECOND)
    assert it.refused == [(0, 30), (1, 33)]


@virtual
async def test_all_are_looked_at_again_every_so_often() -> None:
    """Turns get later when others come first."""
    it = Lane(20 * SECOND)
    it.told(10 * SECOND)
    it.told(30 * SECOND)
    assert it.refused == []
    await asyncio.sleep(REVIEW / SECOND)
    it.told(30 * SECOND)
    assert it.refused == [(0, 30)]


@virtual
async def test_nobody_waits_past_its_deadline() -> None:
    """Whether its turn was told or not; who has left is left alone."""
    it = Lane(5 * SECOND, 5 * SECOND)
    it.told(4 * SECOND, 4 * SECOND)
    it.queue.waiters[1].future.cancel()
    silent, lost = Lane(3 * SECOND, 0), Lane(0)
    lost.deadlines.bear([lost.queue])
    await asyncio.sleep(0.001)
    assert lost.refused == [(0, 1)]
    await asyncio.sleep(6)
    assert it.refused == [(0, 1)]
    assert silent.refused == [(1, 1), (0, 1)]


@virtual
async def test_who_is_refused_later_is_told_a_later_moment() -> None:
    """A crowd comes back as one otherwise; a place ends at its time, whether its caller comes or not."""
    it = Lane()
    for seconds in (5, 8, 11):
        it.come(0)
        it.told(5 * SECOND)
        assert it.refused[-1] == (0, seconds)
    await asyncio.sleep(11)
    it.come(0)
    it.told(5 * SECOND)
    assert it.refused[-1] == (0, 5)


@virtual
async def test_requests_whose_deadlines_pass_together_come_back_one_after_another() -> None:
    """Their turns came later than was told; they keep places like those refused at once."""
    it = Lane(5 * SECOND, 5 * SECOND)
    it.told(4 * SECOND, 4 * SECOND)
    await asyncio.sleep(6)
    assert it.refused == [(0, 1), (1, 4)]
