"""The real process, for tests through its command line, its sockets and TLS; nothing here is a fake.

A `Keyturn` is a `python -m keyturn serve` that listens on ports of the system's choice, a `PracticeApi` over TLS its
upstream, a `Caller` one connection of raw bytes. Whatever a process writes to stderr is checked for secrets.
"""

import asyncio
import inspect
import json
import os
import re
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from keyturn.practice import Arrival, PracticeApi, PracticeSettings
from keyturn.tasks import finish, spawn

ROOT = Path(__file__).parent.parent
DEADLINE = 60.0
"""Seconds for anything that has to happen: many, since only a failure waits for them."""
PIECE = 2**16

KEYS = ("secret-of-key-one", "secret-of-key-two")
"""The pooled API keys; their names are team-1, team-2."""
NAMES = ("ci", "reader", "pinner", "keys", "foreign", "refused", "narrow", "plan", "lower", "outage")
TOKENS = {name: f"secret-token-of-{name}" for name in NAMES}
ADMIN_TOKEN = "secret-token-of-the-admin"
INTRUDER = "secret-token-of-nobody"
SECRETS = (*KEYS, *TOKENS.values(), ADMIN_TOKEN, INTRUDER)
"""Secrets that must not appear anywhere outside their purpose (law 11)."""

_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


# Polling: the one place that looks again and again


async def until(condition: Callable[[], Awaitable[object] | object], what: str) -> None:
    """Look until the condition holds.

    Raises:
        AssertionError: it does not within `DEADLINE`.
    """
    try:
        async with asyncio.timeout(DEADLINE):
            while not await _holds(condition()):
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE:.0f} s: {what}") from None


async def _holds(found: Awaitable[object] | object) -> object:
    return await found if inspect.isawaitable(found) else found


# Configuration


def key_name(secret: str) -> str:
    """The public name of one of the `KEYS`."""
    return f"team-{KEYS.index(secret) + 1}"


def limit(requests: int, window: str, *match: str) -> dict[str, Any]:
    """An entry of `limits`."""
    return {"requests": requests, "window": window, **({"match": list(match)} if match else {})}


def client(name: str, **settings: Any) -> dict[str, Any]:
    """An entry of `clients` that holds the digest of one of the `TOKENS`."""
    return {"name": name, "token_sha256": sha256(TOKENS[name].encode()).hexdigest(), **settings}


def document(
    api: PracticeApi,
    folder: Path,
    *,
    limits: tuple[dict[str, Any], ...] = (limit(10_000, "60s"),),
    keys: tuple[str, ...] = KEYS,
    upstream: Mapping[str, Any] | None = None,
    **sections: Any,
) -> dict[str, Any]:
    """A config.yaml in front of that API."""
    ca = folder / "ca.pem"
    api.write_ca(ca)
    entries = [{"name": key_name(secret), "secret": secret} for secret in keys]
    return {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "upstream": {"url": api.url, "ca": str(ca), **(upstream or {})},
        "pools": {"default": {"guard": "20ms", "limits": list(limits), "keys": entries}},
        "clients": [client("ci")],
        **sections,
    }


def write(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Write a config.yaml that only its owner can read."""
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    path.chmod(0o600)
    return path


# Raw HTTP


def request(
    target: str = "/me",
    *fields: str,
    method: str = "GET",
    token: str | None = TOKENS["ci"],
    host: str | None = "proxy.example",
    body: bytes | None = None,
) -> bytes:
    """The bytes of a request, its fields as given behind `Host` and before the token."""
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"Host: {host}"] if host is not None else []
    lines += fields
    lines += [f"X-Api-Key: {token}"] if token is not None else []
    lines += [f"Content-Length: {len(body)}"] if body is not None else []
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


@dataclass(frozen=True)
class Reply:
    """An answer as it came over the wire."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes
    head: bytes = field(repr=False)

    def all(self, name: str) -> list[str]:
        """The values of all fields of a name."""
        return [value for known, value in self.fields if known.lower() == name.lower()]

    def one(self, name: str) -> str:
        """The value of a field that stands once."""
        found = self.all(name)
        assert len(found) == 1, (name, self.head)
        return found[0]

    def json(self) -> Any:
        """Its body."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The name of the error that it is."""
        return str(self.json()["error"]["name"])


class Caller:
    """One connection to a listener."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        """Write bytes, without waiting for them to leave."""
        self.writer.write(data)

    async def ask(self, data: bytes) -> Reply:
        """Send a request and read its answer."""
        self.send(data)
        return await self.reply(data.partition(b" ")[0].decode())

    async def head(self) -> Reply:
        """The next head; its body is still to be read."""
        async with asyncio.timeout(DEADLINE):
            head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return Reply(int(first.split()[1]), [(name, value.strip()) for name, _, value in pairs], b"", head)

    async def reply(self, method: str = "GET") -> Reply:
        """The next final answer, whole.

        Raises:
            asyncio.IncompleteReadError: it ends before the end that its head announces.
        """
        while (found := await self.head()).status < 200:
            pass
        if method == "HEAD" or found.status in (204, 304):
            return found
        async with asyncio.timeout(DEADLINE):
            return Reply(found.status, found.fields, await self._body(found), found.head)

    async def _body(self, head: Reply) -> bytes:
        if head.all("Transfer-Encoding"):
            return b"".join([piece async for piece in self._chunks()])
        if head.all("Content-Length"):
            return await self.reader.readexactly(int(head.one("Content-Length")))
        return await self.reader.read()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while length := int((await self.reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            yield await self.reader.readexactly(length)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)

    async def ended(self) -> bytes:
        """Read to the end of the connection."""
        async with asyncio.timeout(DEADLINE):
            with suppress(ConnectionResetError):
                return await self.reader.read()
        return b""

    def cut(self) -> None:
        """Go away at once."""
        self.writer.transport.abort()


@asynccontextmanager
async def calling(address: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Caller]:
    """A connection to a listener, `http://host:port` or `https://host:port`."""
    host, _, port = address.partition("://")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**20, ssl=tls)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ask(address: str, data: bytes) -> Reply:
    """One request over a connection of its own."""
    async with calling(address) as caller:
        return await caller.ask(data)


# Processes


@dataclass(frozen=True)
class Ended:
    """A command that has come to its end."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """The lines of stderr."""
        return self.err.splitlines()


async def start(
    *arguments: str,
    folder: Path,
    environ: Mapping[str, str] | None = None,
    stderr: int = asyncio.subprocess.PIPE,
) -> asyncio.subprocess.Process:
    """Start a command in a folder, with an environment that holds no settings but the given ones.

    `stderr`: a descriptor of its own to write to.
    """
    inherited = {
        name: value for name, value in os.environ.items() if name != "POSTMAN_API_KEYS" and "_proxy" not in name.lower()
    }
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keyturn", *arguments),
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT / "proxy"), "COLUMNS": "120", **(environ or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
    )


async def command(*arguments: str, folder: Path, environ: Mapping[str, str] | None = None) -> Ended:
    """Run a command to its end; it must not write a traceback."""
    process = await start(*arguments, folder=folder, environ=environ)
    try:
        async with asyncio.timeout(DEADLINE):
            out, err = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert b"Traceback" not in err, err.decode()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


class Running:
    """A command that listens, and what it has written to stderr."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.lines: list[str] = []
        self._process = process
        self._tasks: set[asyncio.Task[Any]] = set()
        spawn(self._collect(), name="stderr", owner=self._tasks)

    async def _collect(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.lines.append(line.decode().rstrip("\n"))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def stderr(self) -> str:
        """All that it has written."""
        return "\n".join(self.lines)

    async def ready(self) -> dict[str, str]:
        """The addresses of its `ready` line."""
        await until(lambda: self._ready() or not self._tasks, "the line `ready …`, or the process's end")
        line = self._ready()
        assert line, self.stderr
        return dict(part.split("=", 1) for part in line.split()[1:])

    def _ready(self) -> str:
        return next((line for line in self.lines if line.startswith("ready ")), "")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        async with asyncio.timeout(DEADLINE):
            code = await self._process.wait()
            await asyncio.gather(*self._tasks)
        return code

    async def end(self) -> None:
        """See it end, by force in the end."""
        try:
            if self._process.returncode is None:
                self.signal(signal.SIGTERM)
            await self.ended()
        except TimeoutError:
            self._process.kill()
            await self.ended()
        finally:
            await finish(self._tasks)


@asynccontextmanager
async def running(*arguments: str, folder: Path, environ: Mapping[str, str] | None = None) -> AsyncIterator[Running]:
    """A command for as long as it is needed; its stderr must hold neither a traceback nor a secret."""
    process = Running(await start(*arguments, folder=folder, environ=environ))
    try:
        yield process
    except BaseException as error:
        error.add_note(f"It wrote to stderr:\n{process.stderr}")
        raise
    finally:
        await process.end()
    assert "Traceback" not in process.stderr, process.stderr
    assert [secret for secret in SECRETS if secret in process.stderr] == []


class Keyturn:
    """A `keyturn serve` that is ready."""

    def __init__(self, process: Running, data: str, admin: str) -> None:
        self.process = process
        self.data = data
        self.admin = admin

    async def ask(self, data: bytes) -> Reply:
        """One request to the data listener."""
        return await ask(self.data, data)

    async def page(self, path: str) -> Reply:
        """A page of the admin listener."""
        return await ask(self.admin, request(path, token=None))

    async def post(self, path: str, token: str | None = None) -> Reply:
        """A changing call on the admin listener."""
        fields = [] if token is None else [f"Authorization: Bearer {token}"]
        return await ask(self.admin, request(path, *fields, "Content-Length: 0", method="POST", token=None))

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 when there is none."""
        total = 0.0
        for line in (await self.page("/metrics")).body.decode().splitlines():
            sample = _SAMPLE.fullmatch(line)
            if sample and sample[1] == name and labels.items() <= dict(_LABEL.findall(sample[2] or "")).items():
                total += float(sample[3])
        return total

    async def waiting(self, number: int) -> None:
        """See that so many requests wait for their turn."""

        async def so_many() -> bool:
            return await self.metric("keyturn_waiting") == number

        await until(so_many, f"{number} requests wait")

    async def sends_away(self) -> bool:
        """Whether callers that come now are told to go elsewhere; asked for what is never forwarded."""
        reply = await self.ask(request("/me", method="TRACE"))
        assert (reply.status, reply.error) in {(405, "methodNotAllowed"), (503, "shuttingDown")}
        return reply.status == 503


@asynccontextmanager
async def serving(path: Path, environ: Mapping[str, str] | None = None) -> AsyncIterator[Keyturn]:
    """A `keyturn serve` with that configuration."""
    async with running("serve", "-c", str(path), folder=path.parent, environ=environ) as process:
        addresses = await process.ready()
        yield Keyturn(process, addresses["data"], addresses["admin"])


class Gate:
    """Holds requests up at the upstream, before they are counted, until it is opened."""

    def __init__(self, api: PracticeApi) -> None:
        self.held = 0
        self._open = asyncio.Event()
        api._travel = self._travel  # type: ignore[method-assign]

    async def _travel(self) -> None:
        self.held += not self._open.is_set()
        await self._open.wait()

    def open(self) -> None:
        """Let all go."""
        self._open.set()


@dataclass
class House:
    """The process and its upstream."""

    api: PracticeApi
    keyturn: Keyturn

    async def ask(self, data: bytes) -> Reply:
        """One request to the process."""
        return await self.keyturn.ask(data)

    def arrivals(self, path: str) -> list[Arrival]:
        """Return the requests that arrived at the upstream under a path."""
        return [arrival for arrival in self.api.arrivals if arrival.target.startswith(path)]


@asynccontextmanager
async def house(folder: Path, practice: PracticeSettings | None = None, **settings: Any) -> AsyncIterator[House]:
    """A practice API over TLS and the process in front of it; `settings` as `document` takes them."""
    async with AsyncExitStack() as stack:
        api = PracticeApi(practice or PracticeSettings(tls=True, keys=KEYS, limit=10_000))
        await stack.enter_async_context(api)
        keyturn = await stack.enter_async_context(serving(write(folder, document(api, folder, **settings))))
        yield House(api, keyturn)


def memory(pid: int) -> int:
    """The bytes of a process that are in memory."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        return int(status.read_text().partition("VmRSS:")[2].split()[0]) * 1024
    return int(os.popen(f"ps -o rss= -p {pid}").read()) * 1024
