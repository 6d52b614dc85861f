"""Measure the memory of slow callers: 1,000 that read nothing of a large answer, 1,000 that send a body slowly.

A slow body is read before its request goes out, as far as its client has room; the others wait for that.
Run by `make bench`. One real process on the loopback with as many connections to the upstream as there are callers,
which is the worst case; by default there are 256. Every size is of memory that is resident.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyturn.app.resources import TRIM_INTERVAL

from bench.throughput import address_of, running

KEY = "secret-of-the-slow"
ANSWER, BODY = 8 * 2**20, 8 * 2**20
SENT = 2**20
"""Bytes that a slow writer sends at once, before it begins to drip."""
WAIT = 20
"""Seconds that a body waits for room."""
LEFT = WAIT + 2 * TRIM_INTERVAL + 1
"""Seconds after which the process has returned freed memory to the system."""
SETTLED = 20
"""Samples, a tenth of a second apart, without growth, after which memory counts as stable."""


class Upstream:
    """Answer GET with more than anybody reads, and read the bodies of PUT."""

    def __init__(self) -> None:
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one request of one connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            if head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % ANSWER)
                for _ in range(ANSWER // 2**16):
                    writer.write(b"x" * 2**16)
                    await writer.drain()
            while await reader.read(2**16):
                pass
        writer.close()


def resident(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def reads_nothing(host: str, port: int) -> asyncio.StreamWriter:
    """Run a caller that asks and reads no more than its socket's buffer."""
    _, writer = await asyncio.open_connection(host, port, limit=2**10)
    writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    return writer


async def drips(host: str, port: int) -> asyncio.StreamWriter:
    """Run a caller that sends some of its body at once, then a byte now and then."""
    _, writer = await asyncio.open_connection(host, port)
    writer.write(b"PUT /large HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % BODY + b"x" * SENT)
    return writer


@dataclass(frozen=True)
class Kind:
    """Slow callers of one kind."""

    name: str
    call: Callable[[str, int], Awaitable[asyncio.StreamWriter]]
    drips: bool


async def measure(kind: Kind, number: int, address: str, pid: int, upstream: Upstream) -> None:
    """Measure the callers of a kind: their cost while they are connected, and after they have gone."""
    before, goal = resident(pid), upstream.requests + (0 if kind.drips else number)
    host, _, port = address.rpartition(":")
    writers = [await kind.call(host, int(port)) for _ in range(number)]
    sizes: list[float] = []
    while upstream.requests < goal or len(sizes) < SETTLED or sizes[-1] - sizes[-SETTLED] > 1:
        for writer in writers:
            if kind.drips and not writer.is_closing():
                writer.write(b"x")
        await asyncio.sleep(0.1)
        sizes.append(resident(pid))
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(LEFT)
    grown, stays = max(sizes) - before, resident(pid) - before
    each = grown / number * 1024
    print(f"{number} {kind.name:7}: {grown:7.1f} MiB in all, {each:6.1f} KiB each; {stays:6.1f} MiB stay")


def configuration(upstream: int, number: int) -> dict[str, Any]:
    """Return a configuration that cuts no caller off during the measurement."""
    limits = [{"requests": 100_000, "window": "1s"}]
    return {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "upstream": {"url": f"http://127.0.0.1:{upstream}", "max_connections": number + 10},
        "pools": {"default": {"limits": limits, "keys": [{"name": "a", "secret": KEY}]}},
        "inbound": {"body_timeout": "10m", "write_timeout": "10m", "max_connections_per_address": 10_000},
        "queue": {"max_wait": f"{WAIT}s"},
        "anonymous": {"max_in_flight": number + 10},
        "log": {"level": "error", "sample": 0},
    }


async def run(number: int) -> None:
    """Measure each kind before a process of its own, twice: the second time reuses memory of the first."""
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    for kind in (Kind("readers", reads_nothing, drips=False), Kind("writers", drips, drips=True)):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "config.yaml"
            path.write_text(json.dumps(configuration(port, number)))
            command = [sys.executable, "-m", "keyturn", "serve", "-c", str(path)]
            with running("keyturn", command, Path(name)) as (pid, ready):
                print(f"a process that does nothing: {resident(pid):.1f} MiB")
                for _ in range(2):
                    await measure(kind, number, address_of(ready), pid, upstream)
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.slow", description=__doc__)
    parser.add_argument("--callers", type=int, default=1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(run(parser.parse_args().callers))
