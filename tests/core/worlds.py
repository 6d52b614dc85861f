"""Small worlds for tests of the core: pools, and a driver that plays replicas against one ledger."""

from collections import defaultdict
from dataclasses import dataclass, field

from proxy.core.calendars import quota_of
from proxy.core.exchange import USE_BY, Demand, Exchange, Grant, Kind, Lane, Settlement, Spent, Throttled, Unsent
from proxy.core.ledger import Ledger
from proxy.core.letters import Call, Held, Reply, Terms, terms_of
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


def known(ledger: Ledger, terms: Terms) -> None:
    """Make a ledger that is sure of its buckets, as after a probe of each."""
    ledger.exchange(0, "", Call("start", 1, 0, "", 0, 0, terms.name, spelled=terms))
    warm(ledger)


def warm(ledger: Ledger) -> None:
    """Every bucket of every terms is known."""
    for view in ledger.buckets.views.values():
        for name in view.limits:
            ledger.buckets.calendars[name].warm.update(view.quotas)


@dataclass
class World:
    """One ledger, a clock, and the demands of each replica."""

    ledger: Ledger
    terms: Terms
    now: Micros = 1_000 * SECOND
    waiting: dict[str, dict[Lane, int]] = field(default_factory=lambda: defaultdict(dict))
    weights: dict[str, int] = field(default_factory=dict)
    out: dict[str, Grant] = field(default_factory=dict)
    granted: dict[str, Micros] = field(default_factory=dict)
    """When each lease was granted."""
    serials: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    run: str = ""
    wake: tuple[str, ...] = ()
    """The replicas that the last exchange woke."""

    @classmethod
    def of(cls, pool_: Pool) -> "World":
        world = cls(Ledger(), terms_of(pool_, USE_BY + BOUND))
        known(world.ledger, world.terms)
        return world

    def pass_(self, duration: Micros) -> None:
        self.now += duration

    def send(
        self,
        replica: str,
        settlements: tuple[Settlement, ...] = (),
        demands: tuple[Demand, ...] = (),
        *,
        heard: int | None = None,
        era: str | None = None,
        tick: int = 0,
        jumped: Micros = 0,
        held: tuple[Held, ...] | None = None,
        terms: Terms | None = None,
    ) -> Reply:
        """One letter, as it is unless told otherwise."""
        self.serials[replica] += 1
        serial = self.serials[replica]
        chosen = terms or self.terms
        return self.ledger.exchange(
            self.now,
            self.run,
            Call(
                replica,
                serial,
                serial - 1 if heard is None else heard,
                self.ledger.era if era is None else era,
                tick,
                1,
                chosen.name,
                settlements,
                demands,
                jumped,
                held,
                chosen,
            ),
        )

    def call(self, replica: str = "r", *settlements: Settlement) -> Exchange:
        """One exchange with what the replica waits for; its grants leave the waiting."""
        waiting = self.waiting[replica]
        demands = tuple(
            Demand(lane_, self.weights.get(lane_.client, 1), number) for lane_, number in waiting.items() if number
        )
        for settlement in settlements:
            self.out.pop(settlement.lease, None)
        reply = self.send(replica, tuple(settlements), demands)
        self.wake = reply.wake
        for grant in reply.grants:
            waiting[grant.lane] -= 1
            self.out[grant.lease] = grant
            self.granted[grant.lease] = self.now
        return reply.exchange()

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
    """What every bucket counts as taken is in use or cooling, lease by lease, and every lease that is out is in use.

    And quotas rank by what they could serve.
    """
    buckets = ledger.buckets
    for name, calendar in buckets.calendars.items():
        taken: dict[str, int] = defaultdict(int)
        for _, member in [*calendar.cooling, *calendar.in_use]:
            taken[quota_of(member)] += 1
        assert calendar.taken == taken, name
        out = {
            f"{lease}@{place.quota}"
            for lease, out in buckets._out.items()
            for place in out.places
            if place.limit == name
        }
        assert out == {member for _, member in calendar.in_use}
    for name, view in buckets.views.items():
        for limits, ranking in view.rankings.items():
            ranked = {quota: -tokens for (tokens, _), quota in ranking}
            assert ranked == {quota: buckets.open_for(name, quota, limits) for quota in view.quotas}
