"""The tokens that a replica knows to be available without asking the store, and the read-only view of a scheduler."""

from collections.abc import Callable, Iterable, Sequence

from keyturn.core.bucket_snapshots import QueueSnapshot
from keyturn.core.exchange import DemandClass, Flow, LimitTokens, ObservedLimit
from keyturn.core.levels import ClientLevel
from keyturn.core.model import MILLISECOND, Limit, Micros, Pool
from keyturn.scheduler.key_rotation import KeyRotation
from keyturn.scheduler.lease import OutstandingLeases
from keyturn.scheduler.queues import Queues
from keyturn.scheduler.waiter import INTERNAL, Queue

PLENTIFUL = 64
"""With so many tokens available it makes no difference in which order requests of the same moment are served."""

MAX_AVAILABILITY_AGE: Micros = 50 * MILLISECOND
"""For so long the last exchange is good enough to grant a lease by it."""

CONTRADICTION = 20
"""Fraction of a limit by which an answer may differ from the known state before the store is told at once."""


class AvailabilityCache:
    """The tokens of each limit as the last exchange told them, less those granted since without an exchange."""

    def __init__(self) -> None:
        self._told: tuple[LimitTokens, ...] = ()
        """In the order of the pool's limits; empty before the first exchange."""
        self._taken: list[int] = []
        """Tokens of each limit granted since."""
        self._at: Micros = 0
        self._granted = 0
        self.doubted = False
        """Whether something is known that the store has not been told yet."""

    def update(self, tokens: tuple[LimitTokens, ...], now: Micros) -> int:
        """Take over what an exchange told; returns how many leases were granted without one since the last."""
        self._told, self._taken, self._at, self.doubted = tokens, [0] * len(tokens), now, False
        granted, self._granted = self._granted, 0
        return granted

    def forget(self) -> None:
        """Drop everything: it is about other limits."""
        self._told, self._taken = (), []

    def is_plentiful(self, limits: Iterable[int], now: Micros) -> bool:
        """Whether so many tokens of these limits are available that a request can be served, in whatever order."""
        if self.doubted or now - self._at > MAX_AVAILABILITY_AGE or not self._told:
            return False
        for index in limits:  # noqa: SIM110  # a fast path: `all` with a generator takes twice as long
            if self._told[index].available - self._taken[index] < PLENTIFUL:
                return False
        return True

    def is_left(self, limits: Iterable[int]) -> bool:
        """Whether a token of each of these limits was left at the last exchange."""
        return bool(self._told) and all(self._told[index].available > self._taken[index] for index in limits)

    def take(self, limits: Iterable[int]) -> None:
        """Note that a token of each of these limits was granted without an exchange."""
        self._granted += 1
        for index in limits:
            self._taken[index] += 1

    def contradicted_by(self, observed: Iterable[ObservedLimit], quotas: int) -> bool:
        """Whether a bucket holds clearly less than the pool's buckets do on average: somebody else spends (law 9)."""
        for limit, remaining, _ in observed:
            if limit < len(self._told):
                size, available, _ = self._told[limit]
                if (remaining + 1) * quotas + size // CONTRADICTION < available - self._taken[limit]:
                    return True
        return False

    def tokens(self, now: Micros) -> list[LimitTokens]:
        """The tokens of each limit now; empty before the first exchange."""
        age, taken = now - self._at, self._taken
        return [
            LimitTokens(size, available - taken[index], max(0, returns - age))
            for index, (size, available, returns) in enumerate(self._told)
        ]

    def __repr__(self) -> str:
        left = [told.available - taken for told, taken in zip(self._told, self._taken, strict=True)]
        return f"<AvailabilityCache {left} available{', doubted' if self.doubted else ''}>"


class SchedulerView:
    """Read-only view of a scheduler for gauges, the status page and rate fields; nothing decides by it."""

    def __init__(
        self,
        keys: KeyRotation,
        queues: Queues,
        availability: AvailabilityCache,
        leases: OutstandingLeases,
        clock: Callable[[], Micros],
    ) -> None:
        self._keys = keys
        self._queues = queues
        self._availability = availability
        self._clock = clock
        self.granted = leases.granted
        """Leases by client."""

    def levels(self) -> list[ClientLevel]:
        """How many wait, by client, and what one more would wait; clients that waited before are shown with 0."""
        now, pool, busy = self._clock(), self._keys.pool, self._queues.busy
        token = next_token(pool, self._availability.tokens(now))
        clients = {name: waiting for name, waiting in self._queues.waiting.items() if name != INTERNAL.name}
        general = DemandClass(general_limits(pool))
        return [
            ClientLevel(pool.name, client, waiting, newcomers_wait(busy.get(Flow(client, general)), token, now))
            for client, waiting in clients.items()
        ]

    def queues(self) -> list[QueueSnapshot]:
        """Each queue in which requests of callers wait."""
        now = self._clock()
        return [_snapshot(queue, now) for flow, queue in self._queues.busy.items() if flow.client != INTERNAL.name]

    def limits_left(self, client: str, method: str, path: str | None) -> list[tuple[Limit, LimitTokens]]:
        """Tokens left for a client under the limits of a request; nothing before the first exchange."""
        pool, tokens = self._keys.pool, self._availability.tokens(self._clock())
        if not tokens:
            return []
        found = [(pool.limits[index], tokens[index]) for index in pool.limits_on(method, path)]
        if not self._queues.total:
            return found
        part = self._queues.weights.share(client)
        return [(limit, share_of(left, part)) for limit, left in found]


def _snapshot(queue: Queue, now: Micros) -> QueueSnapshot:
    client, (limits, pinned) = queue.flow
    oldest = min((waiter.arrived for waiter in queue.waiters), default=now)
    return QueueSnapshot(client, limits, pinned, len(queue.waiters), max(0, now - oldest), queue.estimate(0, now))


def newcomers_wait(queue: Queue | None, token: Micros, now: Micros) -> Micros | None:
    """The estimated wait of one more request of a queue; `token`, the delay until the next token, if none waits."""
    return token if queue is None else queue.estimate(len(queue.waiters), now)


def next_token(pool: Pool, tokens: Sequence[LimitTokens]) -> Micros:
    """The delay until a token is available for a request that falls under no limit with a `match`."""
    general = [one for limit, one in zip(pool.limits, tokens, strict=False) if not limit.match]
    return max((one.returns for one in general if one.available <= 0), default=0)


def general_limits(pool: Pool) -> tuple[int, ...]:
    """The limits that every request falls under."""
    return tuple([index for index, limit in enumerate(pool.limits) if not limit.match])


def share_of(tokens: LimitTokens, part: tuple[int, int]) -> LimitTokens:
    """The tokens of a limit for one client: its share of the size, if others wait for that limit, too.

    `part`: the client's weight, and that of all that wait, its own included.
    """
    own, of_all = part
    if tokens.available > 0 or own == of_all:
        return tokens
    return tokens._replace(size=max(1, tokens.size * own // of_all))
