"""When a limit is believed to be lower than it is configured (law 9: only downwards).

An answer that names a smaller limit may speak of a narrower one, on its own endpoints only, and headers may be wrong.
So it is believed when `CONFIRMATIONS` more answers on that quota say the same, from another route too, and none in
between named the limit as it is configured or a larger one. Endpoints that are known to have a narrower limit of their
own are no witnesses.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from proxy.core.signals import Route

CONFIRMATIONS = 2

NARROWER = frozenset(
    Route(method, first, segments)
    for method, first, segments in (
        ("GET", "collections", 1),
        ("GET", "workspaces", 1),
        ("GET", "workspaces", 2),
        ("PUT", "workspaces", 2),
        ("GET", "monitors", 1),
        ("POST", "monitors", 3),
        ("POST", "service-account-tokens", 1),
        ("POST", "import", 2),
    )
)
"""What the Postman API documents to be limited more tightly."""


@dataclass(slots=True)
class _Rumour:
    size: int
    answers: int = 0
    routes: set[Route] = field(default_factory=set)


class Lessons:
    """What answers have told of the limits of one pool, by quota and limit."""

    def __init__(self) -> None:
        self._rumours: dict[tuple[str, int], _Rumour] = {}

    def agreed(self, quota: str, limits: Iterable[int]) -> None:
        """An answer named limits as they are configured: what was told otherwise was a narrower one."""
        if self._rumours:
            for limit in limits:
                self._rumours.pop((quota, limit), None)

    def told(self, quota: str, limit: int, size: int, route: Route) -> bool:
        """An answer named a limit smaller than it is configured; whether that is to be believed now."""
        if route in NARROWER:
            return False
        rumour = self._rumours.get((quota, limit))
        if rumour is None or size > rumour.size:
            rumour = self._rumours[quota, limit] = _Rumour(size)
        elif size < rumour.size:
            return False
        rumour.answers += 1
        rumour.routes.add(route)
        if rumour.answers <= CONFIRMATIONS or len(rumour.routes) == 1:
            return False
        del self._rumours[quota, limit]
        return True
