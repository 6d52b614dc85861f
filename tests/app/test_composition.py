import asyncio
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
import trustme
from keyturn import config
from keyturn.app import App, ResolvedConfig
from keyturn.practice import PracticeSettings, WindowKind
from keyturn.practice.endpoints import noise

from tests.depth import deep
from tests.process import (
    ADMIN_TOKEN,
    INTRUDER,
    KEYS,
    PIECE,
    SECRETS,
    TOKENS,
    Caller,
    Gate,
    House,
    Reply,
    calling,
    client,
    house,
    limit,
    memory,
    request,
    until,
    write,
)

MEGABYTE = 2**20
LARGE = 64 * MEGABYTE
STREAM = f"/bytes/{LARGE}"
ONE_AT_A_TIME = (limit(10_000, "60s"), limit(1, "50ms", "* /echo/**"))
"""Limits under which `/echo` has one token, and what is read as a stream has many."""
PATIENT = {"settle_bound": "5m"}
"""A request that the gate holds keeps its token until it is let go."""


@asynccontextmanager
async def sending(address: str, data: bytes) -> AsyncIterator[Caller]:
    """A connection on which a request has been sent."""
    async with calling(address) as caller:
        caller.send(data)
        yield caller


async def held(gate: Gate) -> None:
    """See that a request is held up at the upstream."""
    await until(lambda: gate.held, "a request is held up")


# Waiting


@pytest.mark.parametrize("kind", deep(["rolling", "first", "fixed"], brief=["rolling"]))
async def test_a_burst_on_two_keys(tmp_path: Path, kind: WindowKind) -> None:
    """Two hundred requests at once: all are served, each arrives once, and no key is over its limit in any window."""
    practice = PracticeSettings(tls=True, keys=KEYS, limit=25, window=0.5, kind=kind)
    random = Random(1)
    async with house(tmp_path, practice, limits=(limit(25, "500ms"),)) as home:
        home.api.latency = lambda: random.uniform(0, 0.02)
        requests = (home.ask(request(f"/echo/{number}")) for number in range(200))
        replies = await asyncio.gather(*requests)
        assert {reply.status for reply in replies} == {200}
        assert sorted(reply.json()["target"] for reply in replies) == sorted(f"/echo/{n}" for n in range(200))
        assert len(home.api.arrivals) == 200
        assert home.api.throttled == 0
        worst = home.api.worst(0.5)
        assert len(worst) == 2
        assert max(worst.values()) <= 25
        assert max(float(reply.one("Server-Timing").split("dur=")[1].split(",")[0]) for reply in replies) > 500


async def test_no_wait(tmp_path: Path) -> None:
    """A request that may not wait, or cannot be served before its deadline, is refused at once with the time."""
    limits, queue = (limit(1, "60s"),), {"max_wait": "20s", "max_wait_ceiling": "40s"}
    async with house(tmp_path, limits=limits, queue=queue, keys=KEYS[:1]) as home:
        assert (await home.ask(request("/me", "Prefer: wait=0"))).status == 200
        for fields in (["Prefer: wait=0"], ["Prefer: respond-async, wait=5"], [], ["Prefer: wait=1000000"]):
            refused = await home.ask(request("/me", *fields))
            assert (refused.status, refused.error) == (429, "rateLimitError")
            assert 20 < int(refused.one("Retry-After")) <= 61
            assert refused.one("Proxy-Status").startswith("keyturn; error=http_request_denied")
        assert len(home.api.arrivals) == 1
        assert await home.keyturn.metric("keyturn_refused_total", reason="deadline") == 4
        assert (await home.keyturn.page("/readyz")).status == 200


async def test_bounds_of_a_client(tmp_path: Path) -> None:
    """Beyond its rate, or with too many that wait already, a client is answered 429 at once; others are not."""
    clients = [client("ci", max_waiting=1), client("reader", rate={"requests": 2, "window": "60s"})]
    async with house(tmp_path, limits=ONE_AT_A_TIME, clients=clients, keys=KEYS[:1], upstream=PATIENT) as home:
        for status in (200, 200, 429):
            reply = await home.ask(request("/me", token=TOKENS["reader"]))
            assert reply.status == status
        assert 1 <= int(reply.one("Retry-After")) <= 30
        gate = Gate(home.api)
        async with sending(home.keyturn.data, request("/echo/1")) as first:
            await held(gate)
            async with sending(home.keyturn.data, request("/echo/2")) as second:
                await home.keyturn.waiting(1)
                refused = await home.ask(request("/echo/3"))
                assert (refused.status, refused.error) == (429, "rateLimitError")
                gate.open()
                assert [(await caller.reply()).status for caller in (first, second)] == [200, 200]
        assert len(home.arrivals("/echo")) == 2


async def test_urgency(tmp_path: Path) -> None:
    """A client's requests are served by urgency, then by arrival; a request may only raise the client's number."""
    clients = [client("ci", urgency=1)]
    async with house(tmp_path, limits=ONE_AT_A_TIME, clients=clients, keys=KEYS[:1], upstream=PATIENT) as home:
        gate = Gate(home.api)
        order = [("/echo/0", []), ("/echo/7", ["Priority: u=7"]), ("/echo/5", ["Priority: u=5, i"])]
        order += [("/echo/1", []), ("/echo/also-1", ["Priority: u=0"])]
        async with asyncio.TaskGroup() as tasks:
            for number, (target, fields) in enumerate(order):
                tasks.create_task(home.ask(request(target, *fields)))
                await (home.keyturn.waiting(number) if number else held(gate))
            gate.open()
        targets = [arrival.target for arrival in home.arrivals("/echo")]
        assert targets == ["/echo/0", "/echo/1", "/echo/also-1", "/echo/5", "/echo/7"]


async def test_a_429_is_absorbed(tmp_path: Path) -> None:
    """When somebody else has used a key up, the request waits and is sent again; its caller notices only time."""
    practice = PracticeSettings(tls=True, keys=KEYS, limit=3, window=0.5, kind="rolling")
    async with house(tmp_path, practice, limits=(limit(3, "500ms"),), keys=KEYS[:1]) as home:
        tls = ssl.create_default_context(cadata=(home.api.ca_pem or b"").decode())
        async with calling(home.api.url, tls) as foreigner:
            for _ in range(3):
                assert (await foreigner.ask(request("/me", token=KEYS[0]))).status == 200
        reply = await home.ask(request("/echo/again", method="POST", body=b"{}"))
        assert (reply.status, reply.json()["length"]) == (200, 2)
        assert [arrival.status for arrival in home.arrivals("/echo")] == [429, 200]
        assert await home.keyturn.metric("keyturn_upstream_throttled_total", key="team-1", kind="window") == 1
        assert await home.keyturn.metric("keyturn_retries_total", reason="throttled") == 1


async def test_deadline(tmp_path: Path) -> None:
    """Nobody waits past its deadline, however long the upstream takes with the token that it waits for."""
    async with house(tmp_path, limits=ONE_AT_A_TIME, keys=KEYS[:1], upstream=PATIENT) as home:
        gate = Gate(home.api)
        async with sending(home.keyturn.data, request("/echo/1")) as first:
            await held(gate)
            refused = await home.ask(request("/echo/2", "Prefer: wait=1"))
            assert (refused.status, refused.error) == (429, "rateLimitError")
            assert int(refused.one("Retry-After")) >= 1
            gate.open()
            assert (await first.reply()).status == 200
        assert len(home.arrivals("/echo")) == 1
        assert await home.keyturn.metric("keyturn_waiting") == 0


# Callers that go away


async def test_caller_that_leaves_the_queue(tmp_path: Path) -> None:
    """A caller that goes away while it waits frees its place, and nothing of its request is sent."""
    async with house(tmp_path, limits=ONE_AT_A_TIME, keys=KEYS[:1], upstream=PATIENT) as home:
        gate = Gate(home.api)
        async with sending(home.keyturn.data, request("/echo/first")) as first:
            await held(gate)
            async with sending(home.keyturn.data, request("/echo/left", method="PUT", body=b"{}")) as left:
                await home.keyturn.waiting(1)
                left.cut()
            await home.keyturn.waiting(0)
            async with sending(home.keyturn.data, request("/echo/last")) as last:
                await home.keyturn.waiting(1)
                gate.open()
                assert [(await first.reply()).status, (await last.reply()).status] == [200, 200]
        assert [arrival.target for arrival in home.arrivals("/echo")] == ["/echo/first", "/echo/last"]
        assert await home.keyturn.metric("keyturn_requests_total", outcome="gone") == 1
        assert await home.keyturn.metric("keyturn_in_flight") == 0


async def test_caller_that_leaves_its_answer(tmp_path: Path) -> None:
    """A caller that goes away in the middle of its answer closes the upstream's side; the next is served."""
    async with house(tmp_path) as home:
        async with sending(home.keyturn.data, request(STREAM)) as caller:
            assert (await caller.head()).status == 200
            await caller.reader.readexactly(100_000)
            assert home.api.connections == 1
            caller.cut()
        await until(lambda: home.api.connections == 0, "the upstream's connection is closed")
        assert (await home.ask(request("/me"))).status == 200
        assert await home.keyturn.metric("keyturn_in_flight") == 0


async def test_caller_that_leaves_its_request(tmp_path: Path) -> None:
    """One that breaks a body off that streams closes the upstream's side, which does not take it for a whole one."""
    async with house(tmp_path, inbound={"spool_memory": 16_384, "max_spooled": 16_384}) as home:
        head = request("/echo/part", f"Content-Length: {MEGABYTE}", method="PUT")
        async with sending(home.keyturn.data, head + b"x" * 20_000) as caller:
            await until(lambda: home.arrivals("/echo/part"), "the request has arrived")
            caller.cut()
        await until(lambda: home.api.connections == 0, "the upstream's connection is closed")
        assert [arrival.status for arrival in home.arrivals("/echo/part")] == [0]
        assert await home.keyturn.metric("keyturn_in_flight") == 0


async def test_upstream_that_goes_away(tmp_path: Path) -> None:
    """An upstream that dies in the middle of an answer leaves it visibly truncated; nobody is left hanging."""
    async with house(tmp_path) as home:
        async with sending(home.keyturn.data, request(STREAM)) as caller:
            length = int((await caller.head()).one("Content-Length"))
            await caller.reader.readexactly(100_000)
            await home.api.stop()
            assert len(await caller.ended()) < length - 100_000
        reply = await home.ask(request("/me"))
        assert (reply.status, reply.error) == (502, "upstreamUnreachable")
        await home.api.start()
        assert (await home.ask(request("/me"))).status == 200


async def test_upstream_that_nobody_vouches_for(tmp_path: Path) -> None:
    """A certificate that does not verify is answered 502 at once; the key is not sent to whoever that is."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "others.pem")
    async with house(tmp_path, upstream={"ca": "others.pem"}) as home:
        reply = await home.ask(request("/me"))
        assert (reply.status, reply.error) == (502, "upstreamUnreachable")
        assert "`upstream.ca`" in reply.json()["error"]["message"]
        assert await home.keyturn.metric("keyturn_retries_total") == 0
        assert home.api.arrivals == ()


# Large bodies


async def upload(caller: Caller, length: int) -> Reply:
    """PUT that many bytes."""
    caller.send(request("/echo/up", f"Content-Length: {length}", method="PUT"))
    for piece in pieces(length):
        caller.send(piece)
        await caller.writer.drain()
    return await caller.reply()


def pieces(length: int) -> list[bytes]:
    """What `/bytes` answers with."""
    source = noise(1)
    return [source[start % len(source) :][:PIECE] for start in range(0, length, PIECE)]


async def test_large_bodies_need_no_memory(tmp_path: Path) -> None:
    """64 MB up and 64 MB down arrive whole, and the process does not grow by half of one of them."""
    expected = sha256(b"".join(pieces(LARGE))).hexdigest()
    async with house(tmp_path) as home, calling(home.keyturn.data) as caller:
        pid = home.keyturn.process.pid
        await upload(caller, PIECE)
        before = memory(pid)
        echo = (await upload(caller, LARGE)).json()
        grown = [memory(pid) - before]
        assert (echo["length"], echo["sha256"]) == (LARGE, expected)

        caller.send(request(STREAM))
        left, digest = int((await caller.head()).one("Content-Length")), sha256()
        while left:
            digest.update(piece := await caller.reader.read(MEGABYTE))
            assert piece
            left -= len(piece)
            grown.append(memory(pid) - before)
        assert digest.hexdigest() == expected
        assert max(grown) < 30 * MEGABYTE


async def test_reader_that_stops_reading(tmp_path: Path) -> None:
    """While a caller does not read, the upstream is not read either: the answer does not pile up here."""
    async with house(tmp_path) as home, calling(home.keyturn.data) as caller:
        pid = home.keyturn.process.pid
        before = memory(pid)
        caller.send(request(f"/bytes/{2**40}"))
        await caller.head()
        for _ in range(50):
            assert (await home.ask(request(f"/bytes/{MEGABYTE}"))).status == 200
        assert memory(pid) - before < 30 * MEGABYTE
        caller.cut()


async def test_upstream_that_stops_reading(tmp_path: Path) -> None:
    """While the upstream does not read a body, its caller is not read either: the body does not pile up here."""
    async with house(tmp_path) as home, calling(home.keyturn.data) as caller:
        pid = home.keyturn.process.pid
        before = memory(pid)
        caller.send(request("/slow/600000", f"Content-Length: {LARGE}") + b"x" * LARGE)
        await until(lambda: home.arrivals("/slow"), "the request has arrived")
        for _ in range(50):
            assert (await home.ask(request(f"/bytes/{MEGABYTE}"))).status == 200
        assert memory(pid) - before < 30 * MEGABYTE
        await home.api.stop()
        assert (await caller.reply()).status == 502


async def test_caller_with_a_large_body_that_leaves_the_queue(tmp_path: Path) -> None:
    """Its place is free at once, although what it has sent was never read to its end (law 6).

    The body is more than is read ahead, and little enough to leave its sender's machine: TCP tells of an end only
    behind all bytes before it.
    """
    async with house(tmp_path, limits=ONE_AT_A_TIME, keys=KEYS[:1], upstream=PATIENT, drain="1s") as home:
        gate = Gate(home.api)
        async with sending(home.keyturn.data, request("/echo/first")) as first:
            await held(gate)
            put = request("/echo/left", "Prefer: wait=300", method="PUT", body=b"x" * 160 * 1024)
            async with sending(home.keyturn.data, put) as left:
                await home.keyturn.waiting(1)
                left.cut()
            await home.keyturn.waiting(0)
            gate.open()
            assert (await first.reply()).status == 200
        assert [arrival.target for arrival in home.arrivals("/echo")] == ["/echo/first"]


# The end


async def test_drain(tmp_path: Path) -> None:
    """SIGTERM: what waits or is under way is answered, what is new is sent elsewhere, the exit code is 0."""
    async with house(tmp_path, limits=ONE_AT_A_TIME, keys=KEYS[:1], upstream=PATIENT) as home:
        keyturn = home.keyturn
        async with (
            sending(keyturn.data, request(STREAM)) as streaming,
            calling(keyturn.data) as idle,
            calling(keyturn.data) as fresh,
        ):
            await streaming.head()
            assert (await idle.ask(request("/me"))).status == 200
            gate = Gate(home.api)
            async with (
                sending(keyturn.data, request("/echo/1")) as held_up,
                sending(keyturn.data, request("/echo/2")) as waiting,
            ):
                await keyturn.waiting(1)
                await held(gate)
                keyturn.process.signal(signal.SIGTERM)
                await until(keyturn.sends_away, "it drains")
                unready = await keyturn.page("/readyz")
                assert (unready.status, unready.json()["reasons"]) == (503, ["draining"])
                assert (await keyturn.page("/healthz")).status == 200
                assert await idle.ended() == await fresh.ended() == b""
                async with calling(keyturn.data) as late:
                    reply = await late.ask(request("/echo/late"))
                    assert (reply.status, reply.error) == (503, "shuttingDown")
                    assert (reply.one("Connection"), reply.one("Retry-After")) == ("close", "1")
                    assert await late.ended() == b""
                assert home.arrivals("/echo/late") == []
                gate.open()
                for caller in (held_up, waiting):
                    reply = await caller.reply()
                    assert (reply.status, reply.one("Connection")) == (200, "close")
                    assert await caller.ended() == b""
            async with calling(keyturn.data):
                assert len(await streaming.ended()) == LARGE
                assert await keyturn.process.ended() == 0


async def test_lame_duck(tmp_path: Path) -> None:
    """With `lame_duck`, callers are served for a while after SIGTERM, though it is not ready; no connection is kept."""
    async with house(tmp_path, lame_duck="10m") as home, calling(home.keyturn.data) as kept:
        keyturn = home.keyturn
        assert (await kept.ask(request("/me"))).one("Connection") == "keep-alive"
        keyturn.process.signal(signal.SIGTERM)
        await until(lambda: "shutting down" in keyturn.process.stderr, "it has been told")
        unready = await keyturn.page("/readyz")
        assert (unready.status, unready.json()["reasons"]) == (503, ["draining"])
        last = await kept.ask(request("/me"))
        assert (last.status, last.one("Connection")) == (200, "close")
        assert await kept.ended() == b""
        assert (await keyturn.ask(request("/me"))).status == 200
        keyturn.process.signal(signal.SIGTERM)
        assert await keyturn.process.ended() == 1


async def test_a_pool_without_keys_beside_one_that_serves(tmp_path: Path) -> None:
    """Ready while any pool can serve; requests of the empty pool are refused, and without any key it is not ready."""
    (tmp_path / "empty").mkdir()
    team = {"keys": [{"name": "a", "secret": KEYS[0]}]}
    clients = [client("ci"), client("reader", pool="later")]
    for default, ready in ((team, True), ({"keys_dir": "empty"}, False)):
        pools = {"default": default, "later": {"keys_dir": "empty"}}
        async with house(tmp_path, pools=pools, clients=clients) as home:
            page = await home.keyturn.page("/readyz")
            refused = await home.ask(request("/me", token=TOKENS["reader"]))
            assert (refused.status, refused.error) == (503, "noKeyAvailable")
            assert (await home.ask(request("/me"))).status == (200 if ready else 503)
            assert page.status == (200 if ready else 503)
            if not ready:
                assert page.json()["reasons"] == ["the pool default has no key", "the pool later has no key"]


async def test_end_of_the_drain(tmp_path: Path) -> None:
    """Requests that still wait when the drain ends are refused with 503; the log says how many others are cut."""
    async with house(tmp_path, limits=ONE_AT_A_TIME, keys=KEYS[:1], upstream=PATIENT, drain="300ms") as home:
        keyturn, gate = home.keyturn, Gate(home.api)
        async with sending(keyturn.data, request("/echo/1")):
            await held(gate)
            async with sending(keyturn.data, request("/echo/2")) as waiting:
                await keyturn.waiting(1)
                keyturn.process.signal(signal.SIGTERM)
                refused = await waiting.reply()
                assert (refused.status, refused.error) == (503, "shuttingDown")
                assert (refused.one("Connection"), refused.one("Retry-After")) == ("close", "1")
            assert await keyturn.process.ended() == 1
        gate.open()
        assert home.arrivals("/echo/2") == []


async def test_a_limit_that_is_higher_upstream(tmp_path: Path) -> None:
    """It is said once, with the setting to change, and shown wherever somebody looks; nothing is raised."""
    practice = PracticeSettings(tls=True, keys=KEYS[:1], limit=300, window=60)
    async with house(tmp_path, practice, keys=KEYS[:1], limits=(limit(60, "60s"),)) as home:
        for _ in range(5):
            assert (await home.ask(request("/me"))).status == 200
        setting = "pools.default.limits[0].requests: 300"
        await until(lambda: setting in home.keyturn.process.stderr, "it is said")
        assert await home.keyturn.metric("keyturn_upstream_limit", pool="default", limit="60/60s") == 300
        assert await home.keyturn.metric("keyturn_tokens_limit", pool="default") == 60
        (pool,) = (await home.keyturn.page("/status.json")).json()["pools"]
        assert [one["setting"] for one in pool["upstream_limits"]] == [setting]
        assert home.keyturn.process.stderr.count(setting) == 1


# The beginning


async def test_another_budget_of_bytes_holds_at_once(tmp_path: Path) -> None:
    """For both listeners, which share it."""
    app = App(config.load(write(tmp_path, {"pools": {"default": {"keys": [{"name": "a", "secret": KEYS[0]}]}}}), {}))
    assert app._data._buffers is app._admin._buffers
    other = {"pools": {"default": {"keys": [{"name": "a", "secret": KEYS[0]}]}}, "inbound": {"max_buffered": 1 << 21}}
    await app.adopt(ResolvedConfig.of(config.load(write(tmp_path, other), {})))
    assert app._data._buffers.limit == 1 << 21
    await app.stop()


async def test_not_ready_before_the_start(tmp_path: Path) -> None:
    """A process that does not listen yet is not ready; one without a request so far has gauges all the same."""
    path = write(tmp_path, {"pools": {"default": {"keys": [{"name": "a", "secret": KEYS[0]}]}}})
    app = App(config.load(path, {}))
    assert app.unready() == ("starting",)
    levels = await app.status.levels()
    assert [(level.available, level.size) for level in levels.buckets] == [(60, 60)]
    assert (app.data_addresses, app.admin_addresses) == ([], [])
    await app.stop()


async def test_inbound_tls(tmp_path: Path) -> None:
    """With `tls` callers speak HTTPS; with `client_ca` they need a certificate of their own."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "callers.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    tls = {"cert": "server.pem", "key": "server.key", "client_ca": "callers.pem"}
    async with house(tmp_path, tls=tls) as home:
        assert home.keyturn.data.startswith("https://")
        unknown, known = ssl.create_default_context(), ssl.create_default_context()
        for context in (unknown, known):
            authority.configure_trust(context)
        authority.issue_cert("caller.example").configure_cert(known)
        async with calling(home.keyturn.data, known) as caller:
            assert (await caller.ask(request("/me"))).status == 200
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            async with calling(home.keyturn.data, unknown) as stranger:
                await stranger.ask(request("/me"))


async def test_pages_of_the_admin_listener(tmp_path: Path) -> None:
    """A process with tokens or without is ready; the data listener has none of the admin listener's pages."""
    async with house(tmp_path, limits=(limit(1, "60s"),), keys=KEYS[:1]) as home:
        assert (await home.keyturn.page("/healthz")).status == 200
        assert (await home.ask(request("/healthz"))).status == 404
        assert home.arrivals("/healthz")
        assert (await home.keyturn.page("/readyz")).json() == {"status": "ready"}
        assert await home.keyturn.metric("keyturn_tokens_available", quota="team-1") == 0
        assert await home.keyturn.metric("keyturn_tokens_limit", quota="team-1", limit="1/60s") == 1
        assert await home.keyturn.metric("keyturn_build_info") == 1


# Secrets (law 11)

MALFORMED = (
    f"GET /me HTTP/1.1\r\nHost: a\r\nX-Api-Key {TOKENS['ci']}\r\n\r\n",
    f"GET /me HTTP/1.1\r\nHost: a\r\nX-Api-Key: {TOKENS['ci']}\0\r\n\r\n",
    f"GET /me HTTP/1.1\r\nHost: a\r\n{TOKENS['ci']} : x\r\n\r\n",
    f"GET /me?apikey={TOKENS['ci']} {TOKENS['ci']} HTTP/1.1\r\nHost: a\r\n\r\n",
    f"GET /me?apikey={TOKENS['ci']}#x HTTP/1.1\r\nHost: a\r\n\r\n",
    f"GET {TOKENS['ci']} HTTP/1.1\r\nHost: a\r\n\r\n",
    f"{TOKENS['ci']} /me HTTP/1.1\r\nHost: a\r\n\r\n",
    f"GET /me HTTP/{TOKENS['ci']}\r\nHost: a\r\n\r\n",
    f"GET /me HTTP/1.1\r\nHost: a\r\nX-Api-Key: {TOKENS['ci']}{'x' * 70_000}\r\n\r\n",
    f"GET /me HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {TOKENS['ci']}\r\n\r\n",
    f"GET /me HTTP/1.1\r\nHost: a\r\nContent-Length: {TOKENS['ci']}\r\n\r\n",
    f"POST /me?apikey={TOKENS['ci']} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{TOKENS['ci']}\r\n",
    f"GET http://{TOKENS['ci']}@example.com/me?apikey={TOKENS['ci']} HTTP/1.1\r\nHost: a\r\n\r\n",
)


async def provoke(home: House) -> AsyncIterator[tuple[int, Reply]]:
    """Requests that end in every way there is, the status that each should have, and its answer."""
    one = "/environments"
    yield 200, await home.ask(request("/me"))
    yield 200, await home.ask(request(f"/me?apikey={TOKENS['ci']}", f"Authorization: Bearer {TOKENS['reader']}"))
    yield 404, await home.ask(request(f"/nowhere?apikey={TOKENS['ci']}&q=1", token=None))
    yield 401, await home.ask(request(f"/me?apikey={INTRUDER}", token=None))
    yield 401, await home.ask(request("/me", f"Authorization: Bearer {INTRUDER}", token=INTRUDER))
    yield 403, await home.ask(request("/me", method="DELETE", token=TOKENS["reader"]))
    yield 403, await home.ask(request("/me", f"Keyturn-Key: {KEYS[0]}"))
    yield 400, await home.ask(request("/me", f"Keyturn-Key: {KEYS[0]}", token=TOKENS["pinner"]))
    yield 421, await home.ask(request(f"http://example.com/me?apikey={INTRUDER}"))
    yield 200, await home.ask(request(one))
    yield 429, await home.ask(request(one, "Prefer: wait=0"))
    yield 504, await home.ask(request("/slow/600000"))
    yield 413, await home.ask(request("/me", f"Content-Length: {10**12}", f"X-Api-Key: {TOKENS['ci']}"))
    home.api.fail_next(1, "reset")
    yield 502, await home.ask(request("/me", method="POST", body=TOKENS["ci"].encode()))
    await home.api.stop()
    yield 502, await home.ask(request("/me"))
    await home.api.start()
    home.api.revoke(KEYS[0])
    yield 503, await home.ask(request("/me"))


async def test_no_secret_is_ever_shown(tmp_path: Path) -> None:
    """No credential of anybody is in an answer, a metric, a page or the log, however a request ends."""
    practice = PracticeSettings(tls=True, keys=KEYS, limit=10_000, echo_secrets=False)
    clients = [
        {"name": "ci", "token": TOKENS["ci"]},
        client("reader", allow=["GET /**"]),
        client("pinner", pin=True),
    ]
    async with house(
        tmp_path,
        practice,
        limits=(limit(10_000, "60s"), limit(1, "60s", "GET /environments")),
        keys=KEYS[:1],
        upstream={"response_timeout": "500ms"},
        clients=clients,
        admin_token=ADMIN_TOKEN,
        log={"level": "debug", "format": "text"},
    ) as home:
        seen: list[Reply] = []
        for data in MALFORMED:
            async with sending(home.keyturn.data, data.encode()) as caller:
                seen.append(await caller.reply())
            assert seen[-1].status in (400, 421, 431), seen[-1]
        async for status, reply in provoke(home):
            assert reply.status == status, reply
            seen.append(reply)
        pages = ("/metrics", "/readyz", "/healthz", f"/{KEYS[0]}?token={ADMIN_TOKEN}")
        seen += [await home.keyturn.page(path) for path in pages]
        said = b"\n".join(reply.head + reply.body for reply in seen).decode("latin-1")
        home.keyturn.process.signal(signal.SIGTERM)
        assert await home.keyturn.process.ended() == 0
        assert [secret for secret in SECRETS if secret in said] == []
        assert [secret for secret in SECRETS if secret in home.keyturn.process.stderr] == []
        assert "draining" in home.keyturn.process.stderr
