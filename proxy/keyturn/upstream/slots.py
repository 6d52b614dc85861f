"""Connections that may be in use at once: whoever comes when all are has to wait in line for one."""

import asyncio
from collections import deque
from collections.abc import Callable


class Slots:
    """The line for a free connection; `in_use` tells how many are taken."""

    def __init__(self, most: int, in_use: Callable[[], int]) -> None:
        self.most = most
        self._in_use = in_use
        self._line: deque[asyncio.Future[None]] = deque()
        self._promised = 0
        """Freed for somebody who has not taken it yet."""

    @property
    def full(self) -> bool:
        """Whether nobody may take one who has not waited for it."""
        return bool(self._line) or self._none_left

    @property
    def _none_left(self) -> bool:
        return self._in_use() + self._promised >= self.most

    async def wait(self) -> None:
        """Wait until one is free, in the order of arrival. It has to be taken before anything else is awaited."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(place)
        try:
            self.freed()
            await place
        except BaseException:
            if place.done() and not place.cancelled():  # told in the tick in which it left
                self._promised -= 1
                self.freed()
            elif place in self._line:
                self._line.remove(place)
            raise
        self._promised -= 1

    def freed(self) -> None:
        """Tell those who are first that there is one for each."""
        while self._line and not self._none_left:
            place = self._line.popleft()
            if not place.done():
                self._promised += 1
                place.set_result(None)
