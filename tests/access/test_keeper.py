import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from keyturn.access.keeper import AGAIN, APART, FRESH, STALE, Keeper
from keyturn.core.events import Event, IssuerAsked
from keyturn.core.model import SECOND, Issuer
from keyturn.tasks import finish, spawn

from tests.access.issuers import ISSUER, OTHER_RSA, RSA, Publisher, jwk, jwks
from tests.virtual import micros, virtual

ONE, TWO = jwk(RSA, "RS256"), jwk(OTHER_RSA, "RS256", "two")


class Kept:
    """A keeper that runs, on virtual time."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.publisher = Publisher(*keys)
        self.events: list[Event] = []
        self.keeper = Keeper(Issuer(ISSUER), self.publisher, micros, self)

    def observe(self, event: Event) -> None:
        self.events.append(event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Kept"]:
        """Until the end of the block."""
        tasks: set[asyncio.Task[None]] = set()
        self.keeper.start(tasks)
        await asyncio.sleep(0.001)
        try:
            yield self
        finally:
            await finish(tasks)

    def knows(self, name: str) -> bool:
        """Whether a key is at hand."""
        return self.keeper.keys is not None and self.keeper.keys.knows(name)


@virtual
async def test_keys_are_read_at_once_and_now_and_again() -> None:
    """What is published anew is known after `FRESH` at the latest; what stays the same stays the same object."""
    async with Kept(ONE).running() as kept:
        first = kept.keeper.keys
        assert kept.knows("one")
        await asyncio.sleep(FRESH)
        assert kept.publisher.asked == 2
        assert kept.keeper.keys is first
        kept.publisher.document = jwks(TWO)
        await asyncio.sleep(FRESH)
        assert kept.knows("two")
        assert not kept.knows("one")
        assert kept.events == [IssuerAsked(ISSUER, 1)] * 3


@virtual
async def test_keys_outlive_a_failure_but_not_for_ever() -> None:
    """An issuer that does not answer is asked more often; after `STALE` its keys are no longer relied on."""
    async with Kept(ONE).running() as kept:
        kept.publisher.fails = True
        await asyncio.sleep(FRESH + 10 * AGAIN)
        assert kept.publisher.asked == 12
        assert kept.knows("one")
        assert kept.events[-1] == IssuerAsked(ISSUER, 1, "not reached")
        await asyncio.sleep(STALE / SECOND)
        assert kept.keeper.keys is None
        kept.publisher.fails = False
        await asyncio.sleep(AGAIN)
        assert kept.knows("one")


@virtual
async def test_what_is_no_set_of_keys_is_a_failure() -> None:
    """The keys that are there stay."""
    async with Kept(ONE).running() as kept:
        kept.publisher.document = b"<html>"
        await asyncio.sleep(FRESH)
        assert kept.knows("one")
        assert kept.events[-1] == IssuerAsked(ISSUER, 1, "what was read is no JSON")


@virtual
async def test_a_bug_does_not_end_it() -> None:
    """An error that nobody expected is a failure like any other."""
    kept = Kept(ONE)
    read, kept.publisher.read = kept.publisher.read, _fail  # type: ignore[method-assign]
    async with kept.running():
        assert kept.keeper.keys is None
        kept.publisher.read = read  # type: ignore[method-assign]
        await asyncio.sleep(AGAIN)
        assert kept.knows("one")


async def _fail() -> bytes:
    raise ZeroDivisionError


@virtual
async def test_a_withdrawn_key_is_gone() -> None:
    """Also when it was the only one."""
    async with Kept(ONE).running() as kept:
        kept.publisher.document = jwks()
        kept.keeper.look_again()
        await asyncio.sleep(1)
        assert kept.keeper.keys is not None
        assert not kept.knows("one")


@virtual
async def test_an_unknown_key_is_asked_for_once() -> None:
    """However many wait for it; and not again before `APART` has passed."""
    async with Kept(ONE).running() as kept:
        before = kept.keeper.may_learn
        await asyncio.sleep(APART / SECOND)
        assert (before, kept.keeper.may_learn) == (False, True)
        kept.publisher.document = jwks(ONE, TWO)
        kept.publisher.open.clear()
        waiting: set[asyncio.Task[Any]] = set()
        tasks = [spawn(kept.keeper.learn(), name="waits", owner=waiting) for _ in range(100)]
        await asyncio.sleep(1)
        late = spawn(kept.keeper.learn(), name="waits", owner=waiting)
        assert kept.keeper.may_learn
        kept.publisher.open.set()
        await asyncio.gather(*tasks, late)
        assert kept.publisher.asked == 2
        assert kept.knows("two")
        assert not kept.keeper.may_learn


@virtual
async def test_nobody_waits_for_ever() -> None:
    """For an issuer that hangs, or for a keeper that has ended."""
    kept = Kept(ONE)
    assert not kept.keeper.may_learn
    async with kept.running():
        await asyncio.sleep(APART / SECOND)
        kept.publisher.open.clear()
        await kept.keeper.learn()
        learning = spawn(kept.keeper.learn(), name="waits", owner=set())
        await asyncio.sleep(0)
    await learning
    assert not kept.keeper.may_learn


@virtual
async def test_the_log_says_what_is_wrong() -> None:
    """An issuer that cannot be asked, and one without a key that could be used."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment,method-assign]
    logger = logging.getLogger("keyturn")
    logger.addHandler(handler)
    try:
        async with Kept().running() as kept:
            kept.publisher.fails = True
            await asyncio.sleep(FRESH)
    finally:
        logger.removeHandler(handler)
    first, second = (record.getMessage() for record in records)
    assert first == f"issuer {ISSUER} publishes no key that may be used: its tokens let nobody in"
    assert second == f"the keys of issuer {ISSUER}: not reached; 0 known ones stay in use"
