"""When a limit is believed to be another than it is configured: a lower one is obeyed, a higher one only told (law 9).

An answer that names a smaller limit may speak of a narrower one, on its own endpoints only, and headers may be wrong.
So it is believed when `CONFIRMATIONS` more answers on that quota say the same, from another route too, and none in
between named the limit as it is configured or a larger one. Endpoints that are known to have a narrower limit of their
own are no witnesses.

A larger limit is told to whoever runs the proxy once as many answers in a row, of whichever quota, name none that is as
small as it is configured; of different sizes the smallest counts. A size that was ever named for a longer window is not
this limit's: near the end of that window its reset looks like one of a short window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from keyturn.core.model import Limit
from keyturn.core.signals import Route

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


class Higher(NamedTuple):
    """A limit that the upstream tells to be higher than it is configured."""

    place: int
    """Its index among the pool's limits."""
    limit: str
    configured: int
    told: int

    def setting(self, pool: str) -> str:
        """The setting that would make it so."""
        return f"pools.{pool}.limits[{self.place}].requests: {self.told}"


MAX_LONGER = 16
"""Sizes of longer windows that are remembered."""


class Lessons:
    """What answers have told of the limits of one pool, by quota and limit."""

    def __init__(self) -> None:
        self._rumours: dict[tuple[str, int], _Rumour] = {}
        self._lowered: set[int] = set()
        self._above: dict[int, _Rumour] = {}
        """By limit: the smallest size above the configured one, of the answers since one named a smaller size."""
        self._longer: set[int] = set()
        self._known: set[int] = set()
        """Limits of which it has been said that they are higher."""

    def agreed(self, quota: str, limits: Sequence[int]) -> None:
        """An answer named limits as they are configured: what was told otherwise was a narrower one."""
        if self._rumours:
            for limit in limits:
                self._rumours.pop((quota, limit), None)
        if self._above:
            for limit in limits:
                self._above.pop(limit, None)

    def told(self, quota: str, limit: int, size: int, route: Route) -> bool:
        """An answer named a limit smaller than it is configured; whether that is to be believed now."""
        self._above.pop(limit, None)
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
        self._lowered.add(limit)
        return True

    def above(self, limit: int | None, size: int) -> bool:
        """An answer named a larger size for a limit, `None` for another window; whether that is believed and news."""
        if limit is None:
            if len(self._longer) < MAX_LONGER:
                self._longer.add(size)
            for other in [one for one, rumour in self._above.items() if rumour.size == size]:
                del self._above[other]
            return False
        if size in self._longer or limit in self._lowered:
            return False
        rumour = self._above.setdefault(limit, _Rumour(size))
        rumour.size = min(rumour.size, size)
        rumour.answers += 1
        if rumour.answers <= CONFIRMATIONS or limit in self._known:
            return False
        self._known.add(limit)
        return True

    def higher(self, limits: Sequence[Limit]) -> Iterator[Higher]:
        """The limits of the pool that are higher than they are configured, as far as is known."""
        for index, rumour in sorted(self._above.items()):
            if rumour.answers > CONFIRMATIONS and index < len(limits) and rumour.size > limits[index].requests:
                yield Higher(index, limits[index].name, limits[index].requests, rumour.size)
