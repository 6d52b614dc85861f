"""The buckets' side of an exchange: settle, remember who waits, deal, foretell.

Laws kept here: 3 (what is at hand goes at once to whoever waits), 4 (in the order of `core.line`), 6 (every lane is
told its turns), 7 (the caller brings the store's one clock; only durations leave), 8 (a state that is new, or behind
what a replica has seen, or whose clock ran ahead, begins an era: who knows another one tells what it holds, and
nothing is dealt before all had the time to, for whoever comes first cannot know how many they are. A state that is new
is taken for lost when somebody turns out to know another one). `core.buckets` keeps 1, 2 and 9.

Tokens that fall to a lane of another replica are left for it: it is woken, and fetches them in its own exchange; a
replica that does not come back within its grace holds no place any longer.

`stores/exchange.lua` follows this text; a differential test drives both.
"""

from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace

from proxy.core.buckets import Buckets
from proxy.core.exchange import GRACE, PULSE, Budget, Grant, Lane, Turns, Unsent, pulse
from proxy.core.forecast import Forecast, Forecaster, Loan
from proxy.core.letters import Call, Need, News, Place, Reply
from proxy.core.line import Line
from proxy.core.model import MILLISECOND, SECOND, Micros
from proxy.core.outlook import Outlook
from proxy.core.parts import Believed
from proxy.core.rehearsal import Rehearsal
from proxy.core.sortedset import SortedSet

WAKE_MARGIN: Micros = 20 * MILLISECOND
"""A replica is woken when its turn has come this much earlier than it was told."""

HOLD: Micros = PULSE + GRACE
"""How long a new era waits for the word of those that shared the pool.

Who is alive and holds anything speaks within this time.
"""

DEAL = 256
"""Tokens dealt in one exchange at the most, loans among them; more are dealt with the next."""

KEEP: Micros = 60 * SECOND
"""Terms that nobody has used for this long are let go when others are in use."""


Candidate = tuple[int, str, int, int]
"""A client's tag, its name, the stamp of its first row, and the number of the need with which that waits."""


@dataclass(slots=True)
class Member:
    """A replica as the buckets know it."""

    serial: int
    """Of its last call."""
    granted: tuple[str, ...] = ()
    """What that call was answered with."""


@dataclass(slots=True)
class Dealt:
    """What the dealing at one instant came to."""

    grants: list[Grant] = field(default_factory=list)
    served: list[Place] = field(default_factory=list)
    """Where each grant goes."""
    lent: list[Loan] = field(default_factory=list)
    stopped: Micros | None = None
    """Until when it was broken off, although more could be served; `None` when it was not."""


class Ledger:
    """The state of one pool: its buckets, and who waits for them."""

    def __init__(self, name: str = "") -> None:
        """A state of its own; `name` begins the names of its leases, where they have to differ from others'."""
        self._name = name
        self.buckets = Buckets()
        self.line = Line()
        self.era = ""
        self._run = ""
        self._tick = 0
        self._leases = 0
        self._shift: Micros = 0
        self._now: Micros = 0
        self._lost = False
        """Whether somebody knew another era than this one."""
        self._hold: Micros = 0
        """Until when the others have the time to tell what they hold, if it is lost."""
        self._shared = 0
        """How many shared the pool when the era began."""
        self._words: SortedSet[str, Micros] = SortedSet()
        self._members: dict[str, Member] = {}
        self._names: SortedSet[str, int] = SortedSet()
        self._believed = Believed()
        self._terms: SortedSet[str, Micros] = SortedSet()

    def exchange(self, time: Micros, run: str, call: Call, *, most: int = DEAL) -> Reply:
        """Answer a letter. `time` is the store's clock; `run` names the life of the store's process.

        `most`: tokens that are dealt at the most, for who paces besides.
        """
        now = self._clock(time, call)
        self._suspect(now, run, call)
        member = self._members.get(call.replica)
        asks = ("nothing",) if member and call.serial <= member.serial else self._asks(call)
        if asks:
            return Reply(self.era, self._tick, now, asks)
        self._tick += 1
        self.buckets.foreign.clear()
        self.line.expire(now)
        self._use_terms(now, call)
        self._hear(now, call, member)
        self._settle(now, call)
        left = self.buckets.mature(now)
        self.buckets.tidy(call.terms)
        lanes = self._remember(call)
        rehearsal = Rehearsal(self.line)
        dealt = self._deal(now, call, lanes, rehearsal, most)
        self.line.provide(rehearsal.provided())
        forecast = self._foretell(now, rehearsal, dealt)
        for place in dealt.served:  # only now, for the rehearsal looks at the line as it was
            self.line.serve(call.replica, place)
        if not dealt.lent:
            self.line.level()
        told = self._tell(now, call, lanes, dealt, forecast)
        budgets = self._budgets(now, call.terms)
        replicas = max(len(self._words), self._shared if self._waits_for_words(now) else 0)
        return Reply(
            self.era,
            self._tick,
            now,
            grants=tuple(dealt.grants),
            turns=told,
            budgets=budgets,
            again=self._again(now, call.replica, forecast, dealt, waits=bool(told), left=left),
            wake=self._early(call.replica, forecast),
            replicas=replicas,
            foreign=tuple(sorted(self.buckets.foreign.items())),
            rank=self._names.rank(call.replica),
            news=self._news(call, replicas, budgets),
        )

    def at_once(self, time: Micros, replica: str, terms: str, lane: Lane, weight: int) -> Grant | None:
        """What an exchange would grant to one request, if something is at hand and nobody waits anywhere; else `None`.

        For a replica of the same process, which loses no letters; all else it hears, and tells, in exchanges.
        """
        view = self.buckets.views.get(terms)
        if view is None or self.line.groups or replica not in self._members:
            return None
        now = self._now = max(self._now, time + self._shift)
        need = view.need(lane.kind)
        quota = self.buckets.best(need)
        if quota is None or self._waits_for_words(now):
            return None
        self.line.pass_by(lane.client, weight)
        return self._grant(now, replica, lane, need, quota)

    # Trust

    def _clock(self, time: Micros, call: Call) -> Micros:
        """The ledger's own time: the store's clock, which never goes back, less what it is known to have run ahead."""
        if call.jumped and call.era == self.era:
            self._shift -= call.jumped
            self._now -= call.jumped
        now = time + self._shift
        if now < self._now:
            self._shift += self._now - now
            now = self._now
        self._now = now
        return now

    def _suspect(self, now: Micros, run: str, call: Call) -> None:
        """Begin a new era when this state may not know all that was spent (law 8)."""
        suspicious = call.era == self.era and (call.tick > self._tick or call.jumped > 0)
        if not self.era or run != self._run or suspicious:
            self._begin(now, run)
        if call.era not in ("", self.era):
            self._shared = max(self._shared, call.replicas)
            if not self._lost:
                self._lost, self._hold = True, now + HOLD

    def _begin(self, now: Micros, run: str) -> None:
        self._lost, self._hold = self.era != "", now + HOLD
        self._run = run
        self._tick = max(self._tick, now)
        self._leases = max(self._leases, now)
        self.era = f"{now}-{run[:8]}"
        self._shared = len(self._words)
        self.buckets.chill()

    def _waits_for_words(self, now: Micros) -> bool:
        """Whether others may yet have to tell what they hold; what is at hand is not known before."""
        return self._lost and now < self._hold

    def _asks(self, call: Call) -> tuple[str, ...]:
        asks = []
        if call.terms not in self.buckets.views and call.spelled is None:
            asks.append("terms")
        if call.era not in ("", self.era) and call.held is None:
            asks.append("held")
        return tuple(asks)

    def _hear(self, now: Micros, call: Call, member: Member | None) -> None:
        """A replica spoke: what it did not hear, and what it holds; whoever has long been silent is gone."""
        if member and call.heard != member.serial:
            for lease in member.granted:
                self._return(now, lease)
        self._members[call.replica] = Member(call.serial)
        self._words.put(call.replica, now)
        self._names.put(call.replica, 0)
        if call.held is not None:
            self.buckets.restore(now, call.replica, call.held, call.terms)
        while (first := self._words.first()) and first[0] + self.buckets.bound <= now:
            word, gone = self._words.pop_first()
            self.buckets.lapse(gone, word)
            self.line.forget(gone)
            self._names.remove(gone)
            del self._members[gone]

    def _use_terms(self, now: Micros, call: Call) -> None:
        if call.terms not in self.buckets.views and call.spelled is not None:
            self.buckets.learn(call.spelled)
        self._terms.put(call.terms, now)
        while (first := self._terms.first()) and first[0] + KEEP < now:
            self.buckets.unlearn(self._terms.pop_first()[1])

    def _return(self, now: Micros, lease: str) -> None:
        out = self.buckets.settle(now, Unsent(lease), (), "")
        if out:
            self.line.refund(out.client)

    def _settle(self, now: Micros, call: Call) -> None:
        limits = self.buckets.limits(call.terms)
        for settlement in call.settlements:
            if isinstance(settlement, Unsent):
                self._return(now, settlement.lease)
            else:
                self.buckets.settle(now, settlement, limits, call.terms)

    # Who waits, and who is served

    def _remember(self, call: Call) -> dict[Place, Lane]:
        """Note what waits in the replica; returns its lanes by the places in which the buckets know them."""
        view = self.buckets.views[call.terms]
        lanes: dict[Place, Lane] = {}
        rows: list[tuple[Place, int, int]] = []
        for demand in call.demands:
            place = Place(demand.lane.client, view.need(demand.lane.kind))
            lanes[place] = demand.lane
            rows.append((place, demand.weight, demand.waiting))
        self.line.remember(call.replica, rows)
        return lanes

    def _deal(self, now: Micros, call: Call, lanes: dict[Place, Lane], rehearsal: Rehearsal, most: int) -> Dealt:
        """Give what is at hand in fair order: to the caller as grants, to others as loans that are given back below."""
        dealt = Dealt()
        if self._waits_for_words(now):
            dealt.stopped = self._hold
            return dealt
        queue = self._queue(rehearsal)
        while choice := self._choose(rehearsal, queue):
            if len(dealt.grants) + len(dealt.lent) == most:
                dealt.stopped = now
                break
            need_, client, quota = choice
            owner = rehearsal.serve(need_, client)
            if owner == call.replica:
                place = Place(client, need_)
                dealt.grants.append(self._grant(now, call.replica, lanes[place], need_, quota))
                dealt.served.append(place)
            else:
                self.buckets.lend(quota, need_.limits, now)
                dealt.lent.append(Loan(quota, need_, owner))
        self._members[call.replica].granted = tuple([grant.lease for grant in dealt.grants])
        return dealt

    def _queue(self, rehearsal: Rehearsal) -> list[Candidate]:
        """Of each need the client whose turn it is, if anything can serve it; a heap, the first of all on top.

        Tags only grow and tokens only get fewer, so a candidate that is out of date is found when it comes up, and one
        that nothing can serve is dropped for good.
        """
        found = [self._candidate(rehearsal, number) for number in range(len(rehearsal.needs))]
        queue = [candidate for candidate in found if candidate]
        heapify(queue)
        return queue

    def _candidate(self, rehearsal: Rehearsal, number: int) -> Candidate | None:
        need_ = rehearsal.needs[number]
        first = rehearsal.first(need_) if self.buckets.best(need_) is not None else None
        return (*first, number) if first else None

    def _choose(self, rehearsal: Rehearsal, queue: list[Candidate]) -> tuple[Need, str, str] | None:
        while queue:
            *known, number = queue[0]
            need_ = rehearsal.needs[number]
            quota = self.buckets.best(need_)
            first = rehearsal.first(need_) if quota is not None else None
            if quota is None or first is None:
                heappop(queue)
                continue
            if first != tuple(known):
                heapreplace(queue, (*first, number))
                if queue[0][-1] != number:
                    continue
            return need_, first[1], quota
        return None

    def _grant(self, now: Micros, replica: str, lane: Lane, need: Need, quota: str) -> Grant:
        self._leases += 1
        lease = f"{self._name}{self._leases}"
        probe = self.buckets.take(lease, need, quota, now=now, replica=replica, client=lane.client)
        return Grant(lease, lane, quota, probe)

    def _foretell(self, now: Micros, rehearsal: Rehearsal, dealt: Dealt) -> Forecast:
        """Deal on into the future, then give back what was lent."""
        forecast = Forecast(rehearsal)
        if dealt.stopped is None and rehearsal.waiting:
            forecast = Forecaster(self.buckets, rehearsal, now, dealt.lent).play()
        for loan in dealt.lent:
            self.buckets.lend(loan.quota, loan.need.limits, None)
            forecast.first[loan.replica] = now
        return forecast

    # What is told

    def _tell(
        self, now: Micros, call: Call, lanes: dict[Place, Lane], dealt: Dealt, forecast: Forecast
    ) -> dict[Lane, Turns]:
        told: dict[Lane, Turns] = {}
        places = self.line.places(call.replica)
        outlook = Outlook(forecast, self.line, self.buckets, now, len(places))
        for place in places:
            if dealt.stopped is not None:
                last = self.line.waiting(call.replica, place) - 1
                told[lanes[place]] = Turns((), ((last, dealt.stopped - now),))
            else:
                told[lanes[place]] = outlook.turns(call.replica, place)
        return told

    def _again(
        self, now: Micros, replica: str, forecast: Forecast, dealt: Dealt, *, waits: bool, left: bool
    ) -> Micros | None:
        if not waits:
            return pulse(self.buckets.bound) if self.buckets.holds(replica) else None
        longest = pulse(self.buckets.bound)
        first = forecast.first.get(replica, now + longest) if dealt.stopped is None else dealt.stopped
        again = MILLISECOND if left else max(MILLISECOND, min(first - now, longest))
        self.line.expect(replica, now + again, now + again + GRACE)
        return again

    def _early(self, caller: str, forecast: Forecast) -> tuple[str, ...]:
        """The replicas whose turn comes earlier than they were told; they are told so now."""
        woken = []
        for replica, first in sorted(forecast.first.items()):
            due = self.line.due(replica)
            if replica != caller and due is not None and first + WAKE_MARGIN < due:
                woken.append(replica)
                self.line.expect(replica, first, first + GRACE)
        return tuple(woken)

    def _budgets(self, now: Micros, terms: str) -> tuple[Budget, ...]:
        budgets = []
        for limit in self.buckets.limits(terms):
            hand = 0 if self._waits_for_words(now) else self.buckets.at_hand(terms, limit)
            returns = self.buckets.nth_return(terms, limit, hand, now) - now
            if self.buckets.calendars[limit].parked:
                view = self.buckets.views[terms]
                tokens = view.limits[limit].requests
                hand, returns = self.buckets.calendars[limit].open_ones(view.quotas, tokens, now, hand, returns)
            budgets.append(Budget(self.buckets.size(terms, limit), hand, returns))
        return tuple(budgets)

    def _news(self, call: Call, replicas: int, budgets: tuple[Budget, ...]) -> News | None:
        """What the others have to hear, for what they believe to be at hand is no longer."""
        hands = tuple(zip(self.buckets.limits(call.terms), [budget.at_hand for budget in budgets], strict=True))
        view = self.buckets.views[call.terms]
        return self._believed.news(self._tick, replicas, len(view.quotas), hands)
