"""How many may wait: for a client, and in all.

A request that a token is at hand for does not wait, however many come at once: whoever comes into a lane where nobody
waits gets one exchange with the store, and only what is left over of the newcomers then is measured against the bounds.
"""

from asyncio import get_running_loop
from collections import Counter
from collections.abc import Iterable

from proxy.core.errors import TooMany
from proxy.core.exchange import Lane
from proxy.core.model import SECOND, Micros
from proxy.dispatch.lanes import Lanes, Queue, Waiter
from proxy.dispatch.refusals import queue_full
from proxy.dispatch.returns import Returns
from proxy.dispatch.tickets import Ticket

NEWCOMERS = 1000
"""Requests beyond the bounds that may stand in one lane until it is known whether they have to wait."""


def check(lanes: Lanes, waiter: Waiter, most: int, returns: Returns) -> None:
    """See that one more request may come; `most` may wait in all.

    Raises:
        TooMany: others wait before it, and no more may.
    """
    queue = lanes.meet(waiter)
    if _no_place(lanes, queue, waiter.ticket, most):
        queue.crowd.expected(waiter.arrived)
        told = returns.tell(waiter, queue, waiter.arrived, queue.turns.at(len(queue.waiters)) or SECOND)
        raise _full(lanes, waiter.ticket, told)


def check_early(lanes: Lanes, ticket: Ticket, now: Micros, most: int, returns: Returns) -> None:
    """See that a request may come once its body has been read; one that may is not noted yet.

    Raises:
        TooMany: it would be refused at once.
    """
    if _no_place(lanes, lanes.queue(Lane(ticket.client.name, ticket.kind)), ticket, most):
        check(lanes, Waiter((1, ticket.urgency, 0), ticket, get_running_loop().create_future(), now), most, returns)


def _no_place(lanes: Lanes, queue: Queue, ticket: Ticket, most: int) -> bool:
    newcomers = len(queue.fresh)
    return _over(lanes, ticket, most, 1, 1) and (len(queue.waiters) > newcomers or newcomers >= NEWCOMERS)


def surplus(
    lanes: Lanes, newcomers: Iterable[Waiter], most: int, returns: Returns, now: Micros
) -> list[tuple[Waiter, TooMany]]:
    """Who of the newcomers may not stay, and why: the latest. Who has come back to the head of its lane stays."""
    leave: list[tuple[Waiter, Queue]] = []
    of_client: Counter[str] = Counter()
    for waiter in sorted(newcomers, key=lambda waiter: waiter.order, reverse=True):
        ticket, queue, first_time = waiter.ticket, waiter.queue, waiter.order[0]
        if queue is None or not first_time or waiter.future.done():
            continue
        if _over(lanes, ticket, most, -len(leave), -of_client[ticket.client.name]):
            leave.append((waiter, queue))
            of_client[ticket.client.name] += 1
    found = []
    alone: dict[Lane, bool] = {}
    for waiter, queue in reversed(leave):
        together = alone.setdefault(queue.lane, not queue.crowd.expected(now))
        turn = queue.turns.at(queue.position(waiter)) or SECOND
        found.append((waiter, _full(lanes, waiter.ticket, returns.tell(waiter, queue, now, turn, together=together))))
    return found


def _over(lanes: Lanes, ticket: Ticket, most: int, more: int, of_client: int) -> bool:
    """Whether there are too many with so many more, and so many more of its client."""
    name, bound = ticket.client.name, ticket.client.max_waiting
    return lanes.total + more > most or (bound is not None and lanes.waiting.get(name, 0) + of_client > bound)


def _full(lanes: Lanes, ticket: Ticket, told: Micros) -> TooMany:
    name = ticket.client.name
    return queue_full(name, lanes.waiting.get(name, 0), told)
