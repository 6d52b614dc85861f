"""How many may wait: for a client, and in all.

A request that a token is at hand for does not wait, however many come at once: whoever comes into a lane where nobody
waits gets one exchange with the store, and only what is left over of the newcomers then is measured against the bounds.
"""

from collections.abc import Iterable, Iterator

from proxy.core.errors import TooMany
from proxy.core.exchange import Lane
from proxy.dispatch.lanes import Lanes, Queue, Waiter
from proxy.dispatch.refusals import queue_full
from proxy.dispatch.tickets import Ticket

NEWCOMERS = 1000
"""Requests beyond the bounds that may stand in one lane until it is known whether they have to wait."""


def check(lanes: Lanes, ticket: Ticket, most: int) -> None:
    """See that one more request may come; `most` may wait in all.

    Raises:
        TooMany: others wait before it, and no more may.
    """
    queue = lanes.queue(Lane(ticket.client.name, ticket.kind))
    if _over(lanes, ticket, most, 1) and (len(queue.waiters) > len(queue.fresh) or len(queue.fresh) >= NEWCOMERS):
        raise _full(lanes, ticket, queue, len(queue.waiters))


def surplus(lanes: Lanes, newcomers: Iterable[Waiter], most: int) -> Iterator[tuple[Waiter, TooMany]]:
    """Who of the newcomers may not stay, the latest first, and why; who has come back to the head of its lane stays.

    Each is to be taken out before the next is asked for.
    """
    for waiter in sorted(newcomers, key=lambda waiter: waiter.order, reverse=True):
        queue, first_time = waiter.queue, waiter.order[0]
        if queue is not None and first_time and not waiter.future.done() and _over(lanes, waiter.ticket, most, 0):
            yield waiter, _full(lanes, waiter.ticket, queue, queue.position(waiter))


def _over(lanes: Lanes, ticket: Ticket, most: int, more: int) -> bool:
    """Whether there are too many with so many more."""
    bound = ticket.client.max_waiting
    return lanes.total + more > most or (bound is not None and lanes.waiting.get(ticket.client.name, 0) + more > bound)


def _full(lanes: Lanes, ticket: Ticket, queue: Queue, position: int) -> TooMany:
    name = ticket.client.name
    return queue_full(name, lanes.waiting.get(name, 0), queue.turns.at(position))
