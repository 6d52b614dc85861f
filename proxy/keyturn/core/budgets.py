"""How many tokens of each limit are available over all quotas of a revision, and when the next one is.

`stores/lua/tokens.lua` says the same in Lua.
"""

from keyturn.core.exchange import LimitTokens
from keyturn.core.model import Micros
from keyturn.core.revisions import RevisionView
from keyturn.core.sortedset import SortedSet
from keyturn.core.tokens import TokenBuckets


def budgets(tokens: TokenBuckets, view: RevisionView, now: Micros) -> tuple[LimitTokens, ...]:
    """For each limit, over all quotas of the revision: tokens in all, available, and the delay until the next."""
    return tuple([budget(tokens, view, index, now) for index in range(len(view.limits))])


def budget(tokens: TokenBuckets, view: RevisionView, index: int, now: Micros) -> LimitTokens:
    """The same of one limit."""
    limit = view.limits[index]
    size = limit.requests * len(view.quotas)
    taken = tokens.total.get(limit.id, 0)
    available = max(0, size - taken)
    first = (tokens.returns.get(limit.id) or SortedSet[str, Micros]()).first()
    delay = max(0, first[0] - now) if first else (limit.window + tokens.service if taken else 0)
    if closed := tokens.shut.quotas_under(view, limit.id):
        opens = max(0, min(closed.values()) - now)
        lost = sum([max(0, limit.requests - tokens.taken.get((limit.id, quota), 0)) for quota in closed])
        if len(closed) >= len(view.quotas):
            delay = opens if available else max(delay, opens)
        elif available and available <= lost:
            delay = min(delay, opens) if taken else opens
        available = max(0, available - lost)
    return LimitTokens(size, available, delay)
