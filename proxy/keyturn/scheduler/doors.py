"""How many may wait: for a client, and in all.

A request that a token is at hand for does not wait, however many come at once: whoever comes into a flow where nobody
waits gets one exchange with the store, and only what is left over of the newcomers then is measured against the bounds.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from keyturn.core.errors import TooMany
from keyturn.core.exchange import Flow
from keyturn.core.model import Micros
from keyturn.scheduler.keys import Keys
from keyturn.scheduler.lanes import Lanes, Queue, Waiter
from keyturn.scheduler.refusals import queue_full
from keyturn.scheduler.tickets import Ticket

NEWCOMERS = 1000
"""Requests beyond the bounds that may stand in one flow until it is known whether they have to wait."""


def check(lanes: Lanes, ticket: Ticket, now: Micros, most: int, keys: Keys) -> None:
    """See that one more request may come; `most` may wait in all. Nothing is noted of one that may.

    Raises:
        TooMany: others wait before it, and no more may.
    """
    queue = lanes.queue(Flow(ticket.client.name, ticket.demand_class))
    newcomers = len(queue.fresh)
    others_wait = len(queue.waiters) > newcomers or newcomers >= NEWCOMERS
    if others_wait and _over(lanes, ticket, most, 1, 1):
        raise _full(lanes, queue, len(queue.waiters), now, keys)


def surplus(
    lanes: Lanes, newcomers: Iterable[Waiter], most: int, keys: Keys, now: Micros
) -> Iterator[tuple[Waiter, TooMany]]:
    """Find the newcomers that may not stay, which are the latest, and why; requests put back at the head stay.

    Each has to be taken out before the next one is asked for.
    """
    leave: list[tuple[Waiter, Queue]] = []
    of_client: Counter[str] = Counter()
    for waiter in sorted(newcomers, key=lambda waiter: waiter.order, reverse=True):
        ticket, queue, first_time = waiter.ticket, waiter.queue, waiter.order[0]
        if queue is None or not first_time or waiter.future.done():
            continue
        if _over(lanes, ticket, most, -len(leave), -of_client[ticket.client.name]):
            leave.append((waiter, queue))
            of_client[ticket.client.name] += 1
    for waiter, queue in reversed(leave):
        yield waiter, _full(lanes, queue, queue.position(waiter), now, keys)


def _over(lanes: Lanes, ticket: Ticket, most: int, more: int, of_client: int) -> bool:
    """Whether there are too many with so many more, and so many more of its client."""
    name, bound = ticket.client.name, ticket.client.max_waiting
    return lanes.total + more > most or (bound is not None and lanes.waiting.get(name, 0) + of_client > bound)


def _full(lanes: Lanes, queue: Queue, position: int, now: Micros, keys: Keys) -> TooMany:
    name = queue.flow.client
    told = lanes.back_off(queue, position, now, keys.paces(queue.flow.demand_class))
    return queue_full(name, lanes.waiting.get(name, 0), told)
