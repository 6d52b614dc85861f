"""What becomes of a request when the upstream, or the way to it, is out of order.

What certainly was not processed (no connection) is tried again whatever its method; what may have been (a connection
that broke, no head in time, 502, 503, 504) only if its method is idempotent. Each further try takes from the retry
budget, waits a pause drawn by chance, at least as long as the upstream asked for, and has to begin before the deadline.

Failures in a row open the pool's breaker: then nothing is sent but a trial now and then.
"""

import asyncio
from contextlib import suppress

from proxy.core.errors import Broken, Outage, TimedOut, Unreachable, UpstreamError
from proxy.core.events import BreakerMoved
from proxy.core.model import SECOND, Micros
from proxy.core.retries import pause
from proxy.core.translate import whole_seconds
from proxy.dispatch import Lease
from proxy.gateway.desk import Again, Desk, Means, Outcome, Relay
from proxy.gateway.passage import Passage
from proxy.gateway.sending import Heard

TRIAL: Micros = 2 * SECOND
"""How long a request waits for what a trial tells: an upstream that is well has answered by then."""


class OnTrial(Exception):
    """The upstream is being tried by another request; what that tells is to be waited for."""


class Trouble:
    """The gateway's ways with outages."""

    def __init__(self, means: Means) -> None:
        self._means = means

    # The breaker

    async def check(self, desk: Desk, passage: Passage) -> None:
        """See that requests may go out though the breaker is open; a trial's outcome is waited for, for a moment.

        Raises:
            Outage: they may not; with the time of the next trial.
        """
        began = now = self._means.clock()
        last = min(passage.ticket.deadline, began + TRIAL)
        try:
            while (wait := desk.breaker.wait(now)) is not None:
                if not desk.breaker.trying or now >= last:
                    raise outage(wait)
                with suppress(TimeoutError):
                    async with asyncio.timeout((last - now) / SECOND):
                        await desk.outcome.wait()
                now = self._means.clock()
        finally:
            passage.journal.queued += self._means.clock() - began

    def enter(self, desk: Desk, passage: Passage) -> None:
        """The request is about to be sent.

        Raises:
            OnTrial: another has just gone out as the trial.
            Outage: as `check`.
        """
        if desk.breaker.closed:
            return
        now = self._means.clock()
        entry = desk.breaker.enter(now)
        if entry == "trial":
            passage.trial = desk
            desk.outcome.clear()
        elif entry == "shut":
            raise OnTrial if desk.breaker.trying else outage(desk.breaker.wait(now) or SECOND)

    def leave(self, passage: Passage) -> None:
        """The request is over, whether its outcome was told or not."""
        if passage.trial is not None:
            passage.trial.breaker.leave()
            passage.trial.outcome.set()
            passage.trial = None

    def answered(self, desk: Desk, passage: Passage) -> None:
        """The upstream is alive."""
        passage.trial = None
        desk.erred = None
        if desk.breaker.succeeded():
            desk.outcome.set()
            self._means.observer.observe(BreakerMoved(desk.name, opened=False))

    def _count(self, desk: Desk, passage: Passage, cause: str, heard: Heard | None = None) -> None:
        passage.trial = None
        desk.outcome.set()
        wait = heard.signals.wait if heard else None
        within = heard.signals.over_within if heard else None
        now, chance = self._means.clock(), self._means.chance()
        if desk.breaker.failed(now, chance, wait=wait, over_within=within):
            left = desk.breaker.wait(now) or 0
            self._means.observer.observe(BreakerMoved(desk.name, opened=True, wait=left, cause=cause))

    def erred(self, desk: Desk, passage: Passage) -> None:
        """A 500 or the like: one request that the API cannot cope with, told from an outage by other routes that err.

        Else whoever repeats such a request would shut everybody out.
        """
        if passage.trial or desk.erred != passage.route:
            self._count(desk, passage, "errors of the API")
        desk.erred = passage.route

    # Failures

    def out_of_order(self, desk: Desk, passage: Passage, lease: Lease, heard: Heard) -> Outcome:
        """Settle the lease of a 502, 503 or 504; the request is tried again if it may be.

        Raises:
            Outage, Broken: it may not, and the upstream's answer broke off: with the time that its head told, or none.
        """
        lease.spent()
        self._count(desk, passage, f"status {heard.answer.status}", heard)
        wait = heard.signals.wait
        rest = self._pause(passage, wait or 0) if passage.repeatable else None
        if rest is not None:
            return Again("outage", rest, heard.hold())
        waits = [told for told in (wait, desk.breaker.wait(self._means.clock())) if told is not None]
        if heard.whole:
            return Relay(heard.answer, max(1, whole_seconds(max(waits))) if waits else None)
        raise outage(max(waits)) if waits else Broken(f"The upstream broke its answer {heard.answer.status} off.")

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
        self._count(desk, passage, error.name)
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
        passage.stale = means.budget.retry(means.clock())
        passage.failures += passage.stale
        return passage.stale

    def _pause(self, passage: Passage, least: Micros) -> Micros | None:
        """The pause before one more try; `None` when there is to be none."""
        means = self._means
        passage.failures += 1
        now = means.clock()
        rest = least + pause(passage.failures, means.chance())
        in_time = now + rest < passage.ticket.deadline and passage.failures < means.retries.attempts
        return rest if in_time and means.budget.retry(now) else None


def _may_go_again(passage: Passage, error: UpstreamError) -> bool:
    if isinstance(error, Unreachable):
        return error.transient and passage.replayable
    return passage.repeatable


def outage(wait: Micros) -> Outage:
    """The refusal of a request while the breaker is open; `wait` until the next trial."""
    seconds = max(1, whole_seconds(wait))
    return Outage(
        f"The upstream is out of order and is tried again in {seconds} s. Come back then.",
        retry_after=seconds,
    )
