"""Small worlds for tests of the core: pools, and a driver that plays replicas against one ledger."""

from collections import defaultdict
from dataclasses import dataclass, field

from proxy.core.exchange import Demand, Exchange, Grant, Kind, Lane, Settlement, Spent, Throttled, Unsent
from proxy.core.ledger import Ledger
from proxy.core.model import MILLISECOND, SECOND, Key, Limit, Micros, Pool, Secret
from proxy.core.policy import Rule

BOUND = 10 * SECOND


def limit(requests: int, window: Micros = 60 * SECOND, *match: str) -> Limit:
    """A limit of so many requests in a window."""
    return Limit(requests, window, tuple(Rule.parse(text) for text in match))


def pool(quotas: int = 1, *limits: Limit, guard: Micros = 100 * MILLISECOND) -> Pool:
    """A pool of keys `k0`, `k1`, …, each a quota of its own; 60 a minute unless limits are given."""
    names = [f"k{number}" for number in range(quotas)]
    return Pool("default", tuple(Key(name, Secret(f"s-{name}"), name) for name in names), limits or (limit(60),), guard)


def lane(client: str = "a", limits: tuple[int, ...] = (0,), pinned: str | None = None) -> Lane:
    """A lane of a client under the first limit, or under those given."""
    return Lane(client, Kind(limits, pinned))


@dataclass
class World:
    """One ledger, a clock, and the demands of each replica."""

    ledger: Ledger
    now: Micros = 1_000 * SECOND
    waiting: dict[str, dict[Lane, int]] = field(default_factory=lambda: defaultdict(dict))
    weights: dict[str, int] = field(default_factory=dict)
    out: dict[int, Grant] = field(default_factory=dict)
    granted: dict[int, Micros] = field(default_factory=dict)
    """When each lease was granted."""

    @classmethod
    def of(cls, pool_: Pool) -> "World":
        return cls(Ledger(pool_, BOUND))

    def pass_(self, duration: Micros) -> None:
        self.now += duration

    def call(self, replica: str = "r", *settlements: Settlement) -> Exchange:
        """One exchange with what the replica waits for; its grants leave the waiting."""
        waiting = self.waiting[replica]
        demands = tuple(
            Demand(lane_, self.weights.get(lane_.client, 1), number) for lane_, number in waiting.items() if number
        )
        for settlement in settlements:
            self.out.pop(settlement.lease, None)
        answer = self.ledger.exchange(self.now, replica, tuple(settlements), demands)
        for grant in answer.grants:
            waiting[grant.lane] -= 1
            self.out[grant.lease] = grant
            self.granted[grant.lease] = self.now
        return answer

    def ask(self, number: int, lane_: Lane | None = None, replica: str = "r") -> Exchange:
        """So many more requests wait in a lane; exchange."""
        chosen = lane_ or lane()
        self.waiting[replica][chosen] = self.waiting[replica].get(chosen, 0) + number
        return self.call(replica)

    def spend(self, *grants: Grant, age: Micros = 0) -> tuple[Settlement, ...]:
        return tuple(Spent(grant.lease, age) for grant in grants)


def unsent(grant: Grant) -> Unsent:
    """The settlement of a lease of which nothing was sent."""
    return Unsent(grant.lease)


def throttled(grant: Grant, park: Micros, *limits: int) -> Throttled:
    """The settlement of a lease that the upstream answered with 429."""
    return Throttled(grant.lease, 0, park, limits or (0,))


def check_conservation(ledger: Ledger) -> None:
    """Every bucket holds at hand + in use + cooling = requests."""
    buckets = ledger.buckets
    for index, calendar in enumerate(buckets.calendars):
        used: dict[str, int] = defaultdict(int)
        for _, lease in calendar.cooling:
            used[buckets._spent[lease].quota] += 1
        for lease in calendar.in_use:
            used[buckets._out[lease].quota] += 1
        for name, quota in buckets.quotas.items():
            assert quota.hand[index] + used[name] == calendar.size, (name, index)
        assert calendar.hand == sum(quota.hand[index] for quota in buckets.quotas.values())
