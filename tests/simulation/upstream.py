"""The upstream of the simulation: real windows, trips of every shape, and books of what it saw.

A request is counted at some moment between its sending and the head of its answer, at the latest `BOUND` after it was
written in full. What is let through is written down twice: when it was counted, and within which bounds it could have
been counted, so that law 1 can be judged for the worst upstream there is.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import cast

from proxy.core.errors import Broken, Unreachable
from proxy.core.http import Answer, Body, Fields, Request, Whole
from proxy.core.model import MILLISECOND, SECOND, Limit, Micros, Secret
from proxy.dispatch import Lease
from proxy.practice.settings import WindowKind
from proxy.practice.windows import Verdict, Window, admit_all, window_of
from tests.core.worlds import BOUND
from tests.simulation.processes import Process, Universe

Trip = Callable[[Random], Micros]
"""From the sending of a request to the head of its answer."""

TRIPS: Mapping[str, Trip] = {
    "constant": lambda _: 200 * MILLISECOND,
    "jittered": lambda random: random.randint(50, 300) * MILLISECOND,
    "heavy": lambda random: min(40 * SECOND, int(random.lognormvariate(-0.8, 1.0) * SECOND)),
}

REFUSED = b'{"error":{"name":"rateLimitError","message":"Rate Limit exceeded."}}'

Bucket = tuple[str, int]
"""A quota and the index of a limit."""


@dataclass(slots=True)
class Books:
    """What the upstream saw of us."""

    counted: dict[Bucket, list[Micros]] = field(default_factory=lambda: defaultdict(list))
    """When requests were let through and counted."""
    trips: dict[Bucket, list[tuple[Micros, Micros]]] = field(default_factory=lambda: defaultdict(list))
    """The earliest and the latest instant at which each of them could have been counted."""
    throttled: list[Micros] = field(default_factory=list)
    """When requests were answered with 429."""
    arrived: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """How often each request of a caller's was counted, by its id."""
    used: set[str] = field(default_factory=set)
    """Leases under which a request went out."""
    breaches: list[str] = field(default_factory=list)
    """Where law 10 was broken."""


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
    ) -> None:
        self.universe = universe
        self.random = random
        self.limits = limits
        self.books = Books()
        self.owners = owners
        self.granted: dict[str, Micros] = {}
        """When leases were granted; true time."""
        self.fails = 0.0
        """The share of requests that meet no connection, and of those whose connection breaks."""
        self.trip = trip
        self._speaks = speaks
        self._windows: dict[str, list[Window]] = {
            quota: [window_of(kind, limit.requests, limit.window / SECOND) for limit in limits]
            for quota in sorted(set(owners.values()))
        }

    def spend_elsewhere(self, quota: str) -> None:
        """Somebody else sends a request with a key of that quota."""
        admit_all(self._windows[quota], self.universe.now / SECOND)

    def count(self, request: Request, secret: str, sent: Micros, latest: Micros) -> Answer:
        """A request is counted, or refused."""
        now, quota = self.universe.now, self.owners[secret]
        under = [index for index, limit in enumerate(self.limits) if limit.covers(request.method, request.path or "")]
        self.books.arrived[request.id] += 1
        windows = [self._windows[quota][index] for index in under]
        if not windows:
            return Answer(200, b"OK", (), Whole(b""))
        verdict = admit_all(windows, now / SECOND)
        if not verdict.allowed:
            self.books.throttled.append(now)
            wait = -(-round(verdict.retry * SECOND - now) // SECOND)
            return Answer(429, b"", (*self._fields(verdict), (b"Retry-After", b"%d" % max(wait, 1))), Whole(REFUSED))
        for index in under:
            self.books.counted[quota, index].append(now)
            self.books.trips[quota, index].append((sent, latest))
        return Answer(200, b"OK", self._fields(verdict), Whole(b""))

    def _fields(self, verdict: Verdict) -> Fields:
        if not self._speaks:
            return ()
        return (
            (b"X-RateLimit-Limit", b"%d" % verdict.limit),
            (b"X-RateLimit-Remaining", b"%d" % verdict.remaining),
            (b"X-RateLimit-Reset", b"%d" % -(-verdict.reset // 1)),
        )


class Way:
    """One process's way to the upstream."""

    def __init__(self, api: Api, process: Process) -> None:
        self._api = api
        self._process = process

    async def connect(self) -> "Way":
        """A connection, which takes a moment when it is new."""
        random = self._api.random
        if random.random() < 0.05:
            await asyncio.sleep(random.uniform(0, 0.05))
        if random.random() < self._api.fails:
            raise Unreachable("no connection")
        return self

    def put_back(self) -> None:
        """Nothing was written."""

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
        api.universe.at(
            random.randint(now, latest),
            lambda: answers.append(api.count(request, key.reveal(), now, latest)),
        )
        breaks = random.random() < api.fails
        api.universe.at(now + max(upload, trip), lambda: self._arrive(head, answers, breaks=breaks))
        if upload:
            await asyncio.sleep(upload / SECOND)
        on_written()
        return await head

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
        """Law 10: each lease is used once, and none that was granted more than a second ago."""
        api, books = self._api, self._api.books
        if lease.id in books.used:
            books.breaches.append(f"law 10: the lease {lease.id} was used twice")
        books.used.add(lease.id)
        age = api.universe.now - api.granted[lease.id] if lease.id in api.granted else 0
        if age > SECOND + MILLISECOND:
            books.breaches.append(f"law 10: the lease {lease.id} was used {age / SECOND:.3f} s after its grant")
