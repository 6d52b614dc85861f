from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.demands import Demands
from keyturn.core.exchange import DemandClass, Flow, FlowDemand, LeaseGrant

A, B = Flow("a", DemandClass((0,))), Flow("b", DemandClass((0, 1)))
PINNED = [Flow("c", DemandClass((0, 1), f"k{number}")) for number in range(3)]


def told(*demands: FlowDemand) -> Demands:
    """Return a record whose changes the store has all acknowledged."""
    record = Demands()
    record.tell(demands, partial=False)
    record.heard(())
    return record


def test_flows_that_go_on_waiting_are_not_told_again() -> None:
    """Only flows that differ from what the store believes are sent, with 0 for a flow that is gone."""
    record = told(FlowDemand(A, 1, 3), FlowDemand(B, 2, 1))
    record.tell([FlowDemand(A, 1, 3)], partial=True)
    assert record.changes(full=False) == []
    record.tell([FlowDemand(A, 1, 4), FlowDemand(B, 2, 0)], partial=True)
    assert record.changes(full=False) == [FlowDemand(A, 1, 4), FlowDemand(B, 2, 0)]
    assert record.changes(full=True) == [FlowDemand(A, 1, 4)]
    record.tell([FlowDemand(A, 1, 3), FlowDemand(B, 2, 1)], partial=True)
    assert record.changes(full=False) == [], "they wait as before"


def test_flows_that_are_not_named_wait_as_before_only_in_a_partial_list() -> None:
    """A partial list keeps the flows that it does not name; a full list drops them."""
    record = told(FlowDemand(A, 1, 3), FlowDemand(B, 2, 1))
    record.tell([], partial=True)
    assert set(record.waiting) == {A, B}
    record.tell([FlowDemand(A, 1, 3)], partial=False)
    assert record.changes(full=False) == [FlowDemand(B, 2, 0)]


def test_changes_are_kept_until_they_were_heard() -> None:
    """Changes of an exchange that failed are sent again with the next one."""
    record = told()
    record.tell([FlowDemand(A, 1, 2)], partial=True)
    record.tell([], partial=True)
    assert record.changes(full=False) == [FlowDemand(A, 1, 2)]
    assert record.grown() == [A]
    record.heard([LeaseGrant("l", A, "k0")])
    assert (record.changes(full=False), record.grown()) == ([], [])
    assert record.waiting == {A: FlowDemand(A, 1, 1)}


def test_a_flow_has_grown_when_more_wait_than_the_store_believes() -> None:
    """Only more waiting requests are growth, not another weight; to a store that knows nothing all flows are new."""
    record = told(FlowDemand(A, 1, 3), FlowDemand(B, 1, 3))
    record.tell([FlowDemand(A, 5, 3), FlowDemand(B, 1, 2)], partial=True)
    assert record.grown() == []
    record.forgotten()
    assert record.grown() == [A, B]


@given(st.lists(st.tuples(st.sampled_from([A, B, *PINNED]), st.integers(0, 3)), max_size=20))
def test_requests_are_counted_under_each_limit(changes: list[tuple[Flow, int]]) -> None:
    """The count under each limit is that of all waiting requests, whatever came before."""
    record = Demands()
    for flow, waiting in changes:
        record.tell([FlowDemand(flow, 1, waiting)], partial=True)
        record.granted([LeaseGrant("l", A, "k0")])
    for limit in (0, 1):
        waits = [demand.waiting for flow, demand in record.waiting.items() if limit in flow.demand_class.limits]
        assert record.by_limit[limit] == sum(waits)


def test_pins_are_named_in_rotation_behind_those_of_newcomers() -> None:
    """Each limit of each pinned flow is named in rotation, however few are named at a time."""
    record = told(FlowDemand(A, 1, 1), *[FlowDemand(flow, 1, 1) for flow in PINNED])
    assert record.pins((), 99) == tuple([(limit, f"k{number}") for number in range(3) for limit in (0, 1)])
    assert record.pins([PINNED[2]], 2) == ((0, "k2"), (1, "k2"))
    seen = {pin for _ in range(9) for pin in record.pins((), 2)}
    assert len(seen) == 6
    assert told(FlowDemand(A, 1, 1)).pins((), 9) == ()
