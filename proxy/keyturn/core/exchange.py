"""What a waiting room and its store say to each other (design, "One round trip: `exchange`").

Replicas exchange durations only, never instants (law 7): an age, a wait, a delay, each in microseconds. How a replica
and shared buckets carry this over a network, with what they need to trust each other, is in `core.messages`.
"""

from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from keyturn.core.model import SECOND, Micros, Pool
from keyturn.core.values import value_object

USE_BY: Micros = SECOND
"""A lease not used within this time of its grant is given back, never used late (law 10)."""

PULSE: Micros = 2 * SECOND
"""A replica with leases out or requests waiting speaks at least this often."""


GRACE: Micros = SECOND // 2
"""A demand is remembered this long beyond the moment at which its replica was told to come back."""


def pulse(bound: Micros, usual: Micros = PULSE) -> Micros:
    """How often a replica speaks that is taken for dead when it is silent for `bound`: twice in that time."""
    return min(usual, bound // 2)


class Kind(NamedTuple):
    """What makes requests alike to the buckets: the limits that they fall under, and the quota that they insist on."""

    limits: tuple[int, ...]
    pinned: str | None = None


class Lane(NamedTuple):
    """The requests of one client and one kind that wait in one replica."""

    client: str
    kind: Kind


@value_object
class Demand:
    """How many requests wait in a lane, and with which weight its client shares."""

    lane: Lane
    weight: int
    waiting: int


@value_object
class Seen:
    """What an answer said about a limit of its own size: so many requests remained, until `reset` from now."""

    limit: int
    remaining: int
    reset: Micros


@value_object
class Spent:
    """The request went out: its tokens return one window after the moment at which the upstream had surely counted it.

    `age` is the time since that moment; negative when it is still to come (no head of an answer, see `settle_bound`).
    `seen` is what the answer said about what else was spent (law 9). `answered`: whether there was one.
    """

    lease: str
    age: Micros
    seen: tuple[Seen, ...] = ()
    answered: bool = True


@value_object
class Unsent:
    """Nothing left this process: the tokens return now."""

    lease: str


@value_object
class Throttled:
    """The upstream refused with 429: the buckets of `limits` on its quota are parked for `park`."""

    lease: str
    age: Micros
    park: Micros
    limits: tuple[int, ...]


Settlement = Spent | Unsent | Throttled


@value_object
class Grant:
    """A lease: one token of every limit of the lane's kind, all of one quota.

    `probe`: the quota is known again by its answer only, so its settlement is waited for (law 8).
    """

    lease: str
    lane: Lane
    quota: str
    probe: bool = False


@value_object
class Turns:
    """When the requests of a lane are expected to be served, by their position (0 is the head), as delays from now.

    `soon` holds the first positions one by one; `later` samples of positions beyond, between which `at` interpolates.
    Neither: no token is ever expected.
    """

    soon: tuple[Micros, ...] = ()
    later: tuple[tuple[int, Micros], ...] = ()

    def at(self, position: int) -> Micros | None:
        """The delay until that position's turn; `None` when no token is expected."""
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
        """The same, up to a second later where the next sample is: between two bursts no token returns."""
        index = bisect_left(self.later, (position, 0))
        turn = self.at(position)
        if turn is None or position < len(self.soon) or index == len(self.later):
            return turn
        return min(self.later[index][1], turn + SECOND)


@value_object
class Budget:
    """A limit over all quotas of the pool: tokens in all, tokens at hand, and the delay until the next one returns."""

    size: int
    at_hand: int
    returns: Micros


@value_object
class Exchange:
    """The store's side of the round trip.

    `turns` holds an entry for each lane of the caller that still waits. `again`: call at the latest after this time;
    `None` when nothing waits and nothing is out. `replicas`: how many share the pool, the caller among them.
    `foreign`: tokens that somebody else turned out to have spent, by quota (law 9).
    """

    tick: int
    grants: tuple[Grant, ...]
    turns: Mapping[Lane, Turns]
    budgets: tuple[Budget, ...]
    again: Micros | None
    replicas: int = 1
    foreign: tuple[tuple[str, int], ...] = ()


class Store(Protocol):
    """Where the buckets of one pool live, as one replica sees it."""

    @property
    def replicas(self) -> int:
        """How many share the buckets, this one among them."""

    def adopt(self, pool: Pool) -> None:
        """Go on with other quotas and limits of the pool, from the next exchange on; what was spent stays spent."""

    def at_once(self, lane: Lane, weight: int) -> Grant | None:
        """What an exchange would grant to one request, where that can be told without a round trip; else `None`.

        Only for who comes while nobody waits in this replica and there is plenty.
        """

    async def exchange(self, settlements: tuple[Settlement, ...], demands: tuple[Demand, ...]) -> Exchange:
        """Settle, report who waits, and receive grants and turns: the one operation.

        `demands` is the whole of what waits in this replica: a lane that is not in it waits no longer.

        Raises:
            StoreLost: no answer within the store's timeout.
        """
