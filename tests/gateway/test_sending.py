import pytest

from proxy.core.errors import Broken
from proxy.core.events import Retried, UpstreamAnswered
from proxy.core.exchange import Spent, Unsent
from proxy.core.http import Answer
from tests.gateway.settings import FakeBody, setting
from tests.virtual import virtual


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
        async with setting(Answer(status, b"", (), body)) as it, it.gateway.handle(it.request(), it.journal) as got:
            assert got.body is body
            assert body.parts == [b"x", b"y"]

    scenario()
