"""Everything goes wrong at once, under load, and afterwards nothing is left of it.

Callers and the upstream break off, are slow or talk nonsense, while the configuration and the certificate change.
"""

import asyncio
import gc
import json
import logging
import logging.handlers
import os
import random
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from keyturn import config
from keyturn.app import App
from keyturn.tasks import finish, spawn

from tests.process import DEADLINE, KEYS, TOKENS, Caller, client, limit, memory, request, until
from tests.vectors.origin import OK, Answering, Origin

MEGABYTE = 2**20
CALLERS = 16
STEPS = 8
"""The actions of each caller in one wave."""
LINE = b"HTTP/1.1 200 OK\r\n"
LARGE = b"x" * MEGABYTE
UPSTREAM = {
    b"/ok": Answering(),
    b"/large": Answering((LINE + b"Content-Length: %d\r\n\r\n" % (2 * MEGABYTE), LARGE, LARGE)),
    b"/chunks": Answering((LINE + b"Transfer-Encoding: chunked\r\n\r\n", *[b"2\r\nok\r\n"] * 50, b"0\r\n\r\n")),
    b"/truncated": Answering((LINE + b"Content-Length: 50000\r\n\r\n" + b"x" * 20_000,), "close"),
    b"/reset": Answering((), "reset"),
    b"/reset-late": Answering((LINE + b"Content-Length: 50000\r\n\r\n" + b"x" * 20_000,), "reset"),
    b"/closed": Answering((), "close"),
    b"/nonsense": Answering((b"nonsense\r\n\r\n",)),
    b"/error": Answering((b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno",)),
    b"/throttled": Answering((b"HTTP/1.1 429 No\r\nRetry-After: 0\r\nContent-Length: 2\r\n\r\nno",)),
    b"/early": Answering((OK,), "close", early=True),
    b"/never": Answering(then="never"),
}
TOKEN = TOKENS["ci"]


# Callers


class Crowd:
    """Callers of one address, each with dice of its own."""

    def __init__(self, address: str, tls: ssl.SSLContext) -> None:
        self.host, _, self.port = address.partition("://")[2].rpartition(":")
        self.tls = tls
        self.answers: Counter[int] = Counter()
        self.ways: list[Callable[[random.Random], Coroutine[Any, Any, None]]] = [
            self.asks, self.asks, self.asks, self.pipelines, self.uploads, self.leaves, self.leaves_its_body,
            self.resets, self.reads_slowly, self.is_nobody, self.talks_nonsense, self.stops_in_its_head,
            self.only_connects,
        ]  # fmt: skip

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[Caller]:
        """A connection."""
        reader, writer = await asyncio.open_connection(self.host, int(self.port), ssl=self.tls, limit=2**16)
        try:
            yield Caller(reader, writer)
        finally:
            writer.transport.abort()

    async def play(self, seed: int) -> None:
        """One caller, from one way of calling to another."""
        dice = random.Random(seed)
        for _ in range(STEPS):
            async with asyncio.timeout(DEADLINE):
                with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                    await dice.choice(self.ways)(dice)

    def target(self, dice: random.Random) -> str:
        """A path; those that never end are for callers who leave."""
        if dice.random() < 0.004:
            return "/throttled"
        return dice.choice([path.decode() for path in UPSTREAM if path not in (b"/never", b"/throttled")])

    async def asks(self, dice: random.Random) -> None:
        """Several requests, as they should be."""
        async with self.calling() as caller:
            for _ in range(3):
                reply = await caller.ask(request(self.target(dice), "Prefer: wait=2", token=TOKEN))
                self.answers[reply.status] += 1
                if reply.all("Connection") == ["close"]:
                    return

    async def pipelines(self, dice: random.Random) -> None:
        """Several at once, and perhaps it does not wait for the answers."""
        async with self.calling() as caller:
            caller.send(request("/ok", "Prefer: wait=2", token=TOKEN) * 8)
            for _ in range(dice.randrange(9)):
                self.answers[(await caller.reply()).status] += 1

    async def uploads(self, dice: random.Random) -> None:
        """A body, with its length or in chunks, to an upstream that may not want it."""
        body = b"x" * dice.choice([1, 1000, 300_000])
        async with self.calling() as caller:
            if dice.random() < 0.5:
                caller.send(request(self.target(dice), method="PUT", token=TOKEN, body=body))
            else:
                caller.send(request(self.target(dice), "Transfer-Encoding: chunked", method="PUT", token=TOKEN))
                caller.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            self.answers[(await caller.reply()).status] += 1

    async def leaves(self, dice: random.Random) -> None:
        """It goes away while it waits, or while it is answered."""
        path = dice.choice(["/never", "/large", "/chunks", "/ok"])
        async with self.calling() as caller:
            caller.send(request(path, "Prefer: wait=300", token=TOKEN))
            await asyncio.sleep(dice.random() * 0.05)

    async def leaves_its_body(self, dice: random.Random) -> None:
        """It goes away within its own body."""
        async with self.calling() as caller:
            caller.send(
                request("/ok", "Content-Length: 400000", method="POST", token=TOKEN) + b"x" * dice.randrange(300_000)
            )
            await asyncio.sleep(dice.random() * 0.05)

    async def resets(self, dice: random.Random) -> None:
        """Its connection breaks."""
        async with self.calling() as caller:
            caller.send(request(dice.choice(["/large", "/never", "/ok"]), token=TOKEN))
            await asyncio.sleep(dice.random() * 0.03)
            raw = caller.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def reads_slowly(self, dice: random.Random) -> None:
        """A large answer in small pieces, not to its end."""
        async with self.calling() as caller:
            caller.send(request("/large", "Prefer: wait=2", token=TOKEN))
            for _ in range(dice.randrange(20)):
                await caller.reader.read(5000)
                await asyncio.sleep(0.002)

    async def is_nobody(self, _: random.Random) -> None:
        """It has no token."""
        async with self.calling() as caller:
            assert (await caller.ask(request("/ok", token="nobody"))).status == 401

    async def talks_nonsense(self, dice: random.Random) -> None:
        """A caller whose bytes are not HTTP, or stop being it."""
        begin = dice.choice(
            [b"", request("/ok", "Transfer-Encoding: chunked", method="PUT", token=TOKEN) + b"2\r\nok\r\n"]
        )
        async with self.calling() as caller:
            caller.send(begin + dice.randbytes(dice.randrange(1, 300)) + b"\r\n\r\n")
            await asyncio.sleep(dice.random() * 0.02)

    async def stops_in_its_head(self, dice: random.Random) -> None:
        """It waits for the proxy to lose its patience, or goes earlier."""
        async with self.calling() as caller:
            caller.send(request("/ok", token=TOKEN)[: dice.randrange(1, 40)])
            if dice.random() < 0.3:
                await caller.ended()

    async def only_connects(self, dice: random.Random) -> None:
        """Nothing comes, not even TLS perhaps."""
        _, writer = await asyncio.open_connection(self.host, int(self.port))
        await asyncio.sleep(dice.random() * 0.05)
        writer.transport.abort()


# The process


def settings(folder: Path, upstream: str, turn: int) -> dict[str, Any]:
    """A configuration; each turn's is another."""
    keys = [{"name": f"team-{number}", "secret": secret} for number, secret in enumerate(KEYS, 1)]
    return {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "tls": {"cert": str(folder / "server.pem"), "key": str(folder / "server.pem")},
        "inbound": {"head_timeout": "300ms", "body_timeout": "1s", "write_timeout": "1s", "idle_timeout": "3s"},
        "upstream": {"url": upstream, "settle_bound": "200ms", "response_timeout": "2s", "max_connections": 32},
        "pools": {
            "default": {"guard": "20ms", "limits": [limit(400, "300ms")], "keys": keys if turn % 3 else keys[:1]}
        },
        "clients": [client("ci", weight=1 + turn % 5), *([client("reader")] if turn % 2 else [])],
        "queue": {"max_wait": f"{2 + turn % 2}s", "max_waiting": 200},
        "log": {"level": "warning", "format": "json", "sample": 0},
    }


def rewrite(folder: Path, upstream: str, authority: trustme.CA, turn: int) -> Path:
    """Put another configuration and another certificate in place."""
    fresh = folder / "fresh.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(fresh)
    fresh.rename(folder / "server.pem")
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings(folder, upstream, turn)))
    path.chmod(0o600)
    return path


@asynccontextmanager
async def changing(app: App, change: Callable[[int], object]) -> AsyncIterator[None]:
    """The configuration changes all the time, and is sometimes read again without a change."""
    tasks: set[asyncio.Task[Any]] = set()

    async def work() -> None:
        for turn in range(1, 10_000):
            change(turn)
            app.reload()
            await asyncio.sleep(0.1)

    spawn(work(), name="changing", owner=tasks)
    try:
        yield
    finally:
        await finish(tasks)


@contextmanager
def complaints() -> Iterator[list[logging.LogRecord]]:
    """Collect the lines that are logged as errors meanwhile, but for those about what the upstream really does.

    It answers 429 to some requests. If both keys meet one and nothing else is answered in between, the log says so.
    """
    handler = logging.handlers.BufferingHandler(100_000)
    handler.setLevel(logging.ERROR)
    handler.addFilter(lambda record: "429 to several keys" not in record.getMessage())
    logging.root.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        logging.root.removeHandler(handler)


async def wave(crowd: Crowd, number: int) -> None:
    """All callers at once."""
    async with asyncio.TaskGroup() as group:
        for caller in range(CALLERS):
            group.create_task(crowd.play(1000 * number + caller))


async def settled(app: App) -> None:
    """Nobody is connected, nothing waits, no token is out."""
    await until(lambda: app._data.connections == 0, "no caller is connected")
    await until(lambda: app.pools.waiting == 0, "nothing waits")
    await until(lambda: all(scheduler.in_flight == 0 for scheduler in app.pools.schedulers.values()), "no lease is out")

    async def all_at_hand() -> bool:
        levels = await app.status.levels()
        return all(bucket.available == bucket.size for bucket in levels.buckets)

    await until(all_at_hand, "every token is at hand")


def files() -> int:
    """File descriptors of this process."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_nothing_is_left_of_chaos(tmp_path: Path) -> None:
    """No place is taken, no token out, no task, file or memory lost; those who asked well were answered well."""
    authority, tls = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(tls)
    origin = Origin(dict(UPSTREAM))
    before, open_before = asyncio.all_tasks(), files()
    async with origin.open():
        path = rewrite(tmp_path, origin.url, authority, 0)
        app = App(config.load(path, {}))
        with complaints() as errors:
            await app.start()
            crowd = Crowd(app.data_addresses[0], tls)
            sizes = []
            for number in range(2):
                async with changing(app, lambda turn: rewrite(tmp_path, origin.url, authority, turn)):
                    await wave(crowd, number)
                await settled(app)
                gc.collect()
                sizes.append(memory(os.getpid()))
            await app.stop()
    assert [record.getMessage() for record in errors] == []
    assert crowd.answers[200] > CALLERS
    assert set(crowd.answers) <= {200, 429, 500, 502, 503, 504, 408}
    assert not app._forward._loops._in_flight
    assert sizes[1] - sizes[0] < 30 * MEGABYTE
    await until(lambda: asyncio.all_tasks() <= before, "no task is left")
    await until(lambda: files() <= open_before, "no file is left open")
