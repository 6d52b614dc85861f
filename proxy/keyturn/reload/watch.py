"""Looks at files every now and then: has what stands in them changed?

Files are looked at, not listened to. A notification is bound to the folder that it was asked for: it is lost when a
link on the way is swapped (mounted Kubernetes secrets: `..data`) or a folder is renamed, and it never comes from NFS,
FUSE and the shared folders of virtual machines. A look follows the whole path as reading does, so whoever changes what
is read is noticed, however it is done: written in place, renamed over, linked elsewhere, mounted. It costs a `stat` for
each file; the content is read only when that says something new.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from keyturn.config.contents import NOTHING, content_of

Contents = Mapping[Path, bytes]
"""Digests by path."""

ROUNDING = 1.0
"""Seconds to which file systems round the times of files at the worst."""

Mark = tuple[int, ...]
"""By which a file that was written or replaced is known: device, inode, size, times of content and of entry."""


class _Seen(NamedTuple):
    """A path as it was looked at last."""

    mark: Mark | None
    content: bytes
    since: float
    """When this mark was first seen, in seconds."""
    read: float
    """When the content was last read."""

    @property
    def sure(self) -> bool:
        """Whether the mark stands for the content.

        A file may be written once more behind its reading and keep its mark, as long as its times are rounded to the
        same. Who writes later than that makes another.
        """
        return self.read - self.since >= ROUNDING


class Watch:
    """Remembers what it has seen, so that only what has changed is read."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._seen: dict[Path, _Seen] = {}

    def look(self, paths: Iterable[Path]) -> Contents:
        """What stands at these paths now. It reads files, and is not for the event loop."""
        self._seen = {path: self._look_at(path) for path in paths}
        return {path: seen.content for path, seen in self._seen.items()}

    def _look_at(self, path: Path) -> _Seen:
        now = self._clock()
        mark = _mark(path)
        if mark is None:
            return _Seen(None, NOTHING, now, now)
        before = self._seen.get(path)
        if before is None or before.mark != mark:
            return _Seen(mark, content_of(path), now, now)
        return before if before.sure else _Seen(mark, content_of(path), before.since, now)


def _mark(path: Path) -> Mark | None:
    """`None` when there is nothing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
