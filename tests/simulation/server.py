"""The shared store of the simulation: the ledger behind a network, on a server that fails in every way there is.

The ledger stands for the script: a differential test drives both with the same histories. `Post` is what a replica
has in place of a connection; everything above it is the real thing.
"""

import asyncio
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import cast

from proxy.core.errors import StoreLost
from proxy.core.events import Observer
from proxy.core.letters import Call, News, Reply
from proxy.core.model import MILLISECOND, Micros, Pool
from proxy.stores.links import Link
from proxy.stores.redis import RedisStore
from proxy.stores.shared import OnLoss, SharedStore
from tests.core.worlds import BOUND
from tests.simulation.processes import MILLION, Process, Universe
from tests.simulation.watch import WatchedLedger


@dataclass(frozen=True, slots=True)
class NoLink:
    """Stands where a connection would: what is sent goes by `Post.send`."""

    timeout: float = 0.5
    """Seconds for one exchange, as `store.timeout` is by default."""


@dataclass(slots=True)
class Network:
    """What happens to a letter, either way."""

    random: Random
    least: Micros = 200
    most: Micros = 2 * MILLISECOND
    loss: float = 0.0

    def delay(self) -> Micros:
        """How long a letter is on its way."""
        return self.random.randint(self.least, self.most)

    def loses(self) -> bool:
        """Whether a letter does not arrive."""
        return self.loss > 0 and self.random.random() < self.loss


class Server:
    """The server and its clock, which shows `offset` beyond the true time and gains `drift` microseconds a second."""

    def __init__(self, universe: Universe, network: Network, ledger: WatchedLedger, *, drift: int = 0) -> None:
        self.universe = universe
        self.network = network
        self.ledger = ledger
        self.run = "a" * 40
        self.up = True
        self.sleepers: dict[str, Post] = {}
        self._offset: Micros = 0
        self._drift = drift
        self._born = universe.now
        self._runs = 0

    def time(self) -> Micros:
        """What its clock shows."""
        now = self.universe.now
        return now + self._offset + (now - self._born) * self._drift // MILLION

    # What befalls it

    def step_clock(self, by: Micros) -> None:
        """Somebody sets its clock."""
        self._offset += by

    def restart(self, *, keeps: bool) -> None:
        """A new process, with or without what it had written."""
        self._runs += 1
        self.run = f"{self._runs:040x}"
        if not keeps:
            self.flush()

    def flush(self) -> None:
        """FLUSHALL."""
        self.ledger = self.ledger.renewed()

    def copy(self) -> WatchedLedger:
        """The state as it is now, for a failover to a server that has not heard of anything since."""
        return deepcopy(self.ledger)

    def fail_over(self, copy: WatchedLedger) -> None:
        """Another server takes over with an older state."""
        self._runs += 1
        self.run = f"{self._runs:040x}"
        self.ledger = copy

    # Letters

    def receive(self, call: Call, reply: Callable[[Reply], None]) -> None:
        """A letter is here."""
        if not self.up:
            return
        answer = self.ledger.exchange(self.time(), self.run, call)
        if not self.network.loses():
            self.universe.after(self.network.delay(), lambda: reply(answer))
        for name in answer.wake:
            if (sleeper := self.sleepers.get(name)) and not self.network.loses():
                self.universe.after(self.network.delay(), sleeper.wake)
        if answer.news:
            for sleeper in self.sleepers.values():
                if not self.network.loses():
                    self.universe.after(self.network.delay(), partial(sleeper.inform, answer.news))


class Post(RedisStore):
    """One replica's way to the shared store."""

    def __init__(self, server: Server, process: Process, pool: Pool, observer: Observer) -> None:
        super().__init__(
            cast("Link", NoLink()),
            pool,
            prefix="simulation",
            replica=process.name,
            settle_bound=BOUND,
            clock=process.micros,
            observer=observer,
        )
        self.process = process
        self._server = server
        self._wake: Callable[[], None] = lambda: None

    async def send(self, call: Call) -> Reply:
        """One round trip, which the network or the server may not bring to its end."""
        server, network, universe = self._server, self._server.network, self._server.universe
        answered: asyncio.Future[Reply] = self.process.create_future()
        if not server.up and network.random.random() < 0.5:
            await asyncio.sleep(0.001)
            raise StoreLost("refused", cause="nobody listens")
        if not network.loses():
            universe.after(network.delay(), lambda: server.receive(call, lambda reply: self._hear(answered, reply)))
        try:
            async with asyncio.timeout(self.link.timeout):
                return await answered
        except TimeoutError:
            raise StoreLost("no answer", cause="no answer in time") from None

    def _hear(self, answered: "asyncio.Future[Reply]", reply: Reply) -> None:
        def hear() -> None:
            if not answered.done():
                answered.set_result(reply)

        self.process.call_soon(hear)

    def listen(self, wake: Callable[[], None], deaf: Callable[[StoreLost], None] = lambda _: None) -> None:
        """Wait to be woken."""
        self._wake = wake
        self._server.sleepers[self.process.name] = self

    def inform(self, news: News) -> None:
        """All are told something."""
        self.process.call_soon(lambda: self.learn(news))

    def wake(self) -> None:
        """A turn has come earlier than it was told."""
        self.process.call_soon(self._wake)


class Account(SharedStore):
    """A replica's store, and since when it goes by the terms that it has; true time."""

    def __init__(self, post: Post, *, on_loss: OnLoss, observer: Observer) -> None:
        super().__init__(post, on_loss=on_loss, clock=post.process.micros, observer=observer)
        self.since: Micros = post.process.universe.now
        self._post = post

    def adopt(self, pool: Pool) -> None:
        self.since = self._post.process.universe.now
        super().adopt(pool)
