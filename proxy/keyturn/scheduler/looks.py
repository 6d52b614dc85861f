"""What there is to see of a waiting room: its lanes, and what a new request would wait."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from keyturn.core.exchange import DemandClass, Flow, LimitTokens
from keyturn.core.levels import LaneLevel
from keyturn.core.looks import LaneLook
from keyturn.core.model import Limit, Micros, Pool
from keyturn.scheduler.lanes import Queue


def lane_looks(queues: Iterable[Queue], now: Micros) -> Iterator[LaneLook]:
    """Each flow in which somebody waits."""
    for queue in queues:
        client, demand_class = queue.flow
        oldest = min((waiter.arrived for waiter in queue.waiters), default=now)
        turn = queue.estimate(0, now)
        yield LaneLook(client, demand_class.limits, demand_class.pinned, len(queue.waiters), max(0, now - oldest), turn)


def lane_levels(
    pool: Pool, clients: Mapping[str, int], busy: Mapping[Flow, Queue], token: Micros, now: Micros
) -> Iterator[LaneLevel]:
    """How many wait, by client, and what one more would wait that falls under no limit with a match.

    Args:
        pool: whose lanes they are.
        clients: how many of each wait.
        busy: the lanes in which anybody does.
        token: in what time a token is at hand where nobody waits.
        now: the instant.
    """
    demand_class = DemandClass(general(pool))
    for client, waiting in clients.items():
        yield LaneLevel(pool.name, client, waiting, new_turn(busy.get(Flow(client, demand_class)), token, now))


def new_turn(queue: Queue | None, token: Micros, now: Micros) -> Micros | None:
    """In what time one more request of a flow is expected to be served: with the next token where nobody waits."""
    return token if queue is None else queue.estimate(len(queue.waiters), now)


def next_token(pool: Pool, budgets: Sequence[LimitTokens], age: Micros) -> Micros:
    """In what time a token is at hand for a request that falls under no limit with a match.

    Args:
        pool: whose limits they are.
        budgets: what the last exchange told of each limit; empty before the first.
        age: the time since then.
    """
    general = [budget for limit, budget in zip(pool.limits, budgets, strict=False) if not limit.match]
    return max((max(0, budget.returns - age) for budget in general if not budget.available), default=0)


def general(pool: Pool) -> tuple[int, ...]:
    """The limits that every request falls under."""
    return tuple([index for index, limit in enumerate(pool.limits) if not limit.match])


def left(
    budgets: Iterable[tuple[Limit, LimitTokens]], age: Micros, part: tuple[int, int]
) -> list[tuple[Limit, LimitTokens]]:
    """What is left of limits for one client: its share of what others wait for, too.

    Args:
        budgets: what the last exchange told, an `age` ago.
        age: the time since then.
        part: the client's weight, and that of all who wait, with its own.
    """
    own, of_all = part
    found = []
    for limit, told in budgets:
        size = told.size if told.available > 0 or own == of_all else max(1, told.size * own // of_all)
        found.append((limit, LimitTokens(size, told.available, max(0, told.returns - age))))
    return found
