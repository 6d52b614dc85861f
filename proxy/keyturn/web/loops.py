"""Requests that come back to the process that sent them: `upstream.url` leads here (RFC 9110, section 7.6.3).

`Via: 1.1 keyturn` alone is no sign of a loop: a sidecar in front of a gateway shows it as well. A request is back when
it names a Keyturn in its `Via`, and one with the same id, method and target is under way here that went out with no
more of these names than it came in with. The same request of somebody who reuses ids does not look like that: it has
come the same way as the first, so it has one name less than the first went out with.
"""

from keyturn.core.errors import LoopDetected
from keyturn.core.http import Request

MAX_PASSES = 4
"""How often a request may pass a Keyturn at all, should its id be changed on the way round."""

Mark = tuple[str, str, bytes, int]
"""Id, method, target, and how many Keyturns it names as it goes out."""


class LoopDetector:
    """The requests that are under way."""

    def __init__(self) -> None:
        self._under_way: dict[Mark, int] = {}

    def check(self, request_id: str, method: str, target: bytes, passed: int) -> None:
        """Look at a request that has come through `passed` Keyturns.

        Raises:
            LoopDetected: it has been here before.
        """
        times = range(1, passed + 1)
        if passed >= MAX_PASSES or any((request_id, method, target, time) in self._under_way for time in times):
            raise LoopDetected("This request has come back to this proxy: `upstream.url` leads here.")

    def enter(self, request: Request, passed: int) -> Mark:
        """Remember a request that goes on; `leave` forgets it."""
        mark = (request.id, request.method, request.target, passed + 1)
        self._under_way[mark] = self._under_way.get(mark, 0) + 1
        return mark

    def leave(self, mark: Mark) -> None:
        """A request has come to its end."""
        left = self._under_way[mark] - 1
        if left:
            self._under_way[mark] = left
        else:
            del self._under_way[mark]
