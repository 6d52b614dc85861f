"""A read-only view of a pool's state, bounded, by which a replica estimates when its requests will be served.

`stores/lua/snapshot.lua` says the same in Lua.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from keyturn.core.budgets import budget
from keyturn.core.messages import LimitReturns, Snapshot, WaitingFlow
from keyturn.core.model import MILLISECOND, Micros
from keyturn.core.revisions import RevisionView
from keyturn.core.sortedset import SortedSet
from keyturn.core.state import SharedState
from keyturn.core.tokens import quota_of

NEXT_RETURNS = 64
"""Returns that a snapshot tells one by one."""

SAMPLES = 64
"""Samples of the returns beyond, for all limits together; each has an equal part, and a quarter at the least."""

SAMPLE_DISTANCE: Micros = 50 * MILLISECOND
"""Samples no further apart need none between them, and neither do those on a straight line, give or take as much."""

FLOWS = 128
"""Flows that a snapshot tells one by one. Where more wait, those that insist on a quota are only counted, and the other
demand classes have equal parts, of which small ones leave the rest to others."""

SCANNED = 1_000
"""Returns of a limit among which a snapshot looks for those of one quota."""


def snapshot(state: SharedState, time: Micros, revision: str, pins: Iterable[tuple[int, str]]) -> Snapshot:
    """Snapshot for the estimates of a replica of that revision; its flows insist on `pins`, pairs (limit, quota).

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
    flows = in_order(_waiting_flows(state, view))
    others = state.queue.requests - sum([flow.waiting for flow in flows])
    number = len(state.queue.totals) - len(flows)
    return Snapshot(state.dealt, limits, pinned, flows, others, number, state.tokens.service)


def in_order(flows: Iterable[WaitingFlow]) -> tuple[WaitingFlow, ...]:
    """Flows by start tag, those of equal tags by client."""
    return tuple(sorted(flows, key=lambda flow: (flow.tag, flow.client)))


def _limit_returns(state: SharedState, view: RevisionView, index: int, now: Micros) -> LimitReturns:
    limit = view.limits[index]
    cooling = state.tokens.returns.get(limit.id) or SortedSet[str, Micros]()
    number = len(cooling)
    in_use = max(0, state.tokens.total.get(limit.id, 0) - number)
    closed = state.tokens.shut.quotas_under(view, limit.id)
    free = [
        (until, max(0, limit.requests - state.tokens.taken.get((limit.id, quota), 0)))
        for quota, until in closed.items()
    ]
    soon = [
        max(cooling.at(rank)[0], closed.get(quota_of(cooling.at(rank)[1]), 0))
        for rank in range(min(NEXT_RETURNS, number))
    ]
    soon += [until for until, tokens in free for _ in range(min(NEXT_RETURNS, tokens))]
    shut = sum([tokens for _, tokens in free])
    most = SAMPLES // min(4, len(view.limits))
    samples = sorted(_sample(cooling, NEXT_RETURNS - 1, number - 1, most)) if number > NEXT_RETURNS else []
    ranks = tuple([(rank + shut, max(0, instant - now)) for rank, instant in samples])
    return LimitReturns(
        budget(state.tokens, view, index, now).available,
        number + shut,
        in_use,
        tuple([max(0, instant - now) for instant in sorted(soon)[:NEXT_RETURNS]]),
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
    if (until := state.tokens.shut.quotas_under(view, limit.id).get(quota)) is not None:
        soon = [max(delay, until - now) for delay in [0] * free + soon]
        free = 0
    return LimitReturns(free, len(soon), in_use, tuple(soon[:NEXT_RETURNS]))


def _waiting_flows(state: SharedState, view: RevisionView) -> Iterator[WaitingFlow]:
    """The first flows of each class under a limit of the revision; limits of other revisions by their ids."""
    indices = {limit.id: index for index, limit in enumerate(view.limits)}
    queue = state.queue
    few = len(queue.totals) <= FLOWS
    names = queue.classes if few else queue.general
    found = []
    for name in sorted(names):
        demanded = queue.classes[name]
        own = state.revisions.views[demanded.revision].limits
        limits = tuple([indices[own[index].id] for index in demanded.limits if own[index].id in indices])
        if limits or demanded.revision == view.name:
            found.append((min(FLOWS, len(queue.waiting[name])), name, limits, demanded.pinned))
    left = FLOWS
    for place, (_, name, limits, pinned) in enumerate(sorted(found)):
        for client, *row in queue.flows(name, FLOWS if few else left // (len(found) - place)):
            left -= 1
            yield WaitingFlow(client, limits, pinned, *row)


def _sample(cooling: SortedSet[str, Micros], low: int, high: int, most: int) -> Iterator[tuple[int, Micros]]:
    """Up to `most` samples of the ranks from `low` to `high`, the last among them, where tokens do not return evenly.

    A span is divided unless its ends are close, or two divisions in a row lie on straight lines. It is not halved,
    since bursts of one size at one distance lie on a line wherever their number is halved.
    """
    early, late = cooling.at(low)[0], cooling.at(high)[0]
    yield high, late
    spans = deque([(low, early, high, late, False)])
    number = 1
    while spans and number < most:
        low, early, high, late, straight = spans.popleft()
        if high - low > 1 and late - early > SAMPLE_DISTANCE:
            middle = low + max(1, (high - low) * 61 // 100)
            instant = cooling.at(middle)[0]
            yield middle, instant
            number += 1
            on_line = abs(instant - early - (late - early) / (high - low) * (middle - low)) <= SAMPLE_DISTANCE
            if not (straight and on_line):
                spans.append((low, early, middle, instant, on_line))
                spans.append((middle, instant, high, late, on_line))
