import asyncio
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.access import Access, Admission
from keyturn.access.authentication import certificate_holder, clients_by_name, san_kind
from keyturn.access.rate_limits import AuthenticationFailed
from keyturn.core.errors import BadRequest, Forbidden, Unauthenticated
from keyturn.core.model import SECOND, Client, Secret

from tests.access.issuers import NOW, RSA, jwk, jwks, token
from tests.access.issuers import client as issued
from tests.virtual import virtual

SPIFFE = "spiffe://cluster.example/ns/jobs/sa/builder"


def certificate(*names: Any) -> dict[str, Any]:
    """A certificate as `ssl` tells of one."""
    return {"subject": ((("commonName", "ci.example"),),), "subjectAltName": names}


@pytest.mark.parametrize(
    ("san", "name"),
    [
        ("ci.example", ("DNS", "ci.example")),
        ("CI.Example", ("DNS", "ci.example")),
        (SPIFFE, ("URI", SPIFFE)),
        ("urn:uuid:1", ("URI", "urn:uuid:1")),
        ("192.0.2.7", ("IP Address", "192.0.2.7")),
        ("2001:DB8:0:0::7", ("IP Address", "2001:db8::7")),
        ("ci@example.com", ("email", "ci@example.com")),
        ("*.example", ("DNS", "*.example")),
    ],
)
def test_a_configured_name_has_a_kind(san: str, name: tuple[str, str]) -> None:
    """Its form says which."""
    assert san_kind(san) == name


@pytest.mark.parametrize(
    ("san", "entry"),
    [
        ("ci.example", ("DNS", "CI.example")),
        (SPIFFE, ("URI", SPIFFE)),
        ("192.0.2.7", ("IP Address", "192.0.2.7")),
        ("2001:db8::7", ("IP Address", "2001:DB8:0:0:0:0:0:7\n")),
        ("ci@example.com", ("email", "ci@example.com")),
        ("*.example", ("DNS", "*.example")),
    ],
)
def test_a_name_of_the_certificate_says_whose_it_is(san: str, entry: tuple[str, str]) -> None:
    """One of its names is enough; letters of DNS names count without their case, addresses in any form."""
    client = Client("ci", san=san)
    assert certificate_holder(certificate(("DNS", "other.example"), entry), clients_by_name([client])) is client


@pytest.mark.parametrize(
    ("san", "entries"),
    [
        ("ci.example", ()),
        ("ci.example", (("DNS", "x.ci.example"), ("DNS", "*.example"), ("DNS", "ci.example.org"))),
        ("ci.example", (("URI", "ci.example"), ("email", "ci.example"), ("DirName", (("commonName", "ci.example"),)))),
        ("192.0.2.7", (("DNS", "192.0.2.7"),)),
        ("192.0.2.7", (("IP Address", "<invalid>"),)),
        (SPIFFE, (("DNS", SPIFFE), ("URI", SPIFFE + "/x"), ("URI", SPIFFE.upper()))),
        ("*.example", (("DNS", "ci.example"),)),
    ],
)
def test_no_other_name_does(san: str, entries: tuple[Any, ...]) -> None:
    """Not the common name, not a name of another kind that reads the same, and no pattern matches."""
    assert certificate_holder(certificate(*entries), clients_by_name([Client("ci", san=san)])) is None
    assert certificate_holder({}, clients_by_name([Client("ci", san=san)])) is None


def test_the_first_name_that_is_known_decides() -> None:
    """In the order of the certificate; clients that are known otherwise have none."""
    first, second = Client("a", san="a.example"), Client("b", san="b.example")
    known = clients_by_name([Client("token"), first, second, Client("again", san="A.example")])
    assert len(known) == 2
    assert certificate_holder(certificate(("DNS", "c"), ("DNS", "b.example"), ("DNS", "a.example")), known) is second
    assert certificate_holder(certificate(("DNS", "a.example")), known) is first


MARK = "5ecret"
CI = Client("ci", digests=(Secret("5ecret-ci").digest(), Secret("5ecret-ci-new").digest()))
WEB = Client("web", digests=(Secret("5ecret-web").digest(),))
ANYBODY = Client("local")


def access(
    *clients: Client, anonymous: Client | None = None, key_header: str = "X-Api-Key", key_query: str = "apikey"
) -> Access:
    """The clients, with the usual places."""
    return Access(clients or (CI, WEB), anonymous=anonymous, key_header=key_header, key_query=key_query)


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
        ([bearer("5ecret-unknown")], b"/", "`Authorization` is not known"),
        ([bearer("")], b"/", "needs a token"),
        ([key("5ecret-unknown")], b"/", "key header is not known"),
        ([key("5ecret-unknown")], b"/?apikey=5ecret-ci", "key header is not known"),
        ([key("5ecret-unknown"), key("5ecret-ci")], b"/", "key header is not known"),
        ([], b"/?apikey=5ecret-unknown", "query is not known"),
        ([(b"Authorization", b"Basic 5ecret")], b"/?apikey", "`Authorization` is not known"),
        ([(b"Proxy-Authorization", b"Basic 5ecret")], b"/?apikey", "`Proxy-Authorization` is not known"),
        ([bearer("5ecret-unknown"), key("5ecret-unknown")], b"/", "key header is not known"),
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


def cause(refusal: Unauthenticated) -> AuthenticationFailed:
    """Why somebody was refused."""
    assert isinstance(refusal.__cause__, AuthenticationFailed)
    return refusal.__cause__


class Connection:
    """A connection with a certificate, or without."""

    def __init__(self, *names: tuple[str, str]) -> None:
        self.certificate = {"subjectAltName": names} if names else None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peercert": self.certificate, "peername": ("192.0.2.1", 80)}[name]


BUILD = Client("build", san="spiffe://cluster/ns/jobs/sa/build")
BUILD_NAME = ("URI", "spiffe://cluster/ns/jobs/sa/build")


@pytest.mark.parametrize(
    ("fields", "target", "peer", "client"),
    [
        ([], b"/", Connection(BUILD_NAME), BUILD),
        ([key("5ecret-ci")], b"/", Connection(BUILD_NAME), CI),
        ([bearer("5ecret-ci")], b"/", Connection(BUILD_NAME), CI),
        ([], b"/?apikey=5ecret-ci", Connection(BUILD_NAME), CI),
        ([key("PMAK-own")], b"/", Connection(BUILD_NAME), BUILD),
        ([key("5ecret-ci")], b"/", Connection(("URI", "other")), CI),
        ([key("5ecret-ci")], b"/", None, CI),
    ],
)
def test_a_certificate_says_who_calls_when_nothing_else_does(
    fields: list[tuple[bytes, bytes]], target: bytes, peer: Connection | None, client: Client
) -> None:
    """A credential in the request counts before one of its connection, and is removed in any case."""
    assert access(CI, BUILD).admit(tuple(fields), target, peer) == Admission(client, (), b"/")


def test_a_certificate_of_nobody_is_nobodys() -> None:
    """The answer says so; where everybody gets in, its bearer is nobody in particular."""
    stranger = Connection(("DNS", "stranger.example"))
    with pytest.raises(Unauthenticated, match="No name in the certificate is known") as caught:
        access(CI, BUILD).admit((), b"/", stranger)
    assert cause(caught.value).why == "certificate"
    assert access(CI, BUILD, anonymous=ANYBODY).admit((), b"/", stranger).client == ANYBODY
    with pytest.raises(Unauthenticated, match="needs a token") as caught:
        access(CI, BUILD).admit((), b"/", Connection())
    assert cause(caught.value).why == "missing"


@asynccontextmanager
async def issuing(folder: Path, *clients: Client, anonymous: Client | None = None) -> AsyncIterator[Access]:
    """Access for clients with JSON Web Tokens of an issuer whose keys are in a file, at a fixed time."""
    path = folder / "keys.json"
    path.write_bytes(jwks(jwk(RSA, "RS256")))
    here = Access(
        clients,
        anonymous=anonymous,
        key_header="X-Api-Key",
        key_query="apikey",
        wall=lambda: NOW * SECOND,
    )
    await here.start()
    try:
        yield here
    finally:
        await here.stop()


async def admitted(here: Access, fields: list[tuple[bytes, bytes]], target: bytes = b"/") -> Admission:
    """Admit, after a second look if it is worth one."""
    try:
        return here.admit(tuple(fields), target)
    except Unauthenticated as refusal:
        if not await here.refresh_keys(refusal):
            raise
        return here.admit(tuple(fields), target)


def builder(folder: Path) -> Client:
    """A client that is known by its JSON Web Token, or by its token."""
    return replace(issued("builder", jwks_file=str(folder / "keys.json")), digests=CI.digests)


async def test_a_json_web_token_says_who_calls(tmp_path: Path) -> None:
    """In any of the places of a token; before a certificate, and beside a token of the same client."""
    text = token().decode()
    known = builder(tmp_path)
    async with issuing(tmp_path, known, WEB) as here:
        for fields, target in (
            ([bearer(text)], b"/"),
            ([key(text)], b"/"),
            ([], b"/?apikey=" + text.encode()),
            ([bearer("scim"), key(text)], b"/"),
            ([key("5ecret-ci")], b"/"),
        ):
            found = await admitted(here, fields, target)
            assert found.client == known
            assert found.target == b"/"
            assert found.fields == tuple(field for field in fields if field == bearer("scim"))


async def test_a_token_of_a_known_issuer_never_goes_on(tmp_path: Path) -> None:
    """Also one that has expired, beside a credential that is valid: it is the caller's, not the upstream's."""
    late = token(exp=NOW - 1000).decode()
    foreign = bearer(token(iss="https://another.example").decode())
    async with issuing(tmp_path, builder(tmp_path), WEB) as here:
        found = await admitted(here, [bearer(late), key("5ecret-web"), foreign])
        assert (found.client, found.fields) == (WEB, (foreign,))
        found = await admitted(here, [bearer(late), bearer(token().decode())])
        assert (found.client.name, found.fields) == ("builder", ())


async def test_a_refused_json_web_token_is_told_why(tmp_path: Path) -> None:
    """In words that show nothing of it."""
    late = token(exp=NOW - 1000).decode()
    async with issuing(tmp_path, builder(tmp_path)) as here:
        for fields in ([bearer(late)], [key(late)], [bearer(late), key("unknown")]):
            with pytest.raises(
                Unauthenticated, match=r"^The JSON Web Token has expired\. Send a valid one as"
            ) as caught:
                await admitted(here, fields)
            why = cause(caught.value)
            assert (why.why, why.detail) == ("jwt", "a JSON Web Token that has expired")
            assert late not in "".join(traceback.format_exception(caught.value))
            assert not await here.refresh_keys(caught.value)
    async with issuing(tmp_path, builder(tmp_path), anonymous=ANYBODY) as here:
        assert await admitted(here, [bearer(late)]) == Admission(ANYBODY, (), b"/")


@virtual
async def test_failed_attempts_are_slowed() -> None:
    """Those of one address; refusals that are none of this room's are left alone."""
    here = access(CI)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(61):
        with pytest.raises(Unauthenticated) as caught:
            here.admit((), b"/", Connection())
        assert await here.slow(caught.value, "192.0.2.1")
    assert loop.time() - began == pytest.approx(1)
    assert await here.slow(Unauthenticated("Other."), "192.0.2.1")
    assert here.admit((key("5ecret-ci"),), b"/", Connection()).client == CI
    assert loop.time() - began == pytest.approx(1)


def page(**fields: str) -> list[tuple[bytes, bytes]]:
    """Fields that a browser adds to a page's request."""
    return [
        (b"Host", b"127.0.0.1:8080"),
        *((name.replace("_", "-").encode(), v.encode()) for name, v in fields.items()),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        page(Origin="https://evil.example"),
        page(Origin="null"),
        page(origin="http://localhost.evil.example"),
        page(Origin="http://evil.example:8080"),
        page(Sec_Fetch_Site="cross-site"),
        page(Origin="http://127.0.0.1:8080", sec_fetch_site="cross-site"),
    ],
)
def test_a_web_page_is_not_known_by_its_browsers_place(fields: list[tuple[bytes, bytes]]) -> None:
    """A page of another site is not the client that the browser's address or certificate stands for."""
    door = access(anonymous=ANYBODY)
    with pytest.raises(Forbidden, match=r"`Origin` .* `X-Api-Key: <token>` .* leave these fields out"):
        door.admit(tuple(fields), b"/")
    assert door.admit((*fields, key("5ecret-ci")), b"/").client == CI
    assert door.admit((*fields, bearer("5ecret-ci")), b"/").client == CI
    for name in (b"Authorization", b"Proxy-Authorization"):
        with pytest.raises(Forbidden):  # a browser keeps such credentials, and sends them for any page
            door.admit((*fields, (name, b"Basic eDo1ZWNyZXQtY2k=")), b"/")
    certificate_holder = Client("certificate_holder", san="spiffe://a/b")
    with pytest.raises(Forbidden, match="token"):
        access(certificate_holder).admit(tuple(fields), b"/", Certified())


@pytest.mark.parametrize(
    "fields",
    [
        page(),
        page(Origin="http://localhost:3000"),
        page(Origin="http://127.0.0.1:8080", Sec_Fetch_Site="same-origin"),
        page(Origin="http://[::1]:3000", Sec_Fetch_Site="same-site"),
        page(Sec_Fetch_Site="none"),
    ],
)
def test_a_web_page_of_this_machine_is_let_in(fields: list[tuple[bytes, bytes]]) -> None:
    """Somebody works on it, and an address that is typed is nobody's page."""
    assert access(anonymous=ANYBODY).admit(tuple(fields), b"/").client == ANYBODY
    assert access().admit((*fields, (b"Authorization", b"Basic eDo1ZWNyZXQtY2k=")), b"/").client == CI


class Certified:
    """A connection with a certificate."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Its certificate."""
        return {"subjectAltName": (("URI", "spiffe://a/b"),)} if name == "peercert" else default


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ([(b"X-Any", b"5ecret-web")], []),
        ([(b"Cookie", b"a=1; t=5ecret%2Dweb")], [(b"Cookie", b"a=1")]),
        ([(b"X-Any", b"5ecret-nobody")], [(b"X-Any", b"5ecret-nobody")]),
    ],
)
def test_a_client_s_token_in_a_place_of_its_own_goes_nowhere(
    fields: list[tuple[bytes, bytes]], kept: list[tuple[bytes, bytes]]
) -> None:
    """It says nothing about who calls, where nobody has to say that; it is known by its digest."""
    admission = access(anonymous=ANYBODY).admit(tuple(fields), b"/?x=5ecret-web&y=1")
    assert (admission.client, admission.fields) == (ANYBODY, tuple(kept))
    assert admission.target == b"/?y=1"


@pytest.mark.parametrize("path", [b"/x/5ecret-web", b"/x;k=5ecret%2Dweb/y", b"/5ecret-web?apikey=5ecret-web"])
def test_a_path_with_a_token_is_refused(path: bytes) -> None:
    """It cannot go on without it. An anonymous caller may show a client's token there, too."""
    for fields in ((), (key("5ecret-web"),)):
        with pytest.raises(BadRequest, match=r"path holds the caller's token.*`X-Api-Key: <token>`") as caught:
            access(anonymous=ANYBODY).admit(fields, path)
        assert MARK not in caught.value.message


def test_what_is_not_admitted_is_hidden_as_well() -> None:
    """All that stands in a place of a credential, known or not, and clients' tokens anywhere."""
    fields = (
        bearer("5ecret-one"),
        (b"Proxy-Authorization", b"Token 5ecret-two"),
        key("5ecret-three"),
        (b"A", b"5ecret-ci"),
    )
    hidden = access().hidden(fields, b"/5ecret-web/x?apikey=5ecret-four")
    for text in (b"5ecret-one", b"5ecret-two", b"5ecret-three", b"5ecret-four", b"5ecret-ci", b"5ecret-web"):
        assert hidden.mask(b"/a/" + text) == b"/a/***"
    assert hidden.mask(b"/a/5ecret-other") == b"/a/5ecret-other"


def test_a_token_of_the_upstream_s_passes_and_is_hidden() -> None:
    """It stays where it is; only the log goes without it."""
    fields = (key("5ecret-ci"), bearer("5ecret-scim"), (b"X-Any", b"5ecret-scim"))
    admission = access().admit(fields, b"/5ecret-scim")
    assert (admission.fields, admission.target) == (fields[1:], b"/5ecret-scim")
    assert admission.hidden is not None
    assert admission.hidden.is_in(b"/5ecret-scim")
    assert access().admit((key("5ecret-ci"),), b"/5ecret-scim").hidden is None


def test_more_tokens_than_are_looked_for_are_refused() -> None:
    """Any of them could stand somewhere else, and to look for all of them would take too long."""
    query = b"&".join(b"apikey=5ecret-%d" % number for number in range(20))
    with pytest.raises(BadRequest, match="more than 16 tokens"):
        access().admit((key("5ecret-ci"),), b"/?" + query)
    assert access().admit((key("5ecret-ci"),), b"/?" + b"apikey=5ecret-1&" * 20).target == b"/"
