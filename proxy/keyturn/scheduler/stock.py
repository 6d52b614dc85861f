"""What is at hand of a pool's limits: as the last exchange told, less what was granted since without one."""

from collections.abc import Iterable

from keyturn.core.exchange import LimitTokens
from keyturn.core.model import MILLISECOND, Limit, Micros, Pool
from keyturn.scheduler.looks import left, next_token

PLENTY = 64
"""With so many tokens at hand it makes no difference in which order those are served who come at the same moment."""

FRESH: Micros = 50 * MILLISECOND
"""For so long what was told is good enough to serve somebody by it."""


class Stock:
    """The budgets of the limits, in the order of the pool's limits."""

    def __init__(self) -> None:
        self.budgets: tuple[LimitTokens, ...] = ()
        """Empty before the first exchange."""
        self._told: Micros = 0
        self._granted = 0
        self._doubted = False
        """Whether something is known since that the store does not know yet."""

    def hear(self, budgets: tuple[LimitTokens, ...], now: Micros) -> int:
        """An exchange has told; returns how much was granted without one since the last."""
        self.budgets, self._told, self._doubted = budgets, now, False
        granted, self._granted = self._granted, 0
        return granted

    def forget(self) -> None:
        """What was told is about other limits."""
        self.budgets = ()

    def doubt(self) -> None:
        """An answer has told of less than the store knows of: nobody is served before that has been told."""
        self._doubted = True

    def plenty(self, limits: Iterable[int], now: Micros) -> bool:
        """Whether so much is at hand of these limits that whoever comes can be served, in whatever order."""
        if self._doubted or now - self._told > FRESH or not self.budgets:
            return False
        return all(self.budgets[index].available >= PLENTY for index in limits)

    def holds(self, limits: Iterable[int]) -> bool:
        """Whether a token of each of these limits was left when an exchange told last."""
        return bool(self.budgets) and all(self.budgets[index].available > 0 for index in limits)

    def take(self, limits: tuple[int, ...]) -> None:
        """A token of each of these limits was granted without an exchange."""
        self._granted += 1
        self.budgets = tuple([
            LimitTokens(budget.size, budget.available - 1, budget.returns) if index in limits else budget
            for index, budget in enumerate(self.budgets)
        ])  # fmt: skip

    def standing(
        self, pool: Pool, limits: Iterable[int], part: tuple[int, int], now: Micros
    ) -> list[tuple[Limit, LimitTokens]]:
        """What is left of limits for a client with this part of all weights; nothing before the first exchange."""
        if not self.budgets:
            return []
        return left([(pool.limits[index], self.budgets[index]) for index in limits], now - self._told, part)

    def next_token(self, pool: Pool, now: Micros) -> Micros:
        """In what time a token is at hand for a request that falls under no limit with a match."""
        return next_token(pool, self.budgets, now - self._told)
