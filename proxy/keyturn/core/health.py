"""The usable keys of a pool, and the schedule of their health checks.

    usable ──an answer says so──▶ checking ──rejected──▶ quarantined ──accepted──▶ usable
                                     └──accepted or inconclusive──▶ usable

1.  A key is quarantined only by a health check, never by a caller's answer alone.
2.  A key is not used while it is checked; requests that can use no other key wait for the result.
3.  A quarantined key is checked again at once when its secret changes, else after `FIRST_RECHECK`, and each time after
    twice as long as before, up to `MAX_RECHECK`.
4.  A key that was accepted is not checked again within `CHECK_TRUST`: what the answer refused is what was asked for.
5.  An operator pauses a key until an operator resumes it, whatever happens meanwhile, and it is not checked.
6.  A key that has changed its pool rests until requests sent with it before no longer count (`core.placements`).

Instants are in microseconds of one clock that never goes back; `chance` is a random number from 0 to 1.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from keyturn.core.errors import NoKey
from keyturn.core.model import SECOND, Key, Micros, Pool, Secret
from keyturn.core.placements import Rest
from keyturn.core.values import value_object

FIRST_RECHECK: Micros = 15 * SECOND
MAX_RECHECK: Micros = 3600 * SECOND
CHECK_TRUST: Micros = 10 * SECOND

RETRY_AFTER_SECONDS = 60
"""`Retry-After` when it is not known when a key is back: an operator may have resumed one by then."""

CHECK_DURATION: Micros = SECOND
"""How long a health check usually takes."""

RECHECK_JITTER = 0.2
"""Part of an interval that is added at random, so that replicas do not check all at once."""

State = Literal["ready", "parked", "quarantined", "paused"]


@value_object
class KeySnapshot:
    """The state of a key: why, since when, and until when if that is known (instants of the one clock)."""

    name: str
    quota: str
    state: State
    since: Micros
    reason: str = ""
    until: Micros | None = None
    month_left: int | None = None
    """Requests left in the month's plan, as the upstream told last."""


@dataclass(slots=True)
class _Condition:
    """The state of one key."""

    secret: Secret
    since: Micros
    checking: bool = False
    rejections: int = 0
    """Checks in a row that rejected it."""
    reason: str = ""
    next_check: Micros = 0
    """When a quarantined key is checked again."""
    trusted: Micros = 0
    """Until when it is not checked."""
    paused: Micros | None = None
    """Since when, by an operator."""
    rest: "_Closed | None" = None
    """Why it must not be used although it is accepted: requests of another pool still count against it."""
    month_left: int | None = None

    @property
    def usable(self) -> bool:
        return not (self.checking or self.rejections or self.rest) and self.paused is None

    @property
    def awaited(self) -> bool:
        """Whether it may be usable in a moment, so that requests wait for it."""
        return (self.checking or (self.rest is not None and not self.rejections)) and self.paused is None


@dataclass(frozen=True, slots=True)
class _Closed:
    since: Micros
    until: Micros | None
    """`None` while that is not known."""
    reason: str


class KeyHealth:
    """The keys of one pool."""

    def __init__(self, pool: Pool, now: Micros = 0) -> None:
        self._pool = pool
        self._keys = {key.name: _Condition(key.secret, now) for key in pool.keys}
        self._closed: dict[str, _Closed] = {}
        self.on_check_due: Callable[[str], None] = lambda _: None
        """Called when the check of a quarantined key is due earlier than before."""

    def adopt(self, pool: Pool, now: Micros) -> tuple[str, ...]:
        """Go on with another configuration; returns the quarantined keys to check at once.

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
                if condition.rejections:
                    condition.next_check = now
                    changed.append(key.name)
        for name in changed:
            self.on_check_due(name)
        return tuple(changed)

    # Usable keys

    def usable(self, name: str) -> bool:
        """Whether requests may be sent with this key."""
        condition = self._keys.get(name)
        return condition is not None and condition.usable

    @property
    def all_usable(self) -> bool:
        """Whether every key may be used: the usual case."""
        return all(condition.usable for condition in self._keys.values())

    def refusal(self, now: Micros, pinned: str | None = None) -> NoKey | None:
        """The refusal of a request that no key can serve, or not the one that it names; `None` if one may soon."""
        if pinned is None:
            for each in self._keys.values():
                if each.usable:  # nearly always the first is
                    return None
        if not self._keys:
            lack = f"The pool {self._pool.name} has no key. Add one to the configuration."
            return NoKey(lack, retry_after=RETRY_AFTER_SECONDS)
        named = [pinned] if pinned is not None else list(self._keys)
        conditions = [condition for name in named if (condition := self._keys.get(name))]
        if any(condition.usable or condition.awaited for condition in conditions):
            return None
        which = f"The key {pinned} cannot" if pinned is not None else f"No key of the pool {self._pool.name} can"
        back = [condition.next_check for condition in conditions if condition.rejections and condition.paused is None]
        if not back:
            paused = f"{which} serve: paused by an operator. Resume it, or wait until that is done."
            return NoKey(paused, retry_after=RETRY_AFTER_SECONDS)
        wait = max(0, min(back) - now) + CHECK_DURATION
        return NoKey(
            f"{which} serve: the upstream does not accept it. It is checked again by itself; give it a valid secret.",
            retry_after=-(-wait // SECOND),
        )

    # Checks and pauses

    def begin_check(self, name: str, now: Micros) -> bool:
        """Note that an answer says that this key is not accepted; returns whether to check it now."""
        condition = self._keys.get(name)
        if condition is None or not condition.usable or now < condition.trusted:
            return False
        condition.checking = True
        return True

    def checking(self, name: str) -> bool:
        """Whether this key is being checked."""
        condition = self._keys.get(name)
        return condition is not None and condition.checking

    def accepted(self, name: str, now: Micros) -> bool:
        """End a check: the upstream accepts this key; returns whether it was quarantined."""
        condition = self._keys.get(name)
        if condition is None:
            return False
        was_quarantined = condition.rejections > 0
        if was_quarantined:
            condition.since = now
        condition.checking, condition.rejections, condition.reason = False, 0, ""
        condition.trusted = now + CHECK_TRUST
        return was_quarantined

    def rejected(self, name: str, now: Micros, reason: str, chance: float) -> bool:
        """End a check: the upstream does not accept this key; returns whether that quarantines it."""
        condition = self._keys.get(name)
        if condition is None:
            return False
        quarantines = condition.rejections == 0
        if quarantines:
            condition.since = now
        condition.checking, condition.reason = False, reason
        condition.next_check = now + _spread(min(MAX_RECHECK, FIRST_RECHECK << min(condition.rejections, 20)), chance)
        condition.rejections += 1
        return quarantines

    def inconclusive(self, name: str, now: Micros, chance: float) -> None:
        """End a check without a result: a quarantined key is checked later, another one is used."""
        condition = self._keys.get(name)
        if condition is not None:
            condition.checking = False
            if condition.rejections:
                condition.next_check = now + _spread(FIRST_RECHECK, chance)

    def pause(self, name: str, now: Micros) -> bool:
        """Stop using a key until it is resumed; returns whether there is such a key."""
        condition = self._keys.get(name)
        if condition is not None and condition.paused is None:
            condition.paused = now
        return condition is not None

    def resume(self, name: str, now: Micros) -> bool:
        """Use a key again, or check it at once if it was quarantined; returns whether there is such a key."""
        condition = self._keys.get(name)
        if condition is not None and condition.paused is not None:
            condition.paused = None
            condition.since = condition.since if condition.rejections else now
            if condition.rejections:
                condition.next_check = now
                self.on_check_due(name)
        return condition is not None

    def next_check(self, name: str) -> Micros | None:
        """When a quarantined key is checked again; `None` for a paused key and any other."""
        condition = self._keys.get(name)
        return (
            None
            if condition is None or not condition.rejections or condition.paused is not None
            else condition.next_check
        )

    def rest(self, rests: Mapping[str, Rest], now: Micros) -> bool:
        """Let exactly these keys rest, given by identity; returns whether that changes which may be used."""
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
                condition.rest = _Closed(since, until, reason)
        return changed

    # Status

    def parked(self, quota: str, now: Micros, until: Micros, reason: str) -> None:
        """Show a quota as closed until then, or until the later time that is known already."""
        known = self._closed.get(quota)
        if known is None or until > (known.until or 0):
            since = known.since if known and (known.until or 0) > now else now
            self._closed[quota] = _Closed(since, until, reason)

    def month(self, name: str, left: int) -> bool:
        """Note how many requests of the month's plan are left; returns whether that has changed."""
        condition = self._keys.get(name)
        if condition is None or condition.month_left == left:
            return False
        condition.month_left = left
        return True

    def snapshots(self, now: Micros) -> Iterator[KeySnapshot]:
        """The state of every key, of those that there are when the first is asked for."""
        for key, condition in [(key, self._keys[key.name]) for key in self._pool.keys]:
            yield self._snapshot(key, condition, now)

    def _snapshot(self, key: Key, condition: _Condition, now: Micros) -> KeySnapshot:
        month = condition.month_left
        closed, quota = self._closed.get(key.quota), key.label or key.quota
        if condition.paused is not None:
            return KeySnapshot(key.name, quota, "paused", condition.paused, "by an operator", None, month)
        if condition.rejections:
            until = condition.next_check
            return KeySnapshot(key.name, quota, "quarantined", condition.since, condition.reason, until, month)
        if condition.rest is not None:
            closed = condition.rest
        if closed is not None and (closed.until is None or closed.until > now):
            return KeySnapshot(key.name, quota, "parked", closed.since, closed.reason, closed.until, month)
        since = max(condition.since, closed.until or 0) if closed is not None else condition.since
        return KeySnapshot(key.name, quota, "ready", since, "", None, month)


def _spread(interval: Micros, chance: float) -> Micros:
    return interval + int(interval * RECHECK_JITTER * chance)
