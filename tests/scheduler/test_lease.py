from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from keyturn.core.exchange import LeaseGrant, ObservedLimit, Settlement, Spent, Throttled, Unsent
from keyturn.core.model import SECOND, Key, Secret
from keyturn.scheduler.lease import Lease, OutstandingLeases

from tests.core.worlds import flow, limit, pool

BOUND = 10 * SECOND
POOL = pool(1, limit(1), limit(2, 10 * SECOND))


@dataclass
class Clocked:
    """Outstanding leases with a clock of their own."""

    now: int = 1000 * SECOND
    ended: list[Lease] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reported: list[Lease] = []
        self.leases = OutstandingLeases(lambda: self.now, BOUND, self.reported.append, self.ended.append)

    def lease(self, name: str = "7") -> Lease:
        """A lease that is good for a second, in use."""
        key = Key("k", Secret("s"), "q")
        lease = Lease(self.leases, POOL, LeaseGrant(name, flow(), "q"), key, self.now, self.now + SECOND)
        self.leases.add(lease)
        return lease

    def told(self) -> list[Settlement]:
        return [lease.settlement(self.now, POOL) for lease in self.reported]


WAYS: list[Callable[[Lease], None]] = [
    Lease.spent,
    Lease.unsent,
    Lease.lost,
    lambda lease: lease.throttled(5 * SECOND, (0,)),
]


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
def test_a_lease_is_settled_once(first: Callable[[Lease], None], second: Callable[[Lease], None]) -> None:
    """Law 2: only the first settlement counts, whatever follows, the end of the block included."""
    it = Clocked()
    with it.lease() as lease:
        first(lease)
        told = it.told()
        second(lease)
    assert it.told() == told
    assert it.ended == [lease]


def test_ages_are_counted_when_the_store_is_told() -> None:
    """Settlements age while they wait for the next exchange (law 7: durations only)."""
    it = Clocked()
    it.lease().spent()
    it.lease().throttled(60 * SECOND, (0,))
    it.lease().unsent()
    it.now += 2 * SECOND
    assert it.told() == [Spent("7", 2 * SECOND), Throttled("7", 2 * SECOND, 58 * SECOND, (0,)), Unsent("7")]


def test_what_was_seen_is_told_while_its_window_surely_lasts() -> None:
    """Its reset ages, too; told at once it counts to the last moment, since nothing has overtaken it."""
    it = Clocked()
    for reset in (60, 4, 1):
        it.lease().spent((ObservedLimit(0, 5, reset * SECOND),))
    assert [one.observed for one in it.told() if isinstance(one, Spent)] == [
        (ObservedLimit(0, 5, 60 * SECOND),),
        (ObservedLimit(0, 5, 4 * SECOND),),
        (ObservedLimit(0, 5, SECOND),),
    ]
    it.now += 2 * SECOND
    assert [one.observed for one in it.told() if isinstance(one, Spent)] == [
        (ObservedLimit(0, 5, 58 * SECOND),),
        (),
        (),
    ]


def test_a_lost_request_counts_from_settle_bound_after_it_was_written() -> None:
    """Its age is negative until then; one that was in flight for longer counts from its end."""
    for lasted, age in ((0, -BOUND), (3 * SECOND, 3 * SECOND - BOUND), (BOUND, 0), (30 * BOUND, 0)):
        it = Clocked()
        lease = it.lease()
        lease.written()
        it.now += lasted
        lease.lost()
        assert it.told() == [Spent("7", age, answered=False)]


def test_a_lease_shows_no_secret() -> None:
    """Its repr names the key and its state."""
    lease = Clocked().lease()
    assert repr(lease) == "<Lease 7 on k for a>"
    lease.unsent()
    assert repr(lease) == "<Lease 7 on k for a settled>"


def test_what_was_not_reported_is_reported_before_what_was_settled_since() -> None:
    """The store hears of every lease once, in order, whatever becomes of an exchange."""
    it = Clocked()
    first, second = it.lease("1"), it.lease("2")
    assert not it.leases.unreported
    first.unsent()
    lost = it.leases.take_settled()
    second.unsent()
    it.leases.not_reported(lost)
    assert it.leases.take_settled() == [first, second]
    assert not it.leases.unreported
    assert it.leases.granted.counts(it.now)["a"].total == 2


def test_a_lease_is_in_use_until_its_exchange_with_the_upstream_is_over() -> None:
    """However often that is said; one that nobody got never was."""
    it = Clocked()
    lease = it.lease()
    assert repr(it.leases) == "<OutstandingLeases 1 in use, 1 unsettled, 0 to report>"
    lease.spent()
    assert repr(it.leases) == "<OutstandingLeases 1 in use, 0 unsettled, 1 to report>"
    for _ in range(2):
        lease.close()
    assert (it.leases.in_use, it.ended) == (set(), [lease])
