"""Turns: what many connections may do in one turn of the event loop, so that a crowd does not hold up everybody else.

A turn serves whatever is ready, and lasts as long as all of that takes: with a hundred large answers, or a thousand
connections of strangers, a small request would wait for all of them at each of its steps.
"""

import asyncio
from collections import deque

Waiting = deque[tuple[asyncio.Future[None], int]]


class Turns:
    """Up to `most` in each turn; one that asks for more than that has a turn of its own.

    Those that wait are served one of each party after another, and each party in the order of asking: a crowd of one
    party holds up itself.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._loop = loop
        self._most = most
        self._left = most
        self._waiting: dict[str, Waiting] = {}
        """By party; the first of the first party is next."""
        self._begins: asyncio.Handle | None = None

    async def take(self, number: int, party: str = "") -> None:
        """Go on at once if this turn has room for so much, else in a later one."""
        if self._begins is None:
            self._begins = self._loop.call_soon(self._begin)
        if not self._waiting and self._fits(number):
            return
        future = self._loop.create_future()
        self._waiting.setdefault(party, deque()).append((future, number))
        await future

    def _fits(self, number: int) -> bool:
        fits = number <= self._left or self._left == self._most
        if fits:
            self._left -= number
        return fits

    def _begin(self) -> None:
        """Begin another turn."""
        self._begins, self._left = None, self._most
        while self._waiting:
            party, waiting = next(iter(self._waiting.items()))
            future, number = waiting[0]
            if not future.done() and not self._fits(number):
                break
            waiting.popleft()
            del self._waiting[party]
            if waiting:
                self._waiting[party] = waiting
            if not future.done():
                future.set_result(None)
        if self._waiting:
            self._begins = self._loop.call_soon(self._begin)
