"""The shared store of the simulation: the state of a pool behind a network, on a server that fails in every way.

`State` is what the server runs: `WatchedState`, or the scripts. `Post` is what a replica has in place of a connection;
everything above it is the real thing.
"""

import asyncio
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Protocol, Self, TypeVar, cast

from keyturn.core.errors import StoreLost
from keyturn.core.events import Observer
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, Snapshot
from keyturn.core.model import MILLISECOND, Micros, Pool
from keyturn.stores.base import Pins
from keyturn.stores.links import Link
from keyturn.stores.redis import RedisStore, Wake
from keyturn.stores.shared import OnLoss, SharedStore

from tests.core.worlds import BOUND
from tests.simulation.processes import MILLION, Process, Universe

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NoLink:
    """Stand-in for a connection: messages go by `Post.send`."""

    timeout: float = 0.5
    """Seconds for one exchange, as `store.timeout` is by default."""


class State(Protocol):
    """The state that a server runs for one pool. It can be copied (`copy.deepcopy`)."""

    def exchange(self, time: Micros, run: str, request: ExchangeRequest) -> ExchangeResponse:
        """Answer a request; `time` is the server's clock, `run` names the life of its process."""

    def snapshot(self, time: Micros, revision: str, pins: Iterable[tuple[int, str]]) -> Snapshot | None:
        """Return what a replica estimates by; `None` for an unknown revision."""

    def renewed(self) -> Self:
        """Return an empty state."""


@dataclass(slots=True)
class Network:
    """Delays and losses of messages, either way."""

    random: Random
    least: Micros = 200
    most: Micros = 2 * MILLISECOND
    loss: float = 0.0

    def delay(self) -> Micros:
        """Return the delay of a message."""
        return self.random.randint(self.least, self.most)

    def loses(self) -> bool:
        """Return whether a message is lost."""
        return self.loss > 0 and self.random.random() < self.loss


class Server:
    """The server and its clock, which shows `offset` beyond the true time and gains `drift` microseconds a second."""

    def __init__(self, universe: Universe, network: Network, state: State, *, drift: int = 0) -> None:
        self.universe = universe
        self.network = network
        self.state = state
        self.run = "a" * 40
        self.up = True
        self.sleepers: dict[str, Post] = {}
        self._offset: Micros = 0
        self._drift = drift
        self._born = universe.now
        self._runs = 0

    def time(self) -> Micros:
        """Return its clock."""
        now = self.universe.now
        return now + self._offset + (now - self._born) * self._drift // MILLION

    # Incidents

    def step_clock(self, by: Micros) -> None:
        """Set its clock."""
        self._offset += by

    def slew_clock(self, drift: int) -> None:
        """Change the rate of its clock."""
        self._offset = self.time() - self.universe.now
        self._born, self._drift = self.universe.now, drift

    def restart(self, *, keeps: bool) -> None:
        """Start a new process, with or without the saved data."""
        self._runs += 1
        self.run = f"{self._runs:040x}"
        if not keeps:
            self.flush()

    def flush(self) -> None:
        """Empty it, as FLUSHALL."""
        self.state = self.state.renewed()

    def copy(self) -> State:
        """Copy the state for a failover to a server that lacks later writes."""
        return deepcopy(self.state)

    def fail_over(self, copy: State) -> None:
        """Let another server take over with an older state."""
        self._runs += 1
        self.run = f"{self._runs:040x}"
        self.state = copy

    # Messages

    def exchange(self, request: ExchangeRequest, pins: Pins | None) -> tuple[ExchangeResponse, Snapshot | None]:
        """A request is here, and asks for a snapshot if there are pins."""
        response = self.state.exchange(self.time(), self.run, request)
        self._wake(response)
        return response, None if pins is None or response.asks else self.snapshot(request.revision, pins)

    def snapshot(self, revision: str, pins: Pins) -> Snapshot | None:
        """Somebody asks for a snapshot only."""
        return self.state.snapshot(self.time(), revision, pins)

    def receive(self, work: Callable[[], T], reply: Callable[[T], None]) -> None:
        """Receive a message."""
        if not self.up:
            return
        answer = work()
        if not self.network.loses():
            self.universe.after(self.network.delay(), lambda: reply(answer))

    def _wake(self, response: ExchangeResponse) -> None:
        for name, delay in response.wake:
            if (sleeper := self.sleepers.get(name)) and not self.network.loses():
                self.universe.after(self.network.delay(), partial(sleeper.wake, delay))


class Post(RedisStore):
    """One replica's transport to the shared store."""

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
        self._called: Wake = lambda _: None

    async def send(self, request: ExchangeRequest, pins: Pins | None) -> tuple[ExchangeResponse, Snapshot | None]:
        return await self._trip(lambda: self._server.exchange(request, pins))

    async def fetch(self, revision: str, pins: Pins) -> Snapshot | None:
        return await self._trip(lambda: self._server.snapshot(revision, pins))

    async def _trip(self, work: Callable[[], T]) -> T:
        """Make one round trip, which network or server may break."""
        server, network, universe = self._server, self._server.network, self._server.universe
        answered: asyncio.Future[T] = self.process.create_future()
        if not server.up and network.random.random() < 0.5:
            await asyncio.sleep(0.001)
            raise StoreLost("refused", cause="nobody listens")

        def hear(answer: T) -> None:
            if not answered.done():
                answered.set_result(answer)

        def deliver(answer: T) -> None:
            self.process.call_soon(hear, answer)

        if not network.loses():
            universe.after(
                network.delay(),
                lambda: server.receive(work, deliver),
            )
        try:
            async with asyncio.timeout(self.link.timeout):
                return await answered
        except TimeoutError:
            raise StoreLost("no answer", cause="no answer in time") from None

    def listen(self, wake: Wake, deaf: Callable[[StoreLost], None] = lambda _: None) -> None:
        self._called = wake
        self._server.sleepers[self.process.name] = self

    def wake(self, delay: Micros) -> None:
        """Wake this replica: it has a token after that time."""
        self.process.call_soon(self._called, delay)


class Account(SharedStore):
    """A replica's store, and since when it uses its revision, in true time."""

    def __init__(self, post: Post, *, on_loss: OnLoss, observer: Observer) -> None:
        super().__init__(post, on_loss=on_loss, clock=post.process.micros, observer=observer)
        self.since: Micros = post.process.universe.now
        self._post = post

    def adopt(self, pool: Pool) -> None:
        self.since = self._post.process.universe.now
        super().adopt(pool)
