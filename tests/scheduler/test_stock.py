from keyturn.core.exchange import LimitTokens
from keyturn.core.model import SECOND
from keyturn.scheduler.stock import FRESH, PLENTY, Stock

from tests.core.worlds import limit, pool


def test_there_is_plenty_while_what_was_told_is_fresh() -> None:
    """Nothing is served by what was told long ago, or not at all."""
    stock = Stock()
    assert not stock.plenty((), SECOND)
    stock.hear((LimitTokens(100, PLENTY, 0), LimitTokens(100, PLENTY - 1, 0)), SECOND)
    assert stock.plenty((0,), SECOND + FRESH)
    assert not stock.plenty((0,), SECOND + FRESH + 1)
    assert not stock.plenty((0, 1), SECOND)
    stock.forget()
    assert not stock.plenty((0,), SECOND)


def test_nobody_is_served_by_what_is_known_to_be_wrong() -> None:
    """Until the next exchange, which tells of what an answer has told."""
    stock = Stock()
    stock.hear((LimitTokens(100, PLENTY, 0),), SECOND)
    stock.doubt()
    assert not stock.plenty((0,), SECOND)
    stock.hear((LimitTokens(100, PLENTY, 0),), SECOND)
    assert stock.plenty((0,), SECOND)


def test_what_is_taken_is_not_at_hand_any_more() -> None:
    """What was granted without an exchange is told as taken, and is counted with the next exchange."""
    stock, pool_ = Stock(), pool(1, limit(100), limit(50))
    stock.hear((LimitTokens(100, 90, 0), LimitTokens(50, 40, SECOND)), SECOND)
    stock.take((1,))
    stock.take((0, 1))
    left = stock.standing(pool_, (0, 1), (1, 1), 2 * SECOND)
    assert [(budget.available, budget.returns) for _, budget in left] == [(89, 0), (38, 0)]
    assert stock.hear((), 3 * SECOND) == 2
    assert stock.hear((), 3 * SECOND) == 0
    assert stock.standing(pool_, (0, 1), (1, 1), 3 * SECOND) == []


def test_tokens_that_were_left() -> None:
    """Of each limit that is asked for; nothing is known before the first exchange."""
    stock = Stock()
    assert not stock.holds((0,))
    stock.hear((LimitTokens(5, 1, 0), LimitTokens(5, 0, 9)), 0)
    assert [stock.holds(limits) for limits in ((0,), (1,), (0, 1), ())] == [True, False, False, True]
