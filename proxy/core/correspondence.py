"""A replica's side of the exchange with a shared store: what it writes, what it believes, and what it can tell again.

Laws kept here: 7 (the store's instants are compared with each other only, over this replica's own clock), 8 (what is
out is remembered for a window, so that it can be reported to a store that has lost it; an answer by a clock that ran
ahead is not believed, and its grants are never used).

Nothing here does I/O: `call` says what to send, `hear` what it came to. Instants are this replica's monotonic ones.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush

from proxy.core.exchange import PULSE, Demand, Exchange, Grant, Settlement, Unsent
from proxy.core.letters import Call, Held, News, Reply, Terms
from proxy.core.model import MILLISECOND, SECOND, Micros

TOLERANCE: Micros = 20 * MILLISECOND
"""A store's clock that runs ahead by less than this, and 0.05 % of the time between, is not suspected."""

RECALL: Micros = 60 * SECOND
"""How long it is remembered that more shared the pool."""


class Sharers:
    """How many replicas shared the pool at the most, of late.

    A store that has just been found again has heard of some of them only, and one that is idle says nothing for a
    while. So only time in which it is spoken with counts.
    """

    def __init__(self) -> None:
        self._most = self._before = 1
        self._age: Micros = 0
        self._told: Micros | None = None

    def note(self, now: Micros, replicas: int) -> None:
        """So many do at this instant."""
        self._age += min(now - self._told, PULSE) if self._told is not None else 0
        self._told = now
        if self._age >= RECALL:
            self._before, self._most, self._age = self._most, 1, 0
        self._most = max(self._most, replicas)

    @property
    def most(self) -> int:
        """Since `RECALL` ago, or twice as long."""
        return max(self._most, self._before)


@dataclass(slots=True)
class _Token:
    """A lease of this replica whose tokens are out."""

    quota: str
    client: str
    windows: tuple[tuple[str, Micros], ...]
    granted: Micros
    counted: Micros | None = None


class Record:
    """Every lease of one replica until its tokens have returned."""

    def __init__(self) -> None:
        self._tokens: dict[str, _Token] = {}
        self._returns: list[tuple[Micros, str]] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def granted(self, now: Micros, grant: Grant, terms: Terms) -> None:
        """A lease was granted at `now` at the earliest."""
        windows = tuple([(terms.limits[i].id, terms.limits[i].window) for i in grant.lane.kind.limits])
        if windows:
            self._tokens[grant.lease] = _Token(grant.quota, grant.lane.client, windows, now)

    def settled(self, now: Micros, settlements: Iterable[Settlement]) -> None:
        """Leases ended."""
        for settlement in settlements:
            token = self._tokens.get(settlement.lease)
            if token is None or token.counted is not None:
                continue
            if isinstance(settlement, Unsent):
                del self._tokens[settlement.lease]
            else:
                token.counted = now - settlement.age
                longest = max(window for _, window in token.windows)
                heappush(self._returns, (token.counted + longest, settlement.lease))

    def purge(self, now: Micros) -> None:
        """Forget what has returned."""
        while self._returns and self._returns[0][0] <= now:
            self._tokens.pop(heappop(self._returns)[1], None)

    def held(self, now: Micros) -> tuple[Held, ...]:
        """All that is out."""
        self.purge(now)
        return tuple(
            Held(
                lease,
                token.quota,
                token.client,
                token.windows,
                now - token.granted,
                None if token.counted is None else now - token.counted,
            )
            for lease, token in self._tokens.items()
        )


class Correspondence:
    """One replica's letters about one pool."""

    def __init__(self, replica: str, terms: Terms) -> None:
        self.replica = replica
        self.terms = terms
        self.record = Record()
        self.replicas = 1
        """How many shared the pool when it last heard, this one among them."""
        self.sharers = Sharers()
        self.rank = 0
        """How many of them come before this one by name."""
        self.hands: dict[str, int] = {}
        """Tokens at hand over all quotas, by limit, as this replica was told last."""
        self.era = ""
        self._serial = 0
        self._heard = 0
        self._tick = 0
        self._instant: Micros = 0
        self._sent: Micros = 0
        self._jumped: Micros = 0
        self._asked: tuple[str, ...] = ()
        self._newest = 0
        """The tick as of which `hands` were told."""

    def forget(self) -> None:
        """Suspect the store of whatever may have happened: report all that is out before anything is asked."""
        self._asked = (*self._asked, "held")

    def call(self, now: Micros, settlements: tuple[Settlement, ...], demands: tuple[Demand, ...]) -> Call:
        """The next letter."""
        self._serial += 1
        return Call(
            self.replica,
            self._serial,
            self._heard,
            self.era,
            self._tick,
            self.replicas,
            self.terms.name,
            settlements,
            demands,
            self._jumped,
            self.record.held(now) if "held" in self._asked else None,
            self.terms if "terms" in self._asked else None,
        )

    def hear(self, sent: Micros, now: Micros, call: Call, reply: Reply) -> Exchange | None:
        """What a reply came to; `None`: write again, it asked for something or is not to be believed.

        `sent` is when the call was sent, `now` when its reply was there.
        """
        if reply.asks:
            self._asked = (*self._asked, *reply.asks)
            return None
        if self._ran_ahead(now, reply):
            return None
        if reply.era != self.era or reply.tick > self._newest:
            self._newest = reply.tick
            hands = zip(self.terms.limits, reply.budgets, strict=False)
            self.hands = {limit.id: budget.at_hand for limit, budget in hands}
        self._heard = call.serial
        self._asked = ()
        self._jumped = 0
        self._tick = reply.tick
        self.era, self._instant, self._sent = reply.era, reply.instant, sent
        self.replicas = reply.replicas
        self.rank = reply.rank
        self.sharers.note(now, reply.replicas)
        self.record.settled(sent, call.settlements)
        self.record.purge(now)
        for grant in reply.grants:
            self.record.granted(sent, grant, self.terms)
        return reply.exchange()

    def learn(self, now: Micros, news: News) -> None:
        """All replicas were told something; what is older than what was told last is passed over."""
        if news.tick <= self._newest:
            return
        self._newest = news.tick
        self.replicas = news.replicas
        self.sharers.note(now, news.replicas)
        self.hands.update((limit, hand) for limit, hand in news.hands if limit in self.hands)

    def store_time(self, now: Micros) -> Micros:
        """What the store's clock shows now, a round trip more at the most; it was heard of at least once."""
        return self._instant + now - self._sent

    def _ran_ahead(self, now: Micros, reply: Reply) -> bool:
        """Whether more time has passed by the store's clock than can have passed between two calls."""
        if reply.era != self.era:
            return False
        longest = now - self._sent
        ahead = reply.instant - self._instant - longest
        if ahead <= TOLERANCE + longest // 2000:
            return False
        self._jumped = ahead
        return True
