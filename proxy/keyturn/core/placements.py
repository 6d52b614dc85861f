"""Keys that change their pool: how long each has to rest, so that no window counts requests of both pools (law 1).

A *revision* is a distribution of keys over pools that some replicas go by, and a *placement* is where it puts them. No
pool knows what another one has spent, so of two revisions that place a key differently one uses it at a time:

1.  The revision that appeared later has the key while any of its replicas lives; the others let the key rest.
2.  It begins once everything that the others sent may be counted no longer: `STOP` after it appeared they have noticed,
    or `SILENT` after their last word they are gone; from then on `span` has to pass, the longest window of the pool and
    the time in which a request is counted.

Ages and spans are in microseconds, by the clock of whatever keeps the revisions (law 7).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from keyturn.core.model import SECOND, Micros, Pool
from keyturn.core.values import value_object

Placement = Mapping[str, str]
"""The name of the pool of each key, by the key's identity."""

BEAT: Micros = 2 * SECOND
"""How often a replica says by which revision it goes, and hears of others."""
SILENT: Micros = 3 * BEAT
"""A revision that nobody has named for so long is used by nobody."""
REVISION_LIFETIME: Micros = 3600 * SECOND
"""How long a store keeps a revision that nobody names."""
STOP: Micros = 2 * BEAT
"""How long after a later revision appeared replicas of earlier ones may still use keys that it has moved."""
MAX_WINDOW_REST: Micros = 600 * SECOND
"""The longest rest for windows; what was spent within a longer one shows when the key's quota is opened by a probe."""


@dataclass(frozen=True, slots=True)
class PlacementRevision:
    """A revision as it is known: its rank by the order of appearance, and how long ago it appeared and was last named.

    A revision appears anew when it is named after nobody did for `SILENT`; its rank stays the same.
    """

    placement: Placement
    rank: int
    since: Micros
    heard: Micros


@value_object
class Rest:
    """Where a key was before or is used later, and for how long it has to rest; `None`: until that revision is gone."""

    pool: str
    left: Micros | None


def placement_of(pools: Iterable[Pool]) -> Placement:
    """The pool of each key of a configuration."""
    return {key.identity: pool.name for pool in pools for key in pool.keys}


def name_of(placement: Placement) -> str:
    """A name that is the same for the same placement."""
    text = "\n".join(f"{key} {pool}" for key, pool in sorted(placement.items()))
    return sha256(text.encode()).hexdigest()[:16]


def rests(own: PlacementRevision, others: Iterable[PlacementRevision], spans: Mapping[str, Micros]) -> dict[str, Rest]:
    """The keys of the own revision that must not be used now; `spans` by the names of its pools."""
    found: dict[str, Rest] = {}
    for other in others:
        over = _over(own, other)
        for key in own.placement.keys() & other.placement.keys():
            pool, elsewhere = own.placement[key], other.placement[key]
            if pool == elsewhere:
                continue
            rest = Rest(elsewhere, None if over is None else spans[pool] - over)
            known = found.get(key)
            if (rest.left is None or rest.left > 0) and (known is None or _longer(rest, known)):
                found[key] = rest
    return found


def _over(own: PlacementRevision, other: PlacementRevision) -> Micros | None:
    """How long ago the last replica of the other revision stopped sending (negative: it will); `None`: it goes on."""
    gone = other.heard - SILENT
    if other.rank > own.rank:
        return None if gone < 0 else gone
    return max(gone, own.since - STOP)


def _longer(one: Rest, other: Rest) -> bool:
    return other.left is not None and (one.left is None or one.left > other.left)
