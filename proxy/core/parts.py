"""What each of several replicas may take, at most, of the tokens that were at hand when the shared store was lost.

Law kept here: the parts of all are never more than what is at hand (law 1). A replica goes by what it was told last,
and others have taken tokens since. So the store tells all replicas anew as soon as their parts of what they believe
to be there would be more than what is; how rarely that is follows from the reserve: a part of the tokens goes before
it has to be said again, and nothing is said while what is at hand is too little to be divided.

Keys are taken to be used evenly: the tokens at hand are told by limit, over all quotas. Where some are used up and
others are not, what one of those is asked for too much is refused, and absorbed as any 429.
"""

from proxy.core.letters import News

RESERVE = 10
"""One in so many tokens of a share is left to what is not known."""


def part(hand: int, replicas: int, quotas: int) -> int:
    """The tokens of each quota that each replica may take of those at hand."""
    return hand * (RESERVE - 1) // (RESERVE * replicas * max(1, quotas))


class Believed:
    """What the replicas of a pool believe to be at hand, at the most; kept by the ledger."""

    def __init__(self) -> None:
        self._replicas = 0
        self._hands: dict[str, int] = {}

    def news(self, tick: int, replicas: int, quotas: int, hands: tuple[tuple[str, int], ...]) -> News | None:
        """What all have to be told after an exchange that has told its caller this; `None`: nothing."""
        grown, self._replicas = replicas > self._replicas, replicas
        if replicas == 1:
            self._hands.clear()
            return None
        shares = replicas * max(1, quotas)
        if grown or any(part(self._hands.get(limit, 0), replicas, quotas) * shares > hand for limit, hand in hands):
            self._hands = dict(hands)
            return News(tick, replicas, hands)
        for limit, hand in hands:
            self._hands[limit] = max(hand, self._hands.get(limit, 0))
        return None
