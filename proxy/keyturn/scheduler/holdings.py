"""The leases of one waiting room that are out, and how those ended of which the store does not know yet."""

from collections.abc import Iterable

from keyturn.core.model import Micros
from keyturn.core.recent import RecentCounts
from keyturn.scheduler.capacity import Portions
from keyturn.scheduler.lease import Ending, Lease


class Holdings:
    """What a room has handed out; each lease takes a place in flight."""

    def __init__(self, places: Portions) -> None:
        self.out: dict[Lease, tuple[str, Micros]] = {}
        """In somebody's hands: the client, and when it got it."""
        self._places = places
        self.unsettled: set[Lease] = set()
        """Of which is not known how they end."""
        self.granted = RecentCounts()
        """Leases by client."""
        self._untold: list[Ending] = []

    def handed(self, lease: Lease, client: str, now: Micros) -> None:
        """Somebody has got a lease."""
        self.out[lease] = client, now
        self._places.handed(client, now)
        self.unsettled.add(lease)
        self.granted.add(client, now)

    def ended(self, lease: Lease, now: Micros) -> None:
        """The exchange that a lease was for is over."""
        if (handed := self.out.pop(lease, None)) is not None:
            self._places.ended(*handed, now)

    def settled(self, ending: Ending) -> None:
        """It is known how a lease ended."""
        self.unsettled.discard(ending.lease)
        self._untold.append(ending)

    def to_tell(self) -> list[Ending]:
        """What the store is to be told, in order; it is told with this."""
        told, self._untold = self._untold, []
        return told

    def not_told(self, endings: Iterable[Ending]) -> None:
        """The store did not hear of these: they are to be told again, before what came since."""
        self._untold[:0] = endings

    @property
    def untold(self) -> bool:
        """Whether the store is to be told anything."""
        return bool(self._untold)
