"""Exhausted client shares and exhausted local resources are never reported as an outage of the upstream."""

import os
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.process import KEYS, ROOT, TOKENS, Caller, Keyturn, calling, client, limit, request, serving, until, write
from tests.vectors.origin import OK, WAIT, Answering, Origin

MEGABYTE = 2**20
SLOW, LARGE = b"/slow", b"/large"
ESTABLISHED, KEEP_ALIVE = "01", "02"
"""A connection's state, and its timer, in /proc/net/tcp."""

NO_RESOLVER = """
import os, socket
from aiohttp.resolver import ThreadedResolver

resolve = ThreadedResolver.resolve

async def fails(*arguments, **named):
    if os.path.exists(os.environ["BROKEN"]):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return await resolve(*arguments, **named)

ThreadedResolver.resolve = fails
"""
"""Has the process's look-ups fail for as long as a file is there."""


@asynccontextmanager
async def running(
    folder: Path, upstream: dict[str, Any], environ: dict[str, str] | None = None, **sections: Any
) -> AsyncIterator[Keyturn]:
    """The process with two clients, in front of an upstream."""
    settings = {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "upstream": upstream,
        "pools": {"default": {"limits": [limit(10_000, "60s")], "keys": [{"name": "team-1", "secret": KEYS[0]}]}},
        "clients": [client("ci"), client("reader")],
        **sections,
    }
    async with serving(write(folder, settings), environ) as keyturn:
        yield keyturn


def slowly(path: bytes = SLOW) -> bytes:
    """A request of the client that takes what there is."""
    return request(path.decode(), token=TOKENS["reader"])


async def is_well(keyturn: Keyturn, *, breaker: bool = True) -> None:
    """The other client is served, and nothing was ever told of an outage."""
    reply = await keyturn.ask(request("/me"))
    assert (reply.status, reply.body) == (200, b"ok")
    if breaker:
        assert "the upstream is failing" not in keyturn.process.stderr
        assert await keyturn.metric("keyturn_refused_total", reason="outage") == 0


async def test_slow_requests_of_one_client_leave_a_connection_to_the_others(tmp_path: Path) -> None:
    """By default it has half of them; what it sends besides waits, and is served when one of them has ended."""
    slow = Answering((WAIT, OK))
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin({SLOW: slow}).open())
        keyturn = await stack.enter_async_context(running(tmp_path, {"url": origin.url, "max_connections": 2}))
        callers = [await stack.enter_async_context(calling(keyturn.data)) for _ in range(3)]
        for caller in callers:
            caller.send(slowly())
        await until(lambda: len(origin.arrived(SLOW)) == 1, "one slow request")
        await keyturn.waiting(2)
        for _ in range(10):
            await is_well(keyturn)
        assert await keyturn.metric("keyturn_upstream_connections") == 1
        assert await keyturn.metric("keyturn_upstream_connections_limit") == 2
        assert len(origin.arrived(SLOW)) == 1
        slow.seen.set()
        assert [(await caller.reply()).status for caller in callers] == [200] * 3


async def test_who_waits_for_a_place_is_told_the_truth(tmp_path: Path) -> None:
    """At its deadline, with the name of the setting; the client itself, and then everybody."""
    slow = Answering((WAIT, OK))
    clients = [client("ci"), client("reader", max_in_flight=2)]
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin({SLOW: slow}).open())
        upstream = {"url": origin.url, "max_connections": 2}
        keyturn = await stack.enter_async_context(running(tmp_path, upstream, clients=clients))
        callers = [await stack.enter_async_context(calling(keyturn.data)) for _ in range(2)]
        for caller in callers:
            caller.send(slowly())
        await until(lambda: len(origin.arrived(SLOW)) == 2, "two slow requests")
        for token, reason in (("reader", "max_in_flight"), ("ci", "max_connections")):
            reply = await keyturn.ask(request("/me", "Prefer: wait=0", token=TOKENS[token]))
            assert (reply.status, reply.error) == (429, "rateLimitError")
            assert f"`{'upstream.' if token == 'ci' else ''}{reason}`" in reply.json()["error"]["message"]
            assert int(reply.one("Retry-After")) >= 1
            assert await keyturn.metric("keyturn_refused_total", reason=reason) == 1
        assert await keyturn.metric("keyturn_tokens_available") == 9_998, "no token is held for who waits for a place"
        patient = await stack.enter_async_context(calling(keyturn.data))
        patient.send(request("/me"))
        await keyturn.waiting(1)
        slow.seen.set()
        assert (await patient.reply()).status == 200
        await is_well(keyturn)


@pytest.mark.timeout(300)
async def test_downloads_that_nobody_reads_leave_the_others_alone(tmp_path: Path) -> None:
    """280 of one client, with the default of connections: the other is served all of its requests."""
    large = Answering((b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (8 * MEGABYTE), *[bytes(MEGABYTE)] * 8))
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin({LARGE: large}).open())
        inbound = {"write_timeout": "10m"}
        keyturn = await stack.enter_async_context(running(tmp_path, {"url": origin.url}, inbound=inbound))
        for _ in range(280):
            caller = await stack.enter_async_context(unread(keyturn))
            caller.send(slowly(LARGE))
        await until(lambda: len(origin.arrived(LARGE)) == 128, "as many downloads as a client may have")
        await keyturn.waiting(280 - 128)
        for _ in range(66):
            await is_well(keyturn, breaker=False)
        await is_well(keyturn)
        assert len(origin.arrived(LARGE)) == 128
        assert await keyturn.metric("keyturn_refused_total") == 0


@asynccontextmanager
async def unread(keyturn: Keyturn) -> AsyncIterator[Caller]:
    """A caller that never reads."""
    async with calling(keyturn.data) as caller:
        transport = caller.writer.transport
        transport.pause_reading()  # type: ignore[attr-defined]  # of a socket's
        try:
            yield caller
        finally:
            transport.abort()


async def test_no_descriptor_left_is_named_and_no_outage(tmp_path: Path) -> None:
    """Nobody can be connected to, nor can the configuration be read; behind that everything goes on as before."""
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin().open())
        keyturn = await stack.enter_async_context(running(tmp_path, {"url": origin.url}, retry={"attempts": 1}))
        pid = keyturn.process.pid
        callers = [await stack.enter_async_context(calling(keyturn.data)) for _ in range(10)]
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)

        async def accepted() -> bool:
            return await keyturn.metric("keyturn_connections") == len(callers)

        await until(accepted, "all callers are accepted")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, before[1]))
        for caller in callers:
            reply = await caller.ask(request("/me"))
            assert (reply.status, reply.error) == (503, "localError")
            assert "LimitNOFILE" in reply.json()["error"]["message"]
        (tmp_path / "config.yaml").touch()
        await until(lambda: "the configuration cannot be read now" in keyturn.process.stderr, "it is told")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        await is_well(keyturn)
        assert await keyturn.metric("keyturn_local_errors_total", cause="descriptors") == 10
        assert await keyturn.metric("keyturn_reload_refused_total") == 0
        assert keyturn.process.stderr.count("could not open a connection") == 1
        assert "the new configuration was rejected" not in keyturn.process.stderr
        assert (await callers[0].ask(request("/me"))).status == 200


async def test_a_resolver_that_fails_is_named_and_no_outage(tmp_path: Path) -> None:
    """Its look-ups are this machine's own; a name that it cannot look up says nothing about the upstream."""
    (tmp_path / "sitecustomize.py").write_text(NO_RESOLVER)
    broken = tmp_path / "broken"
    broken.touch()
    environ = {"PYTHONPATH": f"{tmp_path}:{ROOT / 'proxy'}", "BROKEN": str(broken)}
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin().open())
        upstream = {"url": origin.url.replace("127.0.0.1", "localhost")}
        started = running(tmp_path, upstream, environ, retry={"attempts": 1})
        keyturn = await stack.enter_async_context(started)
        for _ in range(10):
            reply = await keyturn.ask(request("/me"))
            assert (reply.status, reply.error) == (503, "localError")
            assert "cannot look up the name of localhost" in reply.json()["error"]["message"]
        broken.unlink()
        await is_well(keyturn)
        assert await keyturn.metric("keyturn_local_errors_total", cause="resolver") == 10


async def test_the_other_side_is_asked_whether_it_is_there(tmp_path: Path) -> None:
    """TCP keep-alive is on for connections of callers and to the upstream, as the kernel says."""
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin().open())
        keyturn = await stack.enter_async_context(running(tmp_path, {"url": origin.url}))
        caller = await stack.enter_async_context(calling(keyturn.data))
        scraper = await stack.enter_async_context(calling(keyturn.admin))
        reply = await caller.ask(request("/me"))
        assert reply.one("Keep-Alive") == "timeout=75"
        await scraper.ask(request("/healthz", token=None))
        ends = [one.writer.get_extra_info("sockname")[1] for one in (caller, scraper)]
        timers = [kept(origin.url), *(kept(f":{end}") for end in ends)]
        assert timers == [True] * 3


def kept(peer: str) -> bool:
    """Whether a connection of this machine to a port has a keep-alive timer of a minute at the most."""
    number = f":{int(peer.rpartition(':')[2]):04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, state, _, timer, *_ = line.split()
        if remote.endswith(number) and state == ESTABLISHED:
            kind, left = timer.split(":")
            return kind == KEEP_ALIVE and int(left, 16) <= 60 * os.sysconf("SC_CLK_TCK")
    return False
