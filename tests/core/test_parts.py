from hypothesis import given
from hypothesis import strategies as st

from proxy.core.parts import Believed, part

STEPS = st.lists(st.tuples(st.integers(0, 5), st.integers(-40, 20)), max_size=40)


@given(st.integers(1, 4), st.integers(1, 6), STEPS)
def test_parts_together_are_never_more_than_what_is_at_hand(
    quotas: int, replicas: int, steps: list[tuple[int, int]]
) -> None:
    """Law 1 for who is left with what it was told last: whoever spoke in which order, and took or gave back what."""
    believed, sharers, hand = Believed(), {0}, 60 * quotas
    steps = [*[(replica, 0) for replica in range(replicas)], *steps]
    known: dict[int, tuple[int, int]] = {}
    for tick, (replica, change) in enumerate(steps):
        sharers.add(replica)
        hand = max(0, min(60 * quotas, hand + change))
        known[replica] = (len(sharers), hand)
        news = believed.news(tick, len(sharers), quotas, (("l", hand),))
        if news:
            assert news.tick == tick
            known.update((other, (news.replicas, dict(news.hands)["l"])) for other in sharers)
        assert quotas * sum(part(told, number, quotas) for number, told in known.values()) <= hand


def test_little_is_told() -> None:
    """Not each token, nothing to one that is alone, and nothing while too little is there to be divided."""
    believed, told = Believed(), []
    for hand in (*range(60, -1, -1), *[0, 1, 2] * 20):
        told += [hand] if believed.news(0, 5, 1, (("l", hand),)) else []
    assert told[0] == 60, "that there are others"
    assert min(told) >= 4
    assert len(told) < 60 / 4
    alone = Believed()
    assert [alone.news(0, 1, 1, (("l", hand),)) for hand in (60, 0, 60)] == [None] * 3


def test_each_limit_is_told_when_one_has_shrunk() -> None:
    """The others with it, for it costs nothing more."""
    believed = Believed()
    believed.news(1, 2, 1, (("a", 60), ("b", 20)))
    assert believed.news(2, 2, 1, (("a", 55), ("b", 19))) is None
    news = believed.news(3, 2, 1, (("a", 50), ("b", 14)))
    assert news
    assert (news.tick, news.replicas, news.hands) == (3, 2, (("a", 50), ("b", 14)))
