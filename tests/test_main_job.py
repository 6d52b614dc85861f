import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import pytest
import pytest_asyncio
from keyturn.practice import FaultKind, PracticeSettings
from keyturn.practice.endpoints import noise

from tests.process import (
    INTRUDER,
    KEYS,
    SECRETS,
    TOKENS,
    House,
    Reply,
    ask,
    calling,
    client,
    house,
    key_name,
    limit,
    request,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CI, PINNER, READER = TOKENS["ci"], TOKENS["pinner"], TOKENS["reader"]
MAX_BODY = 300_000
UNKNOWN = ("Authorization: Bearer", "X-Api-Key:")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """One process for all tests of this module: each asks for a path of its own."""
    async with house(
        tmp_path_factory.mktemp("main_job"),
        PracticeSettings(tls=True, keys=KEYS, limit=100_000),
        limits=(limit(100_000, "60s"),),
        upstream={"max_body": MAX_BODY},
        clients=[client("ci"), client("reader", allow=["GET /**"]), client("pinner", pin=True)],
        retry={"budget": 1},
    ) as home:
        yield home


def arrived(reply: Reply) -> Any:
    """Return the request as `/echo` received it; the answer must be a 200."""
    assert reply.status == 200, reply
    return reply.json()


def values(echo: Any, name: str) -> list[str]:
    """The values of all fields of a name that have arrived."""
    return [value for known, value in echo["headers"] if known.lower() == name.lower()]


def check_swapped(reply: Reply) -> None:
    """One key of the pool has arrived, its name is told, and no token of ours is anywhere."""
    echo = arrived(reply)
    (key,) = values(echo, "X-Api-Key")
    assert key in KEYS
    assert reply.one("Keyturn-Key") == key_name(key)
    assert [secret for secret in SECRETS if secret not in KEYS and secret in reply.body.decode()] == []


# The credential


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/echo/in/authorization", [f"Authorization: Bearer {CI}"]),
        ("/echo/in/authorization", [f"authorization: bearer  {CI}"]),
        ("/echo/in/header", [f"X-Api-Key: {CI}"]),
        ("/echo/in/header", [f"x-API-key:{CI}"]),
        (f"/echo/in/query?apikey={CI}", []),
        (f"/echo/in/query?a=1&apikey={CI}&b=2", []),
        (f"/echo/in/query?%61pikey={CI}", []),
        (f"/echo/everywhere?apikey={CI}&apikey={READER}", [f"X-Api-Key: {CI}", f"Authorization: Bearer {READER}"]),
        (f"/echo/twice?apikey={INTRUDER}", [f"X-Api-Key: {CI}", f"X-Api-Key: {READER}", f"X-API-KEY: {INTRUDER}"]),
    ],
)
async def test_token_is_swapped_for_a_key(home: House, target: str, fields: list[str]) -> None:
    """A token in any of the three places is taken off, wherever it is repeated, and a key of the pool is put on."""
    check_swapped(await home.ask(request(target, *fields, token=None)))


async def test_authorization_of_the_upstream_passes(home: House) -> None:
    """An `Authorization` that is not a proxy token belongs to the upstream."""
    echo = arrived(await home.ask(request("/echo/scim", "Authorization: Bearer of-the-upstream")))
    assert values(echo, "Authorization") == ["Bearer of-the-upstream"]


async def test_both_keys_are_used(home: House) -> None:
    """The quota with most tokens at hand is taken first."""
    names = {(await home.ask(request("/echo/both"))).one("Keyturn-Key") for _ in range(4)}
    assert names == {"team-1", "team-2"}


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/echo/unknown", []),
        ("/echo/unknown", [f"X-Api-Key: {INTRUDER}"]),
        (f"/echo/unknown?apikey={INTRUDER}", []),
        ("/echo/unknown", [f"Authorization: Bearer {INTRUDER}"]),
        (f"/echo/unknown?apikey={CI}", [f"X-Api-Key: {INTRUDER}"]),
    ],
)
async def test_unknown_caller(home: House, target: str, fields: list[str]) -> None:
    """No credential, or an unknown one, is answered 401 with a challenge, and nothing is sent."""
    reply = await home.ask(request(target, *fields, token=None))
    assert (reply.status, reply.error) == (401, "AuthenticationError")
    assert reply.one("WWW-Authenticate") == "Bearer"
    assert reply.one("Proxy-Status").startswith("keyturn; error=")
    assert INTRUDER.encode() not in reply.head + reply.body
    assert home.arrivals("/echo/unknown") == []


async def test_allow_list(home: House) -> None:
    """Requests outside a client's rules are answered 403 and not sent; HEAD falls under GET."""
    refused = await home.ask(request("/echo/allow/1", token=READER, method="PUT", body=b"{}"))
    assert (refused.status, refused.error) == (403, "forbiddenError")
    assert (await home.ask(request("/echo/allow/2", token=READER))).status == 200
    assert (await home.ask(request("/echo/allow/3", token=READER, method="HEAD"))).status == 200
    assert [arrival.target for arrival in home.arrivals("/echo/allow")] == ["/echo/allow/2", "/echo/allow/3"]


async def test_pinned_key(home: House) -> None:
    """A client with the permission pins a request by `Keyturn-Key`, which is not forwarded; the key must exist."""
    for _ in range(3):
        reply = await home.ask(request("/echo/pin", "Keyturn-Key: team-2", token=PINNER))
        assert values(arrived(reply), "X-Api-Key") == [KEYS[1]]
        assert values(arrived(reply), "Keyturn-Key") == []
    assert (await home.ask(request("/echo/pin", "Keyturn-Key: team-2"))).status == 403
    assert (await home.ask(request("/echo/pin", "Keyturn-Key: team-9", token=PINNER))).status == 400
    assert len(home.arrivals("/echo/pin")) == 3


# Forwarded


@pytest.mark.parametrize(
    "target",
    [
        "/echo/specs/1/files/components%2Fschemas.json",
        "/echo/%7Euser/%41/%c3%a9",
        "/echo//double///slashes/",
        "/echo/./dots/../here",
        "/echo/a;b=c,d:e@f!$'()*+[]|",
        "/echo?",
        "/echo/query?q=a%20b+c&&d=&=e&f&q=%2F?/",
        "/echo/query?access_key=PMAT-of-a-collection",
    ],
)
async def test_path_and_query_byte_for_byte(home: House, target: str) -> None:
    """Path and query arrive as they were sent."""
    echo = arrived(await home.ask(request(target)))
    assert echo["target"].encode("utf-8", "surrogateescape") == target.encode()


async def test_query_without_the_credential(home: House) -> None:
    """The rest of the query beside the credential stays byte for byte."""
    target = f"/echo/beside?b=%2f&apikey={CI}&&a=+%20"
    assert arrived(await home.ask(request(target, token=None)))["target"] == "/echo/beside?b=%2f&&a=+%20"


async def test_fields_in_order(home: House) -> None:
    """Fields arrive in their order and spelling, repetitions included; Via and X-Request-Id are added."""
    given = [
        ("Accept", "application/vnd.api.v10+json"),
        ("x-sPeLLing", "one"),
        ("X-Spelling", "two, three"),
        ("Cookie", "a=b"),
        ("x-sPeLLing", 'f\u00fcnf "quoted" ; x'),
        ("Prefer", "respond-async, wait=20"),
        ("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("X-Empty", ""),
    ]
    lines = [f"{name}: {value}" for name, value in given]
    echo = arrived(await home.ask(request("/echo/fields", *lines)))
    sent = [(name, value.encode("latin-1").decode()) for name, value in echo["headers"]]
    assert [pair for pair in sent if pair in given] == given
    rest = {name for name, value in sent if (name, value) not in given}
    assert rest == {"Host", "X-Api-Key", "Via", "X-Request-Id"}
    assert values(echo, "Host") == [home.api.url.removeprefix("https://")]
    assert values(echo, "Via") == ["1.1 keyturn"]


async def test_request_id(home: House) -> None:
    """A sane `X-Request-Id` is kept, on the request and on the answer; any other is replaced."""
    kept = await home.ask(request("/echo/id", "X-Request-Id: job-17.a"))
    assert values(arrived(kept), "X-Request-Id") == [kept.one("X-Request-Id")] == ["job-17.a"]
    for fields in ([], ["X-Request-Id: not <sane>"], ["X-Request-Id: " + "x" * 500]):
        made = await home.ask(request("/echo/id", *fields))
        assert values(arrived(made), "X-Request-Id") == [made.one("X-Request-Id")]
        assert f"X-Request-Id: {made.one('X-Request-Id')}" not in fields


async def test_via_of_others(home: House) -> None:
    """Our `Via` goes behind those of the proxies before."""
    echo = arrived(await home.ask(request("/echo/via", "Via: 1.0 fred, 1.1 p.example")))
    assert ", ".join(values(echo, "Via")) == "1.0 fred, 1.1 p.example, 1.1 keyturn"


async def test_hop_by_hop_fields(home: House) -> None:
    """Hop-by-hop fields, those that `Connection` lists and `Proxy-*` end here."""
    fields = [
        "Connection: keep-alive, X-Hop, Cookie",
        "Keep-Alive: timeout=5",
        "X-Hop: 1",
        "x-hop: 2",
        "Cookie: a=b",
        "TE: trailers",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eDp5",
        "X-Stays: 3",
    ]
    echo = arrived(await home.ask(request("/echo/hop", *fields)))
    assert {name for name, _ in echo["headers"]} == {"Host", "X-Stays", "X-Api-Key", "Via", "X-Request-Id"}


@pytest.mark.parametrize("listed", ["X-Api-Key", "x-api-key, Via, X-Request-Id, Host", "close, X-Api-Key, apikey"])
async def test_connection_cannot_take_the_key_off(home: House, listed: str) -> None:
    """A caller that lists our own fields in `Connection` does not get them removed."""
    reply = await home.ask(request("/echo/listed", f"Connection: {listed}"))
    check_swapped(reply)
    echo = arrived(reply)
    assert [len(values(echo, name)) for name in ("Via", "X-Request-Id", "Host")] == [1, 1, 1]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_body_with_a_length(home: House, method: str) -> None:
    """A body with a length arrives with that length, whatever the method."""
    body = noise(7)[:100_000]
    echo = arrived(await home.ask(request("/echo/length", method=method, body=body)))
    assert (echo["method"], echo["length"], echo["sha256"]) == (method, len(body), sha256(body).hexdigest())
    assert values(echo, "Content-Length") == ["100000"]
    assert values(echo, "Transfer-Encoding") == []


async def test_body_in_chunks(home: House) -> None:
    """A body in chunks arrives in chunks, without their extensions and trailers."""
    head = request("/echo/chunks", "Transfer-Encoding: chunked", method="POST")
    echo = arrived(await home.ask(head + b"4;ext=1\r\nWiki\r\n6\r\npedia \r\n0\r\nX-Trailer: gone\r\n\r\n"))
    assert (echo["length"], echo["sha256"]) == (10, sha256(b"Wikipedia ").hexdigest())
    assert values(echo, "Transfer-Encoding") == ["chunked"]
    assert values(echo, "Content-Length") == values(echo, "X-Trailer") == []


async def test_no_body_has_length_nothing(home: House) -> None:
    """A POST without a body says so to the upstream, a GET says nothing."""
    assert values(arrived(await home.ask(request("/echo/none", method="POST"))), "Content-Length") == ["0"]
    assert values(arrived(await home.ask(request("/echo/none"))), "Content-Length") == []


async def test_expectation_is_met_here(home: House) -> None:
    """`100-continue` is answered here, and `Expect` does not go on."""
    async with calling(home.keyturn.data) as caller:
        caller.send(request("/echo/expect", "Expect: 100-continue", "Content-Length: 2", method="PUT"))
        assert (await caller.head()).status == 100
        echo = arrived(await caller.ask(b"ok"))
    assert echo["sha256"] == sha256(b"ok").hexdigest()
    assert values(echo, "Expect") == []


# Not forwarded


async def test_too_large_by_its_length(home: House) -> None:
    """A body that is announced too large is answered 413 before any of it is sent."""
    head = request("/echo/large", "Expect: 100-continue", f"Content-Length: {MAX_BODY + 1}", method="PUT")
    async with calling(home.keyturn.data) as caller:
        caller.send(head)
        reply = await caller.head()
    assert (reply.status, reply.one("Connection")) == (413, "close")
    assert home.arrivals("/echo/large") == []


async def test_too_large_in_chunks(home: House) -> None:
    """A body that grows too large on its way is answered 413, and the upstream does not get it whole."""
    async with calling(home.keyturn.data) as caller:
        caller.send(request("/echo/growing", "Transfer-Encoding: chunked", method="PUT"))
        caller.send(b"%x\r\n" % (MAX_BODY + 1) + b"x" * (MAX_BODY + 1) + b"\r\n0\r\n\r\n")
        reply = await caller.reply()
        assert (reply.status, reply.error) == (413, "requestTooLarge")
        assert await caller.ended() == b""
    assert [arrival.status for arrival in home.arrivals("/echo/growing")] in ([], [0])


async def test_just_large_enough(home: House) -> None:
    """A body of exactly `max_body` passes."""
    assert arrived(await home.ask(request("/echo/exact", method="PUT", body=b"x" * MAX_BODY)))["length"] == MAX_BODY


SMUGGLED = request("/echo/smuggled").decode()
CHUNKS = "0\r\n\r\n"
TRAPS = {
    "length beside chunked": ("POST /echo/trap HTTP/1.1", "Content-Length: 4", "Transfer-Encoding: chunked"),
    "chunked beside length": ("POST /echo/trap HTTP/1.1", "Transfer-Encoding: chunked", "Content-Length: 4"),
    "unknown coding": ("POST /echo/trap HTTP/1.1", "Transfer-Encoding: xchunked"),
    "not chunked last": ("POST /echo/trap HTTP/1.1", "Transfer-Encoding: chunked, identity"),
    "two codings": ("POST /echo/trap HTTP/1.1", "Transfer-Encoding: gzip, chunked"),
    "chunked twice": ("POST /echo/trap HTTP/1.1", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "chunked in 1.0": ("POST /echo/trap HTTP/1.0", "Transfer-Encoding: chunked"),
    "two lengths": ("POST /echo/trap HTTP/1.1", "Content-Length: 0", "Content-Length: 50"),
    "list of lengths": ("POST /echo/trap HTTP/1.1", "Content-Length: 0, 0"),
    "negative length": ("POST /echo/trap HTTP/1.1", "Content-Length: -1"),
    "signed length": ("POST /echo/trap HTTP/1.1", "Content-Length: +0"),
    "length with blanks": ("POST /echo/trap HTTP/1.1", "Content-Length: 0 0"),
    "two hosts": ("GET /echo/trap HTTP/1.1", "Host: other.example"),
    "blank before the colon": ("GET /echo/trap HTTP/1.1", "X-Field : 1"),
    "folded line": ("GET /echo/trap HTTP/1.1", "X-Field: 1", " folded"),
    "NUL": ("GET /echo/trap HTTP/1.1", "X-Field: a\0b"),
    "field without a colon": ("GET /echo/trap HTTP/1.1", "field"),
    "no path": ("GET echo/trap HTTP/1.1",),
    "fragment": ("GET /echo/trap#part HTTP/1.1",),
    "bytes beyond ASCII": ("GET /echo/trap/caf\u00e9 HTTP/1.1",),
    "another version": ("GET /echo/trap HTTP/1.2",),
    "no version": ("GET /echo/trap",),
    "no method": ("/echo/trap HTTP/1.1",),
    "no such method": ("BREW /echo/trap HTTP/1.1",),
    "unknown scheme": ("GET ftp://api.getpostman.com/echo/trap HTTP/1.1",),
}


@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS)
async def test_framing_trap(home: House, trap: tuple[str, ...]) -> None:
    """Ambiguous framing is answered 400 and ends the connection; requests behind it are not served."""
    head = "\r\n".join([*trap, "Host: proxy.example", f"X-Api-Key: {CI}", "", ""])
    chunks = CHUNKS if "Transfer-Encoding" in head else ""
    async with calling(home.keyturn.data) as caller:
        caller.send((head + chunks + SMUGGLED).encode())
        reply = await caller.reply()
        assert (reply.status, reply.error) == (400, "badRequest")
        assert reply.one("Connection") == "close"
        assert await caller.ended() == b""
        assert [secret for secret in SECRETS if secret.encode() in reply.head + reply.body] == []
    assert home.arrivals("/echo/trap") == home.arrivals("/echo/smuggled") == []


async def test_no_host(home: House) -> None:
    """A request of HTTP/1.1 without `Host` is malformed."""
    assert (await home.ask(request("/echo/nohost", host=None))).status == 400
    assert home.arrivals("/echo/nohost") == []


async def test_broken_chunk(home: House) -> None:
    """A body that stops being HTTP does not arrive whole, and its caller is told 400."""
    async with calling(home.keyturn.data) as caller:
        caller.send(request("/echo/broken", "Transfer-Encoding: chunked", method="POST"))
        caller.send(b"4\r\nWiki\r\nzz\r\n" + SMUGGLED.encode())
        reply = await caller.reply()
        assert (reply.status, reply.error) == (400, "badRequest")
        assert await caller.ended() == b""
    assert [arrival.status for arrival in home.arrivals("/echo/broken")] in ([], [0])
    assert home.arrivals("/echo/smuggled") == []


@pytest.mark.parametrize("authority", ["api.getpostman.com", "API.getpostman.com:80", "api.postman.com"])
async def test_absolute_form(home: House, authority: str) -> None:
    """An absolute target that names the Postman API is forwarded as its path and query."""
    reply = await home.ask(request(f"http://{authority}/echo/absolute%2F?x=1", host=authority))
    check_swapped(reply)
    assert arrived(reply)["target"] == "/echo/absolute%2F?x=1"


async def test_absolute_form_of_the_proxy(home: House) -> None:
    """The address at which a request arrives is no foreign authority, and an absolute target may lack its path."""
    address = home.keyturn.data
    assert arrived(await home.ask(request(f"{address}/echo/own?y")))["target"] == "/echo/own?y"
    bare = await home.ask(request("http://api.getpostman.com?apikey=" + CI, token=None))
    assert (bare.status, home.arrivals("/")[-1].target) == (404, "/")


@pytest.mark.parametrize(
    "authority",
    ["example.com", "api.getpostman.com:8080", "api.getpostman.com@example.com", "api.eu.postman.com"],
)
async def test_foreign_authority(home: House, authority: str) -> None:
    """An absolute target of somebody else is answered 421: this is no open proxy, nor that of the other Postman API."""
    reply = await home.ask(request(f"http://{authority}/echo/foreign"))
    assert (reply.status, reply.error) == (421, "misdirectedRequest")
    assert home.arrivals("/echo/foreign") == []


@pytest.mark.parametrize(("method", "target"), [("CONNECT", "api.getpostman.com:443"), ("TRACE", "/echo/trace")])
async def test_methods_about_the_connection(home: House, method: str, target: str) -> None:
    """CONNECT and TRACE are not forwarded."""
    reply = await home.ask(request(target, method=method))
    assert (reply.status, reply.error) == (405, "methodNotAllowed")
    assert home.arrivals("/echo/trace") == []


# Answers


async def test_fields_of_every_answer(home: House) -> None:
    """An answer tells who carried it, how long that took, and what is left of the pool instead of one key."""
    reply = await home.ask(request("/me"))
    assert (reply.status, reply.all("Proxy-Status")) == (200, [])
    assert reply.one("Via") == "1.1 keyturn"
    assert reply.one("X-Request-Id")
    assert reply.one("Keyturn-Key") in ("team-1", "team-2")
    timing = dict(part.strip().split(";dur=") for part in reply.one("Server-Timing").split(","))
    assert set(timing) == {"queue", "upstream"}
    assert float(timing["upstream"]) > 0
    assert int(reply.one("X-RateLimit-Limit")) == 2 * 100_000
    assert 100_000 < int(reply.one("X-RateLimit-Remaining")) < 200_000
    assert int(reply.one("X-RateLimit-Reset")) > 1_000_000_000
    assert reply.one("RateLimit-Policy") == '"100000/60s";q=200000;w=60'
    assert reply.one("RateLimit").startswith('"100000/60s";r=')
    assert reply.one("Server") == "nginx"


async def test_fields_of_an_answer_of_the_proxy(home: House) -> None:
    """An answer of the proxy's own says so, and tells the same about its way."""
    reply = await home.ask(request("/me", "X-Request-Id: mine", token=None))
    assert reply.one("Via") == "1.1 keyturn"
    assert reply.one("X-Request-Id") == "mine"
    assert reply.one("Server-Timing") == "queue;dur=0.0, upstream;dur=0.0"
    assert reply.one("Proxy-Status").startswith("keyturn; error=http_request_denied; details=")
    assert reply.one("Content-Type") == "application/json"
    assert set(reply.json()["error"]) == {"name", "message"}
    assert (reply.json()["title"], reply.json()["detail"]) == ("Unauthorized", reply.json()["error"]["message"])


async def test_problem_for_those_who_prefer_it(home: House) -> None:
    """A caller that accepts problems and not JSON gets one (RFC 9457)."""
    reply = await home.ask(request("/me", "Accept: application/problem+json", token=None))
    assert reply.one("Content-Type") == "application/problem+json"
    assert (reply.json()["status"], reply.json()["title"]) == (401, "Unauthorized")


async def test_answers_without_a_body(home: House) -> None:
    """Answers to HEAD, 204 and 304 have no body, and the connection serves the next request."""
    async with calling(home.keyturn.data) as caller:
        whole = await caller.ask(request("/workspaces"))
        head = await caller.ask(request("/workspaces", method="HEAD"))
        assert (head.status, head.body) == (200, b"")
        assert head.one("Content-Length") == str(len(whole.body))
        nothing = await caller.ask(request("/nothing"))
        assert (nothing.status, nothing.all("Content-Length"), nothing.all("Transfer-Encoding")) == (204, [], [])
        unchanged = await caller.ask(request("/workspaces", f"If-None-Match: {whole.one('ETag')}"))
        assert (unchanged.status, unchanged.one("ETag")) == (304, whole.one("ETag"))
        refused = await caller.ask(request("/workspaces", method="HEAD", token=None))
        assert (refused.status, refused.body) == (401, b"")
        assert (await caller.ask(request("/workspaces"))).body == whole.body


@pytest.mark.parametrize("length", [0, 1, 65_536, 1_000_000])
@pytest.mark.parametrize("form", ["bytes", "chunked"])
async def test_body_of_an_answer(home: House, form: str, length: int) -> None:
    """A body comes as the upstream framed it, byte for byte."""
    reply = await home.ask(request(f"/{form}/{length}"))
    assert reply.body == (noise(1) * 4)[:length]
    assert reply.all("Transfer-Encoding") == (["chunked"] if form == "chunked" else [])
    assert reply.all("Content-Length") == ([str(length)] if form == "bytes" else [])


async def test_answer_in_chunks_to_http_1_0(home: House) -> None:
    """A caller of HTTP/1.0 gets a body of unknown length up to the end of the connection."""
    head = request("/chunked/70000").replace(b"HTTP/1.1", b"HTTP/1.0")
    reply = await home.ask(head)
    assert (len(reply.body), reply.all("Transfer-Encoding"), reply.one("Connection")) == (70_000, [], "close")


async def test_compressed_answer_is_untouched(home: House) -> None:
    """An answer in gzip comes in gzip, with its length; who does not ask for gzip does not get it."""
    plain = await home.ask(request("/collections"))
    packed = await home.ask(request("/collections", "Accept-Encoding: gzip"))
    assert (plain.all("Content-Encoding"), packed.one("Content-Encoding")) == ([], "gzip")
    assert packed.one("Content-Length") == str(len(packed.body)) != plain.one("Content-Length")
    assert gzip.decompress(packed.body) == plain.body


async def test_redirect_is_passed_on(home: House) -> None:
    """A redirect is the caller's business."""
    reply = await home.ask(request("/redirect"))
    assert (reply.status, reply.one("Location")) == (302, "/echo/redirected")
    assert home.arrivals("/echo/redirected") == []


async def test_truncated_answer_is_visibly_truncated(home: House) -> None:
    """An answer that the upstream broke off ends before its announced length."""
    async with calling(home.keyturn.data) as caller:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await caller.ask(request("/truncate/200000"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 500])
async def test_error_of_the_upstream(home: House, status: int) -> None:
    """An error of the upstream passes as it is; it was processed, so nothing is sent again."""
    before = len(home.arrivals(f"/status/{status}"))
    reply = await home.ask(request(f"/status/{status}"))
    assert (reply.status, reply.all("Proxy-Status")) == (status, [])
    assert reply.body
    assert len(home.arrivals(f"/status/{status}")) == before + 1


@pytest.mark.parametrize("status", ["503", "504"])
async def test_outage_of_the_upstream(home: House, status: FaultKind) -> None:
    """An outage's answer to a POST is relayed, since the POST may have been processed; a GET is sent again."""
    home.api.fail_next(1, status)
    reply = await home.ask(request(f"/echo/outage/{status}", method="POST", body=b"{}"))
    assert (reply.status, reply.all("Proxy-Status")) == (int(status), [])
    assert reply.body
    assert len(home.arrivals(f"/echo/outage/{status}")) == 1
    home.api.fail_next(1, status)
    assert (await home.ask(request(f"/echo/outage/{status}"))).status == 200
    assert [arrival.status for arrival in home.arrivals(f"/echo/outage/{status}")] == [int(status), int(status), 200]


# Once


async def test_pipelined_requests(home: House) -> None:
    """Requests that come at once over a connection are answered in their order."""
    async with calling(home.keyturn.data) as caller:
        caller.send(b"".join(request(f"/echo/pipe/{number}") for number in range(5)))
        targets = [arrived(await caller.reply())["target"] for _ in range(5)]
    assert targets == [f"/echo/pipe/{number}" for number in range(5)]


async def test_each_request_arrives_once(home: House) -> None:
    """Many requests of many callers over kept-alive connections: each is answered, and arrives exactly once."""

    async def caller(number: int) -> None:
        async with calling(home.keyturn.data) as connection:
            for turn in range(5):
                method, body = ("PUT", b"x" * 1000 * turn) if turn % 2 else ("GET", None)
                echo = arrived(await connection.ask(request(f"/echo/once/{number}/{turn}", method=method, body=body)))
                assert echo["target"] == f"/echo/once/{number}/{turn}"
                assert echo["length"] == len(body or b"")

    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(caller(number))
    targets = [arrival.target for arrival in home.arrivals("/echo/once/")]
    assert sorted(targets) == sorted(f"/echo/once/{number}/{turn}" for number in range(20) for turn in range(5))


async def test_connection_that_the_upstream_closed(home: House) -> None:
    """A kept-alive connection that the upstream has closed meanwhile costs the caller nothing, a POST neither."""
    for number in range(4):
        await home.ask(request("/me"))
        home.api.close_idle_connections()
        method, body = ("POST", b"{}") if number % 2 else ("GET", None)
        assert (await home.ask(request(f"/echo/closed/{number}", method=method, body=body))).status == 200
    assert len(home.arrivals("/echo/closed/")) == 4


async def test_connection_that_broke(home: House) -> None:
    """After a connection that broke off, an idempotent request is sent again under another lease, a POST is not."""
    home.api.fail_next(1, "reset")
    assert (await home.ask(request("/echo/reset/get"))).status == 200
    assert [arrival.status for arrival in home.arrivals("/echo/reset/get")] == [0, 200]
    home.api.fail_next(1, "reset")
    reply = await home.ask(request("/echo/reset/post", method="POST", body=b"{}"))
    assert (reply.status, reply.error) == (502, "upstreamUnreachable")
    assert reply.one("Proxy-Status").startswith("keyturn; error=connection_terminated")
    assert [arrival.status for arrival in home.arrivals("/echo/reset/post")] == [0]


async def test_the_upstream_never_refuses(home: House) -> None:
    """None of this drew a 429, and the metrics tell of the requests without naming more than the configuration does."""
    await ask(home.keyturn.data, request("/echo/metrics", method="PROPFIND"))
    assert home.api.throttled == 0
    assert await home.keyturn.metric("keyturn_upstream_throttled_total") == 0
    assert await home.keyturn.metric("keyturn_requests_total", client="ci", method="other", code="200") >= 1
    page = (await home.keyturn.page("/metrics")).body.decode()
    assert "PROPFIND" not in page
    assert [secret for secret in SECRETS if secret in page] == []
    assert json.loads((await home.keyturn.page("/readyz")).body) == {"status": "ready"}
