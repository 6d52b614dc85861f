from typing import Any

import pytest
from keyturn.core.exchange import DemandClass, EstimatedWaits, Flow
from keyturn.core.model import SECOND
from keyturn.stores.base import SessionStore

from tests.depth import deep
from tests.simulation.judges import Estimate, Turn, beyond_neighbours, mean_and_most, wronged
from tests.simulation.run import Run
from tests.simulation.scenarios import BY_NAME, ROWS, Row

REQUESTS_PER_ROW = deep(200, brief=80)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_scenario_keeps_the_laws(row: Row) -> None:
    """Laws 1 to 10 hold in a short run of each row; `make simulate` makes many long ones."""
    result = Run(row, seed=0, requests=REQUESTS_PER_ROW).play()
    assert not result.breaches, result.world
    assert result.requests


def test_callers_come_back_when_they_are_told_to() -> None:
    """Refused callers that come back when told are served (law 6)."""
    assert Run(BY_NAME["rolling-constant"], seed=0, requests=200).play().returned


def test_needless_refusals_are_found() -> None:
    """A refusal is needless if a later request of the same queue was served before its deadline."""
    refused = Turn(("a",), came=0, ended=1, deadline=30 * SECOND)
    later = Turn(("a",), came=2, ended=20 * SECOND, deadline=60 * SECOND)
    assert wronged([refused], [later], slack=5 * SECOND) == [refused]
    assert wronged([refused], [later], slack=15 * SECOND) == []
    assert wronged([refused], [later._replace(came=0)], slack=0) == []
    assert wronged([refused], [later._replace(who=("b",))], slack=0) == []


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_estimates_that_are_wrong_break_law_6(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run fails with estimates that are a third too short or too long."""
    estimate = SessionStore._estimates

    def wrong(store: SessionStore, *arguments: Any) -> dict[Flow, EstimatedWaits]:
        def scaled(turns: EstimatedWaits) -> EstimatedWaits:
            later = [(position, int(wait * factor)) for position, wait in turns.later]
            return EstimatedWaits(tuple([int(wait * factor) for wait in turns.soon]), tuple(later))

        return {flow: scaled(turns) for flow, turns in estimate(store, *arguments).items()}

    monkeypatch.setattr(SessionStore, "_estimates", wrong)
    breaches = Run(BY_NAME["mixed"], seed=0, requests=200).play().breaches
    assert any(breach.startswith("law 6: estimates were off") for breach in breaches)


def test_what_neighbours_explain_is_not_an_error() -> None:
    """An error of one place in the rotation, which may be a window, is explained by neighbours."""
    served = (1, 2, 3, 60)
    estimates = [Estimate(DemandClass((0,)), "a", 1, 0, 1 if when == 60 else 60, when, judged=True) for when in served]
    assert [estimate.error for estimate in estimates] == [-59, -58, -57, 59]
    assert beyond_neighbours(estimates, 1) == [-57, 0, 0, 1]
    assert beyond_neighbours(estimates, 2) == [0, 0, 0, 0]
    assert mean_and_most([-2, 4]) == (3, 2)
    assert mean_and_most([]) is None
