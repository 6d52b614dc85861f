"""The leases of one waiting room that are out, and how those ended of which the store does not know yet."""

from collections.abc import Iterable

from proxy.core.model import Micros
from proxy.core.recent import Recent
from proxy.dispatch.lease import Ending, Lease


class Holdings:
    """What a room has handed out."""

    def __init__(self) -> None:
        self.out: set[Lease] = set()
        """In somebody's hands."""
        self.unsettled: set[Lease] = set()
        """Of which is not known how they end."""
        self.granted = Recent()
        """Leases by client."""
        self._untold: list[Ending] = []

    def handed(self, lease: Lease, client: str, now: Micros) -> None:
        """Somebody has got a lease."""
        self.out.add(lease)
        self.unsettled.add(lease)
        self.granted.add(client, now)

    def settled(self, ending: Ending) -> None:
        """It is known how a lease ended."""
        self.unsettled.discard(ending.lease)
        self._untold.append(ending)

    def give_up(self, now: Micros) -> None:
        """Settle as lost what was written so long ago that it is counted, answer or not."""
        for lease in [lease for lease in self.unsettled if lease.overdue(now)]:
            lease.lost()

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
