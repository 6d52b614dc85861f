import pytest

from tests.simulation.run import Run
from tests.simulation.scenarios import ROWS, Row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_scenario_keeps_the_laws(row: Row) -> None:
    """Laws 1 to 10 hold in a short run of each row; `make simulate` makes many long ones."""
    result = Run(row, seed=0, requests=300).play()
    assert not result.breaches, result.world
    assert result.requests
