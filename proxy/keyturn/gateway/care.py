"""Finding out about keys: a key that an answer says is not accepted is asked after by itself.

The asking is one `GET /me`, on a token of the key's own quota (laws 1 and 10). Several requests that meet the same
dead key share it. A key that is found dead is asked after again and again, ever less often (`core.health`), and at once
when its secret changes or it is resumed.
"""

import asyncio
from typing import Any, Literal

from keyturn.core.errors import KeyturnError, NoKey
from keyturn.core.events import Journal, KeyChanged
from keyturn.core.exchange import DemandClass
from keyturn.core.http import Request
from keyturn.core.model import SECOND, Key, Micros
from keyturn.core.signals import FORBIDDEN, TOO_MANY, UNAUTHORIZED
from keyturn.gateway.desk import Again, Desk, Means, Outcome, Relay
from keyturn.gateway.passage import Passage
from keyturn.gateway.sending import Heard, Late, Sender
from keyturn.gateway.throttling import Throttling
from keyturn.scheduler import Lease, Ticket
from keyturn.scheduler.scheduler import OWN
from keyturn.tasks import finish, spawn

ASK_WITHIN: Micros = 90 * SECOND
"""How long an asking may wait for its token: more than a usual window."""

VERDICT_WITHIN: Micros = 2 * SECOND
"""How long a request waits for what is found out about its key, if another key may serve it meanwhile."""

ANSWER_WITHIN = 30.0
"""Seconds for the answer."""

Verdict = Literal["alive", "dead", "unknown"]

_TARGET, _PATH = b"/me", "/me"


class Care:
    """The keys of all pools."""

    def __init__(self, sender: Sender, throttling: Throttling, means: Means) -> None:
        self._sender = sender
        self._throttling = throttling
        self._means = means
        self._askings: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._watches: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def stop(self) -> None:
        """End what is under way."""
        await finish(self._tasks)

    def attend(self, desk: Desk) -> None:
        """Be there when a key of this pool is to be asked after."""
        desk.scheduler.health.on_due = lambda name: self._look_again(desk, name)

    # Answers 401 and 403

    async def rejected(self, desk: Desk, passage: Passage, lease: Lease, heard: Heard) -> Outcome:
        """Settle the lease of a 401 or 403; if it is about the key, and the key is dead, the request goes on.

        An answer to HEAD has no body that could say what it is about.

        Raises:
            NoKey: the key is dead, and the request cannot be sent again.
        """
        name, health = lease.key.name, desk.scheduler.health
        lease.spent()
        if heard.signals.about != "key" and passage.request.method != "HEAD":
            return Relay(heard.answer)
        if health.suspect(name, self._means.clock()):
            desk.scheduler.heed()
            self._ask(desk, name)
        passage.end_lease()
        elsewhere = self._may_go_elsewhere(desk, passage)
        deadline = passage.ticket.deadline
        await self._wait(desk, name, min(deadline, self._means.clock() + VERDICT_WITHIN) if elsewhere else deadline)
        if health.usable(name) or (health.suspected(name) and not elsewhere):
            return Relay(heard.answer)
        passage.doubts += health.suspected(name)
        if not passage.replayable:
            raise NoKey("The key of this request turned out dead; nothing was processed. Send it again.", retry_after=1)
        return Again("dead_key")

    def _may_go_elsewhere(self, desk: Desk, passage: Passage) -> bool:
        """Whether a request may go on with another key before it is known how its own is.

        The asking may have to wait long for a token of that key. But what all keys are refused is about the request:
        so not more than a few are tried by it.
        """
        others = passage.ticket.pinned is None and bool(desk.scheduler.quotas)
        return others and passage.replayable and passage.doubts + 1 < self._means.retries.attempts

    async def _wait(self, desk: Desk, name: str, deadline: Micros) -> None:
        """Wait until a key has been asked after, if that is under way, but not past a deadline."""
        asking = self._askings.get((desk.name, name))
        if asking is not None:
            await asyncio.wait([asking], timeout=max(0, deadline - self._means.clock()) / SECOND)

    # Asking

    def _ask(self, desk: Desk, name: str) -> asyncio.Task[None]:
        """Ask after a key, unless that is under way."""
        asking = self._askings.get((desk.name, name))
        if asking is None:
            asking = spawn(self._find_out(desk, name), name=f"ask after {desk.name}/{name}", owner=self._tasks)
            self._askings[desk.name, name] = asking
            asking.add_done_callback(lambda _: self._askings.pop((desk.name, name), None))
        return asking

    async def _find_out(self, desk: Desk, name: str) -> None:
        key = desk.scheduler.pool.key(name)
        verdict: Verdict = "unknown"
        reason = ""
        try:
            if key is not None:
                verdict, reason = await self._verdict(desk, key)
        finally:  # whatever happened, nobody waits for ever for what is found out
            self._settle(desk, name, verdict, reason)

    def _settle(self, desk: Desk, name: str, verdict: Verdict, reason: str) -> None:
        """Take note of what was found out about a key."""
        health, now, chance = desk.scheduler.health, self._means.clock(), self._means.chance()
        if verdict == "dead":
            if health.dead(name, now, reason, chance):
                self._means.observer.observe(KeyChanged(desk.name, name, "quarantined", reason))
            self._watch(desk, name)
        elif verdict == "alive":
            if health.alive(name, now):
                self._means.observer.observe(KeyChanged(desk.name, name, "ready"))
        else:
            health.unknown(name, now, chance)
        desk.scheduler.heed()

    async def _verdict(self, desk: Desk, key: Key) -> tuple[Verdict, str]:
        """Ask the upstream; the reason why a key is dead holds nothing but a status and a name."""
        scheduler = desk.scheduler
        if not desk.breakers.pool.closed or desk.throttles.closed:
            return "unknown", ""
        demand_class = DemandClass(scheduler.pool.limits_on("GET", _PATH), key.quota)
        deadline = self._means.clock() + ASK_WITHIN
        ticket = Ticket(OWN, demand_class, deadline, 0, key.name, own=True, method="GET", path=_PATH)
        passage = Passage(_request(ticket), Journal(), None, ticket)
        try:
            with await scheduler.lease(ticket, front=True) as lease:
                async with asyncio.timeout(ANSWER_WITHIN):
                    heard = await self._sender.send(lease, passage.request, None, passage.journal)
                return self._judge(desk, passage, lease, heard)
        except (KeyturnError, Late, TimeoutError):
            return "unknown", ""

    def _judge(self, desk: Desk, passage: Passage, lease: Lease, heard: Heard) -> tuple[Verdict, str]:
        status, signals = heard.answer.status, heard.signals
        heard.answer.body.abort()
        if status == TOO_MANY:  # by a key's own limit, so it is known
            self._throttling.refused(desk, passage, lease, heard)
            return "alive", ""
        lease.spent(signals.seen(lease.limits, lease.pool.limits))
        if signals.about == "outage" or status >= 500:  # noqa: PLR2004  # it could not say
            return "unknown", ""
        if status == UNAUTHORIZED or (status == FORBIDDEN and signals.about == "key"):
            return "dead", f"the upstream does not accept it ({status} on GET {_PATH})"
        return "alive", ""

    # Asking again

    def _look_again(self, desk: Desk, name: str) -> None:
        """A dead key's time has changed: ask after it when that says so."""
        if watch := self._watches.pop((desk.name, name), None):
            watch.cancel()
        self._watch(desk, name)

    def _watch(self, desk: Desk, name: str) -> None:
        """See that a dead key is asked after again until it lives."""
        if desk.scheduler.health.ask_again(name) is not None and (desk.name, name) not in self._watches:
            watch = spawn(self._keep_asking(desk, name), name=f"watch {desk.name}/{name}", owner=self._tasks)
            self._watches[desk.name, name] = watch

    async def _keep_asking(self, desk: Desk, name: str) -> None:
        try:
            while (at := desk.scheduler.health.ask_again(name)) is not None:
                wait = at - self._means.clock()
                if wait > 0:
                    await asyncio.sleep(wait / SECOND)
                else:
                    await asyncio.wait([self._ask(desk, name)])
        finally:
            if self._watches.get((desk.name, name)) is asyncio.current_task():
                del self._watches[desk.name, name]


def _request(ticket: Ticket) -> Request:
    return Request(
        id=f"ask-after-{ticket.pinned}",
        client=ticket.client,
        method="GET",
        target=_TARGET,
        path=_PATH,
        fields=((b"Accept", b"application/json"), (b"User-Agent", b"keyturn")),
        body=None,
        urgency=ticket.urgency,
        wait=ASK_WITHIN,
        pinned=ticket.pinned,
    )
