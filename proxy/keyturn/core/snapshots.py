"""A read-only view of a pool's state, bounded, by which a replica estimates when its requests will be served.

`stores/lua/snapshot.lua` says the same in Lua.
"""

from collections.abc import Iterable, Iterator, Mapping

from keyturn.core.budgets import budget, closed_quotas
from keyturn.core.messages import LimitReturns, Snapshot, WaitingFlow
from keyturn.core.model import Micros
from keyturn.core.revisions import RevisionView
from keyturn.core.sortedset import SortedSet
from keyturn.core.state import SharedState
from keyturn.core.tokens import quota_of

NEXT = 64
"""Returns that a snapshot tells one by one, and samples of those beyond."""

FLOWS = 128
"""Flows that a snapshot tells one by one."""

LISTED = 128
"""Up to so many flows are looked through."""

SCANNED = 1_000
"""Returns of a limit among which a snapshot looks for those of one quota."""


def snapshot(state: SharedState, time: Micros, revision: str, pins: Iterable[tuple[int, str]]) -> Snapshot:
    """What matters to the estimates of a replica of that revision; of `pins`, (limit, quota), its flows insist.

    Nothing is changed. A revision that is not known has no snapshot.

    Raises:
        KeyError: it is not.
    """
    now = state.time(time)
    view = state.revisions.views[revision]
    limits = tuple([_limit_returns(state, view, index, now) for index in range(len(view.limits))])
    pins = tuple(pins)
    upcoming = {index: _by_quota(state, view.limits[index].id) for index in {index for index, _ in pins}}
    pinned = tuple(
        [(index, quota, _quota_returns(state, view, index, quota, now, upcoming[index])) for index, quota in pins]
    )
    flows = sorted(_waiting_flows(state, view), key=lambda flow: (flow.tag, flow.client))[:FLOWS]
    others = state.queue.requests - sum([flow.waiting for flow in flows])
    number = len(state.queue.totals) - len(flows)
    return Snapshot(state.dealt, limits, pinned, tuple(flows), others, number, state.tokens.service)


def _limit_returns(state: SharedState, view: RevisionView, index: int, now: Micros) -> LimitReturns:
    limit = view.limits[index]
    cooling = state.tokens.returns.get(limit.id) or SortedSet[str, Micros]()
    number = len(cooling)
    in_use = max(0, state.tokens.total.get(limit.id, 0) - number)
    closed = closed_quotas(state.tokens, view, limit.id)
    free = [
        (until, max(0, limit.requests - state.tokens.taken.get((limit.id, quota), 0)))
        for quota, until in closed.items()
    ]
    soon = [max(cooling.at(rank)[0], closed.get(quota_of(cooling.at(rank)[1]), 0)) for rank in range(min(NEXT, number))]
    soon += [until for until, tokens in free for _ in range(min(NEXT, tokens))]
    shut = sum([tokens for _, tokens in free])
    ranks = tuple([(rank + shut, max(0, cooling.at(rank)[0] - now)) for rank in _spread(NEXT, number)])
    return LimitReturns(
        budget(state.tokens, view, index, now).available,
        number + shut,
        in_use,
        tuple([max(0, instant - now) for instant in sorted(soon)[:NEXT]]),
        ranks,
    )


def _by_quota(state: SharedState, limit: str) -> Mapping[str, list[Micros]]:
    """The next `SCANNED` returns of a limit, by quota."""
    found: dict[str, list[Micros]] = {}
    for _, (instant, member) in zip(range(SCANNED), state.tokens.returns.get(limit, ()), strict=False):
        found.setdefault(quota_of(member), []).append(instant)
    return found


def _quota_returns(
    state: SharedState, view: RevisionView, index: int, quota: str, now: Micros, upcoming: Mapping[str, list[Micros]]
) -> LimitReturns:
    """The returns of one quota, of those that are among the next `SCANNED` of its limit."""
    limit = view.limits[index]
    soon = [max(0, instant - now) for instant in upcoming.get(quota, ())]
    taken = state.tokens.taken.get((limit.id, quota), 0)
    in_use, free = max(0, taken - len(soon)), max(0, limit.requests - taken)
    if (until := closed_quotas(state.tokens, view, limit.id).get(quota)) is not None:
        soon = [max(delay, until - now) for delay in [0] * free + soon]
        free = 0
    return LimitReturns(free, len(soon), in_use, tuple(soon[:NEXT]))


def _waiting_flows(state: SharedState, view: RevisionView) -> Iterator[WaitingFlow]:
    """The first flows of each class under a limit of the revision; limits of other revisions by their ids.

    Where very many flows wait, those that insist on a quota are told by their number only.
    """
    indices = {limit.id: index for index, limit in enumerate(view.limits)}
    queue = state.queue
    names = queue.classes if len(queue.totals) <= LISTED else queue.general
    for name in sorted(names):
        demanded = queue.classes[name]
        own = state.revisions.views[demanded.revision].limits
        limits = tuple([indices[own[index].id] for index in demanded.limits if own[index].id in indices])
        if limits or demanded.revision == view.name:
            for tag, cost, client, waiting in queue.flows(name, FLOWS):
                yield WaitingFlow(client, limits, demanded.pinned, tag, cost, waiting)


def _spread(begin: int, end: int) -> Iterator[int]:
    """Up to `NEXT` ranks from `begin` to `end` - 1, the last among them."""
    number = min(NEXT, end - begin)
    for place in range(1, number + 1):
        yield begin - 1 + (end - begin) * place // number
