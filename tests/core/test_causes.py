from keyturn.core.causes import MOST, QUIET, Causes


def test_a_cause_is_told_once() -> None:
    """As long as it is met again and again; another one is told by itself."""
    causes = Causes()
    assert causes.news("a", 0)
    for number in range(1, 9):
        assert not causes.news("a", number * (QUIET - 1))
    assert causes.news("b", 0)


def test_a_cause_that_was_over_is_news() -> None:
    """Whoever looks at the log then wants to know of it."""
    causes = Causes()
    causes.news("a", 0)
    assert causes.news("a", QUIET)


def test_what_is_kept_is_bounded() -> None:
    """The cause met longest ago goes first."""
    causes = Causes()
    for number in range(MOST):
        causes.news(number, 0)
    causes.news(0, 1)
    causes.news("one more", 2)
    assert not causes.news(0, 3)
    assert causes.news(1, 3)
