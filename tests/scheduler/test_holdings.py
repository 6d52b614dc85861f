from keyturn.core.exchange import LeaseGrant, Unsent
from keyturn.core.model import SECOND, Key, Secret
from keyturn.scheduler.capacity import Capacity, Portions
from keyturn.scheduler.holdings import Holdings
from keyturn.scheduler.lanes import Lanes
from keyturn.scheduler.lease import Ending, Lease

from tests.core.worlds import flow, limit, pool


class Office:
    """Settles leases with some holdings."""

    settle_bound = 10 * SECOND

    def __init__(self, holdings: Holdings) -> None:
        self.holdings = holdings

    def clock(self) -> int:
        return SECOND

    def settle(self, ending: Ending) -> None:
        self.holdings.settled(ending)

    def ended(self, lease: Lease) -> None:
        self.holdings.ended(lease, SECOND)


def handed(holdings: Holdings, number: int) -> Lease:
    """A lease that somebody has got."""
    grant = LeaseGrant(str(number), flow(), "k0")
    lease = Lease(Office(holdings), pool(1, limit(1)), grant, Key("k0", Secret("secret"), "k0"), 0)
    holdings.handed(lease, "a", SECOND)
    return lease


def test_what_was_not_told_is_told_before_what_came_since() -> None:
    """The store hears of every ending once, in order, whatever becomes of a letter."""
    holdings = Holdings(Portions(Capacity(), Lanes(), lambda: None, lambda: SECOND))
    first, second = handed(holdings, 1), handed(holdings, 2)
    assert not holdings.untold
    first.unsent()
    lost = holdings.to_tell()
    second.unsent()
    holdings.not_told(lost)
    assert [Unsent(ending.lease.id) for ending in holdings.to_tell()] == [Unsent("1"), Unsent("2")]
    assert not holdings.untold
    assert holdings.granted.counts(SECOND)["a"].total == 2
