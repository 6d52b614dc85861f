import asyncio
import json
import logging

import pytest
from keyturn.core.errors import Broken, LoopDetected, NoKey, TimedOut, TooMany
from keyturn.core.http import Answer, Request
from keyturn.core.model import SECOND, Client
from keyturn.core.policy import Rule
from keyturn.web.forward import MAX_PASSES, ForwardSettings, LoopDetector

from tests.web.callers import Access, Gateway, World, an_answer, get, split


def name_of(answer: bytes) -> str:
    """`error.name` of an answer."""
    return str(json.loads(split(answer)[2])["error"]["name"])


async def test_a_request_goes_on_as_it_came() -> None:
    """Method, target and fields reach the gateway byte for byte, without the credential and what ends here."""
    async with World().running() as world:
        answer = await world.ask(
            get(
                b"/specs/1/files/a%2Fb.json?apikey=token&x=%41",
                b"X-Api-Key: token",
                b"x-A: \xff",
                b"Accept: b",
                b"X-a: 2",
                b"TE: trailers",
            )
        )
        request = world.gateway.requests[0]
        assert (request.method, request.target) == ("GET", b"/specs/1/files/a%2Fb.json?x=%41")
        assert request.fields == ((b"x-A", b"\xff"), (b"Accept", b"b"), (b"X-a", b"2"))
        assert request.path == "/specs/1/files/a%2Fb.json"
        assert request.body is None
        assert request.client is world.access.client
        assert split(answer)[2] == b"ok"
        log = await world.log()
        assert (log.method, log.path) == ("GET", "/specs/1/files/a%2Fb.json")
        assert (log.client, log.pool, log.key) == ("ci", "team", "team-a")
        assert (log.code, log.outcome, log.reason) == (200, "forwarded", "")
        assert (log.received, log.sent) == (0, 2)
        assert (log.total, log.streamed) == (3000, 1000)
        assert log.id == request.id


@pytest.mark.parametrize(
    ("given", "kept"), [(b"abc-1", True), (b"a b", False), (b"x" * 129, False), (b"", False), (None, False)]
)
async def test_a_sane_request_id_is_kept(given: bytes | None, kept: bool) -> None:
    """The caller's own id goes on when it is harmless; else the request gets a new one."""
    async with World().running() as world:
        await world.ask(get(b"/", *([] if given is None else [b"X-Request-Id: " + given])))
        found = world.gateway.requests[0].id
        assert (found.encode() == given) is kept
        assert kept or len(found) == 32


@pytest.mark.parametrize(
    ("lines", "urgency", "wait"),
    [
        ([], 3, 30),
        ([b"Priority: u=1", b"Prefer: wait=5"], 3, 5),
        ([b"Priority: u=6, i", b"Prefer: respond-async, wait=60"], 6, 60),
        ([b"Priority: nonsense;", b"Prefer: wait=9999"], 3, 300),
        ([b"Prefer: wait=0"], 3, 0),
    ],
)
async def test_the_caller_says_how_urgent_it_is(lines: list[bytes], urgency: int, wait: int) -> None:
    """`Prefer: wait` sets the wait up to the ceiling; `Priority` may only put a request behind others."""
    async with World().running() as world:
        await world.ask(get(b"/", *lines))
        request = world.gateway.requests[0]
        assert (request.urgency, request.wait) == (urgency, wait * SECOND)


async def test_settings_may_change_while_it_runs() -> None:
    """A reload of the configuration holds from the next request on."""
    async with World().running() as world:
        world.forward.settings = ForwardSettings(max_body=1, max_wait=2, max_wait_ceiling=3)
        await world.ask(get())
        assert world.gateway.requests[0].wait == 2


async def test_an_unknown_caller_is_refused() -> None:
    """Without a credential nothing reaches the gateway."""
    async with World(access=Access(required=True)).running() as world:
        answer = await world.ask(get())
        assert answer.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
        assert b"\r\nWWW-Authenticate: Bearer\r\n" in answer
        assert name_of(answer) == "AuthenticationError"
        assert not world.gateway.requests
        log = await world.log()
        assert (log.outcome, log.reason, log.code) == ("refused", "unauthenticated", 401)


async def test_the_connection_is_shown_to_whoever_judges_it() -> None:
    """With its address and, over TLS, its certificate."""
    async with World().running() as world:
        await world.ask(get())
        (peer,) = world.access.peers
        assert peer is not None
        assert peer.get_extra_info("peername")[0] == "127.0.0.1"


async def test_an_unknown_caller_is_answered_when_it_has_been_taken_note_of() -> None:
    """Perhaps late, and when it is one too many, with the end of the connection."""
    async with World(access=Access(required=True)).running() as world:
        assert b"\r\nConnection: close\r\n" in await world.ask(get())
        assert [refusal.message for refusal in world.access.slowed] == ["No credential. Send a token."]
    async with World(access=Access(required=True, cut=True)).running() as world:
        answer = await world.ask(get(close=False))
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"\r\nConnection: close\r\n" in answer


async def test_a_caller_may_be_known_at_a_second_look() -> None:
    """When more was learned of what its request carries; nobody is told of a failed attempt then."""
    async with World(access=Access(required=True, teachable=True)).running() as world:
        answer = await world.ask(get(b"/", b"Content-Length: 2", method=b"PUT", body=b"hi"))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert len(world.access.peers) == 2
        assert world.access.slowed == []


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        (b"GET", b"/collections/1", True),
        (b"HEAD", b"/collections/1", True),
        (b"GET", b"/collections//1", True),
        (b"PUT", b"/collections/1", False),
        (b"GET", b"/collections/../me", False),
        (b"GET", b"/collections/%2e%2e/me", False),
        (b"OPTIONS", b"*", False),
    ],
)
async def test_a_client_may_do_what_its_rules_allow(method: bytes, target: bytes, allowed: bool) -> None:
    """The allow list is asked with the normalised path; what has none matches no rule."""
    client = Client("ci", allow=(Rule.parse("GET /collections/*"),))
    async with World(access=Access(client)).running() as world:
        answer = await world.ask(get(target, method=method))
        assert bool(world.gateway.requests) is allowed
        if not allowed:
            assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
            assert b"client ci (`allow`)" in answer


async def test_only_some_clients_choose_a_key() -> None:
    """`Keyturn-Key` is for clients that may pin; to others it is forbidden, not ignored."""
    async with World().running() as world:
        answer = await world.ask(get(b"/", b"Keyturn-Key: team-a"))
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert name_of(answer) == "forbiddenError"
        assert not world.gateway.requests
    async with World(access=Access(Client("ci", pin=True))).running() as world:
        await world.ask(get(b"/", b"keyturn-key: team-a"))
        assert world.gateway.requests[0].pinned == "team-a"
        assert world.gateway.requests[0].fields == ()


async def test_options_of_everything_passes() -> None:
    """`OPTIONS *` has no path, and goes on as it is."""
    async with World().running() as world:
        await world.ask(get(b"*", method=b"OPTIONS"))
        assert (world.gateway.requests[0].target, world.gateway.requests[0].path) == (b"*", None)


@pytest.mark.parametrize(("method", "target"), [(b"TRACE", b"/me"), (b"CONNECT", b"api.getpostman.com:443")])
async def test_methods_about_the_connection_end_here(method: bytes, target: bytes) -> None:
    """CONNECT and TRACE are refused, and the connection ends."""
    async with World().running() as world:
        answer = await world.ask(get(target, method=method, close=False))
        assert answer.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
        assert b"\r\nAllow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n" in answer
        assert name_of(answer) == "methodNotAllowed"


async def test_a_loop_is_broken() -> None:
    """A request that comes back while it is under way is refused at once; a proxy in front of this one is no loop."""
    answers: list[bytes] = []

    async def reply(request: Request) -> Answer:
        if len(world.gateway.requests) == 2:
            back = [b"Via: 1.1 keyturn, 1.0 other, 1.1 keyturn", b"X-Request-Id: " + request.id.encode()]
            answers.append(await world.ask(get(request.target, *back)))
        return an_answer(b"ok")

    async with World(gateway=Gateway(reply)).running() as world:
        for _ in range(2):
            answer = await world.ask(get(b"/", b"Via: 1.1 keyturn", b"X-Request-Id: id-1"))
            assert answer.startswith(b"HTTP/1.1 200 ")
        assert answers[0].startswith(b"HTTP/1.1 508 Loop Detected\r\n")
        assert b"error=proxy_loop_detected" in answers[0]
        assert len(world.gateway.requests) == 2


async def test_a_rate_counts_what_would_go_on() -> None:
    """A client over its rate is refused with the time at which it may come again."""
    refusal = TooMany("Too fast. Wait.", reason="rate", retry_after=4)
    async with World(access=Access(refusal=refusal)).running() as world:
        answer = await world.ask(get())
        assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert b"\r\nRetry-After: 4\r\n" in answer
        assert (await world.log()).reason == "rate"


@pytest.mark.parametrize(
    ("error", "status", "name", "outcome"),
    [
        (NoKey("No key."), 503, "noKeyAvailable", "refused"),
        (Broken("Lost."), 502, "upstreamUnreachable", "failed"),
        (TimedOut("Late."), 504, "upstreamTimeout", "failed"),
    ],
)
async def test_the_gateways_refusals_are_answers(error: Exception, status: int, name: str, outcome: str) -> None:
    """A failure before the answer becomes an answer of the proxy, and the connection is kept."""

    async def reply(_: Request) -> Answer:
        raise error

    async with World(gateway=Gateway(reply)).running() as world:
        reader, writer = await world.connect()
        for _ in range(2):
            writer.write(get(close=False))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert b"\r\nConnection: keep-alive\r\nKeep-Alive: timeout=75\r\n" in head
            assert b"\r\nRateLimit: team ci GET /me\r\n" in head
            length = int(dict(split(head)[1])[b"Content-Length"])
            assert name_of(head + await reader.readexactly(length)) == name
            log = await world.log()
            assert (log.code, log.outcome, log.reason) == (status, outcome, error.reason)  # type: ignore[attr-defined]
            assert log.problem == (str(error) if outcome == "failed" else "")
        writer.close()


async def test_the_unexpected_is_logged_once_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    """A bug costs one request: 500 in our shape, and a traceback in the log, but none of the request's fields."""

    async def reply(_: Request) -> Answer:
        raise ZeroDivisionError("a bug")

    async with World(gateway=Gateway(reply)).running() as world:
        answer = await world.ask(get(b"/", b"X-Request-Id: id-7", b"Authorization: Basic c2VjcmV0"))
        assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert name_of(answer) == "internalError"
        assert len(caplog.records) == 1
        assert caplog.records[0].name == "keyturn"
        assert "id-7" in caplog.text
        assert "ZeroDivisionError" in caplog.text
        assert "c2VjcmV0" not in caplog.text


async def test_a_caller_that_leaves_while_it_waits_is_gone() -> None:
    """Its handler is cancelled wherever it waits, and nobody is told of a failure."""
    waiting = asyncio.Event()

    async def reply(_: Request) -> Answer:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with World(gateway=Gateway(reply)).running() as world:
        _, writer = await world.connect()
        writer.write(get())
        await waiting.wait()
        writer.close()
        log = await world.log()
        assert (log.outcome, log.code) == ("gone", 0)
        assert world.gateway.ended == 1


async def test_each_request_is_told_once() -> None:
    """Pipelined requests are answered in order, and each has its request log."""

    async def fresh(_: Request) -> Answer:
        return an_answer(b"ok")

    async with World(gateway=Gateway(fresh)).running() as world:
        answer = await world.ask(get(b"/1", close=False), get(b"/2", close=False), get(b"/3"))
        assert answer.count(b"HTTP/1.1 200 Fine\r\n") == 3
        assert [request.target for request in world.gateway.requests] == [b"/1", b"/2", b"/3"]
        assert len(world.journals) == 3


async def test_a_leaving_proxy_still_serves() -> None:
    """About to leave it answers as ever, on kept connections and new ones, but each for one answer more."""

    async def fresh(_: Request) -> Answer:
        return an_answer(b"ok")

    async with World(gateway=Gateway(fresh)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(close=False))
        assert b"Connection: close" not in await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
        world.leaving = True
        writer.write(get(close=False))
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in answer
        writer.close()
        assert (await world.ask(get(close=False))).startswith(b"HTTP/1.1 200 ")


async def test_a_draining_proxy_sends_callers_away() -> None:
    """A new request on a kept connection gets 503 and the end of the connection; one under way is its last."""
    go_on = asyncio.Event()

    async def reply(_: Request) -> Answer:
        await go_on.wait()
        return an_answer(b"ok")

    async with World(gateway=Gateway(reply)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(close=False))
        while not world.gateway.requests:  # real sockets: a few turns of the loop
            await asyncio.sleep(0)
        world.draining = True
        go_on.set()
        answer = await reader.read()
        assert b"\r\nConnection: close\r\n" in answer
        writer.close()
        answer = await world.ask(get(close=False))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert name_of(answer) == "shuttingDown"
        assert b"\r\nRetry-After: 1\r\n" in answer
        assert b"\r\nConnection: close" in answer


async def test_problems_are_for_callers_that_want_them() -> None:
    """`Accept` decides between JSON and `application/problem+json`."""
    async with World(access=Access(required=True)).running() as world:
        answer = await world.ask(get(b"/", b"Accept: application/problem+json"))
        assert json.loads(split(answer)[2])["status"] == 401


async def test_nothing_is_logged_of_ordinary_requests(caplog: pytest.LogCaptureFixture) -> None:
    """The log stays empty: journals tell the story."""
    with caplog.at_level(logging.INFO):
        async with World().running() as world:
            await world.ask(get())
            await world.ask(get(b"/", method=b"TRACE"))
    assert not [record for record in caplog.records if record.name == "keyturn"]


def a_request(request_id: str = "id-1", method: str = "GET", target: bytes = b"/me") -> Request:
    """A request of nobody in particular."""
    return Request(request_id, Client("ci"), method, target, target.decode(), (), None, 3, 0)


def test_a_request_that_comes_back_is_known() -> None:
    """As soon as it does, and however many proxies it has passed on the way round."""
    loops = LoopDetector()
    loops.enter(a_request(), 0)
    for passed in (1, 2, 3):
        with pytest.raises(LoopDetected):
            loops.check("id-1", "GET", b"/me", passed)


def test_a_chain_of_proxies_is_no_loop() -> None:
    """Two requests of one id, through a sidecar and this gateway: each names the sidecar only as it comes in."""
    loops = LoopDetector()
    for _ in range(3):
        loops.check("id-1", "GET", b"/me", 1)
        loops.enter(a_request(), 1)
    with pytest.raises(LoopDetected):
        loops.check("id-1", "GET", b"/me", 2)


@pytest.mark.parametrize(
    ("request_id", "method", "target"), [("id-2", "GET", b"/me"), ("id-1", "PUT", b"/me"), ("id-1", "GET", b"/you")]
)
def test_another_request_is_no_loop(request_id: str, method: str, target: bytes) -> None:
    """Whatever differs."""
    loops = LoopDetector()
    loops.enter(a_request(), 0)
    loops.check(request_id, method, target, 1)


def test_what_has_ended_is_forgotten() -> None:
    """The last of several with one id too; nothing is kept."""
    loops = LoopDetector()
    marks = [loops.enter(a_request(), 0) for _ in range(2)]
    loops.leave(marks[0])
    with pytest.raises(LoopDetected):
        loops.check("id-1", "GET", b"/me", 1)
    loops.leave(marks[1])
    loops.check("id-1", "GET", b"/me", 1)
    assert not loops._in_flight


def test_so_many_proxies_are_a_loop_in_any_case() -> None:
    """Somebody on the way round may give the request another id."""
    with pytest.raises(LoopDetected):
        LoopDetector().check("id-1", "GET", b"/me", MAX_PASSES)
