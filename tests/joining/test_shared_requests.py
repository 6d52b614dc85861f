import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from keyturn.core.errors import Broken, NoKey, TooMany
from keyturn.core.events import ConnectionEnded, Joined, RequestLog
from keyturn.core.http import Answer, Fields, Request
from keyturn.core.model import SECOND, Client, Micros
from keyturn.core.policy import Rule
from keyturn.joining import shared_requests
from keyturn.joining.fanout import ANSWER_BOUND, FellBehind
from keyturn.joining.shared_requests import Joining, join_key

from tests.joining.steps import counting
from tests.schedulers import Recorder
from tests.virtual import micros, task_of, virtual


@dataclass
class Body:
    """An answer's body."""

    parts: list[bytes]

    async def read(self) -> bytes:
        await asyncio.sleep(0.01)
        return self.parts.pop(0) if self.parts else b""

    async def discard(self) -> None:
        self.parts.clear()

    def abort(self) -> None:
        self.parts.clear()


@dataclass
class Turn:
    """A request in the hands of the gateway."""

    request: Request
    turn: "asyncio.Future[None]"
    head: "asyncio.Future[Answer]"
    over: bool = False

    def send(self) -> None:
        """Its turn comes."""
        self.turn.set_result(None)

    def answer(self, *parts: bytes, fields: Fields = ()) -> None:
        """The head of its answer comes."""
        named = (b"X-Request-Id", self.request.id.encode())
        self.head.set_result(Answer(200, b"OK", (named, *fields), Body(list(parts))))


@dataclass
class Gateway:
    """Waits until the test says that a turn has come, and what the answer is."""

    turns: list[Turn] = field(default_factory=list)

    @asynccontextmanager
    async def handle(
        self, request: Request, log: RequestLog, *, sending: Callable[[], None] | None = None
    ) -> AsyncIterator[Answer]:
        loop = asyncio.get_running_loop()
        turn = Turn(request, loop.create_future(), loop.create_future())
        self.turns.append(turn)
        try:
            await turn.turn
            log.key, log.tries = "team-a", 1
            if sending:
                sending()
            yield await turn.head
        finally:
            turn.over = True

    def rates(self, pool: str, client: str, method: str, path: str | None) -> Fields:
        """Something to be recognised by."""
        return ((b"RateLimit", f"{pool} {client} {method} {path}".encode()),)


@dataclass
class Scene:
    """Callers, their gateway, and what was observed."""

    gateway: Gateway
    joining: Joining
    recorder: Recorder
    numbers: int = 0

    def request(
        self,
        client: Client | None = None,
        *,
        target: bytes = b"/me",
        fields: Fields = (),
        wait: Micros = 30 * SECOND,
        urgency: int = 3,
    ) -> Request:
        self.numbers += 1
        name = f"id-{self.numbers}"
        return Request(name, client or Client("a"), "GET", target, "/me", fields, None, urgency, wait)

    async def come(self, request: Request | None = None) -> "asyncio.Task[tuple[bytes, bytes, RequestLog]]":
        """A caller comes, and reads its answer whole: its id, the bytes and its request log."""
        task = task_of(self._read(request or self.request()))
        await asyncio.sleep(0.001)
        return task

    async def _read(self, request: Request) -> tuple[bytes, bytes, RequestLog]:
        log = RequestLog(id=request.id)
        async with self.joining.handle(request, log) as answer:
            data = b""
            while part := await answer.body.read():
                data += part
        return answer.header(b"x-request-id") or b"", data, log

    @property
    def joined(self) -> int:
        return sum(isinstance(event, Joined) for event in self.recorder.events)


@asynccontextmanager
async def scene(*, enabled: bool = True) -> AsyncIterator[Scene]:
    """A scene that leaves nothing behind."""
    gateway, recorder = Gateway(), Recorder()
    joining = Joining(gateway, enabled=enabled, clock=micros, observer=recorder)
    yield Scene(gateway, joining, recorder)
    await asyncio.sleep(1)
    assert not joining._waiting
    assert not joining._tasks
    assert all(turn.over for turn in gateway.turns)


@virtual
async def test_who_waits_for_the_same_shares_one_lease() -> None:
    """Each gets the whole answer under its own id; all but the first are counted as joined."""
    async with scene() as it:
        callers = [await it.come() for _ in range(3)]
        (turn,) = it.gateway.turns
        turn.send()
        await asyncio.sleep(0.5)
        turn.answer(b"ab", b"c")
        told = await asyncio.gather(*callers)
        assert [(name, data) for name, data, _ in told] == [(b"id-1", b"abc"), (b"id-2", b"abc"), (b"id-3", b"abc")]
        assert [log.tries for _, _, log in told] == [1, 0, 0]
        assert all(log.key == "team-a" for _, _, log in told)
        assert all(0.4 * SECOND < log.upstream < 0.6 * SECOND for _, _, log in told)
        assert it.joined == 2


@virtual
async def test_each_caller_hears_of_its_own_limits() -> None:
    """Its share of them may be another than that of who carried it."""
    async with scene() as it:

        async def told(client: str) -> bytes | None:
            async with it.joining.handle(it.request(Client(client)), RequestLog()) as answer:
                return answer.header(b"ratelimit")

        callers = [task_of(told(client)) for client in ("one", "two")]
        await asyncio.sleep(0.01)
        it.gateway.turns[0].send()
        it.gateway.turns[0].answer(b"x", fields=((b"RateLimit", b"of the first"),))
        assert await asyncio.gather(*callers) == [b"default one GET /me", b"default two GET /me"]


@virtual
async def test_what_has_been_sent_is_joined_by_nobody() -> None:
    """An answer is made after its caller came, so nothing is ever stale."""
    async with scene() as it:
        first = await it.come()
        it.gateway.turns[0].send()
        await asyncio.sleep(0.01)
        second = await it.come()
        assert len(it.gateway.turns) == 2
        it.gateway.turns[0].answer(b"old")
        assert (await first)[1] == b"old"
        it.gateway.turns[1].send()
        it.gateway.turns[1].answer(b"new")
        assert (await second)[1] == b"new"
        assert it.joined == 0


@virtual
async def test_switched_off_every_request_has_its_own_lease() -> None:
    """As it is unless the configuration says otherwise."""
    async with scene(enabled=False) as it:
        callers = [await it.come(), await it.come()]
        for turn in it.gateway.turns:
            turn.send()
            turn.answer(b"x")
        await asyncio.gather(*callers)
        assert len(it.gateway.turns) == 2


ALIKE = Request("i", Client("a"), "GET", b"/me", "/me", (), None, 3, SECOND)


def alike(*, client: Client | None = None, target: bytes = b"/me", fields: Fields = (), method: str = "GET") -> Request:
    """A request that differs from `ALIKE` in what is given."""
    return Request("j", client or Client("a"), method, target, "/me", fields, None, 3, SECOND)


@pytest.mark.parametrize(
    "other",
    [
        alike(target=b"/me?x=1"),
        alike(fields=((b"Accept-Encoding", b"gzip"),)),
        alike(fields=((b"If-None-Match", b'"a"'),)),
        alike(client=Client("a", pool="other")),
        alike(client=Client("a", allow=(Rule.parse("GET /**"),))),
        alike(client=Client("a", pin=True)),
        alike(method="HEAD"),
        alike(method="POST"),
    ],
)
def test_only_what_is_alike_under_the_same_rules_is_joined(other: Request) -> None:
    """Pool, target, fields that can change the answer, allow list and pin are the same, or each has its own lease."""
    assert join_key(ALIKE) == join_key(alike())
    assert join_key(ALIKE) != join_key(other)


def test_fields_that_only_name_a_request_do_not_set_it_apart() -> None:
    """A client such as newman makes a `Postman-Token` each time, a tracer a `traceparent`; order is nothing either."""
    one = alike(fields=((b"Accept", b"*/*"), (b"Postman-Token", b"1"), (b"X-Request-Id", b"1")))
    two = alike(fields=((b"traceparent", b"00-1"), (b"accept", b"*/*"), (b"Postman-Token", b"2")))
    assert join_key(one) == join_key(two)


@virtual
async def test_clients_wait_in_their_own_lanes_and_share_the_first_answer() -> None:
    """An interactive client does not wait behind a crawl: the turn that comes first carries both."""
    async with scene() as it:
        crawl, portal = await it.come(it.request(Client("crawl"))), await it.come(it.request(Client("portal")))
        assert [turn.request.client.name for turn in it.gateway.turns] == ["crawl", "portal"]
        it.gateway.turns[1].send()
        await asyncio.sleep(0.01)
        assert it.gateway.turns[0].over, "the other left its lane"
        it.gateway.turns[1].answer(b"x")
        assert (await crawl)[1] == (await portal)[1] == b"x"
        assert it.joined == 1


@virtual
async def test_who_could_be_worse_off_waits_by_itself() -> None:
    """A more urgent request and one with a nearer deadline do not wait in another's place."""
    async with scene() as it:
        callers = [
            await it.come(),
            await it.come(it.request(urgency=1)),
            await it.come(it.request(wait=SECOND)),
            await it.come(it.request(wait=60 * SECOND)),
        ]
        assert len(it.gateway.turns) == 3
        it.gateway.turns[1].send()
        await asyncio.sleep(0.01)
        it.gateway.turns[1].answer(b"x")
        assert {data for _, data, _ in await asyncio.gather(*callers)} == {b"x"}


@virtual
async def test_the_first_may_leave() -> None:
    """The next takes its place, and its lease; when the last has gone nobody waits any more."""
    async with scene() as it:
        first, second, third = await it.come(), await it.come(), await it.come()
        first.cancel()
        await asyncio.sleep(0.01)
        (turn,) = it.gateway.turns
        assert not turn.over
        turn.send()
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.sleep(0.01)
        turn.answer(b"x")
        assert (await third)[1] == b"x"
        alone = await it.come()
        alone.cancel()
        await asyncio.sleep(0.01)
        assert it.gateway.turns[1].over


@virtual
async def test_who_leaves_with_its_answer_in_hand_holds_nobody_back() -> None:
    """Cancelled in the tick in which it was told, it reads nothing, and the exchange ends with the others."""
    async with scene() as it:
        first, second = await it.come(), await it.come()
        (turn,) = it.gateway.turns
        turn.send()
        await asyncio.sleep(0.01)
        turn.answer(b"x" * 10)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second.cancel()
        assert (await first)[1] == b"x" * 10


@virtual
async def test_a_failed_try_fails_the_first_and_nobody_else() -> None:
    """The others go out by themselves, with the time that they have left."""
    async with scene() as it:
        first, second = await it.come(), await it.come()
        await asyncio.sleep(10)
        it.gateway.turns[0].send()
        it.gateway.turns[0].head.set_exception(Broken("It broke off."))
        with pytest.raises(Broken):
            await first
        await asyncio.sleep(0.01)
        again = it.gateway.turns[1]
        assert 19 * SECOND < again.request.wait <= 20 * SECOND
        again.send()
        again.answer(b"x")
        assert (await second)[1] == b"x"


@virtual
async def test_a_refusal_for_a_deadline_is_the_leaders_own() -> None:
    """Requests with more time stay joined."""
    async with scene() as it:
        first = await it.come(it.request(wait=SECOND))
        others = [await it.come(), await it.come()]
        it.gateway.turns[0].turn.set_exception(TooMany("Too late.", reason="deadline", retry_after=9))
        with pytest.raises(TooMany):
            await first
        await asyncio.sleep(0.01)
        (again,) = it.gateway.turns[1:]
        again.send()
        again.answer(b"x")
        assert [data for _, data, _ in await asyncio.gather(*others)] == [b"x", b"x"]


@virtual
async def test_a_refusal_for_a_deadline_of_somebody_who_left_is_nobodys() -> None:
    """The others wait on, each until its own deadline."""
    async with scene() as it:
        first = await it.come(it.request(wait=SECOND))
        second = await it.come(it.request(wait=9 * SECOND))
        first.cancel()
        await asyncio.sleep(1)
        it.gateway.turns[0].turn.set_exception(TooMany("Too late.", reason="deadline", retry_after=9))
        await asyncio.sleep(0.01)
        (again,) = it.gateway.turns[1:]
        assert 7.9 * SECOND < again.request.wait < 8 * SECOND
        again.send()
        again.answer(b"x")
        assert (await second)[1] == b"x"


@virtual
async def test_the_nearest_deadline_leads() -> None:
    """The next leader waits no longer than any other would, in any order of arrival."""
    async with scene() as it:
        first = await it.come(it.request(wait=SECOND))
        others = [await it.come(it.request(wait=seconds * SECOND)) for seconds in (30, 20, 10)]
        it.gateway.turns[0].turn.set_exception(TooMany("Too late.", reason="deadline", retry_after=9))
        with pytest.raises(TooMany):
            await first
        await asyncio.sleep(0.01)
        (again,) = it.gateway.turns[1:]
        assert again.request.id == "id-4"
        again.send()
        again.answer(b"x")
        assert [data for _, data, _ in await asyncio.gather(*others)] == [b"x"] * 3


@virtual
async def test_many_that_are_refused_one_after_another_cost_no_more_than_each_alone() -> None:
    """Work grows with the callers and not with their square: only the one that is refused hears of it."""
    steps = {number: await refused(number) for number in (20, 160)}
    assert 20 < steps[20] < steps[160] < 10 * steps[20]


async def refused(number: int) -> int:
    """The steps in which so many callers are refused, each at a deadline of its own."""
    async with scene() as it:
        callers = [await it.come(it.request(wait=SECOND + late)) for late in range(number)]
        with counting(shared_requests) as steps:
            for turn in range(number):
                it.gateway.turns[turn].turn.set_exception(TooMany("Too late.", reason="deadline", retry_after=9))
                await asyncio.sleep(0.001)
        told = await asyncio.gather(*callers, return_exceptions=True)
        assert [type(refusal) for refusal in told] == [TooMany] * number
    return steps.number


@virtual
async def test_a_refusal_of_the_pool_is_everybodys() -> None:
    """No key can serve: nobody is served better alone."""
    async with scene() as it:
        callers = [await it.come(), await it.come()]
        it.gateway.turns[0].turn.set_exception(NoKey("The pool has no key."))
        for caller in callers:
            with pytest.raises(NoKey):
                await caller
        assert len(it.gateway.turns) == 1


@virtual
async def test_what_is_too_large_to_keep_goes_to_one() -> None:
    """The others ask for themselves, so that nobody has to wait for the slowest."""
    async with scene() as it:
        first, second = await it.come(), await it.come()
        it.gateway.turns[0].send()
        it.gateway.turns[0].answer(b"x", fields=((b"Content-Length", b"%d" % (ANSWER_BOUND + 1)),))
        assert (await first)[1] == b"x"
        it.gateway.turns[1].send()
        it.gateway.turns[1].answer(b"y")
        assert (await second)[1] == b"y"
        assert it.joined == 0


@virtual
async def test_a_first_caller_that_leaves_within_its_answer_takes_nothing_from_the_others() -> None:
    """The body is read on for those who are left."""
    async with scene() as it:
        first, second = await it.come(), await it.come()
        (turn,) = it.gateway.turns
        turn.send()
        turn.answer(*[b"x"] * 50)
        await asyncio.sleep(0.1)
        first.cancel()
        assert (await second)[1] == b"x" * 50
        assert turn.over


@virtual
@pytest.mark.parametrize("first", [True, False])
async def test_a_caller_that_falls_behind_is_cut_off_whoever_carried_the_answer(first: bool) -> None:
    """Its request log says why, and the end of its connection is counted; the others have the whole answer."""
    async with scene() as it:
        log, began = RequestLog(), asyncio.Event()

        async def stuck() -> None:
            async with it.joining.handle(it.request(), log) as answer:
                await answer.body.read()
                await began.wait()
                await answer.body.read()

        if first:
            slow, quick = task_of(stuck()), await it.come()
        else:
            quick, slow = await it.come(), task_of(stuck())
        await asyncio.sleep(0.001)
        (turn,) = it.gateway.turns
        turn.send()
        turn.answer(*[b"x" * 2**20] * 20)
        assert len((await quick)[1]) == 20 * 2**20
        assert [event.why for event in it.recorder.events if isinstance(event, ConnectionEnded)] == ["fell_behind"]
        began.set()
        with pytest.raises(FellBehind):
            await slow
        assert "too slow for the others" in log.problem


@virtual
async def test_stopping_leaves_nobody_waiting() -> None:
    """Remaining waiters continue separately, where the gateway refuses them."""
    async with scene() as it:
        callers = [await it.come(), await it.come()]
        await it.joining.stop()
        await asyncio.sleep(0.01)
        assert len(it.gateway.turns) == 3
        for turn in it.gateway.turns[1:]:
            turn.turn.set_exception(NoKey("It ends."))
        for caller in callers:
            with pytest.raises(NoKey):
                await caller
