"""Admission to the queues: bounds, deadlines, and the answers to requests that are refused (law 6).

A request for which a token is available does not wait, however many come at once. So a request that comes to an empty
queue takes part in one exchange with the store, and only those left over are held against the bounds.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from keyturn.core.errors import TooMany
from keyturn.core.model import SECOND, Micros
from keyturn.scheduler.key_rotation import KeyRotation
from keyturn.scheduler.queues import Queues
from keyturn.scheduler.waiter import Queue, Waiter

MAX_NEWCOMERS = 1000
"""Requests beyond the bounds that may wait in one queue until it is known whether they have to."""

REVIEW_INTERVAL: Micros = SECOND // 4
"""How often all requests of a queue are held against the newest estimates."""

FIRST_ANSWER: Micros = SECOND // 2
"""A request with less time than this waits so long for its first estimate: to be served at once it has to ask."""


# Refusals


def too_late(wait: Micros) -> TooMany:
    """Refuse a request that is expected to be served after this time, which is beyond its deadline."""
    seconds = whole_seconds(wait)
    return TooMany(
        f"All permitted requests are taken until this one could be sent in {seconds} s, which is beyond its deadline. "
        "Come back then, or allow more time with `Prefer: wait=SECONDS`.",
        reason="deadline",
        retry_after=seconds,
    )


def store_silent() -> TooMany:
    """Refuse a request because the store of the buckets did not answer before its deadline."""
    return TooMany(
        "The store of the rate limits does not answer, so this request could not be sent before its deadline. "
        "Come back in a moment, or allow more time with `Prefer: wait=SECONDS`.",
        reason="store_lost",
        retry_after=1,
    )


def queue_full(client: str, waiting: int, wait: Micros) -> TooMany:
    """Refuse a request because no more may wait; one more would be expected to be served after this time."""
    return TooMany(
        f"{waiting} requests of {client} wait already. Send fewer at once, or come back later.",
        reason="queue_full",
        retry_after=whole_seconds(wait),
    )


def too_many_in_flight(client: str, most: int, wait: Micros) -> TooMany:
    """Refuse a request whose client had its `max_in_flight` in flight until the deadline; `wait`: until one may end."""
    return TooMany(
        f"{most} requests of {client} are in flight, as many as its `max_in_flight` allows, and none ended before this "
        "one's deadline. Read their answers to the end, send fewer at once, or come back later.",
        reason="max_in_flight",
        retry_after=whole_seconds(wait),
    )


def all_connections_in_use(most: int, wait: Micros) -> TooMany:
    """Refuse a request because no connection was free until its deadline; `wait`: until one is expected to be."""
    return TooMany(
        f"All {most} connections of this proxy to the upstream (`upstream.max_connections`) are in use, and none was "
        "free for this request before its deadline. Come back later.",
        reason="max_connections",
        retry_after=whole_seconds(wait),
    )


def whole_seconds(delay: Micros) -> int:
    """Round a delay up to whole seconds for `Retry-After`, at least one (RFC 9110, section 10.2.3)."""
    return max(1, -(-delay // SECOND))


class QueueBounds:
    """The bounds on what waits: `max_waiting` of each client, and in all."""

    def __init__(self, queues: Queues, keys: KeyRotation, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._queues = queues
        self._keys = keys

    def check(self, waiter: Waiter, now: Micros) -> None:
        """See that one more request may wait. Nothing is kept of one that may.

        Raises:
            TooMany: others wait before it, and no more may.
        """
        queue = self._queues.busy.get(waiter.flow)
        if queue is None:
            return
        newcomers = len(queue.unjudged)
        others_wait = len(queue.waiters) > newcomers or newcomers >= MAX_NEWCOMERS
        if others_wait and self._is_over(waiter, 1, 1):
            raise self._full(queue, len(queue.waiters), now)

    def surplus(self, newcomers: Iterable[Waiter], now: Micros) -> Iterator[tuple[Waiter, TooMany]]:
        """Find the newcomers that may not stay, which are the latest, and why; retries stay.

        Each has to be taken out before the next one is asked for.
        """
        leave: list[tuple[Waiter, Queue]] = []
        of_client: Counter[str] = Counter()
        for waiter in sorted(newcomers, key=lambda waiter: waiter.order, reverse=True):
            queue, first_time = waiter.queue, waiter.order[0]
            if queue is None or not first_time or waiter.future.done():
                continue
            if self._is_over(waiter, -len(leave), -of_client[waiter.client.name]):
                leave.append((waiter, queue))
                of_client[waiter.client.name] += 1
        for waiter, queue in reversed(leave):
            yield waiter, self._full(queue, queue.position(waiter), now)

    def told(self, queue: Queue, position: int, now: Micros) -> Micros:
        """After how long a request refused at this position is told to come back; a place is kept for it."""
        return self._queues.back_off(queue, position, now, self._keys.paces(queue.flow.demand_class))

    def _is_over(self, waiter: Waiter, more: int, of_client: int) -> bool:
        """Whether there are too many with so many more, and so many more of its client."""
        queues, bound = self._queues, waiter.client.max_waiting
        if queues.total + more > self.max_waiting:
            return True
        return bound is not None and queues.waiting.get(waiter.client.name, 0) + of_client > bound

    def _full(self, queue: Queue, position: int, now: Micros) -> TooMany:
        client = queue.flow.client
        return queue_full(client, self._queues.waiting.get(client, 0), self.told(queue, position, now))


class Deadlines:
    """The deadlines of requests that wait in one scheduler.

    `refuse` takes a request out of its queue and tells it why; `freed` is called behind that. `lacks_slot` says why a
    request waited for a slot in flight, if it did, and not for a token.
    """

    def __init__(
        self,
        clock: Callable[[], Micros],
        bounds: QueueBounds,
        refuse: Callable[[Waiter, TooMany], None],
        freed: Callable[[], None],
        lacks_slot: Callable[[Waiter], TooMany | None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._bounds = bounds
        self._refuse = refuse
        self._freed = freed
        self._lacks_slot = lacks_slot
        self._lost = False
        """Whether the store is lost."""
        self._answered: Micros = 0
        """When the store answered last."""

    def watch(self, waiter: Waiter) -> None:
        """Have a request that has come refused at its deadline, whether the store answers or not."""
        self._set_timer(waiter, max(waiter.deadline - waiter.arrived, FIRST_ANSWER))

    def judge(self, queue: Queue, now: Micros) -> None:
        """Refuse requests that cannot be served in time, by the estimates of their queue (law 6).

        Positions among those that stay decide; what a refused request is told counts the places kept, too.
        """
        refused = False
        for waiter in self._to_judge(queue, now):
            position = queue.position(waiter)
            wait, demanded = queue.estimate(position, now), position < queue.demanded
            served_next = wait == 0 and demanded  # more are available than are dealt in one exchange
            if not served_next:
                queue.unjudged.pop(waiter, None)
            if wait is not None and now + wait > waiter.deadline and demanded:
                self._refuse(waiter, too_late(self._bounds.told(queue, position, now)))
                refused = True
            else:
                self._hold(waiter, now)
        if refused:
            self._freed()

    def pass_over(self, queues: Iterable[Queue], now: Micros) -> None:
        """Nothing was demanded for these: requests wait there for a slot, until their deadline."""
        for queue in queues:
            for waiter in [one for one in queue.unjudged if one.announced and not one.future.done()]:
                del queue.unjudged[waiter]
                self._hold(waiter, now)

    def store_answered(self, now: Micros) -> None:
        """The store has answered."""
        self._lost, self._answered = False, now

    def store_lost(self, queues: Iterable[Queue]) -> None:
        """The store is lost: requests in these go on waiting for it, but not past their deadline."""
        self._lost = True
        now = self._clock()
        for queue in queues:
            for waiter in queue.unjudged:
                self._hold(waiter, now)

    def _to_judge(self, queue: Queue, now: Micros) -> list[Waiter]:
        """Newcomers that the store knows of; every so often all, for waits get longer when others come first."""
        if now - queue.reviewed >= REVIEW_INTERVAL:
            queue.reviewed = now
            candidates = list(queue.waiters)
        else:
            candidates = queue.newcomers()
        return [waiter for waiter in candidates if waiter.announced and not waiter.future.done()]

    def _hold(self, waiter: Waiter, now: Micros) -> None:
        """Nothing more is to be heard at once: its deadline holds, however little time it has."""
        if waiter.deadline < waiter.arrived + FIRST_ANSWER:
            self._set_timer(waiter, max(0, waiter.deadline - now))

    def _set_timer(self, waiter: Waiter, delay: Micros) -> None:
        if waiter.timer:
            waiter.timer.cancel()
        waiter.timer = asyncio.get_running_loop().call_later(delay / SECOND, self._expire, waiter)

    def _expire(self, waiter: Waiter) -> None:
        queue = waiter.queue
        if queue is None or waiter.future.done():
            return
        now = self._clock()
        silent = self._lost or self._answered < waiter.arrived
        refusal = self._lacks_slot(waiter) or (store_silent() if silent else None)
        self._refuse(waiter, refusal or too_late(self._bounds.told(queue, queue.position(waiter), now)))
        self._freed()
