"""The upstream of the simulation: real windows, trips of every shape, and records of what it saw.

A request is counted at some moment between its sending and the head of its answer, at the latest `BOUND` after it was
written in full. Admitted requests are recorded twice: when they were counted, and within which bounds they could have
been counted, so that law 1 can be checked for the worst upstream.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from random import Random
from typing import Literal, cast

from keyturn.core.errors import Broken, Unreachable
from keyturn.core.http import Answer, Body, Fields, Request, Whole
from keyturn.core.model import MILLISECOND, SECOND, Limit, Micros, Secret
from keyturn.practice.accounts import Verdict, Window, admit_all, window_of
from keyturn.practice.settings import WindowKind
from keyturn.scheduler import Lease

from tests.core.worlds import BOUND
from tests.simulation.processes import Process, Universe

Trip = Callable[[Random], Micros]
"""Service time: from sending a request to the head of its answer."""

TRIPS: Mapping[str, Trip] = {
    "constant": lambda _: 200 * MILLISECOND,
    "jittered": lambda random: random.randint(50, 300) * MILLISECOND,
    "heavy": lambda random: min(40 * SECOND, int(random.lognormvariate(-0.8, 1.0) * SECOND)),
}

REFUSED = b'{"error":{"name":"rateLimitError","message":"Rate Limit exceeded."}}'
RETRY_AT = b'{"error":{"name":"rateLimitError","message":"Rate Limit exceeded. Please retry at %d"}}'
DEAD = (
    b'{"error":{"name":"AuthenticationError","message":"Invalid API Key. Every request requires a valid API Key to be'
    b' sent."}}'
)

OPENS = b"x-opens"
"""A field of every 429: the true time at which it opens, to check what callers are told."""

Trouble = Literal["none", "busy", "busy, says until when", "out of reach"]
"""503, with or without a `Retry-After`, or no connection."""

Manner = Literal["seconds", "date", "message"]
"""How a 429 says when to come again."""

BUSY = 0.9
"""The share of requests that a busy upstream answers with 503."""

GETS_THROUGH = 0.5
"""The share of requests given up at an upstream that stands still which it counts all the same."""

GONE = Answer(0, b"", (), Whole(b""))
"""Stands for the answer to a request whose connection ended before it was counted."""

Bucket = tuple[str, int]
"""A quota and the index of a limit."""


@dataclass(slots=True)
class Books:
    """The upstream's records of our requests."""

    counted: dict[Bucket, list[Micros]] = field(default_factory=lambda: defaultdict(list))
    """Instants at which requests were admitted and counted."""
    trips: dict[Bucket, list[tuple[Micros, Micros]]] = field(default_factory=lambda: defaultdict(list))
    """The earliest and the latest instant at which each of them could have been counted."""
    throttled: list[Micros] = field(default_factory=list)
    """Instants at which requests were answered with 429."""
    arrived: Counter[str] = field(default_factory=Counter)
    """How often each request of a caller's came, by its id."""
    applied: Counter[str] = field(default_factory=Counter)
    """How often each request that must not be repeated may have been processed (neither 429 nor 401)."""
    used: set[str] = field(default_factory=set)
    """Leases under which a request went out."""
    breaches: list[str] = field(default_factory=list)
    """Breaches of law 10."""


class Api:
    """The upstream itself. `owners` says which quota each secret counts against."""

    def __init__(
        self,
        universe: Universe,
        random: Random,
        *,
        kind: WindowKind,
        limits: tuple[Limit, ...],
        owners: Mapping[str, str],
        trip: Trip,
        speaks: bool = True,
        manner: Manner = "seconds",
        skew: Micros | None = None,
    ) -> None:
        """`skew` is how far its clock, which its `Date` shows, is off; without it there is no `Date`."""
        self.universe = universe
        self.random = random
        self.limits = limits
        self.books = Books()
        self.owners = owners
        self.granted: dict[str, Micros] = {}
        """True times at which leases were granted."""
        self.fails = 0.0
        """The share of requests that meet no connection, and of those whose connection breaks."""
        self.trouble: Trouble = "none"
        self.over: Micros = 0
        """Until when the trouble lasts."""
        self.dead: set[str] = set()
        """Secrets that it does not accept."""
        self.still = False
        """Whether it is stopped: it counts and answers nothing until it goes on."""
        self._held: list[Callable[[], object]] = []
        self.trip = trip
        self._speaks = speaks
        self._manner = manner
        self._skew = skew
        self._windows: dict[str, list[Window]] = {
            quota: [window_of(kind, limit.requests, limit.window / SECOND) for limit in limits]
            for quota in sorted(set(owners.values()))
        }

    def when_it_moves(self, do: Callable[[], object]) -> None:
        """Do something now, or when the upstream goes on."""
        if self.still:
            self._held.append(do)
        else:
            do()

    def go_on(self) -> None:
        """End the standstill."""
        self.still = False
        held, self._held = self._held, []
        for do in held:
            do()

    def spend_elsewhere(self, quota: str) -> None:
        """Send somebody else's request with a key of that quota."""
        admit_all(self._windows[quota], self.universe.now / SECOND)

    def count(self, request: Request, secret: str, sent: Micros, latest: Micros) -> Answer:
        """Count or refuse a request."""
        now, quota = self.universe.now, self.owners[secret]
        under = self._under(request)
        self.books.arrived[request.id] += 1
        if secret in self.dead:
            return Answer(401, b"", (*self._date(), (b"X-RateLimit-Limit", b"400")), Whole(DEAD))
        verdict = admit_all([self._windows[quota][index] for index in under], now / SECOND) if under else None
        if verdict and not verdict.allowed:
            self.books.throttled.append(now)
            return self._refuse(verdict)
        for index in under:
            self.books.counted[quota, index].append(now)
            self.books.trips[quota, index].append((sent, max(latest, now)))
        if request.method == "POST":
            self.books.applied[request.id] += 1
        fields = (*self._date(), *(self._fields(verdict) if verdict else ()))
        if self.trouble.startswith("busy") and self.random.random() < BUSY:
            wait = -(-max(self.over - now, SECOND) // SECOND)
            told = ((b"Retry-After", b"%d" % wait),) if self.trouble != "busy" else ()
            return Answer(503, b"", (*fields, *told), Whole(b""))
        return Answer(200, b"OK", fields, Whole(b""))

    def _under(self, request: Request) -> list[int]:
        return [index for index, limit in enumerate(self.limits) if limit.covers(request.method, request.path or "")]

    def _refuse(self, verdict: Verdict) -> Answer:
        fields = (*self._date(), *self._fields(verdict), (OPENS, b"%d" % int(verdict.retry * SECOND)))
        opens = verdict.retry + self._off
        if self._manner == "message":
            return Answer(429, b"", fields, Whole(RETRY_AT % -(-opens * 1000 // 1)))
        if self._manner == "date":
            told = formatdate(-(-opens // 1), usegmt=True).encode()
        else:
            told = b"%d" % max(-(-round(verdict.retry * SECOND - self.universe.now) // SECOND), 1)
        return Answer(429, b"", (*fields, (b"Retry-After", told)), Whole(REFUSED))

    @property
    def _off(self) -> float:
        """Return the seconds that its clock is ahead."""
        return (self._skew or 0) / SECOND

    def _date(self) -> Fields:
        if self._skew is None:
            return ()
        return ((b"Date", formatdate(self.universe.now / SECOND + self._off, usegmt=True).encode()),)

    def _fields(self, verdict: Verdict) -> Fields:
        if not self._speaks:
            return ()
        return (
            (b"X-RateLimit-Limit", b"%d" % verdict.limit),
            (b"X-RateLimit-Remaining", b"%d" % verdict.remaining),
            (b"X-RateLimit-Reset", b"%d" % -(-(verdict.reset + self._off) // 1)),
        )


class Way:
    """One process's transport to the upstream."""

    def __init__(self, api: Api, process: Process) -> None:
        self._api = api
        self._process = process

    def idle_connection(self) -> None:
        """Return nothing: every connection is made anew."""

    limit, full = 256, False

    async def wait_until_free(self) -> None:
        """Return at once: there is always a free connection."""

    async def connect(self, *, fresh: bool = False) -> "Way":
        """Connect, which takes a moment."""
        random = self._api.random
        if random.random() < 0.05:
            await asyncio.sleep(random.uniform(0, 0.05))
        if random.random() < self._api.fails or self._api.trouble == "out of reach":
            raise Unreachable("no connection")
        return self

    def put_back(self) -> None:
        """Do nothing: nothing was written."""

    async def send(
        self, request: Request, key: Secret, extra: Fields, *, body: Body | None, on_written: Callable[[], None]
    ) -> Answer:
        """Write the request at once, and wait for the head of the answer."""
        api, random, now = self._api, self._api.random, self._api.universe.now
        self._check_lease(cast("Lease", on_written.__self__))  # type: ignore[attr-defined]  # a method of the lease
        trip = api.trip(random)
        upload = random.randint(0, 1000) * MILLISECOND if request.method == "PUT" else 0
        latest = now + min(max(upload, trip), upload + BOUND)
        head: asyncio.Future[Answer] = self._process.create_future()
        answers: list[Answer] = []

        def count() -> None:
            if not answers:
                answers.append(api.count(request, key.reveal(), now, latest))

        ended = False
        api.universe.at(random.randint(now, latest), lambda: count() if ended else api.when_it_moves(count))
        breaks = random.random() < api.fails
        arrive = partial(api.when_it_moves, partial(self._arrive, head, answers, breaks=breaks))
        api.universe.at(now + max(upload, trip), arrive)
        if upload:
            await asyncio.sleep(upload / SECOND)
        on_written()
        try:
            return await head
        except asyncio.CancelledError:
            ended = True
            if api.still and random.random() < GETS_THROUGH:  # it is taken in before its connection ends, or never
                count()
            if api.still and not answers:
                answers.append(GONE)
            raise

    def _arrive(self, head: "asyncio.Future[Answer]", answers: list[Answer], *, breaks: bool) -> None:
        def arrive() -> None:
            if head.done():
                return
            if breaks:
                head.set_exception(Broken("reset"))
            else:
                head.set_result(answers[0])

        self._process.call_soon(arrive)

    def _check_lease(self, lease: Lease) -> None:
        """Check that each lease is used once, within a second of its grant (law 10)."""
        api, books = self._api, self._api.books
        if lease.id in books.used:
            books.breaches.append(f"law 10: the lease {lease.id} was used twice")
        books.used.add(lease.id)
        age = api.universe.now - api.granted[lease.id] if lease.id in api.granted else 0
        if age > SECOND + MILLISECOND:
            books.breaches.append(f"law 10: the lease {lease.id} was used {age / SECOND:.3f} s after its grant")
