"""Links to real servers of both kinds."""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from keyturn.config.urls import parse_store_url
from keyturn.core.errors import StartError, StoreLost
from keyturn.core.model import SECOND, Micros
from keyturn.stores import links
from keyturn.stores.links import Link, Script
from keyturn.tasks import finish, spawn

from tests.authorities import FAULTS, LENIENT, Authority, Sort
from tests.stores.servers import (
    KINDS,
    Certificates,
    Server,
    cluster,
    free_port,
    pump,
    sentinel_of,
    server,
    tls_before,
)

PASSWORD = "pa5secret"
PATIENCE: Micros = 30 * SECOND
"""A timeout that no test that passes waits for."""
BRIEF: Micros = SECOND // 5
"""A timeout for calls without an answer."""

ECHO = Script.of("return {KEYS[1], ARGV[1], ARGV[2]}")
COUNT = Script.of("return redis.call('INCR', KEYS[1])")


@pytest.fixture(params=KINDS, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    """Run for each kind of server."""
    return str(request.param)


@pytest.fixture(scope="module")
def shared(kind: str) -> Iterator[Server]:
    """A server that no test stops."""
    with server(kind) as one:
        yield one


@pytest.fixture
def one(shared: Server) -> Server:
    """The shared server, emptied."""
    shared.ask("FLUSHALL")
    shared.ask("SCRIPT", "FLUSH")
    return shared


@pytest.fixture(scope="module")
def nodes(kind: str) -> Iterator[list[Server]]:
    """A cluster of three masters."""
    with cluster(kind) as three:
        yield three


@asynccontextmanager
async def linked(url: str, timeout: Micros = PATIENCE, *, strict_certificates: bool = False) -> AsyncIterator[Link]:
    """Open a link, close it in the end; the configuration accepts its URL."""
    store = parse_store_url(url)
    link = Link(store.reveal(), shown=store.shown, timeout=timeout, strict_certificates=strict_certificates)
    try:
        yield link
    finally:
        await link.close()


async def until(condition: Any, what: str) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def cause(link: Link, script: Script = COUNT, key: str = "k") -> str:
    """Return why a call fails."""
    with pytest.raises(StoreLost) as caught:
        await link.run(script, key)
    assert PASSWORD not in caught.value.cause + str(caught.value)
    assert "\n" not in caught.value.cause
    return caught.value.cause


async def answered(link: Link, script: Script = COUNT, key: str = "k") -> Any:
    """Wait for the first answer, for as long as a failover takes."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await link.run(script, key)
            except StoreLost:
                await asyncio.sleep(0.02)


def on_first(nodes: list[Server]) -> str:
    """Return a key that the first node of a cluster holds."""
    keys = (f"{{{number}}}" for number in range(1000))
    return next(key for key in keys if nodes[0].ask("CLUSTER", "KEYSLOT", key) < 16384 // len(nodes))


# Calls


async def test_a_script_runs_and_answers_in_bytes(one: Server) -> None:
    """A script runs without being known to the server; later calls send its digest only."""
    async with linked(one.url) as link:
        assert await link.run(ECHO, "k", 7, b"\x00\xff") == [b"k", b"7", b"\x00\xff"]
        assert await link.run(COUNT, "k") == 1
        one.ask("SCRIPT", "FLUSH")
        assert await link.run(COUNT, "k") == 2
        assert one.ask("SCRIPT", "EXISTS", COUNT.digest) == [1]


async def test_calls_keep_one_connection(one: Server) -> None:
    """Calls one after another share a connection; simultaneous ones have one each."""
    async with linked(one.url) as link:
        for _ in range(3):
            await link.run(COUNT, "k")
        assert len([line for line in one.ask("CLIENT", "LIST").splitlines() if "cmd=evalsha" in line]) == 1
        answers = await asyncio.gather(*(link.run(ECHO, "k", number, "") for number in range(20)))
        assert [int(answer[1]) for answer in answers] == list(range(20))


async def test_a_unix_socket_and_a_database(one: Server) -> None:
    """A Unix socket works, with the database that the URL names."""
    async with linked(f"unix://{one.socket}?db=3") as link:
        assert await link.run(COUNT, "k") == 1
    async with linked(f"{one.url}/3") as link:
        assert await link.run(COUNT, "k") == 2
    async with linked(one.url) as link:
        assert await link.run(COUNT, "k") == 1
    async with linked(f"{one.url}/999") as link:
        assert "no such database" in await cause(link)


async def test_a_fault_of_a_script_is_told(one: Server) -> None:
    """A script's error has the server's own words, and the link goes on."""
    async with linked(one.url) as link:
        assert "it answered ERR" in await cause(link, Script.of("return nothing.at.all"))
        assert await link.run(COUNT, "k") == 1


def test_a_file_that_is_not_there_stops_the_start() -> None:
    """A missing file is named in a message without passwords."""
    with pytest.raises(StartError, match="cannot use /no/ca") as caught:
        Link(f"rediss://:{PASSWORD}@h?ssl_ca_certs=/no/ca", shown="rediss://:…@h", timeout=SECOND)
    assert str(caught.value).startswith("store.url: ")
    assert PASSWORD not in str(caught.value)


# Authentication


async def test_passwords_and_users(kind: str) -> None:
    """Right credentials work; wrong or missing ones and missing permissions are named."""
    user = "user limited on >pa5secret ~k* resetchannels &wake* +eval +evalsha +incr +subscribe +ping"
    with server(kind, f"requirepass {PASSWORD}", user) as one:
        for login in (f":{PASSWORD}", f"default:{PASSWORD}", f"limited:{PASSWORD}"):
            async with linked(f"redis://{login}@{one.address}") as link:
                assert await link.run(COUNT, "k") > 0
        async with linked(f"redis://:no@{one.address}") as link:
            assert "refuses the user name or the password" in await cause(link)
        async with linked(one.url) as link:
            assert "wants a password" in await cause(link)
        async with linked(f"redis://limited:{PASSWORD}@{one.address}") as link:
            assert "ACL does not allow" in await cause(link, key="other")
            with pytest.raises(StoreLost, match="store of the rate limits") as caught:
                await link.check("k")
            assert "'info'" in caught.value.cause or "can't run this" in caught.value.cause
            complaints: list[StoreLost] = []
            link.listen("other", lambda _: None, complaints.append)
            await until(lambda: complaints, "the channel is refused")
            assert "ACL does not allow" in complaints[0].cause


async def test_a_password_for_a_server_that_has_none(one: Server) -> None:
    """A password for a server without one is reported as a mistake in the configuration."""
    async with linked(f"redis://:{PASSWORD}@{one.address}") as link:
        assert "password" in await cause(link)


# TLS


async def test_tls_with_an_own_ca(one: Server, tmp_path: Path) -> None:
    """A private CA is accepted when configured; without it, or for another name, TLS fails."""
    files = Certificates(tmp_path)
    async with tls_before(one, files.context()) as port:
        async with linked(f"rediss://127.0.0.1:{port}?ssl_ca_certs={files.ca}") as link:
            assert await link.run(COUNT, "k") == 1
        async with linked(f"rediss://127.0.0.1:{port}") as link:
            assert "its certificate is refused" in await cause(link)
        async with linked(f"rediss://localhost:{port}?ssl_ca_certs={files.ca}") as link:
            assert "its certificate is refused" in await cause(link)
    async with linked(f"rediss://{one.address}?ssl_ca_certs={files.ca}", BRIEF) as link:
        assert one.address in await cause(link)


async def test_tls_with_a_certificate_of_our_own(one: Server, tmp_path: Path) -> None:
    """A server that requires client certificates refuses connections without one."""
    files = Certificates(tmp_path)
    async with tls_before(one, files.context(mutual=True)) as port:
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={files.ca}"
        async with linked(f"{url}&ssl_certfile={files.client}&ssl_keyfile={files.key}") as link:
            assert await link.run(COUNT, "k") == 1
        async with linked(url) as link:
            await cause(link)
    assert one.ask("GET", "k") == "1"


@pytest.mark.parametrize("sort", ["conforming", *LENIENT])
async def test_a_company_s_own_authority_is_accepted_unless_certificates_are_strict(
    one: Server, tmp_path: Path, sort: Sort
) -> None:
    """An informal authority is accepted; a strict refusal names server, extension and setting."""
    issued = Authority(tmp_path, sort)
    async with tls_before(one, issued.server_context()) as port:
        url = f"rediss://localhost:{port}?ssl_ca_certs={issued.ca}"
        async with linked(url) as link:
            assert await link.run(COUNT, "k") == 1
        async with linked(url, strict_certificates=True) as link:
            if sort == "conforming":
                assert await link.run(COUNT, "k") == 2
            else:
                said = await cause(link)
                assert f"rediss://localhost:{port}" in said
                extension = FAULTS[sort].partition("` ")[2]
                assert f"its certificate is refused: a certificate of its chain {extension}, and `strict_" in said


def test_on_the_event_loop_of_production(one: Server, tmp_path: Path) -> None:
    """Calls, TLS, refused certificates, timeouts and listening work alike on uvloop."""
    uvloop.run(_on_uvloop(one, Certificates(tmp_path)))


async def _on_uvloop(one: Server, files: Certificates) -> None:
    woken: list[int] = []
    async with linked(f"unix://{one.socket}") as link:
        assert await link.run(COUNT, "k") == 1
    async with tls_before(one, files.context()) as port:
        async with linked(f"rediss://127.0.0.1:{port}?ssl_ca_certs={files.ca}") as link:
            assert await link.run(COUNT, "k") == 2
        async with linked(f"rediss://127.0.0.1:{port}") as link:
            assert "its certificate is refused" in await cause(link)
    async with linked(one.url) as link:
        link.listen("wake", lambda _: woken.append(1))
        await until(lambda: woken, "it listens")
        one.ask("PUBLISH", "wake", "x")
        await until(lambda: len(woken) == 2, "the message comes")
    async with linked(one.url, BRIEF) as link:
        with one.paused():
            assert "no answer within" in await cause(link, ECHO)
        assert await answered(link, Script.of("return 'own'")) == b"own"


# Failures


async def test_a_server_that_is_not_there() -> None:
    """The cause shows the address of an absent server."""
    address = f"127.0.0.1:{free_port()}"
    async with linked(f"redis://:{PASSWORD}@{address}") as link:
        said = await cause(link)
        assert address in said
        assert "not reachable" in said


async def test_a_late_answer_reaches_nobody(kind: str) -> None:
    """A late answer is dropped, and the next call gets its own."""
    with server(kind) as one:
        async with linked(one.url, BRIEF) as link:
            assert await answered(link) == 1
            with one.paused():
                for _ in range(2):
                    assert "no answer within" in await cause(link, ECHO)
            answer = await answered(link, Script.of("return 'own'"))
            assert answer == b"own"


async def test_a_process_that_stood_still_blames_nobody(one: Server) -> None:
    """After the process itself was stopped, an answer that came meanwhile counts."""
    tasks: set[asyncio.Task[Any]] = set()
    async with linked(one.url, BRIEF) as link:
        assert await answered(link) == 1
        with one.paused():
            call = spawn(link.run(COUNT, "k"), name="long ago", owner=tasks)
            for _ in range(20):  # it has been written by then
                await asyncio.sleep(0)
        time.sleep(2 * BRIEF / SECOND)  # noqa: ASYNC251  # nothing of the process moves
        assert await call == 2


async def test_a_cancelled_call_leaves_no_answer_behind(one: Server) -> None:
    """A call after a cancelled one gets a connection of its own."""
    tasks: set[asyncio.Task[Any]] = set()
    async with linked(one.url) as link:
        await link.run(COUNT, "k")
        with one.paused():
            spawn(link.run(COUNT, "k"), name="slow", owner=tasks)
            for _ in range(20):  # it has been written by then
                await asyncio.sleep(0)
            await finish(tasks)
        assert await link.run(ECHO, "k", 1, 2) == [b"k", b"1", b"2"]
    assert one.ask("GET", "k") == "2"


@asynccontextmanager
async def before(one: Server, treat: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[str]:
    """Run a port whose connections to the server go through `treat`."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", one.port)
        spawn(pump(reader, outer), name="there", owner=tasks)
        try:
            await treat(inner, writer)
        finally:
            outer.close()
            writer.close()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        spawn(serve(reader, writer), name="serve", owner=tasks)

    listener = await asyncio.start_server(accepted, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        await finish(tasks)
        await listener.wait_closed()


async def test_a_call_whose_connection_breaks_runs_once(one: Server) -> None:
    """A call on a broken connection is not repeated, since it may have run."""

    async def swallow(inner: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (answer := await inner.read(2**16)).startswith(b"-NOSCRIPT"):
            writer.write(answer)

    async with before(one, swallow) as url, linked(url) as link:
        with pytest.raises(StoreLost, match="does not answer") as caught:
            await link.run(COUNT, "k")
        assert "not reachable" in caught.value.cause
        assert caught.value.broke
    assert one.ask("GET", "k") == "1"


async def test_an_answer_that_nobody_can_read_is_a_loss(one: Server) -> None:
    """An unreadable answer is a loss, and the link goes on."""

    def three(answer: Any) -> Any:
        first, second, third = answer
        return first + second + third

    async with linked(one.url) as link:
        for answer in ("'OK'", "7", "false", "{}", "{1, 2, 'x'}"):
            with pytest.raises(StoreLost) as caught:
                await link.run(Script.of(f"return {answer}"), "k", read=three)
            assert caught.value.cause.endswith("see what stands between, and what it is")
        assert await link.run(Script.of("return {1, 2, 3}"), "k", read=three) == 6


def test_a_connection_that_was_reset_while_it_rested(one: Server) -> None:
    """A reset of an idle connection is a loss, and the next call uses another one."""
    asyncio.run(_after_a_reset(one))
    uvloop.run(_after_a_reset(one))


async def _after_a_reset(one: Server) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def pass_on(inner: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await pump(inner, writer)

    one.ask("FLUSHALL")
    async with before(one, pass_on) as url, linked(url) as link:
        assert await link.run(COUNT, "k") == 1
        way = link._way
        assert way
        pool = way.opened.client.connection_pool  # type: ignore[union-attr]  # of one server
        writers[0].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writers[0].transport.abort()
        resting: Any = pool._available_connections[0]._reader
        await until(lambda: resting.exception() or resting.at_eof(), "the client knows")
        with suppress(StoreLost):
            await link.run(COUNT, "k")
        assert await link.run(COUNT, "k") in (2, 3)


async def test_what_a_cluster_may_have_done_is_not_repeated(nodes: list[Server]) -> None:
    """A stopped node that goes on has run the script once."""
    key = on_first(nodes)
    nodes[0].ask("DEL", key)
    async with linked(f"redis+cluster://{nodes[1].address}", SECOND) as link:
        assert await answered(link, key=key) >= 1
        before_it = int(nodes[0].ask("GET", key))
        with nodes[0].paused():
            assert "no answer within" in await cause(link, key=key)
        assert await answered(link, key=key) == before_it + 2
        assert nodes[0].ask("GET", key) == str(before_it + 2)


async def test_a_restarted_server_is_found_again(kind: str) -> None:
    """The first call after a restart succeeds."""
    with server(kind) as one:
        async with linked(one.url) as link:
            await link.run(COUNT, "k")
            one.kill()
            assert "not reachable" in await cause(link)
            one.start()
            assert await link.run(COUNT, "k") == 1


async def test_a_server_that_refuses_writes(kind: str) -> None:
    """A read-only replica and a full server give causes that say what to do."""
    with server(kind, "maxmemory 1mb", "maxmemory-policy noeviction") as one:
        async with linked(one.url) as link:
            one.ask("CONFIG", "SET", "maxmemory", 1)
            assert "raise its maxmemory" in await cause(link)
            one.ask("CONFIG", "SET", "maxmemory", 0)
            one.ask("REPLICAOF", "127.0.0.1", free_port())
            assert "replica" in await cause(link) or "master" in await cause(link)
            one.ask("REPLICAOF", "NO", "ONE")
            assert await link.run(COUNT, "k") == 1


async def test_what_is_wrong_though_it_answers(kind: str) -> None:
    """A server that may evict keys is reported; one without limit or eviction is fine."""
    with server(kind, "maxmemory 100mb", "maxmemory-policy allkeys-lru") as one:
        async with linked(one.url) as link:
            (warning,) = await link.check("k")
            assert "allkeys-lru" in warning
            assert one.address in warning
            one.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
            assert await link.check("k") == ()
            one.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            one.ask("CONFIG", "SET", "maxmemory", 0)
            assert await link.check("k") == ()


# Listening


async def test_messages_wake(kind: str) -> None:
    """Each message wakes, and so does each new connection, since messages may be missed before it."""
    woken: list[bytes] = []
    complaints: list[StoreLost] = []
    with server(kind) as one:
        async with linked(one.url) as link:
            link.listen("wake", woken.append, complaints.append)
            await until(lambda: len(woken) == 1, "it listens")
            assert one.ask("PUBLISH", "wake", "x") == 1
            await until(lambda: len(woken) == 2, "the message comes")
            one.kill()
            await until(lambda: complaints, "the loss is told")
            one.start()
            await until(lambda: len(woken) == 3, "it listens again")
            assert one.ask("PUBLISH", "wake", "250000") == 1
            await until(lambda: len(woken) == 4, "the message comes")
            assert woken == [b"", b"x", b"", b"250000"]
        await until(lambda: one.ask("PUBLISH", "wake", "x") == 0, "nobody listens any more")


async def test_other_messages_are_not_heard(one: Server) -> None:
    """A link listens to its own channels only."""
    near: list[bytes] = []
    far: list[bytes] = []
    async with linked(one.url) as link:
        link.listen("wake:near", near.append)
        link.listen("wake:far", far.append)
        await until(lambda: near and far, "it listens")
        one.ask("PUBLISH", "wake:other", "1")
        one.ask("PUBLISH", "wake:far", "2")
        one.ask("PUBLISH", "wake:near", "3")
        await until(lambda: len(near) == len(far) == 2, "they come")
        assert (near, far) == ([b"", b"3"], [b"", b"2"])


@pytest.mark.parametrize("finds_out", ["when a call fails", "in time"])
async def test_a_listener_finds_out_that_nobody_calls_it(
    one: Server, finds_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent subscription is replaced by a new connection."""
    monkeypatch.setattr(links, "_SLICE", 0.02)
    monkeypatch.setattr(links, "_SILENCE", 0.1 if finds_out == "in time" else 1_000)
    silent = asyncio.Event()

    async def treat(inner: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await inner.read(2**16):
            if not silent.is_set():
                writer.write(data)

    woken: list[int] = []
    complaints: list[StoreLost] = []
    async with before(one, treat) as url, linked(url, BRIEF) as link:
        link.listen("wake", lambda _: woken.append(1), complaints.append)
        await until(lambda: woken, "it listens")
        one.ask("PUBLISH", "wake", "x")
        await until(lambda: len(woken) == 2, "it is called")
        silent.set()
        if finds_out == "when a call fails":
            await cause(link)
        await until(lambda: complaints, "it finds out")
        silent.clear()
        await until(lambda: len(woken) == 3, "it listens again")
        one.ask("PUBLISH", "wake", "x")
        await until(lambda: len(woken) == 4, "it is called")


async def test_a_listener_that_asks_is_not_woken_by_the_answer(one: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking a silent subscription wakes nobody."""
    monkeypatch.setattr(links, "_SLICE", 0.01)
    monkeypatch.setattr(links, "_SILENCE", 0.01)
    woken: list[int] = []
    complaints: list[StoreLost] = []
    async with linked(one.url) as link:
        link.listen("wake", lambda _: woken.append(1), complaints.append)
        one.ask("CONFIG", "RESETSTAT")
        await until(lambda: _subscribed(one) > 5, "it has asked some times")
        assert woken == [1]
        assert not complaints


def _subscribed(one: Server) -> int:
    """Return how many subscriptions there were."""
    told = one.ask("INFO", "commandstats").partition("cmdstat_subscribe:calls=")[2]
    return int(told.partition(",")[0] or 0)


# Sentinel


async def test_sentinels_name_the_master(kind: str) -> None:
    """A dead sentinel is skipped, and after a failover calls reach the new master."""
    woken: list[int] = []
    with (
        server(kind) as master,
        server(kind, f"replicaof 127.0.0.1 {master.port}") as replica,
        server(kind, sentinel=sentinel_of(master)) as sentinel,
    ):
        await until(lambda: "master_link_status:up" in replica.ask("INFO", "replication"), "the replica follows")
        url = f"redis+sentinel://127.0.0.1:{free_port()},{sentinel.address}/main"
        async with linked(url) as link:
            assert await link.run(COUNT, "k") == 1
            assert master.ask("GET", "k") == "1"
            link.listen("wake", lambda _: woken.append(1))
            await until(lambda: woken, "it listens")
            await until(lambda: sentinel.ask("SENTINEL", "REPLICAS", "main"), "the sentinel knows the replica")
            master.kill()
            await answered(link)
            assert "role:master" in replica.ask("INFO", "replication")
            assert replica.ask("GET", "k") in ("1", "2")
            await until(lambda: replica.ask("PUBLISH", "wake", "x") == 1, "it listens to the new master")
        async with linked(f"redis+sentinel://{sentinel.address}/other") as link:
            assert "No master found for 'other'" in await cause(link)


async def test_a_demoted_master_is_left(kind: str) -> None:
    """After READONLY the next call asks the sentinels again."""
    with server(kind) as one, server(kind) as other, server(kind, sentinel=sentinel_of(one)) as sentinel:
        async with linked(f"redis+sentinel://{sentinel.address}/main") as link:
            assert await link.run(COUNT, "k") == 1
            sentinel.ask("SENTINEL", "REMOVE", "main")
            sentinel.ask("SENTINEL", "MONITOR", "main", "127.0.0.1", other.port, 1)
            one.ask("REPLICAOF", "127.0.0.1", other.port)
            await cause(link)
            assert await link.run(COUNT, "k") >= 1
            assert other.ask("GET", "k")


async def test_sentinels_may_have_a_password_of_their_own(kind: str) -> None:
    """Sentinels and servers get their own passwords only."""
    with server(kind, f"requirepass {PASSWORD}") as one:
        watching = f"{sentinel_of(one)}\nsentinel auth-pass main {PASSWORD}\nrequirepass other-{PASSWORD}"
        with server(kind, sentinel=watching) as sentinel:
            url = f"redis+sentinel://:{PASSWORD}@{sentinel.address}/main"
            async with linked(f"{url}?sentinel_password=other-{PASSWORD}") as link:
                assert await link.run(COUNT, "k") == 1
            async with linked(url) as link:
                assert "no sentinel names a master" in await cause(link)


# Cluster


async def test_a_cluster_holds_each_key_somewhere(nodes: list[Server]) -> None:
    """A key is found from any node, also behind an absent one, and scripts are loaded on each node."""
    keys = [f"{{pool-{number}}}x" for number in range(12)]
    for server_of in nodes:
        server_of.ask("FLUSHALL")
        server_of.ask("SCRIPT", "FLUSH")
    async with linked(f"redis+cluster://127.0.0.1:{free_port()},{nodes[0].address}") as link:
        for expected in (1, 2):
            assert [await link.run(COUNT, key) for key in keys] == [expected] * len(keys)
        assert all(int(one.ask("DBSIZE")) > 0 for one in nodes)
        assert await link.check(keys[0]) == ()
    async with linked(nodes[0].url) as link:
        said = [await cause(link, key=key) for key in keys if nodes[0].ask("CLUSTER", "KEYSLOT", key) > 16384 // 3]
        assert all("redis+cluster://" in one for one in said)


async def test_a_slot_that_moves_is_followed(nodes: list[Server]) -> None:
    """A script fails while its slot moves, then runs on the new node."""
    source, target = nodes[0], nodes[1]
    key = on_first(nodes)
    slot = source.ask("CLUSTER", "KEYSLOT", key)
    name = {one.port: one.ask("CLUSTER", "MYID") for one in (source, target)}
    async with linked(f"redis+cluster://{source.address}") as link:
        assert await link.run(COUNT, key) == 1
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", name[source.port])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", name[target.port])
        assert "moving this key's slot" in await cause(link, key=key)
        source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        assert "moving this key's slot" in await cause(link, key=key)
        for one in (target, source):
            one.ask("CLUSTER", "SETSLOT", slot, "NODE", name[target.port])
        assert await link.run(COUNT, key) == 2
        assert await link.run(COUNT, key) == 3
        assert target.ask("GET", key) == "3"


async def test_messages_pass_through_a_cluster(nodes: list[Server]) -> None:
    """Messages reach listeners on all nodes."""
    woken: list[int] = []
    async with linked(f"redis+cluster://{nodes[0].address}") as link:
        link.listen("wake", lambda _: woken.append(1))
        await until(lambda: woken, "it listens")
        nodes[2].ask("PUBLISH", "wake", "x")
        await until(lambda: len(woken) > 1, "the message comes")
