"""All connections of a process to the store: those at rest are kept for the next call, all end together."""

import asyncio
from collections.abc import Callable

from proxy.stores.addresses import Address, Login, Node
from proxy.stores.wire import Wire, dial

_CLOSING = 1.0
"""Seconds that ended connections have to go away."""


class Lines:
    """The owner of connections; a call takes one and keeps it again when its answer has come."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._resting: dict[Node, list[Wire]] = {}
        self._wires: set[Wire] = set()

    async def dial(self, node: Node, login: Login, heard: Callable[[], None] | None = None) -> Wire:
        """Make a new connection, which its user has to end or to keep.

        Raises:
            Refused, OSError: see `wire.dial`.
        """
        wire = await dial(node, login, self.address.tls, heard)
        self._wires.add(wire)
        wire.ended.add_done_callback(lambda _: self._wires.discard(wire))
        return wire

    async def take(self, node: Node) -> Wire:
        """A connection that nobody else uses: one at rest that still lives, else a new one."""
        resting = self._resting.get(node, [])
        while resting:
            if (wire := resting.pop()).alive:
                return wire
        return await self.dial(node, self.address.login)

    def keep(self, node: Node, wire: Wire) -> None:
        """Let a connection rest until the next call, if it still lives."""
        if wire.alive:
            self._resting.setdefault(node, []).append(wire)

    def drop(self, node: Node) -> None:
        """End the connections to a server that are at rest."""
        for wire in self._resting.pop(node, []):
            wire.abort()

    async def close(self) -> None:
        """End all connections."""
        self._resting.clear()
        ended = [wire.ended for wire in self._wires]
        for wire in list(self._wires):
            wire.abort()
        if ended:
            await asyncio.wait(ended, timeout=_CLOSING)
