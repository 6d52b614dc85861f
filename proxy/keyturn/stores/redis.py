"""The store on Redis or Valkey, as one replica of many sees it.

An exchange is one round trip, a snapshot included. More are made only when the store asks for something (a revision
that it does not know, what this replica holds, its demands), its clock stepped, or the connection broke.
"""

from collections.abc import Callable

from keyturn.core.bucket_snapshots import BucketSnapshot
from keyturn.core.errors import StoreLost
from keyturn.core.events import EpochBegan, Observer
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, Snapshot
from keyturn.core.model import Micros, Pool
from keyturn.stores.base import Pins, SessionStore
from keyturn.stores.bucket_reader import read_buckets
from keyturn.stores.links import Link
from keyturn.stores.scripts import (
    EXCHANGE,
    SNAPSHOT,
    decode_exchange,
    decode_snapshot,
    encode_exchange,
    encode_snapshot,
)

LAYOUT = 3
"""The layout of what is stored: another one has other names, so that replicas of another version read nothing of it."""

Wake = Callable[[Micros], None]
"""Called with the delay after which this replica is to call."""


class RedisStore(SessionStore):
    """One replica's way to the shared buckets of one pool."""

    def __init__(
        self,
        link: Link,
        pool: Pool,
        *,
        prefix: str,
        replica: str,
        settle_bound: Micros,
        clock: Callable[[], Micros],
        observer: Observer,
    ) -> None:
        super().__init__(pool, replica=replica, settle_bound=settle_bound, clock=clock)
        self.link = link
        self.key = f"{prefix}:{LAYOUT}:{{{pool.name}}}"
        self._observer = observer

    def listen(self, wake: Wake, deaf: Callable[[StoreLost], None] = lambda _: None) -> None:
        """Call `wake` when a token comes earlier than announced, and whenever a message may have been missed."""
        self.link.listen(
            f"{self.key}:wake:{self.session.replica}", lambda delay: wake(int(delay) if delay.isdigit() else 0), deaf
        )

    def epoch_began(self) -> None:
        """Tell the observer."""
        self._observer.observe(EpochBegan(self.pool))

    async def buckets(self) -> tuple[BucketSnapshot, ...]:
        """The tokens of every bucket.

        Raises:
            StoreLost: no answer.
        """
        return await read_buckets(self.link, self.key, self.session.revision)

    async def send(self, request: ExchangeRequest, pins: Pins | None) -> tuple[ExchangeResponse, Snapshot | None]:
        """See `SessionStore`."""
        told: tuple[ExchangeResponse, Snapshot | None] = await self.link.run(
            EXCHANGE, self.key, encode_exchange(request, pins), read=decode_exchange
        )
        return told

    async def fetch(self, revision: str, pins: Pins) -> Snapshot | None:
        """See `SessionStore`."""
        told: Snapshot | None = await self.link.run(
            SNAPSHOT, self.key, encode_snapshot(revision, pins), read=decode_snapshot
        )
        return told
