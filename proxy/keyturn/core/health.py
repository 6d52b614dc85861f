"""Which keys of a pool may be used: what is known of each, and when a dead one is asked after again.

    usable ──an answer says so──▶ suspected ──asked, dead──▶ quarantined ──asked, alive──▶ usable
                                      └──────asked, alive or no answer──▶ usable

1.  A key is quarantined only when it was asked after by itself, never by a caller's answer alone.
2.  A suspected key is not used until it has been asked after; who was alone in using it waits for that.
3.  A quarantined key is asked after again at once when its secret changes, else after `FIRST`, and each time twice as
    long as before, up to `LONGEST`.
4.  A key that was found alive is not suspected again within `TRUST`: what says so is about what was asked for.
5.  Pausing is an operator's: it ends by resuming, whatever happens meanwhile, and nothing is asked.
6.  A key that has changed its pool rests until what was sent with it before counts no longer (`core.placements`).

Instants are in microseconds of one clock that never goes back; chance is an argument.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from keyturn.core.errors import NoKey
from keyturn.core.model import SECOND, Key, Micros, Pool, Secret
from keyturn.core.placements import Rest
from keyturn.core.values import value_object

FIRST: Micros = 15 * SECOND
LONGEST: Micros = 3600 * SECOND
TRUST: Micros = 10 * SECOND

LOOK_AGAIN = 60
"""Seconds after which to come again when nobody knows when a key is back: an operator may have resumed one."""

ASKING: Micros = SECOND
"""What it takes to ask after a key, at the usual."""

SPREAD = 0.2
"""By which part of itself an interval is lengthened by chance, so that replicas do not ask all at once."""

State = Literal["ready", "parked", "quarantined", "paused"]


@value_object
class KeySnapshot:
    """A key as it stands: its state, why, since when, and until when if that is known (instants of the one clock)."""

    name: str
    quota: str
    state: State
    since: Micros
    reason: str = ""
    until: Micros | None = None
    month_left: int | None = None
    """Requests that the month's plan still holds, by the upstream's last word."""


@dataclass(slots=True)
class _Condition:
    """What is known of one key."""

    secret: Secret
    since: Micros
    suspected: bool = False
    deaths: int = 0
    """How often in a row it was found dead; 0 while it lives."""
    reason: str = ""
    asked_again: Micros = 0
    """When a dead key is asked after again."""
    trusted: Micros = 0
    """Until when it is not suspected."""
    paused: Micros | None = None
    """Since when, by an operator."""
    rest: "_Park | None" = None
    """Why it must not be used although it is well: requests of another pool still count against it."""
    month_left: int | None = None

    @property
    def usable(self) -> bool:
        return not (self.suspected or self.deaths or self.rest) and self.paused is None

    @property
    def awaited(self) -> bool:
        """Whether it may be usable in a moment, so that requests wait for it."""
        return (self.suspected or (self.rest is not None and not self.deaths)) and self.paused is None


@dataclass(frozen=True, slots=True)
class _Park:
    since: Micros
    until: Micros | None
    """`None` while that is not known."""
    reason: str


class Health:
    """The keys of one pool."""

    def __init__(self, pool: Pool, now: Micros = 0) -> None:
        self._pool = pool
        self._keys = {key.name: _Condition(key.secret, now) for key in pool.keys}
        self._parks: dict[str, _Park] = {}
        self.on_due: Callable[[str], None] = lambda _: None
        """Called when a dead key is to be asked after earlier than it was."""

    def adopt(self, pool: Pool, now: Micros) -> tuple[str, ...]:
        """Go on with another configuration; returns the dead keys that are to be asked after at once.

        A key is known by its secret, whatever it is called; a new secret under a known name is a key that was rotated.
        """
        known, stays = self._keys, {key.secret for key in pool.keys}
        by_secret = {condition.secret: condition for condition in known.values()}
        rotated = {name: condition for name, condition in known.items() if condition.secret not in stays}
        self._pool = pool
        self._keys = {
            key.name: by_secret.get(key.secret) or rotated.get(key.name) or _Condition(key.secret, now)
            for key in pool.keys
        }
        changed = []
        for key in pool.keys:
            condition = self._keys[key.name]
            if condition.secret != key.secret:
                condition.secret, condition.trusted = key.secret, 0
                if condition.deaths:
                    condition.asked_again = now
                    changed.append(key.name)
        for name in changed:
            self.on_due(name)
        return tuple(changed)

    # Who may be used

    def usable(self, name: str) -> bool:
        """Whether requests may go out with this key."""
        condition = self._keys.get(name)
        return condition is not None and condition.usable

    @property
    def all_usable(self) -> bool:
        """Whether every key may be used: the usual case."""
        return all(condition.usable for condition in self._keys.values())

    def refusal(self, now: Micros, pinned: str | None = None) -> NoKey | None:
        """Why no key, or not the one that it insists on, can serve a request; `None` when that is possible yet."""
        if pinned is None:
            for each in self._keys.values():
                if each.usable:  # nearly always the first is
                    return None
        if not self._keys:
            lack = f"The pool {self._pool.name} has no key. Add one to the configuration."
            return NoKey(lack, retry_after=LOOK_AGAIN)
        named = [pinned] if pinned is not None else list(self._keys)
        conditions = [condition for name in named if (condition := self._keys.get(name))]
        if any(condition.usable or condition.awaited for condition in conditions):
            return None
        who = f"The key {pinned} cannot" if pinned is not None else f"No key of the pool {self._pool.name} can"
        back = [condition.asked_again for condition in conditions if condition.deaths and condition.paused is None]
        if not back:
            paused = f"{who} serve: paused by an operator. Resume it, or wait until that is done."
            return NoKey(paused, retry_after=LOOK_AGAIN)
        wait = max(0, min(back) - now) + ASKING
        return NoKey(
            f"{who} serve: the upstream does not accept it. It is tried again by itself; give it a valid secret.",
            retry_after=-(-wait // SECOND),
        )

    # What happens to a key

    def suspect(self, name: str, now: Micros) -> bool:
        """An answer says that the upstream does not accept this key: whether it is to be asked after now."""
        condition = self._keys.get(name)
        if condition is None or not condition.usable or now < condition.trusted:
            return False
        condition.suspected = True
        return True

    def suspected(self, name: str) -> bool:
        """Whether it is being found out how this key is."""
        condition = self._keys.get(name)
        return condition is not None and condition.suspected

    def alive(self, name: str, now: Micros) -> bool:
        """The upstream accepts this key; returns whether it was quarantined."""
        condition = self._keys.get(name)
        if condition is None:
            return False
        was = condition.deaths > 0
        if was:
            condition.since = now
        condition.suspected, condition.deaths, condition.reason = False, 0, ""
        condition.trusted = now + TRUST
        return was

    def dead(self, name: str, now: Micros, reason: str, chance: float) -> bool:
        """The upstream does not accept this key; returns whether it is news. `chance`: from 0 to 1."""
        condition = self._keys.get(name)
        if condition is None:
            return False
        news = condition.deaths == 0
        if news:
            condition.since = now
        condition.suspected, condition.reason = False, reason
        condition.asked_again = now + _spread(min(LONGEST, FIRST << min(condition.deaths, 20)), chance)
        condition.deaths += 1
        return news

    def unknown(self, name: str, now: Micros, chance: float) -> None:
        """It could not be found out: a suspected key is used on, a dead one asked after later."""
        condition = self._keys.get(name)
        if condition is not None:
            condition.suspected = False
            if condition.deaths:
                condition.asked_again = now + _spread(FIRST, chance)

    def pause(self, name: str, now: Micros) -> bool:
        """Use a key no more until it is resumed; whether there is such a key."""
        condition = self._keys.get(name)
        if condition is not None and condition.paused is None:
            condition.paused = now
        return condition is not None

    def resume(self, name: str, now: Micros) -> bool:
        """Use a key again, or ask after it at once if it was dead before; whether there is such a key."""
        condition = self._keys.get(name)
        if condition is not None and condition.paused is not None:
            condition.paused = None
            condition.since = condition.since if condition.deaths else now
            if condition.deaths:
                condition.asked_again = now
                self.on_due(name)
        return condition is not None

    def ask_again(self, name: str) -> Micros | None:
        """When a quarantined key is to be asked after; `None` while it is none, or paused."""
        condition = self._keys.get(name)
        return (
            None if condition is None or not condition.deaths or condition.paused is not None else condition.asked_again
        )

    def rest(self, rests: Mapping[str, Rest], now: Micros) -> bool:
        """Let exactly these keys rest, given by identity; whether that changes which may be used."""
        changed = False
        for key in self._pool.keys:
            condition, rest = self._keys[key.name], rests.get(key.identity)
            changed |= (condition.rest is None) != (rest is None)
            if rest is None:
                condition.since = condition.since if condition.rest is None else now
                condition.rest = None
            else:
                since = now if condition.rest is None else condition.rest.since
                until = None if rest.left is None else now + rest.left
                reason = f"its requests in the pool {rest.pool} still count"
                condition.rest = _Park(since, until, reason)
        return changed

    # What is only looked at

    def parked(self, quota: str, now: Micros, until: Micros, reason: str) -> None:
        """A limit of a quota is closed until then; a later time that stands already is kept."""
        known = self._parks.get(quota)
        if known is None or until > (known.until or 0):
            since = known.since if known and (known.until or 0) > now else now
            self._parks[quota] = _Park(since, until, reason)

    def month(self, name: str, left: int) -> bool:
        """So many requests of the month's plan are left; whether that is news."""
        condition = self._keys.get(name)
        if condition is None or condition.month_left == left:
            return False
        condition.month_left = left
        return True

    def snapshots(self, now: Micros) -> Iterator[KeySnapshot]:
        """Every key as it stands, one after another; those of the moment at which the first is asked for."""
        for key, condition in [(key, self._keys[key.name]) for key in self._pool.keys]:
            yield self._snapshot(key, condition, now)

    def _snapshot(self, key: Key, condition: _Condition, now: Micros) -> KeySnapshot:
        month = condition.month_left
        park, quota = self._parks.get(key.quota), key.label or key.quota
        if condition.paused is not None:
            return KeySnapshot(key.name, quota, "paused", condition.paused, "by an operator", None, month)
        if condition.deaths:
            until = condition.asked_again
            return KeySnapshot(key.name, quota, "quarantined", condition.since, condition.reason, until, month)
        if condition.rest is not None:
            park = condition.rest
        if park is not None and (park.until is None or park.until > now):
            return KeySnapshot(key.name, quota, "parked", park.since, park.reason, park.until, month)
        since = max(condition.since, park.until or 0) if park is not None else condition.since
        return KeySnapshot(key.name, quota, "ready", since, "", None, month)


def _spread(interval: Micros, chance: float) -> Micros:
    return interval + int(interval * SPREAD * chance)
