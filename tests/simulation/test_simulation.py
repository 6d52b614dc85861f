import pytest

from proxy.core.model import SECOND
from tests.simulation.judges import Turn, wronged
from tests.simulation.run import Run
from tests.simulation.scenarios import BY_NAME, ROWS, Row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_scenario_keeps_the_laws(row: Row) -> None:
    """Laws 1 to 10 hold in a short run of each row; `make simulate` makes many long ones."""
    result = Run(row, seed=0, requests=200).play()
    assert not result.breaches, result.world
    assert result.requests


def test_callers_come_back_when_they_are_told_to() -> None:
    """Law 6 is judged from their side, too."""
    assert Run(BY_NAME["rolling-constant"], seed=0, requests=200).play().returned


def test_who_was_refused_for_nothing_is_found() -> None:
    """One of its like that came later was served before its deadline."""
    refused = Turn(("a",), came=0, ended=1, deadline=30 * SECOND)
    later = Turn(("a",), came=2, ended=20 * SECOND, deadline=60 * SECOND)
    assert wronged([refused], [later], slack=5 * SECOND) == [refused]
    assert wronged([refused], [later], slack=15 * SECOND) == []
    assert wronged([refused], [later._replace(came=0)], slack=0) == []
    assert wronged([refused], [later._replace(who=("b",))], slack=0) == []
