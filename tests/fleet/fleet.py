"""A fleet as it is run: replicas in processes of their own, one shared server, and the upstream that checks the laws.

The upstream's log of arrivals is the evidence for law 1; each caller records every request and its answer, so nothing
is lost or doubled unseen. The windows are short: what takes minutes at 60 in 60 seconds takes seconds here.
"""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from keyturn.practice import PracticeApi, PracticeSettings
from keyturn.tasks import finish, spawn

from tests.process import KEYS, TOKENS, Keyturn, Reply, calling, client, document, limit, request, serving, until, write
from tests.stores.servers import Server

REPLICAS = 4
LIMIT = 20
WINDOW = 1.0
"""Seconds: each key may be used `LIMIT` times in any window of this length."""
PATIENCE = 8
"""Seconds that a caller waits."""
SLACK = 4.0
"""Seconds by which a busy machine may be late to tell a caller that its time is over."""

TIMEOUT = "2s"
"""Timeout of the store, so long that a busy machine is no loss."""

LOST = "the store does not respond"
FOUND = "the store responds again"
OF_REQUESTS = '"logger": "keyturn.requests"'
NEW = "the store is new, was restarted"


@dataclass(slots=True)
class Asked:
    """One request of a caller, and its answer; `None` means that the connection was cut before one came."""

    replica: int
    client: str
    target: str
    seconds: float = 0.0
    reply: Reply | None = None

    @property
    def status(self) -> int:
        """Return the answer's status; 0 without one."""
        return self.reply.status if self.reply else 0


@dataclass
class Replica:
    """One `keyturn serve` of the fleet."""

    number: int
    keyturn: Keyturn
    gone: bool = False
    """It was killed."""
    stopped: bool = False
    paused: float = 0.0
    """Seconds for which it stood still, so far."""
    health: Counter[int] = field(default_factory=Counter)
    """Answers of `/healthz` so far."""

    @property
    def said(self) -> list[str]:
        """Return the lines of its log, except those of requests, each by its beginning if that is a known one."""
        lines = (line for line in self.keyturn.process.lines if line.startswith("{") and OF_REQUESTS not in line)
        events = [json.loads(line)["event"] for line in lines]
        return [next((known for known in (LOST, FOUND, NEW) if event.startswith(known)), event) for event in events]

    async def ready(self) -> int:
        """Return the status of `/readyz`."""
        return (await self.keyturn.page("/readyz")).status

    async def kill(self) -> None:
        """Kill it."""
        self.gone = True
        self.keyturn.process.signal(signal.SIGKILL)
        await self.keyturn.process.ended()

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[None]:
        """Stop it for the block."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.stopped = True
        self.keyturn.process.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.keyturn.process.signal(signal.SIGCONT)
            self.paused += loop.time() - began
            self.stopped = False


class Fleet:
    """The replicas, their server, their upstream and their callers."""

    def __init__(self, api: PracticeApi, store: Server) -> None:
        self.api = api
        self.store = store
        self.replicas: list[Replica] = []
        self.asked: list[Asked] = []
        self._callers: set[asyncio.Task[Any]] = set()
        self._watch: set[asyncio.Task[Any]] = set()
        self._over = asyncio.Event()
        self._losses = 0

    @property
    def alive(self) -> list[Replica]:
        """Return the replicas that were not killed."""
        return [replica for replica in self.replicas if not replica.gone]

    # Callers

    def call(self, replica: Replica, name: str, callers: int) -> None:
        """Let a client call a replica over so many connections, again after each answer."""
        for number in range(callers):
            who = f"{name} {number} at {replica.number}"
            spawn(self._call(replica, name, f"/echo/{name}-{replica.number}-{number}"), name=who, owner=self._callers)

    async def _call(self, replica: Replica, name: str, path: str) -> None:
        serial = 0
        while not (self._over.is_set() or replica.gone):
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                async with calling(replica.keyturn.data) as caller:
                    while not self._over.is_set():
                        serial += 1
                        asked = Asked(replica.number, name, f"{path}-{serial}")
                        await self._ask(asked, caller.ask(request(asked.target, token=TOKENS[name])))

    async def _ask(self, asked: Asked, answer: Awaitable[Reply]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.asked.append(asked)
        try:
            asked.reply = await answer
        finally:
            asked.seconds = loop.time() - began
        if asked.status != 200:
            await asyncio.sleep(0.05)  # a caller that asks again at once would be most of the load

    async def quiet(self) -> None:
        """Let every caller finish its request and leave."""
        self._over.set()
        await asyncio.gather(*self._callers)

    def answers(self, status: int, replica: Replica | None = None) -> list[Asked]:
        """Return the requests that were answered with a status, by any replica or by one."""
        numbers = {replica.number} if replica else set(range(REPLICAS))
        return [asked for asked in self.asked if asked.status == status and asked.replica in numbers]

    async def serves(self, more: int) -> None:
        """Wait until so many more requests are answered by the upstream."""
        enough = len(self.answers(200)) + more
        await until(lambda: len(self.answers(200)) >= enough, f"{more} more requests are served")

    # Health

    def watch(self) -> None:
        """Check every replica's liveness again and again."""
        for replica in self.replicas:
            spawn(self._look(replica), name=f"watch {replica.number}", owner=self._watch)

    async def _look(self, replica: Replica) -> None:
        while not replica.gone:
            if not replica.stopped:
                with suppress(ConnectionError, asyncio.IncompleteReadError):
                    status = (await replica.keyturn.page("/healthz")).status
                    replica.health[status] += 1
            await asyncio.sleep(0.1)

    # Log

    async def said(self, what: str, times: int) -> None:
        """See that every replica that is alive has said that so often."""
        await until(
            lambda: all(replica.said.count(what) >= times for replica in self.alive),
            f"each replica says for the {times}th time: {what}",
        )

    @asynccontextmanager
    async def loss(self) -> AsyncIterator[None]:
        """Let the server go and come back in this block; then all serve again."""
        self._losses += 1
        yield
        await self.said(FOUND, self._losses)
        assert {await replica.keyturn.metric("keyturn_store_up") for replica in self.replicas} == {1}
        await self.serves(50)

    async def lost(self) -> None:
        """Wait until all know that the server has gone."""
        await self.said(LOST, self._losses)
        assert {await replica.keyturn.metric("keyturn_store_up") for replica in self.replicas} == {0}

    # The end, and what is true then

    async def end(self) -> None:
        """End all callers and watchers."""
        await finish(self._callers)
        await finish(self._watch)

    def judge(self, *, throttled: int = 0) -> None:
        """Check laws 1, 2, 6 and 10 by the upstream's log and the callers' records."""
        worst = self.api.worst(WINDOW)
        assert max(worst.values()) <= LIMIT + throttled, worst
        assert self.api.throttled <= throttled
        arrived = Counter(arrival.target for arrival in self.api.arrivals if arrival.status != 429)
        for asked in self.asked:
            self._judge(asked, arrived.pop(asked.target, 0))
        assert not arrived, f"nobody asked for {arrived}"
        assert all(set(replica.health) == {200} for replica in self.replicas)

    def _judge(self, asked: Asked, arrived: int) -> None:
        if asked.status == 200:
            assert arrived == 1, f"{asked} arrived {arrived} times"
            assert asked.reply
            assert asked.reply.json()["target"] == asked.target
        elif asked.reply:
            assert asked.status in (429, 503), asked
            assert arrived == 0, f"{asked} was refused and arrived"
            assert 1 <= int(asked.reply.one("Retry-After")) <= 60, asked
        else:
            assert self.replicas[asked.replica].gone, f"{asked} was not answered"
            assert arrived <= 1, f"{asked} arrived {arrived} times"
        allowed = PATIENCE + SLACK + self.replicas[asked.replica].paused
        assert asked.seconds <= allowed, f"{asked} waited beyond its deadline"


def settings(api: PracticeApi, folder: Path, url: str, on_loss: str) -> dict[str, Any]:
    """Return the configuration of a replica."""
    told = document(api, folder, limits=(limit(LIMIT, f"{WINDOW:g}s"),), upstream={"settle_bound": "1s"})
    return {
        **told,
        "clients": [client("ci", weight=3), client("reader"), client("pinner")],
        "queue": {"max_wait": f"{PATIENCE}s"},
        "store": {"url": url, "on_loss": on_loss, "timeout": TIMEOUT},
        "drain": "5s",
    }


@asynccontextmanager
async def fleet(folder: Path, store: Server, *, url: str = "", on_loss: str = "share") -> AsyncIterator[Fleet]:
    """Start a fleet on the server of that URL, or on its own."""
    random = Random(1)
    async with AsyncExitStack() as stack:
        practice = PracticeSettings(tls=True, keys=KEYS, limit=LIMIT, window=WINDOW, kind="rolling")
        api = await stack.enter_async_context(PracticeApi(practice))
        api.latency = lambda: random.uniform(0.0, 0.02)
        one = Fleet(api, store)
        stack.push_async_callback(one.end)
        told = settings(api, folder, url or store.url, on_loss)
        async with asyncio.TaskGroup() as starting:
            started = [starting.create_task(_start(stack, number, folder, told)) for number in range(REPLICAS)]
        one.replicas = [task.result() for task in started]
        one.watch()
        yield one
        await one.quiet()


async def _start(stack: AsyncExitStack, number: int, folder: Path, told: dict[str, Any]) -> Replica:
    own = folder / f"replica-{number}"
    own.mkdir()
    return Replica(number, await stack.enter_async_context(serving(write(own, told))))
