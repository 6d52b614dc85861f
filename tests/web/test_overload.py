import asyncio
import itertools

from hypothesis import given
from hypothesis import strategies as st
from keyturn.config import Config
from keyturn.core.model import SECOND
from keyturn.web.overload import (
    BYTES_FLOOR,
    SLOWEST_READER,
    Bounds,
    ByteBudget,
    ConnectionBytes,
    HeadCounter,
    IterationBudget,
    WriteTimeout,
)

from tests.virtual import task_of, virtual


def test_defaults_are_those_of_the_configuration() -> None:
    """A listener without settings of its own, such as the admin's, is as careful as one with them."""
    inbound = Config.model_validate({}).inbound
    assert Bounds() == Bounds(
        inbound.max_connections,
        inbound.max_connections_per_address,
        inbound.max_head,
        inbound.max_fields,
        inbound.max_target,
        inbound.head_timeout / SECOND,
        inbound.write_timeout / SECOND,
        inbound.idle_timeout / SECOND,
    )


LIMIT = 1 << 20


class Caller:
    """A connection that wants as much as it can get."""

    def __init__(self, buffers: ByteBudget, wants: int = 60_000) -> None:
        self.wants = wants
        self.account = ConnectionBytes(buffers, self.take)

    def take(self) -> None:
        """Hold whatever there is room for, and wait for more."""
        room = min(self.account.room(), self.wants - self.account.held)
        if room > 0:
            self.account.hold(self.account.held + room)
        if self.account.held < self.wants and not self.account.pause():
            self.take()


def test_one_connection_may_hold_what_is_free() -> None:
    """A stranger a quarter of everything, a client as much as others leave."""
    buffers = ByteBudget(LIMIT)
    account = ConnectionBytes(buffers, lambda: None)
    assert account.room() == LIMIT // 4
    account.hold(1000)
    assert account.room() == LIMIT // 4 - 2000
    account.admit(admitted=True)
    assert (buffers.unadmitted, buffers.admitted) == (0, 1000)
    assert account.room() == LIMIT - 2000


def test_who_holds_little_goes_on_while_others_hold_all_they_can() -> None:
    """Neither a crowd of strangers nor one of clients keeps another connection from its first bytes."""
    buffers = ByteBudget(LIMIT)
    for known in (False, True):
        crowd = [Caller(buffers) for _ in range(2000)]
        for caller in crowd:
            caller.account.admit(admitted=known)
            caller.take()
        assert buffers.held <= LIMIT + BYTES_FLOOR * len(crowd) + crowd[0].wants
        newcomer = ConnectionBytes(buffers, lambda: None)
        assert newcomer.room() >= BYTES_FLOOR
        newcomer.admit(admitted=True)
        assert newcomer.room() >= BYTES_FLOOR
        for caller in crowd:
            caller.account.close()
        assert buffers.held == 0
        assert buffers.paused == 0


def test_strangers_leave_the_rest_to_clients() -> None:
    """However many they are, beyond what each connection may hold anyway."""
    buffers = ByteBudget(LIMIT)
    for _ in range(50):
        Caller(buffers).take()
    client = ConnectionBytes(buffers, lambda: None)
    client.admit(admitted=True)
    assert client.room() >= LIMIT // 4 - 50 * BYTES_FLOOR - 60_000


def test_what_is_given_back_lets_others_go_on() -> None:
    """In the order in which they were paused, until everybody has had its turn: one finishes though all wait."""
    buffers = ByteBudget(LIMIT)
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


def test_a_budget_shows_what_is_held() -> None:
    """For people who debug."""
    budget = ByteBudget(LIMIT)
    ConnectionBytes(budget, lambda: None).hold(1000)
    assert repr(budget) == "<ByteBudget 1000/1048576, 1000 unadmitted, 0 paused>"


def test_another_limit_holds_at_once() -> None:
    """For those who want more; what is held stays."""
    buffers = ByteBudget(LIMIT)
    account = ConnectionBytes(buffers, lambda: None)
    account.hold(100_000)
    buffers.limit = 64_000
    assert account.room() <= 0
    assert ConnectionBytes(buffers, lambda: None).room() == BYTES_FLOOR


def test_clients_that_hold_everything_are_told_so() -> None:
    """By heads of requests that wait, say, which nobody can refuse to read in time."""
    buffers = ByteBudget(LIMIT)
    account = ConnectionBytes(buffers, lambda: None)
    account.admit(admitted=True)
    account.hold(LIMIT)
    assert not account.crowded
    account.hold(LIMIT + 1)
    assert account.crowded


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 200_000), st.booleans()), max_size=60))
def test_the_sums_are_those_of_the_connections(steps: list[tuple[int, int, bool]]) -> None:
    """Whatever they do."""
    buffers = ByteBudget(LIMIT)
    accounts = [ConnectionBytes(buffers, lambda: None) for _ in range(10)]
    for number, held, known in steps:
        accounts[number].hold(held)
        accounts[number].admit(admitted=known)
    assert buffers.admitted == sum(account.held for account in accounts if account.admitted)
    assert buffers.held == sum(account.held for account in accounts)


PATIENCE = 60.0


class Taker:
    """Bytes that wait for a caller, who takes so many a second."""

    def __init__(self, speed: float) -> None:
        loop = asyncio.get_running_loop()
        self.now, self.began, self.speed = loop.time, loop.time(), speed
        self.given = 1 << 40
        self.cut: list[tuple[float, bool]] = []
        self.pace = WriteTimeout(loop, PATIENCE, self.left, self.too_slow)

    def left(self) -> int:
        """Return the bytes that it has not taken yet."""
        return self.given - int((self.now() - self.began) * self.speed)

    def too_slow(self, some: bool) -> None:
        """Remember it."""
        self.cut.append((self.now() - self.began, some))


@virtual
async def test_who_takes_nothing_is_waited_for_so_long() -> None:
    """The patience, once."""
    taker = Taker(0)
    taker.pace.wait()
    await asyncio.sleep(10 * PATIENCE)
    assert taker.cut == [(PATIENCE, False)]


@virtual
async def test_who_takes_too_little_is_waited_for_little_longer() -> None:
    """Half of what buys a second each second: twice as long or a moment more; a byte now and then buys nothing."""
    for speed, longest in ((SLOWEST_READER / 2, 2.1), (1, 1.1)):
        taker = Taker(speed)
        taker.pace.wait()
        await asyncio.sleep(10 * PATIENCE)
        ((after, some),) = taker.cut
        assert some
        assert 1 <= after / PATIENCE <= longest


@virtual
async def test_who_takes_enough_is_never_cut() -> None:
    """However long its answer is."""
    taker = Taker(SLOWEST_READER + 1)
    taker.pace.wait()
    await asyncio.sleep(1000 * PATIENCE)
    assert not taker.cut
    taker.pace.stop()


@virtual
async def test_only_waiting_for_the_caller_counts() -> None:
    """The upstream may take its time; but pauses of one answer add up, and the next begins anew."""
    taker = Taker(0)
    for _ in range(3):
        taker.pace.wait()
        await asyncio.sleep(PATIENCE * 0.3)
        taker.pace.resume()
        await asyncio.sleep(PATIENCE * 5)
    assert not taker.cut
    taker.pace.begin()
    taker.pace.wait()
    await asyncio.sleep(PATIENCE * 0.9)
    taker.pace.resume()
    taker.pace.wait()
    await asyncio.sleep(PATIENCE * 0.2)
    assert len(taker.cut) == 1


async def test_a_turn_has_room_for_so_much_and_the_rest_comes_in_order() -> None:
    """One that asks for more than there is has a turn of its own."""
    turns, seen = IterationBudget(asyncio.get_running_loop(), 10), list[list[int]]()
    number = 0

    async def ask(name: int, size: int) -> None:
        await turns.take(size)
        while len(seen) <= number:
            seen.append([])
        seen[number].append(name)

    tasks = [task_of(ask(name, size)) for name, size in enumerate((4, 4, 4, 25, 1, 9))]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        number += bool(len(seen) > number)
    assert [name for turn in seen for name in turn] == [0, 1, 2, 3, 4, 5]
    assert seen[0] == [0, 1]


async def test_however_many_ask_each_turn_stays_short() -> None:
    """A thousand that come together are spread over as many turns as they need."""
    turns, most, done = IterationBudget(asyncio.get_running_loop(), 8), 0, 0

    async def ask() -> None:
        nonlocal done
        await turns.take(1)
        done += 1

    tasks = [task_of(ask()) for _ in range(1000)]
    while done < 1000:
        before = done
        await asyncio.sleep(0)
        most = max(most, done - before)
    assert most <= 16, "those that are woken and those that ask anew"
    await asyncio.gather(*tasks)


async def test_who_leaves_takes_no_room() -> None:
    """A caller that goes away while it waits is passed over."""
    turns = IterationBudget(asyncio.get_running_loop(), 1)
    tasks = [task_of(turns.take(1)) for _ in range(6)]
    await asyncio.sleep(0)
    tasks[4].cancel()
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [False, False, False, False, True, False]


async def test_a_crowd_of_one_party_holds_up_itself() -> None:
    """One of each party comes after another, whoever asked first; each party keeps its order."""
    turns, seen = IterationBudget(asyncio.get_running_loop(), 2), list[str]()

    async def ask(party: str, number: int) -> None:
        await turns.take(1, party)
        seen.append(f"{party}{number}")

    tasks = [task_of(ask("a", number)) for number in range(6)]
    tasks += [task_of(ask("b", number)) for number in range(2)]
    await asyncio.wait(tasks)
    assert seen[:2] == ["a0", "a1"], "there was room"
    assert seen[2:] == ["a2", "b0", "a3", "b1", "a4", "a5"]


HEADS = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\n\r\n"


def lengths(data: bytes, cuts: list[int]) -> list[int]:
    """The lengths of the heads in data that comes in pieces."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    count, found = HeadCounter(), []
    for start, end in itertools.pairwise(places):
        piece, at = data[start:end], 0
        while at < len(piece):
            length = count.length(piece, at)
            count.add(piece[at : at + length])
            at += length
            if HEADS.startswith(b"\r\n\r\n", start + at - 4):
                found.append(count.received)
                count.begin()
    return found


@given(st.lists(st.integers(0, 100), max_size=8))
def test_a_head_ends_behind_its_empty_line(cuts: list[int]) -> None:
    """Wherever its bytes are cut; what stands behind belongs to the next."""
    assert lengths(HEADS, cuts) == [27, 19]


def test_text_beyond_ascii_costs_more() -> None:
    """For the whole head, since one character widens the text that it stands in."""
    count = HeadCounter()
    count.add(b"x" * 1000)
    assert count.cost == 2000
    assert count.affordable(2000) == 1000
    count.add("€".encode())
    assert count.cost == 5 * 1003
    assert count.affordable(2000) == 400
    count.begin()
    assert count.cost == 0
