"""Reads a configuration again when its files have changed, and hands it over as a whole, or says why not.

1.  What is handed over stood in all files at one time: what was read is compared with what stands there afterwards.
2.  A change is taken up when two looks in a row find the same: nobody is caught in the middle of writing. Who asks for
    it (SIGHUP) is heard at once.
3.  What has problems is refused as a whole, and told once: it, and what is told of it, changes nothing. As long as it
    stands there it is tried again every now and then, for it may name files that are still to come.
4.  What cannot be read for want of file descriptors is no other configuration: it is looked at again later.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

import structlog

from keyturn.config.contents import NO_FILE, check_descriptors
from keyturn.core.errors import ConfigError, Problem, StartError
from keyturn.core.events import Observer, Reloaded
from keyturn.reload.watch import Contents, Watch

EVERY = 1.0
"""Seconds between two looks."""

AGAIN = 5
"""A refused configuration is read again at every so many looks."""

_READINGS = 3


class Loaded(Protocol):
    """A configuration as it was read."""

    @property
    def contents(self) -> Contents:
        """The files that it was made of, as they were then."""


Made = TypeVar("Made", bound=Loaded)


class Reloader(Generic[Made]):
    """Watches the files of the configuration in use.

    Args:
        current: what is in use.
        read: reads everything anew, in a thread; raises a `ConfigError` with all that is wrong.
        adopt: takes up what was read, or raises a `ConfigError` and leaves everything as it is.
        observer: told of each reload, taken or refused.
        every: seconds between two looks.
    """

    def __init__(
        self,
        current: Made,
        read: Callable[[], Made],
        adopt: Callable[[Made], Awaitable[None]],
        observer: Observer,
        *,
        every: float = EVERY,
    ) -> None:
        self._read = read
        self._adopt = adopt
        self._observer = observer
        self._every = every
        self._watch = Watch()
        self._asked = asyncio.Event()
        self._judged: Contents = current.contents
        """What was taken, or refused, last."""
        self._changing: Contents | None = None
        """What the last look found instead."""
        self._problems: tuple[Problem, ...] = ()
        """Why that was refused, if it was."""
        self._looks = 0
        """Since it was refused."""
        self._hindered = False
        """Whether this machine did not let us look or read; told once."""
        self._owed = False
        """Whether somebody asked for a reload meanwhile."""

    def ask(self) -> None:
        """Read the configuration now, whether anything has changed or not."""
        self._asked.set()

    async def run(self) -> None:
        """Look and reload, until it is cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._asked.wait()
            try:
                await self._turn()
            except Exception:  # noqa: BLE001  # a bug must not end the watching for good
                structlog.get_logger("keyturn").exception("unexpected error while the configuration was reloaded")

    async def _turn(self) -> None:
        asked = self._asked.is_set() or self._owed
        self._asked.clear()
        try:
            seen = await asyncio.to_thread(self._watch.look, self._judged)
            if asked or self._is_due(seen):
                await self._reload(seen, asked=asked)
        except StartError as problem:
            self._put_off(problem, asked=asked)
        else:
            self._hindered = self._owed = False

    def _put_off(self, problem: StartError, *, asked: bool) -> None:
        if not self._hindered:
            structlog.get_logger("keyturn").error("the configuration cannot be read now", problem=str(problem))
        self._hindered, self._owed = True, asked

    def _is_due(self, looked: Contents) -> bool:
        seen = {path: self._judged[path] if content == NO_FILE else content for path, content in looked.items()}
        if seen != self._judged:
            stands_still, self._changing = seen == self._changing, seen
            return stands_still
        self._changing = None
        self._looks += 1
        return bool(self._problems) and self._looks % AGAIN == 0

    async def _reload(self, seen: Contents, *, asked: bool) -> None:
        for _ in range(_READINGS):
            try:
                made = await asyncio.to_thread(self._read_regular, seen)
            except ConfigError as error:
                await asyncio.to_thread(check_descriptors)
                now = await asyncio.to_thread(self._watch.look, seen)
                if now == seen:
                    self._refuse(seen, error.problems, asked=asked)
                    return
            else:
                now = await asyncio.to_thread(self._watch.look, made.contents)
                if now == made.contents:
                    await self._take(made, seen, asked=asked)
                    return
            seen = now
        self._changing = seen

    def _read_regular(self, seen: Contents) -> Made:
        if pipes := tuple(_irregular(seen)):
            raise ConfigError(pipes)
        return self._read()

    async def _take(self, made: Made, seen: Contents, *, asked: bool) -> None:
        try:
            await self._adopt(made)
        except ConfigError as error:
            self._refuse(seen, error.problems, asked=asked)
            return
        self._judged, self._changing, self._problems = made.contents, None, ()
        self._observer.observe(Reloaded(ok=True))

    def _refuse(self, seen: Contents, problems: tuple[Problem, ...], *, asked: bool) -> None:
        news = asked or problems != self._problems or seen != self._judged
        self._judged, self._changing, self._problems = seen, None, problems
        self._looks = 0
        if news:
            self._observer.observe(Reloaded(ok=False, reasons=tuple(map(str, problems))))


def _irregular(seen: Contents) -> Iterable[Problem]:
    for path, content in seen.items():
        if content == NO_FILE:
            yield Problem("", f"{path} is a pipe or a device, which cannot be read again")
