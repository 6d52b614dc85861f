"""Callers that leave while their connection is not being read.

A request whose body waits for its turn is not read beyond a buffer, so that bodies do not pile up here; but a transport
that is paused does not see its peer go either, and the request would keep its place in the queue (law 6). Linux tells
of a closed peer apart from what there is to read (EPOLLRDHUP, epoll_ctl(2)); elsewhere such a caller is missed until
its deadline.
"""

import asyncio
import select
from collections.abc import Callable
from contextlib import suppress


class Departures:
    """Watches sockets for the end of their peer only. Costs one file descriptor, from the first socket watched on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._poll: select.epoll | None = None
        self._gone: dict[int, Callable[[], None]] = {}

    def watch(self, number: int, gone: Callable[[], None]) -> None:
        """Call `gone` once when the peer of the socket with that file descriptor has left."""
        if not hasattr(select, "epoll") or number < 0 or number in self._gone:
            return
        if self._poll is None:
            self._poll = select.epoll()
            self._loop.add_reader(self._poll.fileno(), self._look)
        self._gone[number] = gone
        self._poll.register(number, select.EPOLLRDHUP)

    def forget(self, number: int) -> None:
        """Watch a socket no longer."""
        if self._gone.pop(number, None) is not None and self._poll is not None:
            with suppress(OSError):  # closed meanwhile: it is not watched any more either
                self._poll.unregister(number)

    def close(self) -> None:
        """Watch nothing any more."""
        self._gone.clear()
        if self._poll is not None:
            self._loop.remove_reader(self._poll.fileno())
            self._poll.close()
            self._poll = None

    def _look(self) -> None:
        assert self._poll is not None
        for number, _ in self._poll.poll(0):
            gone = self._gone.get(number)
            self.forget(number)
            if gone is not None:
                gone()
