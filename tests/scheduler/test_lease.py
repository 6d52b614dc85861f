from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from keyturn.core.exchange import LeaseGrant, ObservedLimit, Settlement, Spent, Throttled, Unsent
from keyturn.core.model import SECOND, Key, Secret
from keyturn.scheduler.lease import Ending, Lease

from tests.core.worlds import flow, limit, pool

BOUND = 10 * SECOND
POOL = pool(1, limit(1), limit(2, 10 * SECOND))


@dataclass
class Office:
    """Where a test settles."""

    now: int = 1000 * SECOND
    settle_bound: int = BOUND
    endings: list[Ending] = field(default_factory=list)
    over: list[Lease] = field(default_factory=list)

    def clock(self) -> int:
        return self.now

    def settle(self, ending: Ending) -> None:
        self.endings.append(ending)

    def ended(self, lease: Lease) -> None:
        self.over.append(lease)

    def told(self) -> list[Settlement]:
        return [ending.settlement(self.now, POOL) for ending in self.endings]


def lease_of(office: Office) -> Lease:
    """A lease that is good for a second."""
    return Lease(office, POOL, LeaseGrant("7", flow(), "q"), Key("k", Secret("s"), "q"), office.now + SECOND)


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
    office = Office()
    with lease_of(office) as lease:
        first(lease)
        told = office.told()
        second(lease)
    assert office.told() == told
    assert office.over == [lease]


def test_ages_are_counted_when_the_store_is_told() -> None:
    """What waits for the next exchange ages meanwhile (law 7: durations only)."""
    office = Office()
    lease_of(office).spent()
    lease_of(office).throttled(60 * SECOND, (0,))
    lease_of(office).unsent()
    office.now += 2 * SECOND
    assert office.told() == [Spent("7", 2 * SECOND), Throttled("7", 2 * SECOND, 58 * SECOND, (0,)), Unsent("7")]


def test_what_was_seen_is_told_while_its_window_surely_lasts() -> None:
    """Its reset ages, too; told at once it counts to the last moment, since nothing has overtaken it."""
    office = Office()
    for reset in (60, 4, 1):
        lease_of(office).spent((ObservedLimit(0, 5, reset * SECOND),))
    assert [one.observed for one in office.told() if isinstance(one, Spent)] == [
        (ObservedLimit(0, 5, 60 * SECOND),),
        (ObservedLimit(0, 5, 4 * SECOND),),
        (ObservedLimit(0, 5, SECOND),),
    ]
    office.now += 2 * SECOND
    assert [one.observed for one in office.told() if isinstance(one, Spent)] == [
        (ObservedLimit(0, 5, 58 * SECOND),),
        (),
        (),
    ]


def test_a_lost_request_counts_from_settle_bound_after_it_was_written() -> None:
    """Its age is negative until then; one that was in flight for longer counts from its end."""
    for lasted, age in ((0, -BOUND), (3 * SECOND, 3 * SECOND - BOUND), (BOUND, 0), (30 * BOUND, 0)):
        office = Office()
        lease = lease_of(office)
        lease.written()
        office.now += lasted
        lease.lost()
        assert office.told() == [Spent("7", age, answered=False)]


def test_a_lease_shows_no_secret() -> None:
    """Its repr names the key and its state."""
    lease = lease_of(Office())
    assert repr(lease) == "<Lease 7 on k>"
    lease.unsent()
    assert repr(lease) == "<Lease 7 on k settled>"
