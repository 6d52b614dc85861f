"""For when those who are refused in one room are told to come back; see `core.promises`."""

from proxy.core.exchange import Store
from proxy.core.model import Micros
from proxy.core.promises import pace
from proxy.dispatch.keys import Keys
from proxy.dispatch.lanes import Lanes, Queue, Waiter


class Returns:
    """Tells them, by what the keys in service and the other replicas leave to a lane."""

    def __init__(self, lanes: Lanes, keys: Keys, store: Store) -> None:
        self._lanes = lanes
        self._keys = keys
        self._store = store

    def tell(self, waiter: Waiter, queue: Queue, now: Micros, turn: Micros, *, together: bool = False) -> Micros:
        """After how long somebody is to come back that is refused now.

        Args:
            waiter: who it is.
            queue: its lane.
            now: the instant.
            turn: the delay until its own turn.
            together: whether all that are to come back were refused at this instant, with turns before its own.
        """
        lane, crowd, pool = queue.lane, queue.crowd, self._keys.serving
        if waiter.returned:
            crowd.again()
        part = self._lanes.contended(lane.client, now)
        of_lane = pace(pool, lane.kind, len(pool.quotas), part, self._store.replicas)
        told = crowd.tell(waiter.ticket.caller, waiter.arrived, now, turn, of_lane, together=together)
        self._lanes.expect(waiter.ticket, now + told)
        return told
