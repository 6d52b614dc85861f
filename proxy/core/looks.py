"""What there is to see of a pool at one moment: its tokens and its lanes, as values for gauges and pages.

Nothing decides by these. Times are delays or ages from the moment of looking, in microseconds; limits are indices into
the pool's.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from proxy.core.buckets import Buckets
from proxy.core.calendars import Calendar, quota_of
from proxy.core.letters import LimitTerms, Terms
from proxy.core.model import Micros
from proxy.core.values import value_object


@value_object
class BucketLook:
    """The tokens of one limit of one quota: at hand, in use, and of each that cools the delay until its return.

    While the upstream has closed a bucket, what would be at hand cools until it opens.
    """

    quota: str
    limit: int
    at_hand: int
    in_use: int
    cooling: tuple[Micros, ...]


@value_object
class LaneLook:
    """The requests of one client and one kind that wait, and when the head is expected to be served, if ever."""

    client: str
    limits: tuple[int, ...]
    pinned: str | None
    waiting: int
    oldest: Micros
    turn: Micros | None


@value_object
class Taken:
    """What is out of one limit over all quotas: quotas in use, and delays until tokens return and buckets open."""

    in_use: tuple[str, ...] = ()
    cooling: tuple[tuple[Micros, str], ...] = ()
    parked: tuple[tuple[Micros, str], ...] = ()


def look(buckets: Buckets, terms: Terms, now: Micros) -> tuple[BucketLook, ...]:
    """Every bucket of these terms; O(tokens that are out), so for people and scrapers only."""
    buckets.mature(now)
    calendars = [buckets.calendars.get(limit.id, Calendar()) for limit in terms.limits]
    return looks(terms, [taken(calendar, now) for calendar in calendars])


def taken(calendar: Calendar, now: Micros) -> Taken:
    """What is out of a limit at `now`."""
    return Taken(
        tuple([quota_of(member) for _, member in calendar.in_use]),
        tuple([(max(0, instant - now), quota_of(member)) for instant, member in calendar.cooling]),
        tuple([(instant - now, quota) for instant, quota in calendar.parked]),
    )


def looks(terms: Terms, rows: Iterable[Taken]) -> tuple[BucketLook, ...]:
    """Every bucket of these terms, by what is out of each of its limits."""
    return tuple(
        [
            bucket
            for index, (limit, row) in enumerate(zip(terms.limits, rows, strict=True))
            for bucket in _limit(index, limit, row, terms.quotas)
        ]
    )


def _limit(index: int, limit: LimitTerms, row: Taken, quotas: Iterable[str]) -> Iterator[BucketLook]:
    in_use = Counter(row.in_use)
    closed = {quota: delay for delay, quota in row.parked if delay > 0}
    cooling: dict[str, list[Micros]] = {}
    for delay, quota in row.cooling:
        cooling.setdefault(quota, []).append(delay)
    for quota in quotas:
        returns = cooling.get(quota, [])
        hand = max(0, limit.requests - in_use[quota] - len(returns))
        if quota in closed:
            yield BucketLook(quota, index, 0, in_use[quota], tuple(sorted([*returns, *[closed[quota]] * hand])))
        else:
            yield BucketLook(quota, index, hand, in_use[quota], tuple(returns))
