"""Failed attempts: counted, logged without what was sent, and from where there are many, answered late.

Whoever shows a valid credential is never slowed, wherever it comes from: an attempt has failed before it gets here.
Each network address has a leaky bucket of its own (`aiolimiter`). An attempt that overflows it waits until it fits, at
the longest `PATIENCE`; when too many wait already, it is answered at once and its connection ends. Both are bounded:
the addresses (those not seen for longest are forgotten first) and the attempts that wait.
"""

import asyncio
import logging
from collections import OrderedDict
from contextlib import suppress
from ipaddress import IPv6Address
from typing import Any, Literal, Protocol

from aiolimiter import AsyncLimiter

from keyturn.access.refusals import NotKnown
from keyturn.core.events import AttemptFailed, Observer
from keyturn.core.forwarded import UNIX, parse_address

AT_ONCE = 60
"""Failed attempts from one address that are answered at once, in `WINDOW`; as many more leak in each further one."""
WINDOW = 60.0
"""Seconds."""
PATIENCE = 5.0
"""Seconds that an answer is late at the most: a caller that waits holds a connection, and a drain waits for it."""
WAITING = 32
"""Attempts of one address that may wait."""
WAITING_IN_ALL = 512
ADDRESSES = 10_000
_SUBNET = 64
"""Bits of an IPv6 address that one site has in common: its owner has all addresses below."""

_log = logging.getLogger("keyturn")


class Peer(Protocol):
    """The other side of a connection, as an asyncio transport tells of it."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`peername`, `peercert` and the like."""


class _Address:
    """What is known of one address."""

    __slots__ = ("bucket", "noisy", "waiting")

    def __init__(self) -> None:
        self.bucket = AsyncLimiter(AT_ONCE, WINDOW)
        self.waiting = 0
        self.noisy = False
        """Whether the log tells already that it is slowed."""


class Failures:
    """The failed attempts of all addresses."""

    def __init__(self, observer: Observer | None = None) -> None:
        self._observer = observer
        self._known: OrderedDict[str, _Address] = OrderedDict()
        self._waiting = 0

    async def slow(self, attempt: NotKnown, caller: str) -> bool:
        """Take note of a failed attempt of the caller at an address; returns when it may be answered.

        False: too many wait already, so it is answered at once and its connection is to end.
        """
        name = origin_of(caller)
        address = self._address(name)
        if address.bucket.has_capacity():
            address.noisy = False
            self._tell(name, attempt, "at_once")
            await address.bucket.acquire()
        elif address.waiting < WAITING and self._waiting < WAITING_IN_ALL:
            self._warn(name, address)
            self._tell(name, attempt, "late")
            await self._wait(address)
        else:
            self._tell(name, attempt, "cut")
            return False
        return True

    async def _wait(self, address: _Address) -> None:
        address.waiting += 1
        self._waiting += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await address.bucket.acquire()
        finally:
            address.waiting -= 1
            self._waiting -= 1

    def _address(self, name: str) -> _Address:
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = _Address()
            if len(self._known) > ADDRESSES:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(name)
        return found

    def _warn(self, name: str, address: _Address) -> None:
        if not address.noisy:
            address.noisy = True
            _log.warning("many failed attempts from %s: further ones are answered late", name or "closed connections")

    def _tell(self, name: str, attempt: NotKnown, answered: Literal["at_once", "late", "cut"]) -> None:
        level = logging.INFO if answered == "at_once" else logging.DEBUG
        _log.log(level, "failed attempt from %s: no entry for %s", name or "a closed connection", attempt.detail)
        if self._observer is not None:
            self._observer.observe(AttemptFailed(name, attempt.why, answered))


def address_of(peer: Peer | None) -> str:
    """The address at the other end of a connection; `unix` for a socket, empty when it is not known any more.

    A dual-stack socket shows IPv4 addresses as `::ffff:192.0.2.1`: they are those of IPv4.
    """
    name = peer.get_extra_info("peername") if peer is not None else None
    if isinstance(name, tuple):
        return str(parse_address(str(name[0])))
    return UNIX if isinstance(name, str | bytes) else ""


def origin_of(address: str) -> str:
    """What all callers of one origin have in common: an IPv4 address, an IPv6 network of 64 bits."""
    if ":" not in address:
        return address
    network = int(IPv6Address(address)) >> (128 - _SUBNET) << (128 - _SUBNET)
    return f"{IPv6Address(network)}/{_SUBNET}"
