"""Measure a thousand clients that wait on two replicas: what is served, how fast others are refused, and stalls.

Run by `make bench`. Processes on the loopback: a server for the store, the practice API, two replicas by the command
line with a watchdog in their event loops (`bench.watched`); the clients are this process. bench/README.md says how to
read the result.
"""

import argparse
import asyncio
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import uvloop
from keyturn.core.model import SECOND
from keyturn.tasks import finish, spawn

from bench.behaved import Client
from bench.cpu import cpu_seconds
from bench.hostile import delay
from bench.throughput import address_of, running
from tests.simulation.judges import used
from tests.stores.servers import KINDS, server

CLIENTS, WAITING = 1000, 10_000
"""Clients that wait on each replica, and requests that wait on one in the end."""
KEYS, LIMIT, WINDOW = 10, 300, 30
"""100 requests a second."""
GUARD = 0.1
WARM = 35
"""Seconds until every bucket has been probed and every token used once."""
SHAPES = ("evenly", "bursts")
"""How tokens return: one after the other, since they were used so at first, or nearly all of them at once."""
REFUSED_EACH = 0.1
"""Seconds between two requests that would have to wait too long."""
PATIENCE = 1
"""Seconds for which they would wait."""
IMPATIENT = 100
"""Clients that send such requests: their next lease is certainly later than these would wait."""
CALM = 10.0
"""Seconds for which that many waiting requests are watched."""
AIMS = {"used": 0.99, "median": 50.0, "worst": 150.0, "stall": 50.0, "memory": 300.0}


@dataclass(frozen=True)
class Running:
    """A replica: its process, where it listens, and what its watchdog writes."""

    pid: int
    address: str
    admin: str
    watched: Path

    def stalls(self, since: float) -> tuple[float, float]:
        """Return the longest CPU time of one turn of the event loop, and its longest delay, since an instant, in ms."""
        rows = [tuple(map(float, line.split())) for line in self.watched.read_text().splitlines()]
        return max(row[1] for row in rows if row[0] > since), max(row[2] for row in rows if row[0] > since)

    def memory(self) -> float:
        """Return the resident memory in MB (Linux only)."""
        status = Path(f"/proc/{self.pid}/status")
        return int(status.read_text().partition("VmRSS:")[2].split()[0]) * 1024 / 1e6 if status.exists() else 0.0


@dataclass
class Crowd:
    """The clients, and the outcomes of their requests."""

    served: list[float] = field(default_factory=list)
    """Instants."""
    others: Counter[int] = field(default_factory=Counter)
    """Answers other than 200."""
    refused: list[float] = field(default_factory=list)
    """Milliseconds until the refusal."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def keep_waiting(self, replica: Running, number: int) -> None:
        """Run a client that asks again whenever it was served."""
        client = Client(replica.address, head(replica, f"c{number}", 300))
        while True:
            client.codes.clear()
            await client.ask(time.perf_counter())
            if client.codes[200]:
                self.served.append(time.monotonic())
            else:
                self.others += client.codes
                await asyncio.sleep(1)

    async def be_refused(self, replicas: list[Running], seconds: float) -> None:
        """Send requests that cannot be served in time, each as another client."""
        clients = [
            Client(replica.address, head(replica, f"c{number}", PATIENCE))
            for number in range(IMPATIENT)
            for replica in replicas
        ]
        began, number = time.monotonic(), 0
        while time.monotonic() < began + seconds:
            client, asked = clients[number % len(clients)], time.perf_counter()
            client.codes.clear()
            await client.ask(asked)
            if client.codes[429]:
                self.refused.append(1000 * (time.perf_counter() - asked))
            number += 1
            await asyncio.sleep(max(0.0, began + number * REFUSED_EACH - time.monotonic()))

    async def use_evenly(self, replicas: list[Running]) -> None:
        """Use every token once, at the pace at which tokens return."""
        clients = [Client(replica.address, head(replica, f"c{n}", 300)) for n in range(500) for replica in replicas]
        began, number = time.monotonic(), 0
        while number < KEYS * LIMIT:
            asking = clients[number % len(clients)].ask(time.perf_counter())
            spawn(asking, name=f"request {number}", owner=self.tasks)
            number += 1
            await asyncio.sleep(max(0.0, began + number * WINDOW / KEYS / LIMIT - time.monotonic()))

    def start(self, replica: Running, numbers: range) -> None:
        """Start clients, each on a connection of its own."""
        for number in numbers:
            name = number % CLIENTS
            spawn(self.keep_waiting(replica, name), name=f"client {number}", owner=self.tasks)


def head(replica: Running, client: str, wait: int) -> bytes:
    """Return the head of a client's request that would wait so many seconds."""
    lines = (
        "GET /me HTTP/1.1",
        f"Host: {replica.address}",
        f"X-Api-Key: {token_of(client)}",
        f"Prefer: wait={wait}",
        "User-Agent: keyturn-bench",
    )
    return "\r\n".join((*lines, "", "")).encode()


def token_of(client: str) -> str:
    """Return a client's token. It is no secret: everything stays on the loopback."""
    return f"token-of-{client}"


def configuration(upstream: str, store: str) -> dict[str, Any]:
    """Return a configuration that sets only what the crowd needs."""
    names = [f"c{number}" for number in range(CLIENTS)]
    return {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "upstream": {"url": upstream},
        "inbound": {"max_connections": 15_000, "max_connections_per_address": 15_000},
        "pools": {
            "default": {
                "limits": [{"requests": LIMIT, "window": f"{WINDOW}s"}],
                "keys": [{"name": f"k{number}", "secret": f"practice-key-{number}"} for number in range(KEYS)],
            }
        },
        "queue": {"max_waiting": WAITING + CLIENTS},
        "store": {"url": store},
        "clients": [{"name": name, "token_sha256": sha256(token_of(name).encode()).hexdigest()} for name in names],
        "log": {"level": "error"},
    }


def start(stack: ExitStack, kind: str) -> list[Running]:
    """Start the server, the API and the replicas; the stack ends them."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keyturn-crowd-")))
    one = stack.enter_context(server(kind))
    python = [sys.executable, "-m"]
    practice = [*python, "keyturn", "practice", "--port", "0", "--limit", str(LIMIT), "--window", f"{WINDOW}s"]
    _, ready = stack.enter_context(running("upstream", [*practice, "--kind", "rolling"], folder))
    path = folder / "config.yaml"
    path.write_text(json.dumps(configuration(ready.partition("practice=")[2].split()[0], one.url)), encoding="utf-8")
    path.chmod(0o600)
    replicas = []
    for name in ("one", "two"):
        watched = folder / f"{name}.watched"
        command = [*python, "bench.watched", str(watched), "serve", "-c", str(path)]
        pid, ready = stack.enter_context(running(name, command, folder))
        admin = next(word for word in ready.split() if word.startswith("admin=")).partition("://")[2].rstrip("/")
        replicas.append(Running(pid, address_of(ready), admin, watched))
    return replicas


async def throttled(replica: Running) -> int:
    """Return how many requests the upstream has answered 429."""
    reader, writer = await asyncio.open_connection(*replica.admin.split(":"), limit=2**24)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    lines = (await reader.read(-1)).decode().splitlines()
    writer.close()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("keyturn_upstream_throttled_total{")))


async def measure(replicas: list[Running], seconds: float, shape: str) -> None:
    """Let the clients wait, be served and be refused, then many more; print the figures."""
    crowd, begins = Crowd(), time.monotonic() + WARM
    if shape == "evenly":
        await crowd.use_evenly(replicas)
    for replica in replicas:
        crowd.start(replica, range(CLIENTS))
    await asyncio.sleep(begins - time.monotonic())
    await watch(crowd, replicas, seconds)
    if shape == "evenly":
        await fill(crowd, replicas[0])
    with suppress(TimeoutError):
        async with asyncio.timeout(10):
            await finish(crowd.tasks)


async def watch(crowd: Crowd, replicas: list[Running], seconds: float) -> None:
    """Watch the replicas for a while."""
    began = time.monotonic()
    spent, waited = sum(cpu_seconds(one.pid) for one in replicas), sum(delay(one.pid) for one in replicas)
    await crowd.be_refused(replicas, seconds)
    ended = time.monotonic()
    spent = sum(cpu_seconds(one.pid) for one in replicas) - spent
    waited = sum(delay(one.pid) for one in replicas) - waited
    stalls = [one.stalls(began) for one in replicas]
    served = [round(instant * SECOND) for instant in crowd.served]
    stretched = WINDOW * 1.0005 + GUARD
    share = used(served, KEYS * LIMIT, round(stretched * SECOND), round(began * SECOND), round(ended * SECOND))
    number = sum(began < instant <= ended for instant in crowd.served)
    print(
        f"{number} served in {ended - began:.0f} s, {sum([await throttled(one) for one in replicas])} upstream 429s,"
        f" other answers: {dict(crowd.others) or 'none'}; {1000 * spent / max(1, number):.2f} ms of CPU for each;"
        f" the replicas waited {waited:.0f} ms for a core"
    )
    judge("used", "of what is permitted with the guard", share or 0.0, AIMS["used"], percent=True)
    judge("refused after", "ms (median)", statistics.median(crowd.refused or [0.0]), AIMS["median"])
    at_once = [after for after in crowd.refused if after < 1000 * PATIENCE]
    late = sum(after > AIMS["worst"] for after in at_once)
    worst = f"ms (worst of {len(at_once)}; {late} beyond {AIMS['worst']:.0f})"
    judge("refused after", worst, max(at_once, default=0.0), AIMS["worst"])
    print(f"{'':16}{len(crowd.refused) - len(at_once)} more were let wait, and refused when their time was over")
    judge("stall", "ms of CPU in one turn of an event loop", max(cpu for cpu, _ in stalls), AIMS["stall"])
    print(f"{'':16}{max(late for _, late in stalls):.1f} ms by the clock, waiting for a core among them")


async def fill(crowd: Crowd, replica: Running) -> None:
    """Let many more requests wait on one replica; print what they cost."""
    before = replica.memory()
    for first in range(CLIENTS, WAITING, 100):
        crowd.start(replica, range(first, first + 100))
        await asyncio.sleep(0.05)
    await asyncio.sleep(CALM)
    judge("memory", f"MB with {WAITING} requests waiting (before {before:.0f})", replica.memory(), AIMS["memory"])
    since = time.monotonic()
    await asyncio.sleep(CALM)
    cpu, late = replica.stalls(since)
    print(f"{'':16}{cpu:.1f} ms of CPU in one turn of its event loop meanwhile, {late:.1f} ms by the clock")


def judge(name: str, what: str, figure: float, aim: float, *, percent: bool = False) -> None:
    """Print a figure, and whether it meets its aim."""
    met = figure >= aim if percent else figure <= aim
    shown, wanted = (f"{figure:.2%}", f">= {aim:.0%}") if percent else (f"{figure:.1f}", f"<= {aim:.0f}")
    print(f"{name:16}{shown} {what}: {'met' if met else 'missed'} (aim {wanted})", flush=True)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.crowd", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default=KINDS[-1], help="the server (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=75, help="two windows and more (default: %(default)s)")
    parser.add_argument("--only", choices=SHAPES, help="a part of it")
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"{CLIENTS} clients wait on each of two replicas; {platform.system()}, Python {platform.python_version()}")
    for shape in [given.only] if given.only else SHAPES:
        print(f"Tokens return {'one after the other' if shape == 'evenly' else 'nearly all at once'}:", flush=True)
        with ExitStack() as stack:
            uvloop.run(measure(start(stack, given.kind), given.seconds, shape))


if __name__ == "__main__":
    main()
