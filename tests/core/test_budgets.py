from keyturn.core.exchange import LimitTokens
from keyturn.core.model import MILLISECOND, SECOND

from tests.core.worlds import World, limit, pool, throttled


def test_the_budget_is_that_of_the_whole_pool() -> None:
    """A budget is size, available tokens and the next return, over all quotas."""
    world = World.of(pool(3, limit(10, 10 * SECOND), guard=0))
    answer = world.call("r", *world.spend(*world.ask(4).grants))
    assert answer.available == (LimitTokens(30, 26, 10 * SECOND + 5 * MILLISECOND),)


def test_the_budget_leaves_out_what_is_closed() -> None:
    """Closed buckets have nothing available; the next token comes when the first opens or a token returns."""
    world = World.of(pool(2, limit(5, 10 * SECOND), guard=0))
    first, second = world.ask(2).grants
    (budget,) = world.call("r", throttled(first, 20 * SECOND)).available
    assert (budget.size, budget.available) == (10, 4)
    (budget,) = world.call("r", throttled(second, 30 * SECOND)).available
    assert (budget.available, budget.returns) == (0, 20 * SECOND)
    world.pass_(20 * SECOND)
    assert world.call().available[0].available > 0


def test_a_quota_that_rests_has_nothing_available() -> None:
    """A resting quota has nothing available under any limit until it opens."""
    world = World.of(pool(2, limit(5), limit(3, 10 * SECOND), guard=0))
    world.state.tokens.rest("k0", world.now + 7 * SECOND)
    assert world.call().available == (LimitTokens(10, 5, 0), LimitTokens(6, 3, 0))
    world.state.tokens.rest("k1", world.now + 9 * SECOND)
    assert world.call().available == (LimitTokens(10, 0, 7 * SECOND), LimitTokens(6, 0, 7 * SECOND))


def test_while_all_is_in_use_the_next_is_expected_after_a_usual_request() -> None:
    """While all tokens are in use, the next is expected after the usual service time and a window."""
    world = World.of(pool(1, limit(2, 10 * SECOND), guard=0))
    world.ask(2)
    assert world.call().available == (LimitTokens(2, 0, 10 * SECOND + 5 * MILLISECOND + world.state.tokens.service),)
