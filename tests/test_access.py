import asyncio
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access import Access, Admission
from proxy.core.errors import TooMany, Unauthenticated
from proxy.core.model import SECOND, Client, Micros, Secret
from tests.virtual import VirtualLoop, run, virtual

MARK = "5ecret"
CI = Client("ci", digests=(Secret("5ecret-ci").digest(), Secret("5ecret-ci-new").digest()))
WEB = Client("web", digests=(Secret("5ecret-web").digest(),))
ANYBODY = Client("local")


def access(*clients: Client, anonymous: Client | None = None, **places: str) -> Access:
    """The clients, with the usual places."""
    return Access(
        clients or (CI, WEB), anonymous=anonymous, **{"key_header": "X-Api-Key", "key_query": "apikey"} | places
    )


def bearer(token: str) -> tuple[bytes, bytes]:
    """A field with a bearer token."""
    return b"Authorization", f"Bearer {token}".encode()


def key(token: str) -> tuple[bytes, bytes]:
    """A field with a token in place of an API key."""
    return b"X-Api-Key", token.encode()


@pytest.mark.parametrize(
    ("fields", "target", "client"),
    [
        ([bearer("5ecret-ci")], b"/", CI),
        ([key("5ecret-ci")], b"/", CI),
        ([], b"/?apikey=5ecret-ci", CI),
        ([key("5ecret-ci-new")], b"/", CI),
        ([bearer("5ecret-ci"), key("5ecret-web")], b"/?apikey=5ecret-web", CI),
        ([bearer("5ecret-ci"), key("unknown")], b"/", CI),
        ([key("5ecret-ci")], b"/?apikey=5ecret-web", CI),
        ([bearer("scim"), key("5ecret-ci")], b"/", CI),
        ([bearer("scim")], b"/?apikey=5ecret-ci", CI),
        ([key("")], b"/?apikey=5ecret-ci", CI),
        ([bearer("scim"), bearer("5ecret-web")], b"/", WEB),
    ],
)
def test_a_known_token_says_who_calls(fields: list[tuple[bytes, bytes]], target: bytes, client: Client) -> None:
    """A bearer token before the header, the header before the query."""
    admission = access().admit((*fields, (b"Accept", b"*/*")), target)
    assert admission.client == client
    assert admission.target == b"/"
    assert admission.fields == (*[field for field in fields if field == bearer("scim")], (b"Accept", b"*/*"))


@pytest.mark.parametrize(
    ("fields", "target", "message"),
    [
        ([], b"/", "needs a token"),
        ([bearer("5ecret-unknown")], b"/", "needs a token"),
        ([key("5ecret-unknown")], b"/", "key header is not known"),
        ([key("5ecret-unknown")], b"/?apikey=5ecret-ci", "key header is not known"),
        ([key("5ecret-unknown"), key("5ecret-ci")], b"/", "key header is not known"),
        ([], b"/?apikey=5ecret-unknown", "query is not known"),
        ([(b"Authorization", b"Basic 5ecret")], b"/?apikey", "needs a token"),
    ],
)
def test_nobody_else_gets_in(fields: list[tuple[bytes, bytes]], target: bytes, message: str) -> None:
    """The header wins, also when it is wrong. The answer says where a token goes, and never repeats one."""
    with pytest.raises(Unauthenticated, match=message) as caught:
        access().admit(tuple(fields), target)
    assert "`Authorization: Bearer <token>`, `X-Api-Key: <token>` or `?apikey=<token>`" in caught.value.message
    assert MARK not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)


@pytest.mark.parametrize(
    ("fields", "target", "client", "kept"),
    [
        ([], b"/", ANYBODY, ()),
        ([key("PMAK-own")], b"/?apikey=PMAK-own", ANYBODY, ()),
        ([bearer("scim")], b"/", ANYBODY, (bearer("scim"),)),
        ([bearer("5ecret-ci")], b"/", CI, ()),
        ([key("5ecret-ci")], b"/", CI, ()),
        ([], b"/?apikey=5ecret-web", WEB, ()),
    ],
)
def test_without_authentication_everybody_gets_in(
    fields: list[tuple[bytes, bytes]], target: bytes, client: Client, kept: tuple[tuple[bytes, bytes], ...]
) -> None:
    """As the anonymous client, or as the one whose token it is; credentials go in any case."""
    assert access(anonymous=ANYBODY).admit(tuple(fields), target) == Admission(client, kept, b"/")


def test_places_can_be_named_otherwise() -> None:
    """The refusal names them as well."""
    other = access(key_header="X-Other", key_query="token")
    assert other.admit(((b"x-other", b"5ecret-ci"),), b"/").client == CI
    assert other.admit((), b"/?token=5ecret-ci&apikey=x").target == b"/?apikey=x"
    with pytest.raises(Unauthenticated, match=r"`X-Other: <token>` or `\?token=<token>`"):
        other.admit((), b"/")


def test_clients_can_be_replaced() -> None:
    """A token that is gone is unknown from then on."""
    here = access(CI)
    here.replace([WEB], anonymous=None, key_header="X-Api-Key", key_query="apikey")
    assert here.admit((key("5ecret-web"),), b"/").client == WEB
    with pytest.raises(Unauthenticated):
        here.admit((key("5ecret-ci"),), b"/")
    here.replace([], anonymous=ANYBODY, key_header="X-Api-Key", key_query="apikey")
    assert here.admit((key("5ecret-ci"),), b"/").client == ANYBODY


def test_nothing_shows_a_token() -> None:
    """Neither an admission nor who admits."""
    admission = access().admit((key("5ecret-ci"), bearer("5ecret-foreign")), b"/?x=5ecret")
    assert MARK not in repr(admission)
    assert MARK not in repr(vars(access()))


@given(
    st.lists(st.tuples(st.sampled_from([b"X-Api-Key", b"Authorization", b"Cookie"]), st.binary(max_size=20))),
    st.binary(),
)
def test_noise_is_refused(fields: list[tuple[bytes, bytes]], target: bytes) -> None:
    """Bytes of any kind are no token."""
    with pytest.raises(Unauthenticated):
        access().admit(tuple(fields), target)


class Rate:
    """A client with a rate, on a virtual clock."""

    def __init__(self, requests: int, window: Micros) -> None:
        self.client = Client("ci", rate=(requests, window))
        self.access = access(self.client)

    async def accept(self, client: Client | None = None) -> int | None:
        """Try once; returns `Retry-After` when it is refused."""
        try:
            async with asyncio.timeout(0):
                await self.access.accept(client or self.client)
        except TooMany as refusal:
            return refusal.retry_after
        return None

    async def accepted(self, tries: int) -> int:
        """How many of so many tries get in at once."""
        return [await self.accept() for _ in range(tries)].count(None)

    def replace(self, *clients: Client) -> None:
        """A reload."""
        self.access.replace(clients, anonymous=None, key_header="X-Api-Key", key_query="apikey")


@virtual
async def test_a_rate_is_a_bucket_that_leaks() -> None:
    """The whole of it at once, then one for each part of the window; after a long rest no more than the whole."""
    rate = Rate(60, 60 * SECOND)
    assert await rate.accepted(100) == 60
    await asyncio.sleep(1)
    assert await rate.accepted(100) == 1
    await asyncio.sleep(59)
    assert await rate.accepted(100) == 59
    await asyncio.sleep(1000)
    assert await rate.accepted(100) == 60


@virtual
async def test_a_refusal_says_what_the_rate_is() -> None:
    """And when to come back."""
    rate = Rate(1, 90 * SECOND)
    assert await rate.accept() is None
    await asyncio.sleep(0.5)
    with pytest.raises(TooMany, match=r"Client `ci` is over its rate of 1/90s\. Try again in 90 s\.") as caught:
        await rate.access.accept(rate.client)
    assert (caught.value.reason, caught.value.retry_after) == ("client_rate", 90)


@virtual
async def test_without_a_rate_everything_is_accepted() -> None:
    """Nothing is counted."""
    rate = Rate(1, SECOND)
    assert [await rate.accept(Client("free")) for _ in range(100)] == [None] * 100


@given(
    st.integers(1, 200),
    st.integers(1, 3_600_000),
    st.floats(0, 1e7, allow_nan=False),
    st.lists(st.floats(0, 5, allow_nan=False), max_size=5),
)
def test_who_comes_back_when_told_gets_in(requests: int, millis: int, start: float, pauses: list[float]) -> None:
    """At that very moment; a second earlier would have been too early."""

    async def come_back() -> None:
        rate = Rate(requests, millis * 1000)
        for pause in pauses:
            await rate.accepted(requests // 2 + 1)
            loop.now += pause
        await rate.accepted(2 * requests + 2)
        now, told = loop.now, await rate.accept()
        assert told is not None
        if told > 1:
            loop.now = now + told - 1.001
            assert await rate.accept() is not None
        loop.now = now + told
        assert await rate.accept() is None

    loop = VirtualLoop(start)
    run(come_back(), loop)


@virtual
async def test_what_was_used_stays_used_over_a_reload() -> None:
    """As long as the rate is the same; another rate begins anew, and so does a client that was gone."""
    rate = Rate(2, 60 * SECOND)
    assert await rate.accepted(5) == 2
    rate.replace(Client("ci", weight=7, rate=(2, 60 * SECOND)), WEB)
    assert await rate.accept() is not None
    rate.client = Client("ci", rate=(3, 60 * SECOND))
    rate.replace(rate.client)
    assert await rate.accepted(5) == 3
    rate.replace()
    rate.replace(rate.client)
    assert await rate.accepted(5) == 3


@virtual
async def test_clients_have_rates_of_their_own() -> None:
    """One over its own takes nothing from another."""
    rate = Rate(1, 60 * SECOND)
    other = Client("other", rate=(1, 60 * SECOND))
    assert [await rate.accept(client) for client in (None, None, other, other)] == [None, 60, None, 60]


async def test_accepting_never_waits() -> None:
    """Not even for one step of the loop: a coroutine that is driven by hand ends at once."""
    client = Client("ci", rate=(5, 3600 * SECOND))
    here = access(client)
    for _ in range(5):
        with pytest.raises(StopIteration):
            here.accept(client).send(None)
    with pytest.raises(TooMany):
        here.accept(client).send(None)
