"""Which server a call goes to: the one server, the master that sentinels name, or the node that holds the key's slot.

A route remembers what it found out for as long as that works; after any failure it forgets it (`forget`), and the next
call finds out again. Another server is tried only while it is certain that none has begun: when no connection came
about. Whoever calls follows a cluster's `MOVED` and `ASK`, which say that too.
"""

import asyncio
from binascii import crc_hqx
from typing import Protocol

from proxy.core.model import SECOND, Micros
from proxy.stores.addresses import Node
from proxy.stores.lines import Lines
from proxy.stores.wire import Refused, Wire

_SLOTS = 16384


class NoMaster(Exception):
    """No sentinel names a master; the message says what they answered."""


class Route(Protocol):
    """The way to the server that has a key."""

    async def find(self, key: str, /) -> tuple[Node, Wire]:
        """A server and a connection to it that nobody else uses.

        Raises:
            OSError, Refused, NoMaster: there is none.
        """

    def follow(self, key: str, refused: Refused, node: Node) -> Node | None:
        """Where a server sends us that did not do its work, if that is what its answer says."""

    def forget(self, key: str, /) -> None:
        """A call failed: what was found out may not hold any more."""


class Direct:
    """One server."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._node = lines.address.nodes[0]

    async def find(self, _key: str) -> tuple[Node, Wire]:
        """See `Route`."""
        return self._node, await self._lines.take(self._node)

    def follow(self, key: str, refused: Refused, node: Node) -> Node | None:
        """See `Route`; a node of a cluster has to be addressed as one."""

    def forget(self, _key: str) -> None:
        """See `Route`: the name may belong to another machine by now."""
        self._lines.drop(self._node)


class Sentinels:
    """The master that the sentinels name, asked one after another until one knows."""

    def __init__(self, lines: Lines, timeout: Micros) -> None:
        self._lines = lines
        self._sentinels = list(lines.address.nodes)
        self._patience = timeout / SECOND / (len(self._sentinels) + 1)
        """Seconds for each of them, so that a silent one leaves time for the others and the master."""
        self._master: Node | None = None

    async def find(self, _key: str) -> tuple[Node, Wire]:
        """See `Route`."""
        if not self._master:
            self._master = await self._ask_all()
        return self._master, await self._lines.take(self._master)

    async def _ask_all(self) -> Node:
        answers = []
        for sentinel in list(self._sentinels):
            try:
                async with asyncio.timeout(self._patience):
                    return await self._ask(sentinel)
            except (OSError, Refused, NoMaster) as problem:
                answers.append(f"{sentinel} {str(problem) or 'does not answer'}")
            self._sentinels.append(self._sentinels.pop(0))  # whoever knew is asked first next time
        raise NoMaster("; ".join(answers))

    async def _ask(self, sentinel: Node) -> Node:
        address = self._lines.address
        wire = await self._lines.dial(sentinel, address.sentinel_login)
        try:
            answer = await wire.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
        finally:
            wire.abort()
        if not answer:
            raise NoMaster(f"knows no master {address.service}")
        return Node(answer[0].decode(), int(answer[1]))

    def follow(self, key: str, refused: Refused, node: Node) -> Node | None:
        """See `Route`."""

    def forget(self, _key: str) -> None:
        """See `Route`."""
        if self._master:
            self._lines.drop(self._master)
        self._master = None


class Cluster:
    """The node that holds a key's slot: learnt by asking any node, which names the right one."""

    def __init__(self, lines: Lines, timeout: Micros) -> None:
        self._lines = lines
        self._known = list(lines.address.nodes)
        self._patience = timeout / SECOND / 2
        self._holders: dict[int, Node] = {}

    async def find(self, key: str) -> tuple[Node, Wire]:
        """See `Route`."""
        if holder := self._holders.get(slot(key)):
            return holder, await self._lines.take(holder)
        problem: OSError = ConnectionError("no node")
        for node in list(self._known):
            try:
                async with asyncio.timeout(self._patience):
                    return node, await self._lines.take(node)
            except OSError as found:
                problem = found
            self._known.append(self._known.pop(0))
        raise problem

    def follow(self, key: str, refused: Refused, node: Node) -> Node | None:
        """See `Route`: `MOVED slot host:port` for good, `ASK slot host:port` this once; no host means the same one."""
        if refused.code not in ("MOVED", "ASK"):
            return None
        host, _, port = str(refused).split()[2].rpartition(":")
        holder = Node(host.strip("[]") if host not in ("", "?") else node.host, int(port))
        if refused.code == "MOVED":
            self._holders[slot(key)] = holder
        if holder not in self._known:
            self._known.append(holder)
        return holder

    def forget(self, key: str) -> None:
        """See `Route`; the next call asks another node first, for this one may be silent."""
        lost = self._holders.pop(slot(key), self._known[0])
        self._lines.drop(lost)
        if self._known[0] == lost:
            self._known.append(self._known.pop(0))


def slot(key: str) -> int:
    """The slot of a key: CRC16 of its `{hash tag}` if there is one that is not empty (cluster spec)."""
    _, brace, rest = key.partition("{")
    tag, closing, _ = rest.partition("}")
    return crc_hqx((tag if brace and closing and tag else key).encode(), 0) % _SLOTS


def route(lines: Lines, timeout: Micros) -> Route:
    """The route that an address asks for."""
    match lines.address.scheme:
        case "redis+sentinel":
            return Sentinels(lines, timeout)
        case "redis+cluster":
            return Cluster(lines, timeout)
        case _:
            return Direct(lines)
