"""Identical GETs of one pool that wait for their turn share one lease and one answer (`queue.join`).

Laws of this module:

- Nothing is ever stale: a caller joins only while the request has not been sent, so the answer is made after it came.
- Who joins is no worse off. A caller joins what its own client asks for with the same urgency and no later a deadline;
  the same request of another client waits in that client's own lane, and the one whose turn comes first carries all.
- Never across different rules: pool, allow list, the right to pin, the pinned key, and every field that can change the
  answer have to be the same.
- A failure fails its first caller at the most: the others go on, each by itself or with who is left.
- Whoever leaves leaves alone; the exchange ends when nobody is left.
- No reader sets the pace for the others: see `fanout`.
"""

import asyncio
from bisect import insort
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from keyturn.core.errors import Refusal, TooMany, UpstreamError
from keyturn.core.events import ConnectionEnded, Joined, Observer, RequestLog
from keyturn.core.http import Answer, Fields, Request
from keyturn.core.model import Client, Micros
from keyturn.core.policy import Rule
from keyturn.core.translate import retold
from keyturn.joining.fanout import BOUND, Fanout, Kept, Reader
from keyturn.tasks import finish, spawn

_OWN = frozenset({
    b"x-request-id", b"traceparent", b"tracestate", b"baggage", b"postman-token", b"priority",
})  # fmt: skip
"""Fields that name or order a request and change no answer; clients of Postman's make a `Postman-Token` each time."""


class Gateway(Protocol):
    """Who gets an answer."""

    def handle(
        self, request: Request, log: RequestLog, *, sending: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[Answer]:
        """The answer; `sending` is called each time just before the request goes out."""

    def rates(self, pool: str, client: str, method: str, path: str | None) -> Fields:
        """What is left of the limits that a request falls under."""


class Likeness(NamedTuple):
    """What makes requests get the same answer, under the same rules."""

    pool: str
    target: bytes
    fields: Fields
    allow: tuple[Rule, ...] | None
    may_pin: bool
    pinned: str | None


def likeness(request: Request) -> Likeness | None:
    """What a request is alike by; `None` when it is never joined."""
    if request.method != "GET" or request.body is not None:
        return None
    client = request.client
    fields = sorted((name.lower(), value) for name, value in request.fields if name.lower() not in _OWN)
    return Likeness(client.pool, request.target, tuple(fields), client.allow, client.pin, request.pinned)


class Onward(Enum):
    """How a caller that got no answer goes on: with those who are left, or by itself."""

    TOGETHER = "together"
    ALONE = "alone"


@dataclass(slots=True, eq=False)
class Caller:
    """One request that takes part."""

    request: Request
    log: RequestLog
    deadline: Micros
    came: Micros
    told: "asyncio.Future[Answer | Onward]"
    flight: "_Flight | None" = None


_deadline = attrgetter("deadline")


@dataclass(slots=True, eq=False)
class _Flight:
    """One exchange and its callers, by their deadlines until it is sent; the first of them leads."""

    likeness: Likeness
    leader: Caller
    log: RequestLog
    callers: list[Caller] = field(default_factory=list)
    gone: int = 0
    """How many of these have left."""
    task: asyncio.Task[Any] | None = None
    sent: Micros | None = None

    @property
    def client(self) -> Client:
        """Whose place in the queue it waits in."""
        return self.leader.request.client

    def takes(self, caller: Caller) -> bool:
        """Whether a caller is no worse off here than by itself."""
        ours, its = self.leader.request, caller.request
        same = (ours.client.name, ours.urgency) == (its.client.name, its.urgency)
        return same and self.leader.deadline <= caller.deadline


class Joining:
    """The gateway as callers see it who may share answers; `enabled` may change at any time."""

    def __init__(self, gateway: Gateway, *, enabled: bool, clock: Callable[[], Micros], observer: Observer) -> None:
        self.enabled = enabled
        self._gateway = gateway
        self.clock = clock
        self._observer = observer
        self._kept = Kept()
        self._waiting: dict[Likeness, list[_Flight]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def handle(self, request: Request, log: RequestLog) -> AbstractAsyncContextManager[Answer]:
        """The answer, shared or not; its body is read within the block.

        Raises:
            Refusal: the proxy answers itself.
        """
        alike = likeness(request) if self.enabled else None
        if alike is None:
            return self._gateway.handle(request, log)
        return _Place(self, self._gateway, alike, request, log)

    def rates(self, pool: str, client: str, method: str, path: str | None) -> Fields:
        """What is left of the limits that a request falls under."""
        return self._gateway.rates(pool, client, method, path)

    async def stop(self) -> None:
        """End every shared exchange."""
        await finish(self._tasks)

    # Taking part

    def join(self, alike: Likeness, request: Request, log: RequestLog, deadline: Micros) -> Caller:
        """Take part in an exchange that has not been sent, else begin one."""
        caller = Caller(request, log, deadline, self.clock(), asyncio.get_running_loop().create_future())
        flights = self._waiting.setdefault(alike, [])
        flight = next((flight for flight in flights if flight.takes(caller)), None)
        if flight is None:
            flight = _Flight(alike, caller, _log(log))
            flights.append(flight)
            flight.task = spawn(self._fly(flight), name=f"joined {log.id}", owner=self._tasks)
        insort(flight.callers, caller, key=_deadline)
        caller.flight = flight
        return caller

    def leave(self, caller: Caller) -> None:
        """A caller gave up before it was told anything: nobody else is touched, unless it was the last."""
        flight = caller.flight
        if flight and caller.told.cancelled():
            flight.gone += 1
            if flight.gone == len(flight.callers) and flight.task:
                flight.task.cancel()
        if caller.told.done() and not caller.told.cancelled() and not caller.told.exception():
            answer = caller.told.result()  # it came in the same tick
            if isinstance(answer, Answer):
                answer.body.abort()

    # The shared exchange

    async def _fly(self, flight: _Flight) -> None:
        try:
            while not await self._exchange(flight):
                pass
        except Exception as problem:  # noqa: BLE001  # it is told to those who wait for it
            self._fail(flight, problem)
        finally:
            self._forget(flight)

    async def _exchange(self, flight: _Flight) -> bool:
        """One exchange; returns whether it was, and false when its leader was refused and another one leads."""
        request = flight.leader.request
        try:
            async with self._gateway.handle(request, flight.log, sending=lambda: self._sending(flight)) as answer:
                await self._share(flight, answer)
        except TooMany as refusal:
            if flight.sent is not None:
                raise
            await asyncio.sleep(0)  # many that are refused at once must not keep everybody else waiting
            return not self._hand_over(flight, refusal)
        return True

    def _hand_over(self, flight: _Flight, refusal: TooMany) -> bool:
        """Refuse the leader and have the next one lead, with the time that it has left; returns whether there is one.

        The others hear nothing of it, so many that are refused one after another cost no more than each alone.
        """
        now, callers = self.clock(), flight.callers
        leader = callers.pop(0)
        leader.log.queued += now - leader.came
        _tell_tries(leader.log, flight.log, joined=False)
        if not leader.told.done():
            leader.told.set_exception(refusal)
        else:
            flight.gone -= 1
        while callers and callers[0].told.done():
            callers.pop(0)
            flight.gone -= 1
        if not callers:
            return False
        flight.leader = leader = callers[0]
        flight.log = _log(leader.log)
        leader.request = replace(leader.request, wait=max(0, leader.deadline - now))
        return True

    def _sending(self, flight: _Flight) -> None:
        """It goes out now: nobody joins any more, and who waits elsewhere for the same answer comes along."""
        if flight.sent is not None:
            return
        flight.sent = self.clock()
        for other in self._waiting.pop(flight.likeness, []):
            if other is not flight:
                for caller in other.callers:
                    caller.flight = flight
                flight.callers += other.callers
                flight.gone += other.gone
                other.callers, other.gone = [], 0
                if other.task:
                    other.task.cancel()

    async def _share(self, flight: _Flight, answer: Answer) -> None:
        flight.callers = [caller for caller in flight.callers if not caller.told.done()]
        flight.gone = 0
        length = answer.header(b"content-length")
        if length is not None and length.isdigit() and int(length) > BOUND:
            for caller in flight.callers[1:]:
                _tell(caller, Onward.ALONE)
            del flight.callers[1:]
        fanout = Fanout(answer.body, self._kept)
        head = self.clock()
        for number, caller in enumerate(flight.callers):
            reader = fanout.reader(partial(self._cut, caller))
            _tell(caller, self._answer(flight, caller, answer, reader, head, joined=number > 0))
        await fanout.pump()

    def _cut(self, caller: Caller) -> None:
        """Note that a caller gets no more of its answer; its head has gone out, so it cannot begin anew."""
        caller.log.problem = "The caller was too slow for the others that share its answer (`queue.join`)."
        self._observer.observe(ConnectionEnded("fell_behind"))

    def _answer(
        self, flight: _Flight, caller: Caller, answer: Answer, body: Reader, head: Micros, *, joined: bool
    ) -> Answer:
        """The answer as one caller gets it, with its own story."""
        sent = flight.sent if flight.sent is not None else head
        log = caller.log
        log.queued += max(0, sent - caller.came)
        log.upstream += head - sent
        _tell_tries(log, flight.log, joined=joined)
        if joined:
            self._observer.observe(Joined(caller.request.client.pool, caller.request.client.name))
        request = caller.request
        left = self.rates(request.client.pool, request.client.name, request.method, request.path)
        fields = retold(answer.fields, request.id, log.queued, log.upstream, left)
        return Answer(answer.status, answer.reason, fields, body)

    def _fail(self, flight: _Flight, problem: Exception) -> None:
        """The first caller meets the failure; what is of one try or of one deadline is not the others'."""
        now = self.clock()
        for number, caller in enumerate(flight.callers):
            caller.log.queued += now - caller.came
            _tell_tries(caller.log, flight.log, joined=number > 0)
            if number and isinstance(problem, TooMany):
                _tell(caller, Onward.TOGETHER)
            elif number and (isinstance(problem, UpstreamError) or not isinstance(problem, Refusal)):
                _tell(caller, Onward.ALONE)
            elif not caller.told.done():
                caller.told.set_exception(problem)

    def _forget(self, flight: _Flight) -> None:
        flights = self._waiting.get(flight.likeness, [])
        if flight in flights:
            flights.remove(flight)
            if not flights:
                del self._waiting[flight.likeness]
        for caller in flight.callers:  # if nobody told them anything, the exchange was ended from outside
            _tell(caller, Onward.ALONE)


def _log(log: RequestLog) -> RequestLog:
    """The request log of an exchange, under the name of the request that leads it."""
    return RequestLog(id=log.id, method=log.method, path=log.path)


def _tell_tries(log: RequestLog, flight: RequestLog, *, joined: bool) -> None:
    """Write into a caller's request log what the exchange came to; the tries are the first caller's."""
    log.key = flight.key
    if not joined:
        log.attempts += flight.attempts
        log.tries += flight.tries
        log.retried += flight.retried


def _tell(caller: Caller, what: Answer | Onward) -> None:
    if not caller.told.done():
        caller.told.set_result(what)


class _Place:
    """The block in which one caller reads its answer."""

    __slots__ = ("_alike", "_answer", "_gateway", "_joining", "_log", "_request", "_single")

    def __init__(self, joining: Joining, gateway: Gateway, alike: Likeness, request: Request, log: RequestLog) -> None:
        self._joining = joining
        self._gateway = gateway
        self._alike = alike
        self._request = request
        self._log = log
        self._single: AbstractAsyncContextManager[Answer] | None = None
        self._answer: Answer | None = None

    async def __aenter__(self) -> Answer:
        deadline = self._joining.clock() + self._request.wait
        while True:
            told = await self._told(deadline)
            if isinstance(told, Answer):
                self._answer = told
                return told
            left = max(0, deadline - self._joining.clock())
            self._request = replace(self._request, wait=left)
            if told is Onward.ALONE:
                self._single = self._gateway.handle(self._request, self._log)
                return await self._single.__aenter__()

    async def _told(self, deadline: Micros) -> Answer | Onward:
        caller = self._joining.join(self._alike, self._request, self._log, deadline)
        try:
            return await caller.told
        except asyncio.CancelledError:
            self._joining.leave(caller)
            if (
                caller.told.done()
                and not caller.told.cancelled()
                and isinstance(answer := caller.told.result(), Answer)
            ):
                answer.body.abort()  # it came in the same tick
            raise

    async def __aexit__(self, *problem: object) -> bool | None:
        if self._single is not None:
            return await self._single.__aexit__(*problem)  # type: ignore[arg-type]  # as they came
        if self._answer is not None:
            self._answer.body.abort()
        return None
