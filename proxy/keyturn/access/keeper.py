"""Keeps an issuer's public keys fresh: read again in the background, and when a token names a key that is not there.

Keys that were read stay in use while their issuer cannot be reached, but not for ever: after `STALE` nobody can say any
more that the issuer has not withdrawn them.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from keyturn.access.keysets import KeySet, read_key_set
from keyturn.access.sources import PATIENCE, Source, SourceError
from keyturn.core.events import IssuerAsked, Observer
from keyturn.core.model import SECOND, Issuer, Micros
from keyturn.tasks import spawn

FRESH = 300.0
"""Seconds after which keys are read again."""
AGAIN = 30.0
"""Seconds after which an issuer that could not be reached is asked again."""
APART: Micros = 10 * SECOND
"""What lies at least between two askings, however many tokens name keys that are not there."""
STALE: Micros = 24 * 3600 * SECOND

_log = logging.getLogger("keyturn")


class Keeper:
    """The public keys of one issuer; `start` begins to keep them, until its task is cancelled."""

    def __init__(
        self, issuer: Issuer, source: Source, clock: Callable[[], Micros], observer: Observer | None = None
    ) -> None:
        self.issuer = issuer
        self._source = source
        self._clock = clock
        self._observer = observer
        self._raw = b""
        self._keys: KeySet | None = None
        self._read_at: Micros = 0
        self._asked_at: Micros | None = None
        self._asking = False
        self._runs = False
        self._wake = asyncio.Event()
        self._answered = asyncio.Event()

    @property
    def keys(self) -> KeySet | None:
        """The keys; the same object as long as they are the same, `None` when there are none to rely on."""
        return self._keys if self._clock() - self._read_at < STALE else None

    @property
    def may_learn(self) -> bool:
        """Whether a key that is not there may be found by asking now."""
        if not self._runs:
            return False
        return self._asking or self._asked_at is None or self._clock() - self._asked_at >= APART

    def look_again(self) -> None:
        """Read the keys soon, since they may have changed."""
        self._wake.set()

    async def learn(self) -> None:
        """Wait for the issuer's answer: the one under way, or to one more question."""
        answered = self._answered
        if not self._asking:
            self._wake.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE + 1):
                await answered.wait()

    def start(self, owner: set[asyncio.Task[None]]) -> None:
        """Run; who comes before the first answer waits for it."""
        self._runs = True
        spawn(self.run(), name=f"keys of {self.issuer.name}", owner=owner)

    async def run(self) -> None:
        """Read the keys now and again, until it is cancelled."""
        try:
            while True:
                self._wake.clear()
                pause = FRESH if await self._ask() else AGAIN
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
        finally:
            self._runs = False
            self._answered.set()

    async def _ask(self) -> bool:
        self._asking = True
        try:
            self._take(await self._source.read())
        except SourceError as error:
            self._note(str(error))
            return False
        except ValueError as error:
            self._note(f"what was read {error}")
            return False
        except Exception:  # noqa: BLE001  # a bug must not end the reading of keys for good
            _log.exception("unexpected error while reading the keys of issuer %s", self.issuer.name)
            return False
        finally:
            self._asking = False
            self._asked_at = self._clock()
            self._answered.set()
            self._answered = asyncio.Event()
        self._note("")
        return True

    def _take(self, raw: bytes) -> None:
        if self._keys is None or raw != self._raw:
            self._keys, self._raw = read_key_set(raw, self.issuer.algorithms), raw
        self._read_at = self._clock()

    def _note(self, problem: str) -> None:
        count = len(self._keys or ())
        if problem:
            _log.warning("the keys of issuer %s: %s; %d known ones stay in use", self.issuer.name, problem, count)
        elif not count:
            _log.warning("issuer %s publishes no key that may be used: its tokens let nobody in", self.issuer.name)
        if self._observer is not None:
            self._observer.observe(IssuerAsked(self.issuer.name, count, problem))
