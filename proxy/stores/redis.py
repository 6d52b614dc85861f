"""The store on Redis or Valkey, as one replica of many sees it: letters go out, replies come back, nothing is decided.

One call is one round trip. More are made only when the store asks for something (terms that it does not know, what
this replica holds), its clock ran ahead (`core.correspondence`), or the connection broke.
"""

from collections.abc import Callable
from dataclasses import replace

from proxy.core.correspondence import Correspondence
from proxy.core.errors import StoreLost
from proxy.core.events import EraBegan, Observer
from proxy.core.exchange import PULSE, USE_BY, Demand, Exchange, Settlement, pulse
from proxy.core.letters import Call, News, Reply, terms_of
from proxy.core.looks import BucketLook
from proxy.core.model import SECOND, Micros, Pool
from proxy.stores.codec import SCRIPT, decode, decode_news, encode
from proxy.stores.links import Link, Script
from proxy.stores.looks import look_at

IDLE: Micros = 5 * SECOND
"""A replica that has nothing out says this often that it is there, so that others know how many share the pool.

Who has spent something within the last window speaks as often as who has leases out: a state that forgets everything
waits no longer for its word (`core.ledger.HOLD`).
"""

ROUNDS = 6
"""Letters to one exchange at the most: terms, what is held, a clock that ran ahead, and a connection that broke, with
some to spare."""

EXCHANGE = Script.of(SCRIPT)


class RedisStore:
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
        self.pool = pool.name
        self.link = link
        self.key = f"{prefix}:{{{pool.name}}}"
        self._settle_bound = settle_bound
        self._clock = clock
        self._observer = observer
        self.terms = terms_of(pool, USE_BY + settle_bound)
        """Those of the next exchange; one that is under way goes on by those that it began with."""
        self.letters = Correspondence(replica, self.terms)

    def adopt(self, pool: Pool) -> None:
        """Go on with another configuration of the pool; what was spent stays spent."""
        self.terms = terms_of(pool, USE_BY + self._settle_bound)

    def listen(self, wake: Callable[[], None], deaf: Callable[[StoreLost], None] = lambda _: None) -> None:
        """Call `wake` when a turn has come earlier than it was told; hear what all are told besides."""
        news = {f"{self.key}:news": lambda text: self.learn(decode_news(text))}
        self.link.listen(f"{self.key}:wake:{self.letters.replica}", wake, deaf, others=news)

    def learn(self, news: News) -> None:
        """Take note of what all were told."""
        self.letters.learn(self._clock(), news)

    async def look(self) -> tuple[BucketLook, ...]:
        """The tokens of every bucket.

        Raises:
            StoreLost: no answer.
        """
        return await look_at(self.link, self.key, self.letters.terms)

    async def exchange(self, settlements: tuple[Settlement, ...], demands: tuple[Demand, ...]) -> Exchange:
        """See `core.exchange.Store`.

        A connection that breaks is no loss yet: once in an exchange another letter is written over a new one. What the
        first came to does not matter, for its grants are taken back, and what ended has ended.
        """
        letters = self.letters
        letters.terms = self.terms
        era, broke = letters.era, False
        for _ in range(ROUNDS):
            sent = self._clock()
            call = letters.call(sent, settlements, demands)
            try:
                reply = await self.send(call)
            except StoreLost as lost:
                if broke or not lost.broke:
                    raise
                broke = True
                continue
            answer = letters.hear(sent, self._clock(), call, reply)
            if answer is not None:
                if era not in ("", letters.era):
                    self._observer.observe(EraBegan(self.pool))
                return answer if answer.again is not None else replace(answer, again=self._pulse())
        raise StoreLost("The shared store does not come to terms with this replica.", cause=_AT_ODDS)

    async def send(self, call: Call) -> Reply:
        """One letter and its reply: one round trip.

        Raises:
            StoreLost: no answer.
        """
        reply: Reply = await self.link.run(EXCHANGE, self.key, encode(call), read=lambda answer: decode(answer, call))
        return reply

    def _pulse(self) -> Micros:
        return pulse(self.letters.terms.bound, PULSE if len(self.letters.record) else IDLE)


_AT_ODDS = (
    "the store asks for the same thing again and again: is its memory full, or is it two servers behind one name?"
)
