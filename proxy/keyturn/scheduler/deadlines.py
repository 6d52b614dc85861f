"""Nobody waits in vain: whose turn cannot come in time is refused at once, and none waits past its deadline (law 6)."""

import asyncio
from collections.abc import Callable, Iterable

from keyturn.core.errors import TooMany
from keyturn.core.model import SECOND, Micros
from keyturn.scheduler.keys import Keys
from keyturn.scheduler.lanes import Lanes, Queue, Waiter
from keyturn.scheduler.refusals import no_word, too_late

REVIEW: Micros = SECOND // 4
"""How often those who wait are measured against the newest turns."""

FIRST_WORD: Micros = SECOND // 2
"""Whoever has less time than this waits so long to be told a turn at all: to be served at once it has to ask."""


class Deadlines:
    """The deadlines of those who wait in one room.

    `refuse` takes somebody out of its flow and tells it why; `freed` is called behind that. `for_a_place` says why
    somebody has waited for a place in flight, if it has, and not for a token.
    """

    def __init__(
        self,
        clock: Callable[[], Micros],
        keys: Keys,
        lanes: Lanes,
        refuse: Callable[[Waiter, TooMany], None],
        freed: Callable[[], None],
        for_a_place: Callable[[Waiter], TooMany | None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._keys = keys
        self._lanes = lanes
        self._refuse = refuse
        self._freed = freed
        self._for_a_place = for_a_place
        self._untold = False
        """Whether the store is lost."""
        self._heard: Micros = 0
        """When it answered last."""

    def watch(self, waiter: Waiter) -> None:
        """Have somebody who has come refused when its time is over, whether the store answers or not."""
        self._set_timer(waiter, max(waiter.ticket.deadline - waiter.arrived, FIRST_WORD))

    def judge(self, queue: Queue, now: Micros) -> None:
        """Refuse at once whose turn cannot come in time (law 6).

        Positions among those that stay decide; what a refused request is told counts the places kept, too.
        """
        refused = False
        for waiter in self._to_judge(queue, now):
            position = queue.position(waiter)
            turn = queue.estimate(position, now)
            told_now = turn == 0 and position < queue.asked
            if not told_now:  # else it was to be served: there were more than are dealt at a time
                queue.fresh.pop(waiter, None)
            if turn is not None and now + turn > waiter.ticket.deadline and position < queue.asked:
                self._refuse(waiter, self._too_late(queue, position, now))
                refused = True
            else:
                self._hold(waiter, now)
        if refused:
            self._freed()

    def pass_over(self, queues: Iterable[Queue], now: Micros) -> None:
        """Nothing was asked for in these: who waits there waits for a place, until its deadline."""
        for queue in queues:
            for waiter in [one for one in queue.fresh if one.asked and not one.future.done()]:
                del queue.fresh[waiter]
                self._hold(waiter, now)

    def heard(self, now: Micros) -> None:
        """The store has answered."""
        self._untold, self._heard = False, now

    def bear(self, queues: Iterable[Queue]) -> None:
        """The store is lost: whoever waits in these goes on waiting for it, but not past its deadline."""
        self._untold = True
        now = self._clock()
        for queue in queues:
            for waiter in queue.fresh:
                self._hold(waiter, now)

    def _to_judge(self, queue: Queue, now: Micros) -> list[Waiter]:
        """Newcomers that the store knows of; every so often all, for turns get later when others come first."""
        if now - queue.reviewed >= REVIEW:
            queue.reviewed = now
            candidates = list(queue.waiters)
        else:
            candidates = queue.newcomers()
        return [waiter for waiter in candidates if waiter.asked and not waiter.future.done()]

    def _hold(self, waiter: Waiter, now: Micros) -> None:
        """Nothing more is to be heard at once: its deadline holds, however little time it has."""
        if waiter.ticket.deadline < waiter.arrived + FIRST_WORD:
            self._set_timer(waiter, max(0, waiter.ticket.deadline - now))

    def _set_timer(self, waiter: Waiter, delay: Micros) -> None:
        if waiter.timer:
            waiter.timer.cancel()
        waiter.timer = asyncio.get_running_loop().call_later(delay / SECOND, self._expire, waiter)

    def _expire(self, waiter: Waiter) -> None:
        queue = waiter.queue
        if queue is None or waiter.future.done():
            return
        silent = self._untold or self._heard < waiter.arrived
        refusal = self._for_a_place(waiter) or (no_word() if silent else None)
        self._refuse(waiter, refusal or self._too_late(queue, queue.position(waiter), self._clock()))
        self._freed()

    def _too_late(self, queue: Queue, position: int, now: Micros) -> TooMany:
        return too_late(self._lanes.back_off(queue, position, now, self._keys.paces(queue.flow.demand_class)))
