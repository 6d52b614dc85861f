import asyncio
from collections.abc import AsyncIterator

import pytest
from keyturn.core.errors import BadRequest, NoKey, TooMany
from keyturn.core.events import UpstreamAnswered
from keyturn.core.exchange import Spent, Unsent
from keyturn.core.health import RETRY_AFTER_SECONDS
from keyturn.core.http import Answer
from keyturn.core.model import SECOND

from tests.gateway.settings import Bytes, FakeBody, answer, setting
from tests.virtual import task_of, virtual


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
        assert it.log.tries == 1
        assert it.happened(UpstreamAnswered) == [UpstreamAnswered("default", "k0", 200)]


@virtual
async def test_a_pinned_request_uses_its_key_only() -> None:
    """`Keyturn-Key` names the key; one that is not there is a bad request."""
    async with setting(quotas=3, requests=2) as it:
        request = it.request(wait=0, pinned="k2")
        for _ in range(2):
            assert (await it.ask(request)).status == 200
        with pytest.raises(TooMany):
            await it.ask(request)
        assert {key for key, _ in it.upstream.sent} == {"s-k2"}
        with pytest.raises(BadRequest):
            await it.ask(it.request(pinned="k9"))


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
                async with it.gateway.handle(it.request(), it.log) as got:
                    while await got.body.read():
                        await asyncio.sleep(1)

            task = task_of(call())
            await asyncio.sleep(moment)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert it.room.scheduler.waiting == it.room.scheduler.in_flight == 0
            await it.room.settled()
            sent = moment > 0.3
            assert [type(settlement) for settlement in it.room.store.settled] == [Spent if sent else Unsent]
            assert body.aborted is (moment > 0.7)

    scenario()


@virtual
async def test_keys_are_looked_at_paused_and_resumed() -> None:
    """By whoever operates the proxy: a paused key is not used, its quota's tokens stay."""
    async with setting(requests=2) as it:
        assert [(look.name, look.state) for look in it.looks()] == [("k0", "ready"), ("k1", "ready")]
        it.pause("k0")
        for _ in range(2):
            assert (await it.ask()).status == 200
        assert it.keys == ["s-k1", "s-k1"]
        assert [look.state for look in it.looks()] == ["paused", "ready"]
        it.resume("k0")
        assert (await it.ask()).status == 200
        assert it.keys[-1] == "s-k0"


@virtual
async def test_with_every_key_paused_callers_are_refused_at_once() -> None:
    """503 `noKeyAvailable`, for those who wait too; nobody knows when an operator resumes, so that they look again."""
    async with setting(quotas=1, requests=1) as it:
        await it.ask()
        waiting = task_of(it.ask())
        await asyncio.sleep(1)
        it.pause("k0")
        for request in (waiting, it.ask()):
            with pytest.raises(NoKey) as refusal:
                await request
            assert refusal.value.retry_after == RETRY_AFTER_SECONDS
        it.resume("k0")
        assert (await it.ask()).status == 200


@virtual
async def test_a_body_is_read_before_a_token_is_taken() -> None:
    """However long that takes; then the request has all its time to wait, and the whole body goes out."""
    arrived = asyncio.Event()

    class Slow(Bytes):
        async def chunks(self) -> AsyncIterator[bytes]:
            yield self.data[:1]
            await arrived.wait()
            yield self.data[1:]

    async with setting(answer(), answer(), quotas=1, requests=1) as it:
        slow = task_of(it.ask(it.request("PUT", Slow(b"body"), wait=70 * SECOND)))
        await asyncio.sleep(100)
        assert it.room.scheduler.in_flight == 0
        assert (await it.ask(it.request(wait=0))).status == 200
        arrived.set()
        assert (await slow).status == 200
        assert [body for _, body in it.upstream.sent] == [b"", b"body"]
        assert 100 * SECOND <= it.log.reading < 101 * SECOND
        assert 55 * SECOND < it.log.queued < 65 * SECOND


@virtual
async def test_a_body_is_not_read_for_a_request_that_would_be_refused() -> None:
    """Because too many wait already."""

    class Unread(Bytes):
        def chunks(self) -> AsyncIterator[bytes]:
            raise AssertionError("it is read")

    async with setting(answer(), quotas=1, requests=1) as it:
        it.room.scheduler._bounds.max_waiting = 1
        await it.ask()
        waits = task_of(it.ask())
        await asyncio.sleep(1)
        with pytest.raises(TooMany):
            await it.ask(it.request("PUT", Unread(b"body")))
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
