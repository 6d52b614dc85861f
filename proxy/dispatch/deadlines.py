"""Nobody waits in vain: whose turn cannot come in time is refused at once, and none waits past its deadline (law 6)."""

import asyncio
from collections.abc import Callable, Iterable

from proxy.core.errors import TooMany
from proxy.core.exchange import Lane
from proxy.core.model import SECOND, Micros
from proxy.dispatch.lanes import Queue, Waiter
from proxy.dispatch.promises import spread
from proxy.dispatch.refusals import no_word, too_late

REVIEW: Micros = SECOND // 4
"""How often those who wait are measured against the newest turns."""


class Deadlines:
    """The deadlines of those who wait in one room.

    `refuse` takes somebody out of its lane and tells it why; `freed` is called behind that. `pace` is how far the
    tokens of a lane lie apart.
    """

    def __init__(
        self,
        clock: Callable[[], Micros],
        refuse: Callable[[Waiter, TooMany], None],
        freed: Callable[[], None],
        pace: Callable[[Lane], Micros],
    ) -> None:
        self._clock = clock
        self._refuse = refuse
        self._freed = freed
        self._pace = pace
        self._untold = False
        """Whether the store does not answer."""

    def judge(self, queue: Queue, now: Micros) -> None:
        """Refuse at once whose turn cannot come in time (law 6).

        Positions among those who stay decide; the time told to whoever is refused counts those refused before it,
        for they will come back, too.
        """
        self._untold = False
        refused, expected = 0, queue.expected - now
        for waiter in self._to_judge(queue, now):
            queue.fresh.pop(waiter, None)
            position = queue.position(waiter)
            turn = queue.turns.at(position)
            if turn is not None and now + turn > waiter.ticket.deadline:
                told = queue.turns.at(position + refused) or turn
                if expected > 0:
                    told = spread(told, expected, self._pace(queue.lane), refused)
                queue.expected = max(queue.expected, now + told)
                self._refuse(waiter, too_late(told))
                refused += 1
            elif waiter.timer is None:
                self._set_deadline(waiter, now)
        if refused:
            self._freed()

    def wait_unjudged(self, queues: Iterable[Queue]) -> None:
        """Whose turn the store does not tell waits for it, but not past its deadline."""
        self._untold = True
        now = self._clock()
        for queue in queues:
            for waiter in queue.fresh:
                if waiter.timer is None:
                    self._set_deadline(waiter, now)

    def _to_judge(self, queue: Queue, now: Micros) -> list[Waiter]:
        """Newcomers that the store knows of; every so often all, for turns get later when others come first."""
        if now - queue.reviewed >= REVIEW:
            queue.reviewed = now
            candidates = list(queue.waiters)
        else:
            candidates = queue.newcomers()
        return [waiter for waiter in candidates if waiter.asked and not waiter.future.done()]

    def _set_deadline(self, waiter: Waiter, now: Micros) -> None:
        delay = max(0, waiter.ticket.deadline - now) / SECOND
        waiter.timer = asyncio.get_running_loop().call_later(delay, self._expire, waiter)

    def _expire(self, waiter: Waiter) -> None:
        queue = waiter.queue
        if queue is None or waiter.future.done():
            return
        turn = queue.turns.at(queue.position(waiter))
        left = max(0, (turn if turn is not None else SECOND) - (self._clock() - queue.told))
        self._refuse(waiter, no_word() if self._untold else too_late(left))
        self._freed()
