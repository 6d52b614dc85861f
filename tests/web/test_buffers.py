"""One budget over what all connections hold: who may go on, and when."""

from hypothesis import given
from hypothesis import strategies as st
from keyturn.web.buffers import FLOOR, Account, Buffers

LIMIT = 1 << 20


class Caller:
    """A connection that wants as much as it can get."""

    def __init__(self, buffers: Buffers, wants: int = 60_000) -> None:
        self.wants = wants
        self.account = Account(buffers, self.take)

    def take(self) -> None:
        """Hold whatever there is room for, and wait for more."""
        room = min(self.account.room(), self.wants - self.account.held)
        if room > 0:
            self.account.hold(self.account.held + room)
        if self.account.held < self.wants and not self.account.pause():
            self.take()


def test_one_connection_may_hold_what_is_free() -> None:
    """A stranger a quarter of everything, a client as much as others leave."""
    buffers = Buffers(LIMIT)
    account = Account(buffers, lambda: None)
    assert account.room() == LIMIT // 4
    account.hold(1000)
    assert account.room() == LIMIT // 4 - 2000
    account.know(known=True)
    assert (buffers.of_strangers, buffers.of_clients) == (0, 1000)
    assert account.room() == LIMIT - 2000


def test_who_holds_little_goes_on_while_others_hold_all_they_can() -> None:
    """Neither a crowd of strangers nor one of clients keeps another connection from its first bytes."""
    buffers = Buffers(LIMIT)
    for known in (False, True):
        crowd = [Caller(buffers) for _ in range(2000)]
        for caller in crowd:
            caller.account.know(known=known)
            caller.take()
        assert buffers.held <= LIMIT + FLOOR * len(crowd) + crowd[0].wants
        newcomer = Account(buffers, lambda: None)
        assert newcomer.room() >= FLOOR
        newcomer.know(known=True)
        assert newcomer.room() >= FLOOR
        for caller in crowd:
            caller.account.close()
        assert buffers.held == 0
        assert buffers.paused == 0


def test_strangers_leave_the_rest_to_clients() -> None:
    """However many they are, beyond what each connection may hold anyway."""
    buffers = Buffers(LIMIT)
    for _ in range(50):
        Caller(buffers).take()
    client = Account(buffers, lambda: None)
    client.know(known=True)
    assert client.room() >= LIMIT // 4 - 50 * FLOOR - 60_000


def test_what_is_given_back_lets_others_go_on() -> None:
    """In the order in which they were paused, until everybody has had its turn: one finishes though all wait."""
    buffers = Buffers(LIMIT)
    waiting = [Caller(buffers) for _ in range(100)]
    for caller in waiting:
        caller.take()
    assert 90 < buffers.paused < 100
    served = 0
    while done := [caller for caller in waiting if caller.account.held == caller.wants]:
        for caller in done:
            caller.account.close()
            waiting.remove(caller)
            served += 1
    assert served == 100
    assert buffers.held == 0


def test_another_limit_holds_at_once() -> None:
    """For those who want more; what is held stays."""
    buffers = Buffers(LIMIT)
    account = Account(buffers, lambda: None)
    account.hold(100_000)
    buffers.limit = 64_000
    assert account.room() <= 0
    assert Account(buffers, lambda: None).room() == FLOOR


def test_clients_that_hold_everything_are_told_so() -> None:
    """By heads of requests that wait, say, which nobody can refuse to read in time."""
    buffers = Buffers(LIMIT)
    account = Account(buffers, lambda: None)
    account.know(known=True)
    account.hold(LIMIT)
    assert not account.crowded
    account.hold(LIMIT + 1)
    assert account.crowded


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 200_000), st.booleans()), max_size=60))
def test_the_sums_are_those_of_the_connections(steps: list[tuple[int, int, bool]]) -> None:
    """Whatever they do."""
    buffers = Buffers(LIMIT)
    accounts = [Account(buffers, lambda: None) for _ in range(10)]
    for number, held, known in steps:
        accounts[number].hold(held)
        accounts[number].know(known=known)
    assert buffers.of_clients == sum(account.held for account in accounts if account.known)
    assert buffers.held == sum(account.held for account in accounts)
