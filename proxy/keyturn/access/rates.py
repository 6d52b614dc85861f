"""How often a client may come: its accepted rate, kept by `aiolimiter`."""

from bisect import bisect_left
from collections.abc import Iterable
from math import ceil

from aiolimiter import AsyncLimiter

from keyturn.core.errors import TooMany
from keyturn.core.model import SECOND, Client, Limit, Micros

_ONE_REQUEST = 1 - 1e-6
"""What a request takes of the bucket: a millionth less than one, so that a caller that comes back after exactly
`Retry-After` is not refused for a rounding error of the clock. It adds a tenth of a request to the largest rate."""


class Rates:
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
