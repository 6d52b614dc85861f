"""The tokens of one limit over all quotas: which are taken, when they return, and which buckets are closed.

Members of a sorted set are strings, `lease@quota`, as they are in Redis. Instants are microseconds of the store's one
clock.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from proxy.core.model import Micros
from proxy.core.sortedset import SortedSet


@dataclass(slots=True)
class Calendar:
    """One limit over all quotas: what is taken, and when it returns."""

    taken: dict[str, int] = field(default_factory=dict)
    """Tokens in use and cooling, by quota; no entry for 0."""
    cooling: SortedSet[str, Micros] = field(default_factory=SortedSet)
    """`lease@quota` by the instant at which its token returns: known, what grants go by."""
    in_use: SortedSet[str, Micros] = field(default_factory=SortedSet)
    """`lease@quota` by the instant of its grant: what turns go by."""
    parked: SortedSet[str, Micros] = field(default_factory=SortedSet)
    """Quotas that the upstream closed, by the instant at which they open."""
    probing: SortedSet[str, Micros] = field(default_factory=SortedSet)
    """Quotas that a probe is out for, by the instant of its grant."""
    warm: set[str] = field(default_factory=set)
    """Quotas whose tokens are known in this era."""

    def take(self, quota: str, tokens: int) -> None:
        """Count so many tokens of a quota as taken; negative: as at hand again."""
        left = self.taken.get(quota, 0) + tokens
        if left:
            self.taken[quota] = left
        else:
            self.taken.pop(quota, None)

    def use(self, lease: str, quota: str, granted: Micros) -> None:
        """Put a token in use."""
        self.in_use.put(f"{lease}@{quota}", granted)
        self.take(quota, +1)

    def closed(self, quota: str) -> bool:
        """Whether nothing is granted, tokens at hand or not."""
        return quota in self.parked.scores or quota in self.probing.scores

    # What is expected; `trip` is the usual time from a grant to its settlement

    def lend(self, quota: str, now: Micros | None) -> None:
        """Set a token aside, which of a bucket that is not known is its probe; `None`: no longer."""
        self.take(quota, +1 if now is not None else -1)
        if quota in self.warm:
            return
        if now is not None:
            self.probing.put(quota, now)
        else:
            self.probing.remove(quota)

    def returns(self, now: Micros, window: Micros, trip: Micros) -> Iterator[tuple[Micros, str]]:
        """When tokens are expected at hand again, and on which quota, soonest first.

        A token in use is expected one window after its request is expected to be counted; that has not happened yet,
        so it is not before now.
        """
        for instant, member in self.cooling:
            yield max(instant, now), quota_of(member)
        for granted, member in self.in_use:
            yield max(granted + trip, now) + window, quota_of(member)

    def openings(self, now: Micros) -> Iterator[tuple[Micros, str]]:
        """When closed buckets are expected to open."""
        for instant, quota in self.parked:
            if quota not in self.probing:
                yield max(instant, now), quota

    def probed(self, now: Micros, trip: Micros, bound: Micros) -> Iterator[tuple[Micros, str]]:
        """When buckets that are being probed are expected to open.

        After a usual trip; if that has passed, another; at the latest when the probe is given up.
        """
        for granted, quota in self.probing:
            expected = granted + trip if granted + trip > now else now + trip
            yield max(min(expected, granted + bound), self.parked.score(quota) or 0), quota

    def open_ones(
        self, quotas: Collection[str], requests: int, now: Micros, hand: int, returns: Micros
    ) -> tuple[int, Micros]:
        """How many of the tokens at hand can be had, which those of closed buckets cannot, and when the next can.

        Args:
            quotas: those that serve.
            requests: the tokens of each.
            now: the instant.
            hand: the tokens at hand, over all of them.
            returns: the delay until the next returns.
        """
        first: Micros | None = None
        closed = shut = 0
        for instant, quota in self.parked:
            if quota in quotas:
                first = instant - now if first is None else first
                closed += 1
                shut += max(0, requests - self.taken.get(quota, 0))
        if first is None:
            return hand, returns
        left = max(0, hand - shut)
        if closed == len(quotas):
            returns = first if hand else max(returns, first)
        elif hand and not left:
            returns = min(returns, first) if self.cooling or self.in_use else first
        return left, returns

    def nth_return(self, position: int, now: Micros, *, hand: int, window: Micros, trip: Micros) -> Micros:
        """When the token for that many-th request from now (from 0) is expected, with so many at hand.

        Beyond the tokens that there are, each comes round again a window and a trip later.
        """
        cooling, in_use = len(self.cooling), len(self.in_use)
        rounds, rank = divmod(position, max(1, hand + cooling + in_use))
        if hand <= rank < hand + cooling:
            instant = max(now, self.cooling.at(rank - hand)[0])
        elif hand + cooling <= rank < hand + cooling + in_use:
            instant = max(now, self.in_use.at(rank - hand - cooling)[0] + trip) + window
        else:
            instant = now
        return instant + rounds * (window + trip)


def quota_of(member: str) -> str:
    """The quota in a member `lease@quota`."""
    return member.partition("@")[2]
