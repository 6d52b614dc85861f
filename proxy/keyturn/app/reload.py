"""Watch the files of the configuration, and apply a changed configuration as a whole or reject it.

1.  What is applied was in all files at one time: the files are compared once more after they were read.
2.  A change is read when two polls in a row find the same content, so that no half-written file is used. An explicit
    request (SIGHUP) is served at once.
3.  A configuration with problems is rejected as a whole and reported once. It is retried every few polls, since it may
    name files that do not exist yet.
4.  Running out of file descriptors is not a change of the configuration: the files are read again later.

Files are polled. A notification is bound to the directory that it was requested for: it is lost when a link on the way
is swapped (mounted Kubernetes Secrets: `..data`) or a directory is renamed, and it never arrives from NFS, FUSE and the
shared folders of virtual machines. A poll follows the whole path as reading does, so it notices every way of changing
a file. It costs a `stat` for each file; content is read only when that has changed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Generic, NamedTuple, Protocol, TypeVar

from keyturn.config.files import IRREGULAR_FILE, MISSING_FILE, check_descriptors, content_of
from keyturn.core.errors import ConfigError, Problem, StartError
from keyturn.core.events import Observer, Reloaded
from keyturn.logger import structlog

POLL_INTERVAL = 1.0
"""Seconds between two polls."""

RETRY_POLLS = 5
"""A rejected configuration is read again after this many polls."""

MAX_READS = 3
"""Reads of a configuration that keeps changing; then the next poll continues."""

TIMESTAMP_RESOLUTION = 1.0
"""Seconds to which file systems round the times of files, at the worst."""

Contents = Mapping[Path, bytes]
"""Digests of files by path."""

FileStamp = tuple[int, ...]
"""Identifies one state of a file: device, inode, size, times of content and of inode."""


class _Seen(NamedTuple):
    """The state of a path at the last poll."""

    stamp: FileStamp | None
    content: bytes
    since: float
    """When this stamp was first seen, in seconds."""
    read: float
    """When the content was last read."""

    @property
    def settled(self) -> bool:
        """Whether an equal stamp implies equal content.

        A file that is written again right after it was read keeps its stamp, as long as its times are rounded to the
        same value. A later write changes the stamp.
        """
        return self.read - self.since >= TIMESTAMP_RESOLUTION


class FileWatch:
    """Remember the state of files, so that only changed ones are read."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._seen: dict[Path, _Seen] = {}

    def poll(self, paths: Iterable[Path]) -> Contents:
        """Return what these paths hold now. It reads files: do not call it in the event loop."""
        self._seen = {path: self._poll(path) for path in paths}
        return {path: seen.content for path, seen in self._seen.items()}

    def _poll(self, path: Path) -> _Seen:
        now = self._clock()
        stamp = _stamp(path)
        if stamp is None:
            return _Seen(None, MISSING_FILE, now, now)
        before = self._seen.get(path)
        if before is None or before.stamp != stamp:
            return _Seen(stamp, content_of(path), now, now)
        return before if before.settled else _Seen(stamp, content_of(path), before.since, now)


def _stamp(path: Path) -> FileStamp | None:
    """`None` when there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Loaded(Protocol):
    """A configuration as it was read."""

    @property
    def contents(self) -> Contents:
        """The files that it was read from, as they were then."""


LoadedT = TypeVar("LoadedT", bound=Loaded)


class Reloader(Generic[LoadedT]):
    """Reload the configuration when its files change.

    Args:
        current: the configuration in use.
        read: reads everything anew, in a thread; raises a `ConfigError` with all problems.
        adopt: applies what was read, or raises a `ConfigError` and changes nothing.
        observer: receives an event for each reload, applied or rejected.
        interval: seconds between two polls.
    """

    def __init__(
        self,
        current: LoadedT,
        read: Callable[[], LoadedT],
        adopt: Callable[[LoadedT], Awaitable[None]],
        observer: Observer,
        *,
        interval: float = POLL_INTERVAL,
    ) -> None:
        self._read = read
        self._adopt = adopt
        self._observer = observer
        self._interval = interval
        self._watch = FileWatch()
        self._requested = asyncio.Event()
        self._judged: Contents = current.contents
        """The files that were applied or rejected last."""
        self._changing: Contents | None = None
        """The changed files that the last poll found, to be confirmed by the next."""
        self._problems: tuple[Problem, ...] = ()
        """Problems of the rejected configuration, if it was rejected."""
        self._polls = 0
        """Polls since it was rejected."""
        self._unreadable = False
        """Whether this machine could not poll or read; logged once."""
        self._overdue = False
        """Whether a reload was requested while nothing could be read."""

    def request(self) -> None:
        """Read the configuration now, whether its files have changed or not."""
        self._requested.set()

    async def run(self) -> None:
        """Poll and reload until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._requested.wait()
            try:
                await self._step()
            except Exception:  # noqa: BLE001  # a bug must not end the watching for good
                structlog.get_logger("keyturn").exception("unexpected error while reloading the configuration")

    async def _step(self) -> None:
        requested = self._requested.is_set() or self._overdue
        self._requested.clear()
        try:
            seen = await asyncio.to_thread(self._watch.poll, self._judged)
            if requested or self._is_due(seen):
                await self._reload(seen, requested=requested)
        except StartError as problem:
            self._postpone(problem, requested=requested)
        else:
            self._unreadable = self._overdue = False

    def _postpone(self, problem: StartError, *, requested: bool) -> None:
        if not self._unreadable:
            structlog.get_logger("keyturn").error("the configuration cannot be read now", problem=str(problem))
        self._unreadable, self._overdue = True, requested

    def _is_due(self, polled: Contents) -> bool:
        seen = {path: self._judged[path] if content == IRREGULAR_FILE else content for path, content in polled.items()}
        if seen != self._judged:
            stable, self._changing = seen == self._changing, seen
            return stable
        self._changing = None
        self._polls += 1
        return bool(self._problems) and self._polls % RETRY_POLLS == 0

    async def _reload(self, seen: Contents, *, requested: bool) -> None:
        for _ in range(MAX_READS):
            try:
                loaded = await asyncio.to_thread(self._read_regular, seen)
            except ConfigError as error:
                await asyncio.to_thread(check_descriptors)
                now = await asyncio.to_thread(self._watch.poll, seen)
                if now == seen:
                    self._reject(seen, error.problems, requested=requested)
                    return
            else:
                now = await asyncio.to_thread(self._watch.poll, loaded.contents)
                if now == loaded.contents:
                    await self._apply(loaded, seen, requested=requested)
                    return
            seen = now
        self._changing = seen

    def _read_regular(self, seen: Contents) -> LoadedT:
        if pipes := tuple(_irregular(seen)):
            raise ConfigError(pipes)
        return self._read()

    async def _apply(self, loaded: LoadedT, seen: Contents, *, requested: bool) -> None:
        try:
            await self._adopt(loaded)
        except ConfigError as error:
            self._reject(seen, error.problems, requested=requested)
            return
        self._judged, self._changing, self._problems = loaded.contents, None, ()
        self._observer.observe(Reloaded(ok=True))

    def _reject(self, seen: Contents, problems: tuple[Problem, ...], *, requested: bool) -> None:
        news = requested or problems != self._problems or seen != self._judged
        self._judged, self._changing, self._problems = seen, None, problems
        self._polls = 0
        if news:
            self._observer.observe(Reloaded(ok=False, reasons=tuple(map(str, problems))))


def _irregular(seen: Contents) -> Iterable[Problem]:
    for path, content in seen.items():
        if content == IRREGULAR_FILE:
            yield Problem("", f"{path} is a pipe or a device, which cannot be read again: use a regular file")
