"""Messages between a replica and the store of one pool: the exchange and the snapshot.

Over a network messages are lost and delayed, stores restart, and clocks step. What each side needs to know to keep the
laws all the same stands in every message:

- `serial` and `heard` number a replica's requests. Grants of a response that was not heard are taken back with the next
  request; a request that was overtaken by a later one of the same replica does nothing.
- `epoch` names one life of the state. A replica that knows another epoch reports its leases (`HeldLease`) before it is
  granted anything (law 8).
- `version` counts exchanges: a state behind what a replica has seen has lost writes, and begins a new epoch.
- `instant` is the store's clock, and means nothing to a replica but for its distance to an earlier one (law 7).
- A configuration revision is spelled out when the store does not know its name. Nothing is translated between them.
- Demands are sent as changes: how many requests of a flow wait now. After a response that was not heard, in a new
  epoch, or when the store asks for it, a request is `full` and says all of them.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple

from keyturn.core.exchange import FlowDemand, LeaseGrant, LimitTokens, Settlement
from keyturn.core.model import Limit, Micros, Pool
from keyturn.core.values import value_object


@value_object
class RevisionLimit:
    """A limit as a revision has it: what it counts (`id`), how many, and the stretched window until a token returns."""

    id: str
    requests: int
    window: Micros


@value_object
class Revision:
    """A pool as one configuration has it; `name` is a digest of the rest.

    `bound`: how long after it was last seen the requests of a silent replica may still be counted, from use to
    settlement. `keys`: the identities of the keys of each quota that is not simply one key's own.
    """

    name: str
    quotas: tuple[str, ...]
    limits: tuple[RevisionLimit, ...]
    bound: Micros
    keys: tuple[tuple[str, tuple[str, ...]], ...] = ()


class RevisionClass(NamedTuple):
    """A demand class by one revision, which its indices of limits refer to."""

    revision: str
    limits: tuple[int, ...]
    pinned: str | None = None

    @property
    def name(self) -> str:
        """The class in one word, by which classes are ordered."""
        return f"{self.revision}|{','.join(map(str, self.limits))}|{self.pinned or ''}"


@value_object
class HeldLease:
    """A lease of a replica whose tokens are out, reported to a state that may not know it (law 8).

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
class ExchangeRequest:
    """The request of a replica.

    `replicas`: how many shared the pool when it last heard. `ahead`: by how much the store's clock runs ahead of its
    own, over about a window. `stepped`: by how much it stepped forward since the last response, or 0. `held`: all that
    the replica has out, when it was asked.
    """

    replica: str
    serial: int
    heard: int
    epoch: str
    version: int
    replicas: int
    revision: str
    settlements: tuple[Settlement, ...] = ()
    demands: tuple[FlowDemand, ...] = ()
    full: bool = False
    ahead: Micros = 0
    stepped: Micros = 0
    held: tuple[HeldLease, ...] | None = None
    spelled: Revision | None = None


@value_object
class ExchangeResponse:
    """The store's response. With `asks` nothing else happened: repeat the request with what it asks.

    `dealt`: leases granted in this epoch so far. `again`: call after this time at the latest; `None` when nothing waits
    and nothing is out. `wake`: replicas that are to call after a delay, since a token will be theirs. `foreign`: tokens
    that somebody else turned out to have spent, by quota.
    """

    epoch: str
    version: int
    instant: Micros
    asks: tuple[str, ...] = ()
    grants: tuple[LeaseGrant, ...] = ()
    available: tuple[LimitTokens, ...] = ()
    again: Micros | None = None
    wake: tuple[tuple[str, Micros], ...] = ()
    replicas: int = 1
    dealt: int = 0
    foreign: tuple[tuple[str, int], ...] = ()


@value_object
class LimitReturns:
    """When the tokens of one limit over all quotas of a revision, or of one quota, are expected, as delays.

    `available` tokens can be had now. The first of those that cool return after the delays in `next`; `ranks` are
    samples of (rank, delay) beyond, by rank among those that cool; `cooling` and `in_use` count all.
    """

    available: int
    cooling: int
    in_use: int
    next: tuple[Micros, ...] = ()
    ranks: tuple[tuple[int, Micros], ...] = ()


class WaitingFlow(NamedTuple):
    """A flow that waits, over all replicas: its start tag beyond the virtual time, a request's cost, how many wait.

    `queues`: in how many replicas.
    """

    client: str
    limits: tuple[int, ...]
    pinned: str | None
    tag: int
    cost: int
    waiting: int
    queues: int = 1


@value_object
class Snapshot:
    """A read-only view of what matters to one replica's estimates, after `dealt` leases.

    `limits` has the returns of each limit of the revision; `pinned` those of single quotas that flows of this replica
    insist on, by (limit, quota). `flows`: the flows that wait, lowest start tag first; `others` counts the requests
    that wait beyond them, and `others_weight` their flows. `service`: the usual time from a grant until its request
    is counted.
    """

    dealt: int
    limits: tuple[LimitReturns, ...]
    pinned: tuple[tuple[int, str, LimitReturns], ...] = ()
    flows: tuple[WaitingFlow, ...] = ()
    others: int = 0
    others_weight: int = 0
    service: Micros = 0


def revision_of(pool: Pool, bound: Micros) -> Revision:
    """A pool as the store is told of it."""
    named = zip(_identities(pool), pool.limits, strict=True)
    limits = tuple([RevisionLimit(name, limit.requests, pool.stretched(limit)) for name, limit in named])
    quotas = tuple(sorted(pool.quotas))
    names = {quota: tuple(sorted(key.identity for key in keys)) for quota, keys in pool.keys_of.items()}
    keys = tuple((quota, names[quota]) for quota in quotas if names[quota] != (quota,))
    return Revision(_digest(repr((quotas, limits, bound, keys))), quotas, limits, bound, keys)


def same_limits(before: Pool, after: Pool) -> dict[int, int]:
    """Map the indices of limits of `before` to those of `after` that count the same."""
    if before is after:
        return {index: index for index in range(len(before.limits))}
    indices = {name: index for index, name in enumerate(_identities(after))}
    return {index: indices[name] for index, name in enumerate(_identities(before)) if name in indices}


def _identities(pool: Pool) -> tuple[str, ...]:
    """A name for what each limit counts; the second of two that count the same has a number."""
    return tuple(_numbered(_identity(limit) for limit in pool.limits))


def _numbered(names: Iterable[str]) -> Iterable[str]:
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}#{seen[name]}"


def _identity(limit: Limit) -> str:
    """Name of what a limit counts; its tokens stay the same ones when only their number changes."""
    what = ",".join(sorted(rule.text for rule in limit.match))
    return f"{limit.window}-{_digest(what)}" if what else str(limit.window)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:12]
