import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from proxy.core.errors import BadRequest, Broken, TimedOut, TooMany, Unreachable
from proxy.core.events import Journal, Retried, UpstreamAnswered, UpstreamThrottled
from proxy.core.exchange import Spent, Throttled, Unsent
from proxy.core.http import Answer, Body, Fields, Request
from proxy.core.model import SECOND, Client, Micros, Secret
from proxy.gateway import Gateway, Retries
from tests.core.worlds import limit, pool
from tests.rooms import Room, room
from tests.virtual import micros, task_of, virtual

PLAIN_429 = b'{"error":{"name":"rateLimitError","message":"Rate Limit exceeded."}}'
PLAN_429 = b'{"error":{"name":"serviceLimitExhausted","message":"Plan limit.","details":{"retryAfter":604800}}}'


@dataclass
class FakeBody:
    """An answer's body in parts."""

    parts: list[bytes]
    aborted: bool = False

    async def read(self) -> bytes:
        return self.parts.pop(0) if self.parts else b""

    async def discard(self) -> None:
        self.parts.clear()

    def abort(self) -> None:
        self.aborted = True


def answer(status: int = 200, body: bytes = b"{}", *fields: tuple[bytes, bytes]) -> Answer:
    """An answer of the upstream."""
    return Answer(status, b"", fields, FakeBody([body]))


Step = Answer | Exception | Callable[[], Awaitable[Answer]]


@dataclass
class FakeUpstream:
    """Plays a script: an answer, an error, or what is to be awaited, for each time that bytes go out."""

    script: list[Step]
    connecting: list[Exception | float] = field(default_factory=list)
    """For each connection: an error, or how long it takes."""
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    """Key and body of each request that went out."""
    put_backs: int = 0

    async def connect(self) -> "FakeUpstream":
        step = self.connecting.pop(0) if self.connecting else 0.0
        if isinstance(step, Exception):
            raise step
        await asyncio.sleep(step)
        return self

    def put_back(self) -> None:
        self.put_backs += 1

    async def send(
        self, request: Request, key: Secret, extra: Fields, *, body: Body | None, on_written: Callable[[], None]
    ) -> Answer:
        number = len(self.sent)
        self.sent.append((key.reveal(), b""))
        if body is not None:
            data = b"".join([part async for part in body.chunks()])
            self.sent[number] = (key.reveal(), data)
        on_written()
        await asyncio.sleep(0.1)
        step = self.script.pop(0) if self.script else answer()
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, Answer) else await step()


@dataclass
class Bytes:
    """A request's body."""

    data: bytes

    @property
    def length(self) -> int | None:
        return len(self.data)

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.data), 65_536):
            yield self.data[start : start + 65_536]


@dataclass
class Setting:
    """A gateway over a fake upstream."""

    room: Room
    upstream: FakeUpstream
    gateway: Gateway
    journal: Journal = field(default_factory=Journal)

    def request(self, method: str = "GET", body: Body | None = None, *, wait: Micros = 300 * SECOND) -> Request:
        return Request("id-1", Client("a"), method, b"/me", "/me", (), body, 3, wait)

    async def ask(self, request: Request | None = None) -> Answer:
        async with self.gateway.handle(request or self.request(), self.journal) as got:
            return got

    def happened(self, kind: type) -> list[object]:
        return [event for event in self.room.recorder.events if isinstance(event, kind)]


@asynccontextmanager
async def setting(
    *script: Step, quotas: int = 2, requests: int = 3, retries: Retries | None = None
) -> AsyncIterator[Setting]:
    """A gateway over a room and an upstream that plays the script; in the end everything is accounted for."""
    async with room(pool(quotas, limit(requests))) as it:
        upstream = FakeUpstream(list(script))
        gateway = Gateway(
            {"default": it.dispatch},
            upstream,
            retries=retries or Retries(),
            observer=it.recorder,
            clock=micros,
            wall=micros,
        )
        yield Setting(it, upstream, gateway)
        await it.settled()
        it.check_empty()


@virtual
async def test_an_answer_is_dressed_for_the_caller() -> None:
    """The key's name, the request's id and times are told; what speaks for one key is replaced by the pool's."""
    async with setting(answer(200, b"x", (b"X-RateLimit-Remaining", b"59"), (b"ETag", b"e"))) as it:
        got = await it.ask()
        fields = dict(got.fields)
        assert fields[b"Keyturn-Key"] == b"k0"
        assert fields[b"X-Request-Id"] == b"id-1"
        assert fields[b"ETag"] == b"e"
        assert fields[b"X-RateLimit-Limit"] == b"6"
        assert fields[b"X-RateLimit-Remaining"] == b"5"
        assert fields[b"Server-Timing"] == b"queue;dur=0.0, upstream;dur=100.0"
        assert it.journal.tries == 1
        assert it.happened(UpstreamAnswered) == [UpstreamAnswered("default", "k0", 200)]


@virtual
async def test_a_429_is_absorbed_by_another_key() -> None:
    """The upstream's 429 parks its quota, and the request goes out again under a second lease (law 10)."""
    async with setting(answer(429, PLAIN_429, (b"Retry-After", b"20"))) as it:
        got = await it.ask()
        assert got.status == 200
        assert [key for key, _ in it.upstream.sent] == ["s-k0", "s-k1"]
        assert it.happened(UpstreamThrottled) == [UpstreamThrottled("default", "k0", "k0", "window", 20 * SECOND)]
        assert it.happened(Retried) == [Retried("default", "throttled")]
        await it.room.settled()
        assert isinstance(it.room.store.settled[0], Throttled)
        assert "k0" in it.room.store.calendar.parked


@virtual
async def test_a_429_on_the_only_key_waits_for_the_upstreams_time() -> None:
    """The caller notices nothing but time."""
    async with setting(answer(429, PLAIN_429, (b"Retry-After", b"20")), quotas=1) as it:
        began = micros()
        got = await it.ask()
        assert got.status == 200
        assert 20 * SECOND <= micros() - began <= 21 * SECOND


@virtual
async def test_a_429_that_waiting_cannot_cure_in_time_is_relayed() -> None:
    """The upstream's own body, with a `Retry-After` after which a try succeeds."""
    async with setting(answer(429, PLAIN_429, (b"Retry-After", b"20")), quotas=1) as it:
        got = await it.ask(it.request(wait=5 * SECOND))
        assert got.status == 429
        assert await got.body.read() in (PLAIN_429, b"")
        assert dict(got.fields)[b"Retry-After"] == b"21"
        await asyncio.sleep(21)
        assert (await it.ask(it.request(wait=0))).status == 200


@virtual
async def test_a_plan_limit_is_relayed_at_once() -> None:
    """Waiting does not help against `serviceLimitExhausted`; its time is translated."""
    async with setting(answer(429, PLAN_429)) as it:
        got = await it.ask()
        assert got.status == 429
        assert dict(got.fields)[b"Retry-After"] == b"604800"
        assert len(it.upstream.sent) == 1


@virtual
async def test_a_post_refused_by_429_is_sent_again_with_its_whole_body() -> None:
    """What was certainly not processed is replayed from the spool."""
    async with setting(answer(429, PLAIN_429, (b"Retry-After", b"1"))) as it:
        data = bytes(range(256)) * 1000
        assert (await it.ask(it.request("POST", Bytes(data)))).status == 200
        assert [body for _, body in it.upstream.sent] == [data, data]


@virtual
async def test_a_body_beyond_the_spool_is_not_replayed() -> None:
    """A 429 to a large upload is relayed with its time."""
    async with setting(answer(429, PLAIN_429, (b"Retry-After", b"7"))) as it:
        got = await it.ask(it.request("PUT", Bytes(b"x" * (1 << 20) + b"y")))
        assert got.status == 429
        assert dict(got.fields)[b"Retry-After"] == b"7"
        assert len(it.upstream.sent) == 1


@virtual
async def test_a_failed_connection_frees_its_lease_and_is_tried_again() -> None:
    """Nothing was sent: the token returns at once, the caller notices nothing."""
    async with setting(quotas=1, requests=1) as it:
        it.upstream.connecting = [Unreachable("refused")]
        assert (await it.ask()).status == 200
        await it.room.settled()
        assert isinstance(it.room.store.settled[0], Unsent)
        assert it.happened(Retried) == [Retried("default", "unreachable")]


@virtual
async def test_attempts_are_bounded() -> None:
    """After `retry.attempts` tries the caller is told."""
    async with setting() as it:
        it.upstream.connecting = [Unreachable("refused") for _ in range(9)]
        with pytest.raises(Unreachable):
            await it.ask()
        assert len(it.upstream.connecting) == 6


@virtual
async def test_a_refused_certificate_is_not_tried_again() -> None:
    """It will not get better by itself."""
    async with setting() as it:
        it.upstream.connecting = [Unreachable("certificate", transient=False)]
        with pytest.raises(Unreachable):
            await it.ask()
        assert it.upstream.sent == []


@virtual
async def test_a_broken_get_is_sent_again_on_a_second_lease() -> None:
    """Idempotent: the first lease counts as spent, the second covers the second transmission (law 10)."""
    async with setting(Broken("reset")) as it:
        assert (await it.ask()).status == 200
        await it.room.settled()
        first, second = it.room.store.settled
        assert isinstance(first, Spent)
        assert first.age < 0
        assert isinstance(second, Spent)
        assert second.age >= 0


@virtual
async def test_a_broken_post_is_never_sent_twice() -> None:
    """Its bytes may have arrived."""
    async with setting(Broken("reset")) as it:
        with pytest.raises(Broken):
            await it.ask(it.request("POST", Bytes(b"{}")))
        assert len(it.upstream.sent) == 1


@virtual
async def test_a_time_out_is_not_tried_again() -> None:
    """The caller has waited long enough."""
    async with setting(TimedOut("slow")) as it:
        with pytest.raises(TimedOut):
            await it.ask()
        assert len(it.upstream.sent) == 1


@virtual
async def test_retries_are_a_share_of_the_requests() -> None:
    """Beyond the budget failures are passed on: no retry storm."""
    async with setting(requests=100, retries=Retries(attempts=2, budget=0.1)) as it:
        it.upstream.connecting = [Unreachable("refused") for _ in range(100)]
        for _ in range(20):
            with pytest.raises(Unreachable):
                await it.ask()
        assert len(it.happened(Retried)) == 3


@virtual
async def test_a_lease_that_got_old_while_connecting_is_given_back() -> None:
    """A slow connection is kept for the next lease; nothing goes out on the old one (law 10)."""
    async with setting(quotas=1, requests=1) as it:
        it.upstream.connecting = [1.5]
        assert (await it.ask()).status == 200
        assert it.upstream.put_backs == 1
        assert len(it.upstream.sent) == 1
        await it.room.settled()
        assert [type(settlement) for settlement in it.room.store.settled] == [Unsent, Spent]


@virtual
async def test_a_pinned_request_uses_its_key_only() -> None:
    """`Keyturn-Key` names the key; one that is not there is a bad request."""
    async with setting(quotas=3, requests=2) as it:
        request = Request("id", Client("a", pin=True), "GET", b"/me", "/me", (), None, 3, 0, "k2")
        for _ in range(2):
            assert (await it.ask(request)).status == 200
        with pytest.raises(TooMany):
            await it.ask(request)
        assert {key for key, _ in it.upstream.sent} == {"s-k2"}
        with pytest.raises(BadRequest):
            await it.ask(Request("id", Client("a", pin=True), "GET", b"/me", "/me", (), None, 3, 0, "k9"))


@pytest.mark.parametrize("moment", [0.05, 0.35, 0.65, 0.75])
def test_a_caller_may_leave_at_any_moment(moment: float) -> None:
    """While connecting, writing, awaiting the head, streaming: the queue is empty and every token accounted for."""

    @virtual
    async def scenario() -> None:
        async with setting(quotas=1, requests=1) as it:
            it.upstream.connecting = [0.3]
            body = FakeBody([b"x"] * 100)

            async def slow_answer() -> Answer:
                await asyncio.sleep(0.3)
                return Answer(200, b"", (), body)

            it.upstream.script = [slow_answer]

            async def call() -> None:
                async with it.gateway.handle(it.request(), it.journal) as got:
                    while await got.body.read():
                        await asyncio.sleep(1)

            task = task_of(call())
            await asyncio.sleep(moment)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert it.room.dispatch.waiting == it.room.dispatch.in_flight == 0
            await it.room.settled()
            sent = moment > 0.3
            assert [type(settlement) for settlement in it.room.store.settled] == [Spent if sent else Unsent]
            assert body.aborted is (moment > 0.7)

    scenario()
