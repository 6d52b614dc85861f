"""What becomes of a request when the upstream, or the way to it, is out of order.

What certainly was not processed (no connection) is tried again whatever its method; what may have been (a connection
that broke, no head in time, 502, 503, 504) only if its method is idempotent. Each further try takes from the retry
budget, waits a pause drawn by chance, at least as long as the upstream asked for, and has to begin before the deadline.

Failures in a row open breakers, of a client's route, of a client or of the pool: then nothing of that scope is sent but
a trial now and then.
"""

import asyncio
from contextlib import suppress
from dataclasses import replace

from keyturn.core.breaker import Failure, Scope
from keyturn.core.breakers import Shut
from keyturn.core.causes import Causes
from keyturn.core.errors import Broken, Outage, TimedOut, Unreachable, UpstreamError
from keyturn.core.events import BreakerMoved
from keyturn.core.model import SECOND, Micros
from keyturn.core.retries import pause
from keyturn.core.translate import whole_seconds
from keyturn.gateway.desk import Again, Desk, Means, Outcome, Relay
from keyturn.gateway.passage import Passage
from keyturn.gateway.sending import Heard
from keyturn.scheduler import Lease

TRIAL: Micros = 2 * SECOND
"""How long a request waits for what a trial tells: an upstream that is well has answered by then."""


class OnTrial(Exception):
    """The upstream is being tried by another request; what that tells is to be waited for."""


class Trouble:
    """The gateway's ways with outages."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._causes = Causes()

    # The breakers

    async def check(self, desk: Desk, passage: Passage) -> None:
        """See that the request may go out although breakers are open; a trial's outcome is waited for, for a moment.

        Raises:
            Outage: it may not; with the time of the next trial.
        """
        source, began = passage.source, self._means.clock()
        now, last = began, min(passage.ticket.deadline, began + TRIAL)
        try:
            while (shut := desk.breakers.shut(source, now)) is not None:
                outcome = desk.outcomes.get(shut.scope)
                if not shut.trying or outcome is None or now >= last:
                    raise outage(shut)
                with suppress(TimeoutError):
                    async with asyncio.timeout((last - now) / SECOND):
                        await outcome.wait()
                now = self._means.clock()
        finally:
            passage.journal.queued += self._means.clock() - began

    def enter(self, desk: Desk, passage: Passage) -> None:
        """The request is about to be sent.

        Raises:
            OnTrial: another has just gone out as the trial.
            Outage: as `check`.
        """
        if desk.breakers.idle:
            return
        source, now = passage.source, self._means.clock()
        shut = desk.breakers.shut(source, now)
        if shut is not None:
            raise OnTrial if shut.trying else outage(shut)
        trials = desk.breakers.enter(source, now)
        if trials:
            passage.trials = (desk, trials)
            for trial in trials:
                desk.outcomes.setdefault(trial.breaker.scope, asyncio.Event())

    def leave(self, passage: Passage) -> None:
        """The request is over, whether its outcome was told or not."""
        if passage.trials is not None:
            desk, trials = passage.trials
            for trial in trials:
                trial.breaker.leave(trial)
            self._told(desk, passage, [])

    def answered(self, desk: Desk, passage: Passage) -> None:
        """The upstream is alive."""
        if desk.breakers.idle:
            return
        closed = desk.breakers.succeeded(passage.source, self._means.clock())
        self._told(desk, passage, closed)
        for scope in closed:
            self._moved(BreakerMoved(desk.name, scope, opened=False))

    def _told(self, desk: Desk, passage: Passage, closed: list[Scope]) -> None:
        """Let those go on who wait for what this request tells."""
        trials = passage.trials[1] if passage.trials is not None else ()
        passage.trials = None
        for scope in (*closed, *[trial.breaker.scope for trial in trials if not trial.breaker.trying]):
            outcome = desk.outcomes.pop(scope, None)
            if outcome is not None:
                outcome.set()

    def _count(self, desk: Desk, passage: Passage, failure: Failure) -> None:
        trials = passage.trials[1] if passage.trials is not None else ()
        now, chance = self._means.clock(), self._means.chance()
        opened = desk.breakers.failed(passage.source, now, chance, failure, trials)
        self._told(desk, passage, [])
        for view in opened:
            wait = view.until - now
            self._moved(BreakerMoved(desk.name, view.scope, opened=True, wait=wait, cause=view.cause))

    def _moved(self, event: BreakerMoved) -> None:
        """Tell it; of a client, which may make its breakers open and close, once only."""
        if event.scope.client:
            what = (event.pool, event.scope, event.opened)
            event = replace(event, news=self._causes.news(what, self._means.clock()))
        self._means.observer.observe(event)

    def erred(self, desk: Desk, passage: Passage) -> None:
        """A 500 or the like: one request that the API cannot cope with, told from an outage by other routes that err.

        Else whoever repeats such a request would shut everybody out.
        """
        self._count(desk, passage, Failure("errors of the API", "request"))

    # Failures

    def out_of_order(self, desk: Desk, passage: Passage, lease: Lease, heard: Heard) -> Outcome:
        """Settle the lease of a 502, 503 or 504; the request is tried again if it may be.

        Raises:
            Outage, Broken: it may not, and the upstream's answer broke off: with the time that its head told, or none.
        """
        lease.spent()
        wait, over_within = heard.signals.wait, heard.signals.over_within
        self._count(desk, passage, Failure(f"status {heard.answer.status}", wait=wait, over_within=over_within))
        rest = self._pause(passage, wait or 0) if passage.repeatable else None
        if rest is not None:
            return Again("outage", rest, heard.hold())
        shut = desk.breakers.shut(passage.source, self._means.clock())
        waits = [told for told in (wait, shut and shut.wait) if told is not None]
        if heard.whole:
            return Relay(heard.answer, max(1, whole_seconds(max(waits))) if waits else None)
        raise (
            outage(Shut(shut.scope if shut else Scope(), max(waits), False))
            if waits
            else Broken(f"The upstream broke its answer {heard.answer.status} off.")
        )

    def failed(self, desk: Desk, passage: Passage, lease: Lease, error: UpstreamError) -> Outcome:
        """Settle the lease of a try without an answer.

        Raises:
            UpstreamError: the request may not be tried again.
        """
        if error.written:
            lease.lost()
        else:
            lease.unsent()
        if isinstance(error, Broken) and error.stale and self._at_once(passage):
            return Again("broken")
        if not error.local:
            self._count(desk, passage, Failure(error.name, "route" if error.written else "way"))
        rest = self._pause(passage, 0) if _may_go_again(passage, error) else None
        if rest is None:
            raise error
        match error:
            case Broken():
                return Again("broken", rest)
            case TimedOut():
                return Again("timed_out", rest)
            case _:
                return Again("unreachable", rest)

    def _at_once(self, passage: Passage) -> bool:
        """Whether a request that met a connection closed for being idle goes out over a new one, without any wait.

        That is no failure of the upstream's. Once for each request.
        """
        means = self._means
        if passage.stale or not passage.repeatable or passage.failures + 1 >= means.retries.attempts:
            return False
        passage.stale = means.budget.retry(passage.ticket.client.name, means.clock())
        passage.failures += passage.stale
        return passage.stale

    def _pause(self, passage: Passage, least: Micros) -> Micros | None:
        """The pause before one more try; `None` when there is to be none."""
        means = self._means
        passage.failures += 1
        now = means.clock()
        rest = least + pause(passage.failures, means.chance())
        in_time = now + rest < passage.ticket.deadline and passage.failures < means.retries.attempts
        return rest if in_time and means.budget.retry(passage.ticket.client.name, now) else None


def _may_go_again(passage: Passage, error: UpstreamError) -> bool:
    if isinstance(error, Unreachable):
        return error.transient and passage.replayable
    return passage.repeatable


def outage(shut: Shut) -> Outage:
    """The refusal of a request while a breaker is open, with the time of the next trial."""
    seconds = max(1, whole_seconds(shut.wait))
    match shut.scope.kind:
        case "pool":
            whose = ""
        case "client":
            whose = " for this client"
        case "route":
            whose = f" for {shut.scope.route} of this client"
    text = f"The upstream is out of order{whose} and is tried again in {seconds} s. Come back then."
    return Outage(text, retry_after=seconds)
