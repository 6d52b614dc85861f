"""Every answer of the proxy's own, row by row of its table, through the real process and over real sockets."""

import json
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from keyturn.practice import PracticeApi, PracticeSettings

from tests.process import Keyturn, Reply, calling, request, serving, write
from tests.vectors.origin import Answering, Origin

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADMIN = "secret-token-of-the-admin"
CLIENTS = ("plain", "bound", "rated", "full", "spent", "paused", "dead", "slow", "broken", "out")
"""Each has a pool of its name, so that none hears of another's."""

RATES = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit-Policy", "RateLimit")
PROXY_STATUS = re.compile(r'keyturn; error=([a-z_]+); details="[^"]+"')
PROBLEM = "Accept: application/problem+json"
AROUND = "Via: " + ", ".join(["1.1 keyturn"] * 4)
INVALID = b'{"error":{"name":"AuthenticationError","message":"Invalid API Key."}}'


def ask(client: str | None, target: str = "/x", *fields: str, **more: Any) -> bytes:
    """A request of a client."""
    return request(target, *fields, token=client and f"token-of-{client}", **more)


def dead() -> Answering:
    """The upstream does not accept the key."""
    return Answering((b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%b" % (len(INVALID), INVALID),))


def settings(url: str, **more: Any) -> dict[str, Any]:
    """A configuration with a pool and a client for each case."""
    return {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "admin_token": ADMIN,
        "inbound": {"max_head": 8192, "max_target": 1024, "head_timeout": "2s", "body_timeout": "500ms"},
        "upstream": {"url": url, "max_body": 1000, "response_timeout": "1s"},
        "retry": {"attempts": 1},
        "pools": {
            name: {
                "limits": [{"requests": 1 if name in ("spent", "full") else 100, "window": "60s"}],
                "keys": [{"name": f"key-{name}", "secret": f"secret-of-{name}"}],
            }
            for name in CLIENTS
        },
        "clients": [
            {"name": name, "token": f"token-of-{name}", "pool": name}
            | ({"allow": ["GET /here/**"]} if name == "bound" else {})
            | ({"rate": {"requests": 1, "window": "60s"}} if name == "rated" else {})
            | ({"max_waiting": 0} if name == "full" else {})
            for name in CLIENTS
        ],
        **more,
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def origin() -> AsyncIterator[Origin]:
    """The upstream: what it answers follows from the path."""
    origin = Origin({b"/never": Answering(then="never"), b"/reset": Answering((), "reset"), b"/dead": dead()})
    async with origin.open():
        yield origin


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyturn(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Keyturn]:
    """The process."""
    async with serving(write(tmp_path_factory.mktemp("refusals"), settings(origin.url))) as keyturn:
        yield keyturn


def check(reply: Reply, status: int, name: str, error: str, *, wait: tuple[int, int] | None, known: bool) -> None:
    """See that an answer is what its row says, and that it has the fields of every answer."""
    assert (reply.status, reply.error) == (status, name)
    assert set(reply.json()["error"]) == {"name", "message"}
    found = PROXY_STATUS.fullmatch(reply.one("Proxy-Status"))
    assert found, reply.head
    assert found[1] == error
    for field in ("Via", "X-Request-Id", "Server-Timing", "Date", "Content-Length"):
        reply.one(field)
    assert [wait is not None and wait[0] <= int(told) <= wait[1] for told in reply.all("Retry-After")] == (
        [] if wait is None else [True]
    )
    assert [len(reply.all(field)) for field in RATES] == [int(known)] * len(RATES)
    assert reply.all("WWW-Authenticate") == (["Bearer"] if status == 401 else [])


async def test_who_is_not_known(keyturn: Keyturn) -> None:
    """401, and how to come in."""
    for data in (ask(None), ask("nobody")):
        check(await keyturn.ask(data), 401, "AuthenticationError", "http_request_denied", wait=None, known=False)


async def test_what_is_not_allowed(keyturn: Keyturn) -> None:
    """403 by the client's rules."""
    check(await keyturn.ask(ask("bound")), 403, "forbiddenError", "http_request_denied", wait=None, known=True)


async def test_a_body_that_is_too_large(keyturn: Keyturn) -> None:
    """413 before any of it is read."""
    reply = await keyturn.ask(ask("plain", method="POST", body=b"x" * 1001))
    check(reply, 413, "requestTooLarge", "http_request_error", wait=None, known=True)


async def test_what_is_malformed(keyturn: Keyturn) -> None:
    """400, and the connection ends."""
    reply = await keyturn.ask(ask("plain", "/x", "Transfer-Encoding: gzip"))
    check(reply, 400, "badRequest", "http_request_error", wait=None, known=False)
    assert reply.one("Connection") == "close"


async def test_a_client_over_its_rate(keyturn: Keyturn) -> None:
    """429 at once."""
    assert (await keyturn.ask(ask("rated"))).status == 200
    check(await keyturn.ask(ask("rated")), 429, "rateLimitError", "http_request_denied", wait=(55, 60), known=True)


async def test_a_lane_that_is_full(keyturn: Keyturn) -> None:
    """429 at once, though its turn would come in time."""
    assert (await keyturn.ask(ask("full"))).status == 200
    reply = await keyturn.ask(ask("full", "/x", "Prefer: wait=300"))
    check(reply, 429, "rateLimitError", "http_request_denied", wait=(55, 62), known=True)
    assert "wait already" in reply.json()["error"]["message"]


async def test_a_turn_that_cannot_come_in_time(keyturn: Keyturn) -> None:
    """429 at once; nothing is left, and that is told as well."""
    assert (await keyturn.ask(ask("spent"))).status == 200
    reply = await keyturn.ask(ask("spent", "/x", "Prefer: wait=5"))
    check(reply, 429, "rateLimitError", "http_request_denied", wait=(55, 62), known=True)
    assert (reply.one("X-RateLimit-Limit"), reply.one("X-RateLimit-Remaining")) == ("1", "0")
    assert reply.one("RateLimit-Policy") == '"1/60s";q=1;w=60'
    assert re.fullmatch(r'"1/60s";r=0;t=(5[5-9]|6[0-2])', reply.one("RateLimit"))


async def test_keys_that_are_paused(keyturn: Keyturn) -> None:
    """503, and a time at which to look again, though nobody knows when that ends."""
    assert (await keyturn.post("/keys/paused/key-paused/pause", ADMIN)).status == 200
    check(await keyturn.ask(ask("paused")), 503, "noKeyAvailable", "destination_unavailable", wait=(60, 60), known=True)


async def test_keys_that_are_dead(keyturn: Keyturn, origin: Origin) -> None:
    """503, with the time at which one is checked next."""
    origin.answers[b"/me"] = dead()
    reply = await keyturn.ask(ask("dead", "/dead"))
    del origin.answers[b"/me"]
    check(reply, 503, "noKeyAvailable", "destination_unavailable", wait=(1, 20), known=True)


async def test_an_upstream_that_says_nothing(keyturn: Keyturn) -> None:
    """504 after `response_timeout`."""
    reply = await keyturn.ask(ask("slow", "/never"))
    check(reply, 504, "upstreamTimeout", "connection_read_timeout", wait=None, known=True)
    assert reply.one("Keyturn-Key") == "key-slow"


async def test_an_upstream_that_breaks_off(keyturn: Keyturn) -> None:
    """502; the request may have been read."""
    reply = await keyturn.ask(ask("broken", "/reset"))
    check(reply, 502, "upstreamUnreachable", "connection_terminated", wait=None, known=True)


async def test_a_body_that_does_not_come(keyturn: Keyturn) -> None:
    """408 after `body_timeout`, and the connection ends."""
    reply = await keyturn.ask(ask("plain", "/x", "Content-Length: 5", method="POST"))
    check(reply, 408, "requestTimeout", "http_request_error", wait=None, known=True)
    assert reply.one("Connection") == "close"


async def test_a_request_that_goes_round(keyturn: Keyturn, origin: Origin) -> None:
    """508; nothing is sent."""
    reply = await keyturn.ask(ask("plain", "/round", AROUND))
    check(reply, 508, "loopDetected", "proxy_loop_detected", wait=None, known=False)
    assert origin.arrived(b"/round") == []


@pytest.mark.parametrize(
    ("data", "status", "name"),
    [
        (ask("plain", "/" + "x" * 1024, PROBLEM), 414, "targetTooLong"),
        (ask("plain", "/x", PROBLEM, "X: " + "x" * 8192), 431, "headTooLarge"),
        (ask("plain", "/x", PROBLEM, *["X: 1"] * 128), 431, "headTooLarge"),
        (b"GET /x HTTP/1.1\r\n" + PROBLEM.encode(), 408, "requestTimeout"),
    ],
    ids=["a long target", "a large head", "many fields", "a slow head"],
)
async def test_a_head_that_is_not_read_to_its_end(keyturn: Keyturn, data: bytes, status: int, name: str) -> None:
    """Its sender is told in JSON, since nothing of such a head counts, `Accept` no more than the rest; then it ends."""
    async with calling(keyturn.data) as caller:
        reply = await caller.ask(data)
        check(reply, status, name, "http_request_error", wait=None, known=False)
        assert (reply.one("Content-Type"), reply.one("Connection")) == ("application/json", "close")
        assert await caller.ended() == b""


@pytest.mark.parametrize(
    ("data", "status", "name"),
    [
        (ask("plain", "/x", PROBLEM, method="POST", body=b"x" * 1001), 413, "requestTooLarge"),
        (ask("plain", "/x", PROBLEM, "Content-Length: 5", method="POST"), 408, "requestTimeout"),
        (ask("plain", "/x", PROBLEM, AROUND), 508, "loopDetected"),
        (ask(None, "/x", PROBLEM), 401, "AuthenticationError"),
    ],
    ids=["too large", "too slow", "around", "nobody"],
)
async def test_every_other_is_a_problem_to_who_prefers_that(
    keyturn: Keyturn, data: bytes, status: int, name: str
) -> None:
    """`application/problem+json` with the same name, to who accepts that and no JSON."""
    reply = await keyturn.ask(data)
    assert reply.one("Content-Type") == "application/problem+json"
    problem = reply.json()
    assert (reply.status, problem["status"], problem["name"]) == (status, status, name)
    assert {"type", "title", "detail"} < set(problem)


async def test_an_upstream_that_is_not_there(tmp_path: Path) -> None:
    """502 with what failed: the connection was refused, nobody knows its name, its certificate is not trusted."""
    async with PracticeApi(PracticeSettings(tls=True)) as api:
        cases = {
            "http://127.0.0.1:1": "connection_refused",
            "https://nowhere.invalid": "dns_error",
            api.url: "tls_certificate_error",
        }
        for number, (url, error) in enumerate(cases.items()):
            folder = tmp_path / str(number)
            folder.mkdir()
            async with serving(write(folder, settings(url))) as keyturn:
                check(await keyturn.ask(ask("out")), 502, "upstreamUnreachable", error, wait=None, known=True)


async def test_a_store_that_is_lost(origin: Origin, tmp_path: Path) -> None:
    """503 with `on_loss: refuse`."""
    store = {"url": "redis://127.0.0.1:1", "on_loss": "refuse"}
    async with serving(write(tmp_path, settings(origin.url, store=store))) as keyturn:
        reply = await keyturn.ask(ask("plain"))
        check(reply, 503, "storeUnavailable", "proxy_internal_error", wait=(1, 5), known=False)


async def test_a_process_that_drains(origin: Origin, tmp_path: Path) -> None:
    """503 to who still waits when the time for draining is over, and the connection ends with it."""
    path = write(tmp_path, settings(origin.url, queue={"max_wait": "120s"}, drain="1s"))
    async with serving(path) as keyturn, calling(keyturn.data) as caller:
        assert (await keyturn.ask(ask("spent"))).status == 200
        caller.send(ask("spent"))
        await keyturn.waiting(1)
        keyturn.process.signal(signal.SIGTERM)
        reply = await caller.reply()
        check(reply, 503, "shuttingDown", "destination_unavailable", wait=(1, 1), known=True)
        assert reply.one("Connection") == "close"
        assert await caller.ended() == b""


async def test_the_share_of_who_others_wait_beside(origin: Origin, tmp_path: Path) -> None:
    """While others wait for a limit, a caller hears of its own part of it, by its weight."""
    document = settings(origin.url)
    document["pools"] = {
        "default": {"limits": [{"requests": 4, "window": "60s"}], "keys": [{"name": "k", "secret": "s" * 8}]}
    }
    document["clients"] = [
        {"name": name, "token": f"token-of-{name}", "weight": weight} for name, weight in (("a", 1), ("b", 3))
    ]
    async with serving(write(tmp_path, document)) as keyturn, calling(keyturn.data) as other:
        for _ in range(4):
            assert (await keyturn.ask(ask("a"))).one("X-RateLimit-Limit") == "4"
        other.send(ask("b", "/x", "Prefer: wait=120"))
        await keyturn.waiting(1)
        reply = await keyturn.ask(ask("a", "/x", "Prefer: wait=0"))
        assert (reply.status, reply.one("X-RateLimit-Limit"), reply.one("RateLimit-Policy")) == (
            429,
            "1",
            '"4/60s";q=1;w=60',
        )
        assert json.loads(reply.body)["error"]["name"] == "rateLimitError"
