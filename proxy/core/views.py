"""Terms as they are looked up, and what the terms of different replicas have in common.

While a fleet takes up another configuration, some replicas go by one, some by another, and what was spent by the one
counts by the other:

- Limits of one *scope* (the same `match`) count the same requests, whatever their windows are.
- A quota counts what its keys spend, wherever they belonged before, or belong by somebody else's terms.

So a lease counts in every bucket that some terms in use would have it count in (`places`), and terms that are new begin
with what is out by those that are there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.core.exchange import Kind
from proxy.core.letters import LimitTerms, Need, Terms, need
from proxy.core.model import Micros
from proxy.core.sortedset import SortedSet
from proxy.core.values import value_object


class Place(NamedTuple):
    """A bucket in which a lease counts, and the stretched window after which its token returns there."""

    limit: str
    window: Micros
    quota: str


@dataclass(slots=True)
class View:
    """Terms as they are looked up, and the quotas that can serve each set of limits, best first."""

    terms: Terms
    quotas: frozenset[str]
    limits: dict[str, LimitTerms]
    shared: Mapping[str, tuple[str, ...]]
    """The keys of quotas that are not one key's own."""
    owners: Mapping[str, str]
    """The quotas of these keys."""
    rankings: dict[tuple[str, ...], SortedSet[str, tuple[int, int]]] = field(default_factory=dict)
    _needs: dict[Kind, Need] = field(default_factory=dict)
    _places: dict[tuple[str, tuple[str, ...]], tuple[Place, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, terms: Terms) -> "View":
        """Look terms up."""
        limits = {limit.id: limit for limit in terms.limits}
        owners = {key: quota for quota, keys in terms.keys for key in keys}
        return cls(terms, frozenset(terms.quotas), limits, dict(terms.keys), owners)

    def keys(self, quota: str) -> tuple[str, ...]:
        """The identities of a quota's keys."""
        return self.shared.get(quota, (quota,))

    def need(self, kind: Kind) -> Need:
        """What requests of a kind need."""
        found = self._needs.get(kind)
        if found is None:
            limits = tuple([self.terms.limits[index].id for index in kind.limits])
            found = self._needs[kind] = need(self.terms.name, limits, kind.pinned)
        return found

    def windows(self, limits: Iterable[str]) -> list[tuple[str, Micros]]:
        """The stretched windows of these limits."""
        return [(limit, self.limits[limit].window) for limit in limits]

    def own_places(self, quota: str, limits: tuple[str, ...]) -> tuple[Place, ...]:
        """Where a lease of a quota counts by these terms alone."""
        found = self._places.get((quota, limits))
        if found is None:
            found = tuple([Place(limit, self.limits[limit].window, quota) for limit in limits])
            self._places[quota, limits] = found
        return found

    def owner(self, key: str) -> str | None:
        """The quota of a key; `None` when it is not here."""
        quota = self.owners.get(key, key)
        return quota if quota in self.quotas else None

    def heirs(self, quota: str, keys: Iterable[str]) -> list[str]:
        """The quotas that count here what these keys of a quota spend elsewhere; the quota itself, if it is here."""
        found = [quota] if quota in self.quotas else []
        found += [owner for key in keys if (owner := self.owner(key)) is not None]
        return list(dict.fromkeys(found))


def scope(limit: str) -> str:
    """What requests a limit counts, by its id."""
    return limit.partition("#")[0].partition("-")[2]


def span(limit: str) -> Micros:
    """The window of a limit as it is configured, by its id; for the buckets it is a little longer."""
    return int(limit.partition("#")[0].partition("-")[0])


class Heirs:
    """Who counts by new terms what a quota has spent by those that are there."""

    def __init__(self, views: Iterable[View], new: View) -> None:
        self._here = new.quotas
        self.gone: dict[str, list[str]] = {}
        """Where keys have gone to that belonged to a quota."""
        for view in views:
            for key in sorted({*view.owners, *new.owners}):
                before, after = view.owner(key), new.owner(key)
                if before is not None and after is not None and before != after:
                    heirs = self.gone.setdefault(before, [])
                    if after not in heirs:
                        heirs.append(after)

    def of(self, quota: str, *, itself: bool) -> list[str]:
        """The quotas that count it; the one itself among them if it is asked for and still there."""
        heirs = self.gone.get(quota, [])
        return [quota, *heirs] if itself and quota in self._here else heirs


@value_object
class Out:
    """A lease that is not settled."""

    quota: str
    places: tuple[Place, ...]
    """Where it counts: under its own limits on its own quota, and what that comes to by others' terms."""
    granted: Micros
    replica: str
    client: str
    probes: tuple[str, ...] = ()
    """The limits whose buckets open when it is settled."""

    def inherited(self, view: View, heirs: Heirs) -> list[Place]:
        """Where it counts besides by terms that are new."""
        known = {(place.limit, place.quota) for place in self.places}
        found: dict[tuple[str, str], Place] = {}
        for place in self.places:
            for limit in view.terms.limits:
                for heir in heirs.of(place.quota, itself=True) if scope(limit.id) == scope(place.limit) else ():
                    if (limit.id, heir) not in known:
                        found.setdefault((limit.id, heir), Place(limit.id, limit.window, heir))
        return list(found.values())

    def refused(self, closed: Iterable[str], own: Iterable[str]) -> list[Place]:
        """Where the upstream refused it: by limits of its `own` terms, and by others' terms under their like."""
        scopes, named, own = {scope(limit) for limit in closed}, set(closed), set(own)
        return [
            place
            for place in self.places
            if place.limit in named or (place.limit not in own and scope(place.limit) in scopes)
        ]


def places(
    views: Iterable[View], quota: str, keys: Iterable[str], windows: Iterable[tuple[str, Micros]]
) -> tuple[Place, ...]:
    """Where a lease counts that was taken from a quota with these keys: there, and wherever any terms would have it."""
    found = {(limit, quota): Place(limit, window, quota) for limit, window in windows}
    scopes = {scope(limit) for limit, _ in found}
    for view in views:
        heirs = view.heirs(quota, keys)
        for limit in view.terms.limits:
            if scope(limit.id) in scopes:
                for heir in heirs:
                    found.setdefault((limit.id, heir), Place(limit.id, limit.window, heir))
    return tuple(found.values())
