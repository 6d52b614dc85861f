"""The exchange between a scheduler and the store of one pool: demands and settlements for grants and estimates.

Everything here is a duration in microseconds (an age, a wait, a delay), never an instant (law 7). How a replica and a
shared store carry this over a network, and what they need to trust each other, is in `core.messages`.
"""

from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from keyturn.core.model import SECOND, Micros, Pool
from keyturn.core.values import value_object

LEASE_LIFETIME: Micros = SECOND
"""A lease not used within this time of its grant is returned, never used late (law 10)."""

HEARTBEAT: Micros = 2 * SECOND
"""A replica that holds leases or has requests waiting calls the store at least this often."""


def heartbeat(bound: Micros, usual: Micros = HEARTBEAT) -> Micros:
    """Interval of a replica that is taken for dead when it is silent for `bound`: at least two calls in that time."""
    return min(usual, bound // 2)


class DemandClass(NamedTuple):
    """Requests alike to the buckets: the limits (indices) that they fall under, and the quota that they insist on."""

    limits: tuple[int, ...]
    pinned: str | None = None


class Flow(NamedTuple):
    """The requests of one client and one demand class, in all replicas."""

    client: str
    demand_class: DemandClass


class FlowDemand(NamedTuple):
    """How many requests of a flow wait in the replica that says so, and its client's weight; 0 when none does."""

    flow: Flow
    weight: int
    waiting: int


class ObservedLimit(NamedTuple):
    """An answer's word on a limit of the same size: `remaining` requests until the `reset`, a delay."""

    limit: int
    remaining: int
    reset: Micros


@value_object
class Spent:
    """Settlement of a request that went out: its tokens return one window after the upstream had certainly counted it.

    `age` is the time since that moment; negative when it is still to come (no head of an answer, see `settle_bound`).
    `observed` is what the answer said about what else was spent (law 9). `answered`: whether there was one.
    """

    lease: str
    age: Micros
    observed: tuple[ObservedLimit, ...] = ()
    answered: bool = True


@value_object
class Unsent:
    """Settlement of a request of which nothing left this process: its tokens return now."""

    lease: str


@value_object
class Throttled:
    """Settlement of a request answered 429: the buckets of `limits` on its quota are closed for `closed_for`."""

    lease: str
    age: Micros
    closed_for: Micros
    limits: tuple[int, ...]


Settlement = Spent | Unsent | Throttled


class LeaseGrant(NamedTuple):
    """A lease for the head of a flow: one token of each limit of its demand class, all of one quota.

    `probe`: only its answer tells how much of the quota is left, so its settlement is waited for (law 8).
    """

    lease: str
    flow: Flow
    quota: str
    probe: bool = False


@value_object
class EstimatedWaits:
    """When the requests of a queue are expected to be served, by position (0 is the head), as delays from now.

    `soon` holds the first positions one by one; `later` has (position, delay) samples beyond, between which `at`
    interpolates. With neither, no token is ever expected.
    """

    soon: tuple[Micros, ...] = ()
    later: tuple[tuple[int, Micros], ...] = ()

    def at(self, position: int) -> Micros | None:
        """The estimated wait at a position; `None` when no token is expected."""
        if position < len(self.soon):
            return self.soon[position]
        if not self.later:
            return self.soon[-1] if self.soon else None
        index = bisect_left(self.later, (position, 0))
        if index == len(self.later):
            return self.later[-1][1]
        high, late = self.later[index]
        low, early = self.later[index - 1] if index else (len(self.soon) - 1, self.soon[-1] if self.soon else late)
        return early + (late - early) * (position - low) // (high - low)

    def latest(self, position: int) -> Micros | None:
        """Upper end of the estimate: that of the next sample, at most a second later: no token may return between."""
        index = bisect_left(self.later, (position, 0))
        wait = self.at(position)
        if wait is None or position < len(self.soon) or index == len(self.later):
            return wait
        return min(self.later[index][1], wait + SECOND)


class LimitTokens(NamedTuple):
    """The tokens of one limit over all quotas: how many in all, how many available, and the delay until the next."""

    size: int
    available: int
    returns: Micros


@value_object
class ExchangeResult:
    """Result of an exchange: what the scheduler receives for its settlements and demands.

    `estimates` has the waits of queues that still wait and were estimated anew; `available` the tokens of each limit.
    `again`: call after this time at the latest; `None` when nothing waits and no lease is outstanding. `foreign`:
    tokens that somebody else turned out to have spent, by quota (law 9).
    """

    version: int
    grants: tuple[LeaseGrant, ...]
    estimates: Mapping[Flow, EstimatedWaits]
    available: tuple[LimitTokens, ...]
    again: Micros | None
    replicas: int = 1
    foreign: tuple[tuple[str, int], ...] = ()


class PoolStore(Protocol):
    """The home of one pool's buckets, as one replica sees it."""

    @property
    def replicas(self) -> int:
        """How many replicas share the buckets, this one included."""

    def adopt(self, pool: Pool) -> None:
        """Use other quotas and limits of the pool from the next exchange on; what was spent stays spent."""

    def try_grant(self, flow: Flow, weight: int) -> LeaseGrant | None:
        """Grant one lease without a round trip, where that is possible; else `None`.

        Only for a request that comes while nothing waits in this replica and tokens are plentiful.
        """

    def estimate(self, flow: Flow, waiting: int, weight: int) -> tuple[EstimatedWaits, Micros] | None:
        """Estimate a queue of so many requests by the newest snapshot, whose age is returned; `None`: none is recent.

        `weight` is that of the flow's client. There is no round trip.
        """

    async def exchange(
        self, settlements: tuple[Settlement, ...], demands: tuple[FlowDemand, ...], *, partial: bool = False
    ) -> ExchangeResult:
        """Settle leases, report what waits, and receive grants and estimates: the one operation.

        `demands` is all that waits in this replica: a flow that is not named waits no longer. With `partial` only the
        changes are named, with 0 where nothing waits any more. Other flows wait as told last, even if that exchange
        failed, less what was granted since. After `adopt` all flows of before and of now are named once.

        Raises:
            StoreLost: no answer within the store's timeout.
        """
