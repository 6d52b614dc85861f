"""Failed attempts and accepted requests of each caller, counted against a rate."""

import asyncio
import logging
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from ipaddress import IPv6Address
from math import ceil
from typing import Any, Literal, Protocol

from aiolimiter import AsyncLimiter

from keyturn.core.errors import TooMany
from keyturn.core.events import CallerRejected, Observer
from keyturn.core.forwarded import UNIX, parse_address
from keyturn.core.model import SECOND, Client, Limit, Micros

Why = Literal["missing", "token", "jwt", "certificate"]

_DETAILS: dict[Why, str] = {
    "missing": "a request without a credential",
    "token": "a token that is not known",
    "jwt": "a JSON Web Token that is not accepted",
    "certificate": "a certificate in which no name is known",
}


class AuthenticationFailed(Exception):
    """No credential, or an unknown one; shows no value.

    `detail` is for the log, and goes on from "no entry for".
    """

    def __init__(self, why: Why, detail: str = "") -> None:
        self.why = why
        self.detail = detail or _DETAILS[why]
        super().__init__(self.detail)


class SigningKeyUnknown(AuthenticationFailed):
    """A token is signed with a key that its issuer may have begun to use since it was asked last."""

    def __init__(self, refresh: Callable[[], Awaitable[None]]) -> None:
        super().__init__("jwt", "a JSON Web Token that is signed with a key that its issuer does not publish")
        self.refresh = refresh
        """Read the issuer's keys once more; returns when there is an answer, or none will come."""


ATTEMPTS_AT_ONCE = 60
"""Failed attempts from one address that are answered at once, in `WINDOW`; as many more leak in each further one."""
ATTEMPTS_WINDOW = 60.0
"""Seconds."""
MAX_DELAY = 5.0
"""Seconds that an answer is late at the most: a caller that waits holds a connection, and a drain waits for it."""
MAX_WAITING = 32
"""Attempts of one address that may wait."""
MAX_WAITING_IN_TOTAL = 512
MAX_ADDRESSES = 10_000
_SUBNET = 64
"""Bits of an IPv6 address that one site has in common: its owner has all addresses below."""

_log = logging.getLogger("keyturn")


class Peer(Protocol):
    """The other side of a connection, as an asyncio transport describes it."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`peername`, `peercert` and the like."""


class _Address:
    """The failed attempts of one address."""

    __slots__ = ("bucket", "noisy", "waiting")

    def __init__(self) -> None:
        self.bucket = AsyncLimiter(ATTEMPTS_AT_ONCE, ATTEMPTS_WINDOW)
        self.waiting = 0
        self.noisy = False
        """Whether the log tells already that it is slowed."""


class FailedAttempts:
    """The failed attempts of all addresses."""

    def __init__(self, observer: Observer | None = None) -> None:
        self._observer = observer
        self._known: OrderedDict[str, _Address] = OrderedDict()
        self._waiting = 0

    async def slow(self, attempt: AuthenticationFailed, caller: str) -> bool:
        """Take note of a failed attempt of the caller at an address; returns when it may be answered.

        False: too many wait already, so it is answered at once and its connection is to end.
        """
        name = network_of(caller)
        address = self._address(name)
        if address.bucket.has_capacity():
            address.noisy = False
            self._tell(name, attempt, "at_once")
            await address.bucket.acquire()
        elif address.waiting < MAX_WAITING and self._waiting < MAX_WAITING_IN_TOTAL:
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
                async with asyncio.timeout(MAX_DELAY):
                    await address.bucket.acquire()
        finally:
            address.waiting -= 1
            self._waiting -= 1

    def _address(self, name: str) -> _Address:
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = _Address()
            if len(self._known) > MAX_ADDRESSES:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(name)
        return found

    def _warn(self, name: str, address: _Address) -> None:
        if not address.noisy:
            address.noisy = True
            _log.warning("many failed attempts from %s: further ones are answered late", name or "closed connections")

    def _tell(self, name: str, attempt: AuthenticationFailed, answered: Literal["at_once", "late", "cut"]) -> None:
        level = logging.INFO if answered == "at_once" else logging.DEBUG
        _log.log(level, "failed attempt from %s: no entry for %s", name or "a closed connection", attempt.detail)
        if self._observer is not None:
            self._observer.observe(CallerRejected(name, attempt.why, answered))


def address_of(peer: Peer | None) -> str:
    """The address at the other end of a connection; `unix` for a socket, empty when it is not known any more.

    A dual-stack socket shows IPv4 addresses as `::ffff:192.0.2.1`: they are those of IPv4.
    """
    name = peer.get_extra_info("peername") if peer is not None else None
    if isinstance(name, tuple):
        return str(parse_address(str(name[0])))
    return UNIX if isinstance(name, str | bytes) else ""


def network_of(address: str) -> str:
    """The network that an address is counted under: an IPv4 address, an IPv6 network of 64 bits."""
    if ":" not in address:
        return address
    network = int(IPv6Address(address)) >> (128 - _SUBNET) << (128 - _SUBNET)
    return f"{IPv6Address(network)}/{_SUBNET}"


_ONE_REQUEST = 1 - 1e-6
"""Taken of the bucket by a request: a millionth less than one, so that a caller that comes back after exactly
`Retry-After` is not refused for a rounding error of the clock. It adds a tenth of a request to the largest rate."""


class ClientRates:
    """A leaky bucket for each client with a rate: `requests` at once, and as they leak, as many in each `window`."""

    def __init__(self) -> None:
        self._limiters: dict[tuple[str, int, Micros], AsyncLimiter] = {}

    def keep(self, clients: Iterable[Client]) -> None:
        """Forget all others; what a client has used of a rate that stays the same stays used."""
        kept = {(client.name, *client.rate) for client in clients if client.rate}
        self._limiters = {key: limiter for key, limiter in self._limiters.items() if key in kept}

    async def accept(self, client: Client) -> None:
        """Count a request against its client's rate; it never waits.

        Raises:
            TooMany: the client is over its rate; `retry_after` is when a try would succeed.
        """
        if client.rate is None:
            return
        requests, window = client.rate
        limiter = self._limiter(client.name, requests, window)
        if not limiter.has_capacity(_ONE_REQUEST):
            raise _over_rate(client, limiter, requests, window)
        await limiter.acquire(_ONE_REQUEST)  # goes through without a stop: there is capacity, and no await in between

    def _limiter(self, name: str, requests: int, window: Micros) -> AsyncLimiter:
        key = (name, requests, window)
        limiter = self._limiters.get(key)
        if limiter is None:
            limiter = self._limiters[key] = AsyncLimiter(requests, window / SECOND)
        return limiter


def _over_rate(client: Client, limiter: AsyncLimiter, requests: int, window: Micros) -> TooMany:
    seconds = _wait(limiter, requests, window)
    rate = Limit(requests, window).name
    message = f"Client `{client.name}` is over its rate of {rate}. Try again in {seconds} s."
    return TooMany(message, reason="client_rate", retry_after=seconds)


def _wait(limiter: AsyncLimiter, requests: int, window: Micros) -> int:
    """Whole seconds until the bucket has leaked enough for one request.

    A request fits after `s` seconds when one that is smaller by what leaks in that time fits now.
    """
    leak = requests * SECOND / window
    longest = ceil(window / (requests * SECOND))
    return 1 + bisect_left(range(1, longest), True, key=lambda seconds: limiter.has_capacity(1 - seconds * leak))
