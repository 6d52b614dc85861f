"""What an operator may do to a process while it runs."""

from collections.abc import Callable, Mapping

from keyturn.core.events import KeySwitched, Observer
from keyturn.core.model import Micros
from keyturn.scheduler import Scheduler
from keyturn.telemetry.logs import LogLevel


class Controls:
    """Acts on this replica only."""

    def __init__(
        self, schedulers: Mapping[str, Scheduler], level: LogLevel, observer: Observer, clock: Callable[[], Micros]
    ) -> None:
        self._schedulers = schedulers
        self._level = level
        self._observer = observer
        self._clock = clock

    def pause(self, pool: str, key: str) -> bool:
        """Use a key no more until it is resumed; whether there is such a key. What is under way with it goes on."""
        room = self._schedulers.get(pool)
        if room is None or not room.health.pause(key, self._clock()):
            return False
        room.heed()
        self._observer.observe(KeySwitched(pool, key, paused=True))
        return True

    def resume(self, pool: str, key: str) -> bool:
        """Use a key again; whether there is such a key."""
        room = self._schedulers.get(pool)
        if room is None or not room.health.resume(key, self._clock()):
            return False
        room.heed()
        self._observer.observe(KeySwitched(pool, key, paused=False))
        return True

    def log(self, level: str) -> bool:
        """Log from this severity on; whether there is such a one."""
        return self._level.set(level)
