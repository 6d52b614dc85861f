"""Who is the caller, and does its own rate let it in: tokens known by their SHA-256, rates kept by `aiolimiter`.

Law 11: a token is never kept, shown or compared as such; a request leaves here without any credential of its caller.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import field
from hashlib import sha256
from hmac import compare_digest
from math import ceil

from aiolimiter import AsyncLimiter

from proxy.core.credentials import Found, Places, take_off
from proxy.core.errors import TooMany, Unauthenticated
from proxy.core.http import Fields
from proxy.core.model import SECOND, Client, Limit, Micros
from proxy.core.values import value_object

_ONE_REQUEST = 1 - 1e-6
"""What a request takes of the bucket: a millionth less than one, so that a caller that comes back after exactly
`Retry-After` is not refused for a rounding error of the clock. It adds a tenth of a request to the largest rate."""


@value_object
class Admission:
    """A request whose caller is known, without the caller's credential."""

    client: Client
    fields: Fields = field(repr=False)
    target: bytes = field(repr=False)


class Access:
    """The clients that are known.

    Args:
        clients: each with the digests of its tokens.
        anonymous: who callers without a token are; `None` when a token is required.
        key_header: the upstream's key header, in which callers may send their token, as in `X-Api-Key`.
        key_query: the query parameter in which they may send it.
    """

    def __init__(self, clients: Iterable[Client], *, anonymous: Client | None, key_header: str, key_query: str) -> None:
        self._limiters: dict[tuple[str, int, Micros], AsyncLimiter] = {}
        self.replace(clients, anonymous=anonymous, key_header=key_header, key_query=key_query)

    def replace(self, clients: Iterable[Client], *, anonymous: Client | None, key_header: str, key_query: str) -> None:
        """Take other clients from now on; what a client has used of a rate that stays the same stays used."""
        known = tuple(clients)
        self._by_digest = {digest: (digest, client) for client in known for digest in client.digests}
        self._anonymous = anonymous
        self._places = Places.named(key_header, key_query)
        self._ways = f"`Authorization: Bearer <token>`, `{key_header}: <token>` or `?{key_query}=<token>`"
        kept = {_rate_key(client) for client in (*known, *filter(None, [anonymous]))}
        self._limiters = {key: limiter for key, limiter in self._limiters.items() if key in kept}

    def admit(self, fields: Fields, target: bytes) -> Admission:
        """Say whose a request is, and take the caller's credential off it.

        A bearer token that is known decides; else the key header, when it is there; else the query. An `Authorization`
        that is nobody's token belongs to the upstream and passes.

        Raises:
            Unauthenticated: no credential, or an unknown one, and one is required.
        """
        found = take_off(fields, target, self._places, self._owner)
        client = found.bearer or self._owner(found.header or found.query) or self._anonymous
        if client is None:
            raise Unauthenticated(self._refusal(found))
        return Admission(client, found.fields, found.target)

    async def accept(self, client: Client) -> None:
        """Count a request against its client's rate; it never waits.

        A leaky bucket: `requests` at once, and as they leak, `requests` more in each `window`.

        Raises:
            TooMany: the client is over its rate; `retry_after` is when a try would succeed.
        """
        if client.rate is None:
            return
        requests, window = client.rate
        limiter = self._limiter(client, requests, window)
        if not limiter.has_capacity(_ONE_REQUEST):
            raise _over_rate(client, limiter, requests, window)
        await limiter.acquire(_ONE_REQUEST)  # goes through without a stop: there is capacity, and no await in between

    def _owner(self, token: bytes | None) -> Client | None:
        if not token:
            return None
        digest = sha256(token).hexdigest()
        known = self._by_digest.get(digest)
        return known[1] if known and compare_digest(known[0], digest) else None

    def _refusal(self, found: Found[Client]) -> str:
        if found.header or found.query:
            place = "key header" if found.header else "query"
            return f"The token in the {place} is not known to this proxy. Send a valid one as {self._ways}."
        return f"This proxy needs a token. Send it as {self._ways}."

    def _limiter(self, client: Client, requests: int, window: Micros) -> AsyncLimiter:
        key = (client.name, requests, window)
        limiter = self._limiters.get(key)
        if limiter is None:
            limiter = self._limiters[key] = AsyncLimiter(requests, window / SECOND)
        return limiter


def _rate_key(client: Client) -> tuple[str, int, Micros]:
    requests, window = client.rate or (0, 0)
    return client.name, requests, window


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
