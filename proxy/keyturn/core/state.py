"""The state of one pool, and the one operation on it: settle, replenish, note who waits, deal, look ahead.

Laws kept here: 3 (what is available goes at once to a request that waits; the replica whose turn is next is told when
to call), 4 (in the order of `core.flows`), 7 (the caller brings the store's one clock; only durations leave), 8 (a
state that is new, or behind what a replica has seen, or whose clock stepped, begins an epoch: replicas that know
another one report what they hold, and nothing is dealt before all had the time to). `core.tokens` keeps 1, 2 and 9.

Nothing here estimates: what lies ahead of the next token is for `core.estimator`, from a snapshot (`core.snapshots`).
The work of one exchange is bounded (`DEALT`, `MAX_CANDIDATES`, `REPLENISHED`, `MAX_EVENTS`); the next does the rest.

`stores/lua/exchange.lua` says the same in Lua; a differential test drives both.
"""

from collections import Counter
from dataclasses import dataclass, field

from keyturn.core.budgets import budgets
from keyturn.core.dealing import Dealer
from keyturn.core.exchange import HEARTBEAT, DemandClass, Flow, LeaseGrant, Unsent, heartbeat
from keyturn.core.flows import FairQueue
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, RevisionClass
from keyturn.core.model import MILLISECOND, SECOND, Micros
from keyturn.core.revisions import Revisions, RevisionView
from keyturn.core.sortedset import SortedSet
from keyturn.core.tokens import TokenBuckets

WAKE_MARGIN: Micros = 5 * MILLISECOND
"""A replica is woken when its turn comes this much earlier than it was told to call."""

COLLECT: Micros = SECOND // 2
"""How long a token stays reserved for a replica that does not collect it."""

RECOVERY_GRACE: Micros = HEARTBEAT + SECOND // 2
"""How long a new epoch waits for the reports of the replicas that shared the last one.

A replica that is alive and holds anything speaks within this time.
"""

DEALT = 256
"""Leases granted in one exchange at the most, reservations among them."""

MILLION = 1_000_000

MAX_RATE = MILLION // 10
"""The most microseconds in a million by which the store's clock is taken to run fast."""

RATE_MEMORY: Micros = 20 * SECOND
"""How long it takes to forget that it did."""

DRIFT: Micros = 10 * MILLISECOND
"""The store's clock is corrected when all replicas see it ahead by more than this."""

LAPSED = 16
"""Replicas that are found to be gone in one exchange at the most."""


@dataclass(slots=True)
class Member:
    """A replica as the state knows it."""

    serial: int = 0
    """Serial of its last request."""
    granted: tuple[str, ...] = ()
    """The leases that its last request was answered with."""
    reserved: list[LeaseGrant] = field(default_factory=list)
    """Leases that it is to collect."""
    due: Micros = 0
    """When it was told to call; 0 when it was not."""
    revision: str = ""
    forgotten: bool = True
    """Whether its demands are not known."""


class SharedState:
    """The buckets of one pool, and the requests that wait for them."""

    def __init__(self, name: str = "") -> None:
        """A state of its own; `name` begins the names of its leases, where they have to differ from others'."""
        self.tokens = TokenBuckets()
        self.queue = FairQueue()
        self.revisions = Revisions()
        self._dealer = Dealer(self.tokens, self.queue, self.revisions)
        self.epoch = ""
        self.dealt = 0
        """Leases granted so far."""
        self._name = name
        self._run = ""
        self._version = 0
        self._leases = 0
        self._shift: Micros = 0
        """Added to the store's clock."""
        self._now: Micros = 0
        self._corrected: Micros = 0
        self._time: Micros = 0
        """The latest reading of the store's clock."""
        self._rate = 0
        """Microseconds in a million by which it is taken to run fast, until replicas say more."""
        self._rated: Micros = 0
        self._ahead: SortedSet[str, Micros] = SortedSet()
        """The time by which each replica that holds leases or waits saw the clock run ahead, before all corrections."""
        self._lost = False
        """Whether a replica knew another epoch than this one."""
        self._grace: Micros = 0
        """Until when the others have the time to report, if the last epoch was lost."""
        self._shared = 0
        """How many replicas shared the pool when the epoch began."""
        self._seen: SortedSet[str, Micros] = SortedSet()
        self._members: dict[str, Member] = {}
        self._uncollected: SortedSet[str, Micros] = SortedSet()
        """Replicas with reservations, by the instant at which these end."""

    def exchange(self, time: Micros, run: str, request: ExchangeRequest, *, most: int = DEALT) -> ExchangeResponse:
        """Answer a request. `time` is the store's clock; `run` names the life of the store's process.

        `most`: leases that are granted at the most, for callers that pace besides.
        """
        now = self._clock(time, request)
        self._suspect(now, run, request)
        member = self._members.get(request.replica)
        if asks := self._asks(request, member):
            return ExchangeResponse(self.epoch, self._version, now, asks)
        self._version += 1
        self.tokens.foreign.clear()
        view = self._use(now, request)
        member = self._hear(now, request, member or Member())
        self._expire(now)
        for settlement in request.settlements:
            record = self.tokens.settle(now, settlement, view)
            if record and isinstance(settlement, Unsent):
                self.queue.refund(record.client)
        left = self.tokens.replenish(now)
        self._note_demands(request)
        grants = self._collect(request.replica, member)
        woken: dict[str, Micros] = {}
        self._dealer.find_ready()
        if not self._awaits_reports(now):
            grants += self._deal(now, request.replica, most, woken)
            left = left or bool(self.queue.ready)
        member.granted = tuple([grant.lease for grant in grants])
        again = self._again(now, request.replica, member, woken, left=left)
        waits_for_reports = self._awaits_reports(now)
        available = budgets(self.tokens, view, now)
        if waits_for_reports:
            available = tuple([one._replace(available=0) for one in available])
        return ExchangeResponse(
            self.epoch,
            self._version,
            now,
            grants=tuple(grants),
            available=available,
            again=again,
            wake=tuple(sorted(woken.items())),
            replicas=max(len(self._seen), self._shared if waits_for_reports else 0),
            dealt=self.dealt,
            foreign=tuple(sorted(self.tokens.foreign.items())),
        )

    def try_grant(self, time: Micros, replica: str, revision: str, flow: Flow, weight: int) -> LeaseGrant | None:
        """Grant to one request at once if a token is available and nothing waits anywhere; else `None`.

        For a replica of the same process, which loses no messages; everything else goes by exchanges.
        """
        demanded, view = RevisionClass(revision, *flow.demand_class), self.revisions.views.get(revision)
        if view is None or self.queue.classes or replica not in self._members:
            return None
        now = self._now = self.time(time)
        quota = self.tokens.best(view, demanded.limits, demanded.pinned)
        if quota is None or self._awaits_reports(now):
            return None
        self.queue.pass_by(flow.client, weight)
        return self._grant(now, replica, view, demanded, flow.client, quota)

    def time(self, time: Micros) -> Micros:
        """The state's own time when the store's clock shows `time`."""
        return max(self._now, time + self._shift)

    # Trust

    def _clock(self, time: Micros, request: ExchangeRequest) -> Micros:
        """The state's own time: the store's clock, which never goes back, less what it is known to have run ahead."""
        if request.stepped and request.epoch == self.epoch:
            self._set_back(request.stepped)
        self._slow_down(time)
        if request.epoch in ("", self.epoch):
            self._ahead.put(request.replica, request.ahead + self._corrected)
            least = self._ahead.at(0)[0] - self._corrected
            if least > DRIFT:
                since, self._rated = max(SECOND, time - self._rated), time
                self._rate = min(MAX_RATE, self._rate + least * MILLION // since)
                self._corrected += least
                self._set_back(least)
        now = time + self._shift
        if now < self._now:
            self._shift += self._now - now
            now = self._now
        self._now = now
        return now

    def _slow_down(self, time: Micros) -> None:
        """Go on more slowly than a clock that was seen to run fast, until that is forgotten."""
        passed = max(0, min(time - self._time, RATE_MEMORY))
        self._shift -= passed * self._rate // MILLION
        self._rate = self._rate * (RATE_MEMORY - passed) // RATE_MEMORY
        self._time = time

    def _set_back(self, ahead: Micros) -> None:
        self._shift -= ahead
        self._now -= ahead

    def _suspect(self, now: Micros, run: str, request: ExchangeRequest) -> None:
        """Begin a new epoch when this state may not know all that was spent (law 8)."""
        member = self._members.get(request.replica)
        behind = request.version > self._version or (member is not None and request.heard > member.serial)
        if not self.epoch or run != self._run or (request.epoch == self.epoch and (behind or request.stepped > 0)):
            self._begin(now, run)
        if request.epoch not in ("", self.epoch):
            self._shared = max(self._shared, request.replicas)
            if not self._lost:
                self._lost, self._grace = True, now + RECOVERY_GRACE

    def _begin(self, now: Micros, run: str) -> None:
        self._lost, self._grace = self.epoch != "", now + RECOVERY_GRACE
        self._run = run
        self._version = max(self._version, now)
        self._leases = max(self._leases, now)
        self.epoch = f"{now}-{run[:8]}"
        self._shared = len(self._seen)
        self._uncollected = SortedSet()
        for member in self._members.values():
            member.reserved.clear()
            member.forgotten = True
        self.tokens.doubt()

    def _awaits_reports(self, now: Micros) -> bool:
        """Whether other replicas may yet have to report what they hold; what is available is not known before."""
        return self._lost and now < self._grace

    def _asks(self, request: ExchangeRequest, member: Member | None) -> tuple[str, ...]:
        if member and request.serial <= member.serial:
            return ("nothing",)
        asks = []
        if request.revision not in self.revisions.views and request.spelled is None:
            asks.append("revision")
        if request.epoch not in ("", self.epoch) and request.held is None:
            asks.append("held")
        if not request.full and (member is None or member.forgotten):
            asks.append("demands")
        return tuple(asks)

    def _use(self, now: Micros, request: ExchangeRequest) -> RevisionView:
        view = self.revisions.views.get(request.revision)
        if view is None:
            assert request.spelled is not None, "it was asked for"
            view = self.revisions.learn(request.spelled)
            for quota, rivals in view.rivals.items():
                for rival, _ in rivals:
                    self._rest_by_past(now, quota, rival)
        for name in self.revisions.use(request.revision, now):
            self.tokens.forget_revision(name)
            for replica in [replica for replica, member in self._members.items() if member.revision == name]:
                self._forget_demands(replica)
        return view

    def _rest_by_past(self, now: Micros, quota: str, rival: str) -> None:
        """A new revision has keys of `rival` under `quota`: that rests for what was granted on the rival already."""
        used = self.tokens.used.get(rival)
        if used is not None:
            longest = max([view.longest for view in self.revisions.views.values() if rival in view.quotas])
            if used[1] + longest > now:
                self.tokens.rest(quota, used[1] + longest)

    def _hear(self, now: Micros, request: ExchangeRequest, member: Member) -> Member:
        """A replica spoke: what it did not hear, what it holds, and that it is alive."""
        if member.serial and request.heard != member.serial:
            for lease in member.granted:
                self._return(lease)
        self._members[request.replica] = member
        moved = member.revision not in ("", request.revision)
        if moved or (member.reserved and request.held is not None):  # it has the limits of the other, or is not held
            self._forget_demands(request.replica)
        member.serial = request.serial
        member.revision = request.revision
        self._seen.put(request.replica, now)
        if request.held is not None:
            self.tokens.restore(now, request.replica, request.held)
        return member

    def _return(self, lease: str) -> None:
        record = self.tokens.give_back(lease)
        if record:
            self.queue.refund(record.client)

    def _expire(self, now: Micros) -> None:
        """End what has its time: replicas that are gone, reservations that were not collected, clients that idle."""
        bound = self.revisions.bound
        for _ in range(LAPSED):
            if not (first := self._seen.first()) or first[0] + bound > now:
                break
            seen, gone = self._seen.pop_first()
            self._forget_demands(gone)
            self.tokens.lapse(gone, seen + bound)
            self._ahead.remove(gone)
            del self._members[gone]
        for _ in range(LAPSED):
            if not (first := self._uncollected.first()) or first[0] > now:
                break
            self._forget_demands(first[1])
        self.queue.forget_idle()

    def _forget_demands(self, replica: str) -> None:
        """A replica is silent: what is reserved for it goes back, and it is asked anew when it speaks."""
        member = self._members[replica]
        for grant in member.reserved:
            self._return(grant.lease)
        member.reserved.clear()
        self._uncollected.remove(replica)
        self.queue.forget(replica)
        member.forgotten = True

    # Demands and dealing

    def _note_demands(self, request: ExchangeRequest) -> None:
        """Note what waits in the replica, less what it is about to collect."""
        member = self._members[request.replica]
        classes = [RevisionClass(request.revision, *demand.flow.demand_class) for demand in request.demands]
        if request.full:
            named = {(one.name, demand.flow.client) for one, demand in zip(classes, request.demands, strict=True)}
            self.queue.forget(request.replica, but=named)
            member.forgotten = False
        collected = Counter([one.flow for one in member.reserved])
        for demanded, demand in zip(classes, request.demands, strict=True):
            waiting = max(0, demand.waiting - collected[demand.flow])
            if demanded.pinned is not None:
                self.tokens.touched[demanded.pinned] = None
            self.queue.put(request.replica, demanded, demand.flow.client, demand.weight, waiting)

    def _collect(self, replica: str, member: Member) -> list[LeaseGrant]:
        collected, member.reserved = member.reserved, []
        self._uncollected.remove(replica)
        return collected

    def _deal(self, now: Micros, caller: str, most: int, woken: dict[str, Micros]) -> list[LeaseGrant]:
        """Grant what is available in fair order: to the caller, or reserved for other replicas, which are woken."""
        grants = []
        for demanded, view, client, quota in self._dealer.choices(most):
            replica = self.queue.serve(demanded.name, client)
            grant = self._grant(now, replica, view, demanded, client, quota)
            if replica == caller:
                grants.append(grant)
            else:
                self._reserve(now, replica, grant, woken)
        return grants

    def _grant(
        self, now: Micros, replica: str, view: RevisionView, demanded: RevisionClass, client: str, quota: str
    ) -> LeaseGrant:
        self._leases += 1
        self.dealt += 1
        lease = f"{self._name}{self._leases}"
        probe = self.tokens.take(lease, view, demanded.limits, quota, now=now, replica=replica, client=client)
        return LeaseGrant(lease, Flow(client, DemandClass(demanded.limits, demanded.pinned)), quota, probe)

    def _reserve(self, now: Micros, replica: str, grant: LeaseGrant, woken: dict[str, Micros]) -> None:
        member = self._members[replica]
        if not member.reserved:
            self._uncollected.put(replica, now + COLLECT)
            member.due = now
            woken[replica] = 0
        member.reserved.append(grant)

    # When to call again

    def _heartbeat(self, now: Micros, caller: str) -> Micros:
        """When a replica is to call at the latest: with requests that wait, when reservations of a silent one end."""
        usual, first = heartbeat(self.revisions.bound), self._uncollected.first()
        return min(usual, max(MILLISECOND, first[0] - now)) if first and self.queue.waits(caller) else usual

    def _again(
        self, now: Micros, caller: str, member: Member, woken: dict[str, Micros], *, left: bool
    ) -> Micros | None:
        """When the caller is to call; another replica whose turn is next is woken, if it was told a later time."""
        heartbeat = self._heartbeat(now, caller)
        waits = self.queue.waits(caller)
        again = heartbeat if waits or self.tokens.holds(caller) else None
        if left:
            again = MILLISECOND
        elif self._awaits_reports(now):
            again = min(heartbeat, max(MILLISECOND, self._grace - now)) if again is not None else None
        elif self.queue.classes and (turn := self._dealer.look_ahead(caller)):
            instant, replica = turn
            if waits:  # also where it is another's turn: that may be gone
                grace = COLLECT if replica != caller else 0
                again = min(heartbeat, max(MILLISECOND, instant - now) + grace)
            if replica != caller and self._members[replica].due > instant + WAKE_MARGIN:
                self._members[replica].due = instant
                woken[replica] = max(0, instant - now)
        if again is None:
            self._ahead.remove(caller)
        member.due = 0 if again is None else now + again
        return again
