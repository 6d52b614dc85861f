"""The body budget: how many bytes of request bodies may be kept at once, by all clients and by one."""

import asyncio
from collections import OrderedDict

CLIENT_SHARE = 4
"""A client may take one part in so many of what the others leave, so that some is always left for one more client."""


class BodyBudget:
    """Bytes of one kind, memory or files; a body that does not fit may wait, first come first served.

    A client takes at most `1 / CLIENT_SHARE` of the bytes that no other client has. `size` may change at any time.
    """

    __slots__ = ("_of", "_size", "_waiting", "used")

    def __init__(self, size: int) -> None:
        self._size = size
        self.used = 0
        """Bytes taken."""
        self._of: dict[str, int] = {}
        self._waiting: dict[str, OrderedDict[asyncio.Future[None], int]] = {}

    @property
    def size(self) -> int:
        """Bytes in total."""
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = size
        self._wake()

    def take(self, client: str, number: int) -> bool:
        """Take bytes; false when they do not fit, or other bodies of the client wait."""
        if client in self._waiting or not self._fits(client, number):
            return False
        self.change(client, number)
        return True

    async def wait(self, client: str, number: int) -> None:
        """Wait until bytes fit, and take them; when cancelled, nothing is taken."""
        room = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, OrderedDict())[room] = number
        self._wake()
        try:
            await room
        except asyncio.CancelledError:
            if room.cancelled():
                del self._waiting[client][room]
                self._wake()
            else:  # it was granted in the same tick
                self.change(client, -number)
            raise

    def change(self, client: str, by: int) -> None:
        """Return bytes (`by` is negative), or take them whether they fit or not, for data that is there already."""
        if not by:
            return
        own = self._of.pop(client, 0) + by
        if own:
            self._of[client] = own
        self.used += by
        if by < 0 and self._waiting:
            self._wake()

    def _fits(self, client: str, number: int) -> bool:
        own = self._of.get(client, 0)
        return CLIENT_SHARE * (own + number) <= self._size - self.used + own

    def _wake(self) -> None:
        for client, rooms in list(self._waiting.items()):
            while rooms:
                room, number = next(iter(rooms.items()))
                if room.done() or not self._fits(client, number):
                    break  # one that was cancelled in this tick leaves by itself, and wakes the next
                del rooms[room]
                self.change(client, number)
                room.set_result(None)
            if not rooms:
                del self._waiting[client]
