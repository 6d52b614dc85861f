import asyncio
import itertools

import pytest
from keyturn.core.complaints import BODY_LIMIT
from keyturn.core.errors import Broken, LocalError, TooMany
from keyturn.core.events import LocalErrorMet, Retried, UpstreamAnswered
from keyturn.core.exchange import Spent, Unsent
from keyturn.core.http import Answer, Whole
from keyturn.core.model import SECOND
from keyturn.gateway.sending import REFUSAL_PATIENCE, PartlyReadBody, TruncatedBody, peek

from tests.gateway.settings import Breaking, FakeBody, Slow, setting
from tests.virtual import micros, task_of, virtual


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
async def test_a_refusal_that_breaks_off_is_no_answer() -> None:
    """Its body was to be read before anybody gets it: the try failed after its head."""

    class Breaking(FakeBody):
        async def read(self) -> bytes:
            raise Broken("broke off")

    async with setting(Answer(403, b"", (), Breaking([]))) as it:
        assert (await it.ask()).status == 200
        assert [event.code for event in it.happened(UpstreamAnswered)] == [0, 200]
        assert [event.reason for event in it.happened(Retried)] == ["broken"]


@pytest.mark.parametrize("status", [200, 404, 500])
def test_other_bodies_are_not_looked_at(status: int) -> None:
    """They are the caller's, as they come."""

    @virtual
    async def scenario() -> None:
        body = FakeBody([b"x", b"y"])
        async with setting(Answer(status, b"", (), body)) as it, it.gateway.handle(it.request(), it.log) as got:
            assert got.body is body
            assert body.parts == [b"x", b"y"]

    scenario()


@virtual
async def test_a_free_connection_is_waited_for_and_no_failure() -> None:
    """While the lease is fresh; it goes back behind that, and the time counts as waiting."""
    async with setting(quotas=1) as it:
        it.upstream.full = True
        asking = task_of(it.ask())
        await asyncio.sleep(2.5)
        assert [event.reason for event in it.happened(Retried)] == ["late", "late"]
        it.upstream.full = False
        it.upstream.freed.set()
        assert (await asking).status == 200
        assert (it.log.queued, it.log.upstream) == (2.5 * SECOND, SECOND // 10)
        assert it.happened(UpstreamAnswered) == [UpstreamAnswered("default", "k0", 200)]
        await it.room.settled()
        assert [type(one) for one in it.room.store.settled] == [Unsent, Unsent, Spent]


@virtual
async def test_a_free_connection_is_not_waited_for_beyond_the_deadline() -> None:
    """Nor by a caller that leaves. The token goes back."""
    async with setting(quotas=1, requests=1) as it:
        it.upstream.full = True
        leaving = task_of(it.ask())
        await asyncio.sleep(0.5)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        began = micros()
        with pytest.raises(TooMany, match=r"`upstream\.max_connections`") as caught:
            await it.ask(it.request(wait=SECOND * 3 // 2))
        assert micros() - began == SECOND * 3 // 2
        assert (caught.value.reason, caught.value.retry_after) == ("max_connections", 1)
        await it.room.settled()
        assert {type(one) for one in it.room.store.settled} == {Unsent}


@virtual
async def test_each_local_error_is_counted_and_reported_once() -> None:
    """By what it lacks."""
    async with setting(requests=100) as it:
        it.upstream.connecting = [LocalError("No port.", cause="ports") for _ in range(3)]
        with pytest.raises(LocalError):
            await it.ask()
        met = it.happened(LocalErrorMet)
        assert [event.cause for event in met] == ["ports"] * 3
        assert [event.is_new for event in met] == [True, False, False]


@virtual
async def test_an_answer_that_is_all_here_takes_no_place() -> None:
    """However slowly its caller reads it; one that is still coming in does, to its end."""
    async with setting(Answer(200, b"", (), Whole(b"{}")), Answer(200, b"", (), FakeBody([b"x"]))) as it:
        for in_flight in (0, 1):
            async with it.gateway.handle(it.request(), it.log):
                assert it.room.scheduler.in_flight == in_flight
        assert it.room.scheduler.in_flight == 0


async def whole(answer: Answer) -> bytes:
    """All that its caller reads."""
    data = b""
    while part := await answer.body.read():
        data += part
    return data


@virtual
async def test_an_errors_body_is_read_and_still_there() -> None:
    """Whether it has arrived already or comes in parts."""
    for body in (Whole(b"abc"), FakeBody([b"a", b"bc"])):
        answer, said = await peek(Answer(403, b"", (), body))
        assert said == b"abc"
        assert isinstance(answer.body, Whole)
        assert await whole(answer) == b"abc"


@virtual
async def test_a_long_body_says_nothing_and_is_passed_on() -> None:
    """Byte for byte, and it can be left at any moment."""
    parts = [b"x" * BODY_LIMIT, b"y", b"z" * 10]
    body = FakeBody(list(parts))
    answer, said = await peek(Answer(403, b"", (), body))
    assert said == b""
    assert isinstance(answer.body, PartlyReadBody)
    assert await whole(answer) == b"".join(parts)
    answer.body.abort()
    assert body.aborted
    body = FakeBody(list(parts))
    answer, _ = await peek(Answer(403, b"", (), body))
    await answer.body.discard()
    assert await whole(answer) == b""


@virtual
async def test_a_body_that_does_not_end_is_broken() -> None:
    """Nobody waits for it, and what the answer is about is not known."""
    for status in (401, 403):
        body, began = Slow([]), micros()
        with pytest.raises(Broken):
            await peek(Answer(status, b"", (), body))
        assert body.aborted
        assert micros() - began == REFUSAL_PATIENCE * 1_000_000


@virtual
async def test_a_head_that_says_enough_counts_without_its_body() -> None:
    """Whether the body breaks off or does not end; nobody gets the part of it that came."""
    for status, body in itertools.product((429, 502, 503, 504), (Breaking([b"half"]), Slow([]))):
        answer, said = await peek(Answer(status, b"", ((b"Retry-After", b"5"),), body))
        assert (answer.status, answer.fields, said) == (status, ((b"Retry-After", b"5"),), b"")
        assert isinstance(answer.body, TruncatedBody)
        assert body.aborted
        with pytest.raises(Broken):
            await answer.body.read()
        await answer.body.discard()
        answer.body.abort()
