"""A replica's behaviour while the shared store is lost (`store.on_loss`), and its return to the store.

`share`: the replica uses its own share (`stores.share`). `wait`: requests wait for the store or their deadline.
`refuse`: requests get 503. A loss is detected within the store's timeout, logged once, and ends when an exchange
succeeds that reports this replica's outstanding leases. Replicas retry separately and at random intervals, so that a
store that comes back is not overloaded.

A store that was only stopped or cut off does not know what was spent meanwhile. It would grant those tokens again to
the replica that comes back first, or to one that has not detected the loss (law 1). A replica therefore uses its share
only when the others must have detected the loss, too; most losses are over before. After `share`, a replica that has
reported waits until all others have had time to report. A store with a new epoch waits for them itself (law 8).
"""

import asyncio
from collections.abc import Callable
from random import uniform
from typing import Any, Literal

from keyturn.core.bucket_snapshots import BucketSnapshot
from keyturn.core.errors import StoreLost
from keyturn.core.events import Observer, StoreCannotWake, StoreChanged
from keyturn.core.exchange import HEARTBEAT, EstimatedWaits, ExchangeResult, Flow, FlowDemand, Settlement, Unsent
from keyturn.core.messages import Revision
from keyturn.core.model import SECOND, Micros, Pool
from keyturn.stores.redis import RedisStore, Wake
from keyturn.stores.share import Share
from keyturn.tasks import finish, spawn

OnLoss = Literal["share", "wait", "refuse"]

RECONNECT_DELAY = (0.2, 0.6)
"""Seconds between two tries to reach a lost store; drawn anew each time."""

LOSS_RETRY_AFTER = 1
"""Seconds after which a refused caller may try again: the store is tried more often than that."""

LOSS_TOLERANCE: Micros = HEARTBEAT
"""How long a loss is waited out under `share` as well: by then every replica with outstanding leases has noticed it."""

MISSING: Micros = 2 * SECOND
"""How much longer the return from `share` takes while not all that shared the pool have spoken again: the store may
have been there for a moment only."""

MUTE = 10
"""Tries to listen in a row that fail while the store answers: some ten seconds, longer than a loss goes unnoticed."""


class SharedStore:
    """The shared store, or what stands in for it."""

    def __init__(self, store: RedisStore, *, on_loss: OnLoss, clock: Callable[[], Micros], observer: Observer) -> None:
        self.lost: StoreLost | None = None
        """Why the store does not answer, while it does not."""
        self._store = store
        self._on_loss = on_loss
        self._clock = clock
        self._observer = observer
        self._since: Micros = 0
        self._degraded: Micros = 0
        self._share: Share | None = None
        self._quiet = False
        """Whether the store knows what was spent here, but perhaps not yet what others spent."""
        self._wake: Wake = lambda _: None
        self._missed = 0
        self._unused: tuple[Settlement, ...] = ()
        """Leases that a report was answered with: they had been reserved, and nobody here waits for them any more."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def adopt(self, pool: Pool) -> None:
        """Go on with another configuration of the pool."""
        self._store.adopt(pool)
        if self._share:
            self._share = self._new_share()

    def listen(self, wake: Wake) -> None:
        """Call `wake` when a token comes earlier than announced, and when the store is back."""
        self._wake = wake
        self._store.listen(self._called, self._not_heard)

    def _called(self, delay: Micros) -> None:
        self._missed = 0
        self._wake(delay)

    def _not_heard(self, lost: StoreLost) -> None:
        self._missed = self._missed + 1 if self.lost is None else 0
        if self._missed == MUTE:
            self._observer.observe(StoreCannotWake(self._store.pool, lost.cause))

    async def close(self) -> None:
        """End the knocking."""
        await finish(self._tasks)

    @property
    def degraded(self) -> float:
        """Seconds without the store, so far."""
        return (self._degraded + (self._clock() - self._since if self.lost else 0)) / SECOND

    @property
    def revision(self) -> Revision:
        """The pool as the next exchange will name it."""
        return self._store.revision

    @property
    def replicas(self) -> int:
        """How many shared the pool when the store last answered."""
        return self._store.replicas

    async def buckets(self) -> tuple[BucketSnapshot, ...]:
        """The tokens of every bucket; while the store is lost of this replica's part, if it goes on with that."""
        if self.lost is None:
            try:
                return await self._store.buckets()
            except StoreLost:
                return ()  # the next exchange says so, too, and what happens then
        return self._share.buckets() if self._share else ()

    def try_grant(self, flow: Flow, weight: int) -> None:
        """See `core.exchange.PoolStore`: never."""

    def estimate(self, flow: Flow, waiting: int, weight: int) -> tuple[EstimatedWaits, Micros] | None:
        """See `core.exchange.PoolStore`: nothing is known while the store is lost."""
        return self._store.estimate(flow, waiting, weight) if self.lost is None else None

    async def exchange(
        self, settlements: tuple[Settlement, ...], demands: tuple[FlowDemand, ...], *, partial: bool = False
    ) -> ExchangeResult:
        """See `core.exchange.PoolStore`.

        Raises:
            StoreLost: under `wait`, and under `refuse` with a time to come back.
        """
        revision = self._store.revision
        self._store.session.tell(demands, partial=partial)
        if self.lost is None:
            try:
                answer = await self._store.speak((*self._unused, *settlements))
            except StoreLost as lost:
                self._lose(lost)
                if revision is not self._store.revision:
                    raise StoreLost("The limits have changed meanwhile. Come back in a moment.") from None
            else:
                self._unused = ()
                return answer
        return await self._without(settlements)

    async def _without(self, settlements: tuple[Settlement, ...]) -> ExchangeResult:
        if self._on_loss != "share" or self._quiet or self._clock() < self._since + LOSS_TOLERANCE:
            raise StoreLost(
                "The store of the rate limits does not answer. Come back in a moment.",
                cause=self.lost.cause if self.lost else "",
                retry_after=LOSS_RETRY_AFTER if self._on_loss == "refuse" else None,
            )
        if self._share is None:
            self._share = self._new_share()
        session, revision = self._store.session, self._store.revision
        answer = await self._share.exchange(settlements, tuple(session.waiting.values()))
        session.granted_elsewhere(self._clock(), revision, settlements, answer.grants)
        return answer

    def _new_share(self) -> Share:
        session, now = self._store.session, self._clock()
        return Share(
            self._store.revision,
            replica=session.replica,
            replicas=session.seen.most,
            held=session.held.report(now),
            age=now - self._since,
            clock=self._clock,
            heard=bool(session.epoch),
        )

    # Losing and finding it

    def _lose(self, lost: StoreLost) -> None:
        self.lost = lost
        self._since = self._clock()
        self._observer.observe(StoreChanged(self._store.pool, up=False, cause=lost.cause, on_loss=self._on_loss))
        spawn(self._knock(), name=f"knock {self._store.pool}", owner=self._tasks)

    async def _knock(self) -> None:
        while not await self._reported():
            pass
        now = self._clock()
        self._degraded += now - self._since
        self.lost, self._share, self._quiet = None, None, False
        self._store.session.forget()  # what was granted while a request was on its way is reported with the next
        seconds = (now - self._since) / SECOND
        self._observer.observe(StoreChanged(self._store.pool, up=True, on_loss=self._on_loss, seconds=seconds))
        self._wake(0)

    async def _reported(self) -> bool:
        """Try once to come back; says whether the store, and so every replica, knows what was spent."""
        self._quiet = False
        await asyncio.sleep(uniform(*RECONNECT_DELAY))  # noqa: S311  # jitter, not a secret
        epoch = self._store.session.epoch
        try:
            await self._report()
            if self._on_loss == "share" and epoch == self._store.session.epoch:
                self._quiet = True
                await self._report()  # what went out while the first was on its way
                await self._wait_for_others()
        except StoreLost as lost:
            self.lost = lost
            return False
        return True

    async def _wait_for_others(self) -> None:
        """Give all others the time to report: a try each, and a little more while some of them are missing."""
        session = self._store.session
        await asyncio.sleep(RECONNECT_DELAY[1] + self._store.link.timeout)
        until = self._clock() + MISSING
        while session.replicas < session.seen.most and self._clock() < until:
            await asyncio.sleep(RECONNECT_DELAY[0])
            await self._say()

    async def _report(self) -> None:
        self._store.session.forget()
        await self._say()

    async def _say(self) -> None:
        answer = await self._store.speak(self._unused, report=True)
        self._unused = tuple([Unsent(grant.lease) for grant in answer.grants])
