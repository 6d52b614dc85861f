"""The letters of an exchange: what a replica writes to the buckets, and what they answer.

Over a network letters are lost and delayed, stores restart, and clocks step. What each side needs to know to keep the
laws all the same rides on every letter:

- `serial` and `heard` number a replica's calls. Grants of an answer that was not heard are taken back with the next
  call; a call that was overtaken by a later one of the same replica does nothing. So a call may be lost on either way.
- `era` names one life of the state. A replica that knows another era is asked for its leases (`Held`) before it is
  granted anything (law 8).
- `tick` counts exchanges: a state that is behind what a replica has seen has lost writes, and begins a new era.
- `instant` is the store's clock, and means nothing to a replica but for its distance to an earlier one (law 7).
- `terms` are the pool's quotas and limits. They are sent when their name is not known, so a reload or a rolling
  update, in which replicas differ for a while, changes the shared state without forgetting what was spent.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

from proxy.core.exchange import Budget, Demand, Exchange, Grant, Lane, Settlement, Turns
from proxy.core.model import Limit, Micros, Pool
from proxy.core.values import value_object


class Need(NamedTuple):
    """A `Kind` spelled out: which quotas may serve (those of the terms, or one), and the ids of the limits.

    `name` says all of it, so that needs have an order that depends on nothing else.
    """

    name: str
    terms: str
    limits: tuple[str, ...]
    pinned: str | None


def need(terms: str, limits: tuple[str, ...], pinned: str | None) -> Need:
    """Make a need."""
    return Need(f"{terms}|{','.join(limits)}|{pinned or ''}", terms, limits, pinned)


class Place(NamedTuple):
    """Where requests of a client with one need wait; a replica's lane, as the buckets see it."""

    client: str
    need: Need


@value_object
class LimitTerms:
    """One limit: what it counts (`id`), how many, and the stretched window after which a token returns."""

    id: str
    requests: int
    window: Micros


@value_object
class Terms:
    """What a replica's configuration says of a pool; `name` is a digest of the rest.

    `bound`: how long after its last word a silent replica's requests may still be counted, from use to settlement.
    """

    name: str
    quotas: tuple[str, ...]
    limits: tuple[LimitTerms, ...]
    bound: Micros
    keys: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """The identities of the keys of each quota that is not simply one key's own."""


@value_object
class Held:
    """A lease of a replica whose tokens are out, told again to a state that may not know it (law 8).

    `granted` and `counted` are ages; `counted` is `None` while it is not settled.
    """

    lease: str
    quota: str
    client: str
    windows: tuple[tuple[str, Micros], ...]
    """The limits that it counts under, by id, with their stretched windows."""
    granted: Micros
    counted: Micros | None


@value_object
class Call:
    """A replica's letter.

    `replicas`: how many shared the pool when it last heard. `jumped`: by how much the store's clock is known to have
    run ahead of the replica's own since then. `held`: all that it has out, when it was asked.
    """

    replica: str
    serial: int
    heard: int
    era: str
    tick: int
    replicas: int
    terms: str
    settlements: tuple[Settlement, ...] = ()
    demands: tuple[Demand, ...] = ()
    jumped: Micros = 0
    held: tuple[Held, ...] | None = None
    spelled: Terms | None = None
    """The terms themselves, when they were asked for."""


@value_object
class News:
    """What all replicas are told, whoever asked: how many they are, and the tokens at hand by limit, as of a tick."""

    tick: int
    replicas: int
    hands: tuple[tuple[str, int], ...]


@value_object
class Reply:
    """The answer to a letter; with `asks` nothing else happened, and the call is to be made again with what it asks.

    `wake`: other replicas whose turn has come earlier than they were told. `rank`: how many of those that share the
    pool come before this one by name. `news`: what the others were told besides (`core.parts`).
    """

    era: str
    tick: int
    instant: Micros
    asks: tuple[str, ...] = ()
    grants: tuple[Grant, ...] = ()
    turns: Mapping[Lane, Turns] | None = None
    budgets: tuple[Budget, ...] = ()
    again: Micros | None = None
    wake: tuple[str, ...] = ()
    replicas: int = 1
    foreign: tuple[tuple[str, int], ...] = ()
    rank: int = 0
    news: News | None = None

    def exchange(self) -> Exchange:
        """What the waiting room is told of it."""
        return Exchange(self.tick, self.grants, self.turns or {}, self.budgets, self.again, self.replicas, self.foreign)


def terms_of(pool: Pool, bound: Micros) -> Terms:
    """The terms of a pool."""
    named = zip(_identities(pool), pool.limits, strict=True)
    limits = [LimitTerms(name, limit.requests, pool.stretched(limit)) for name, limit in named]
    quotas = tuple(sorted(pool.quotas))
    names = {quota: tuple(sorted(key.identity for key in keys)) for quota, keys in pool.keys_of.items()}
    keys = tuple((quota, names[quota]) for quota in quotas if names[quota] != (quota,))
    name = _digest(repr((quotas, limits, bound, keys) if keys else (quotas, limits, bound)))
    return Terms(name, quotas, tuple(limits), bound, keys)


def same_limits(before: Pool, after: Pool) -> Mapping[int, int]:
    """Which limits of `before` count the same as which of `after`, by their indices."""
    if before is after:
        return {index: index for index in range(len(before.limits))}
    indices = {name: index for index, name in enumerate(_identities(after))}
    return {index: indices[name] for index, name in enumerate(_identities(before)) if name in indices}


def _identities(pool: Pool) -> tuple[str, ...]:
    """A name for what each limit counts; the second of two that count the same has a number."""
    names: list[str] = []
    for limit in pool.limits:
        name = _identity(limit)
        twins = sum(1 for other in names if other.partition("#")[0] == name)
        names.append(f"{name}#{twins + 1}" if twins else name)
    return tuple(names)


def _identity(limit: Limit) -> str:
    """What a limit counts: its tokens are the same ones when only their number changes."""
    what = ",".join(sorted(rule.text for rule in limit.match))
    return f"{limit.window}-{_digest(what)}" if what else str(limit.window)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:12]
