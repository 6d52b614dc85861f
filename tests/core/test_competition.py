from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.competition import MIN_SERIES_CLIENTS, Competition, Others
from keyturn.core.flows import UNIT
from keyturn.core.messages import WaitingFlow

costs = st.sampled_from([3, 7, 10])
flows = st.builds(
    lambda client, tag, cost, waiting: WaitingFlow(f"c{client:03}", (0,), None, tag, cost, waiting),
    st.integers(0, 200),
    st.integers(0, 40),
    costs,
    st.integers(0, 9),
)


@given(
    st.lists(flows, max_size=20, unique_by=lambda flow: flow.client),
    st.integers(0, 140),
    st.integers(0, 200),
)
def test_as_many_come_before_as_start_earlier_or_have_the_lower_name(
    listed: list[WaitingFlow], start: int, asker: int
) -> None:
    """The count before a request equals that of sorting all starts, of listed clients and of others."""
    client = f"c{asker:03}"
    starts = [(flow.tag + n * flow.cost, flow.client) for flow in listed for n in range(flow.waiting)]
    assert Competition(listed).before(start, client) == sum(other < (start, client) for other in starts)


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 9)), min_size=MIN_SERIES_CLIENTS, max_size=2 * MIN_SERIES_CLIENTS
    ),
    costs,
    st.integers(0, 150),
    st.integers(0, 2 * MIN_SERIES_CLIENTS),
)
def test_many_clients_of_one_cost_are_counted_as_exactly(
    runs: list[tuple[int, int]], cost: int, start: int, asker: int
) -> None:
    """A series of clients counts the same as each of its clients apart."""
    client = f"c{asker:03}"
    listed = [WaitingFlow(f"c{n:03}", (0,), None, tag, cost, waiting) for n, (tag, waiting) in enumerate(runs)]
    starts = [(flow.tag + n * flow.cost, flow.client) for flow in listed for n in range(flow.waiting)]
    assert Competition(listed).before(start, client) == sum(other < (start, client) for other in starts)


def test_the_flows_of_a_client_are_one_series() -> None:
    """Two flows of one client share its tag: the second request of the two starts one cost later."""
    two = [WaitingFlow("a", (0,), None, 0, 10, 2), WaitingFlow("a", (0, 1), None, 0, 10, 3)]
    assert [Competition(two).before(start, "b") for start in (0, 10, 39, 40, 99)] == [1, 2, 4, 5, 5]


def test_others_start_from_their_tag_on_at_the_pace_of_their_weights() -> None:
    """With weight 4 four requests start in the time of one of weight 1, none before the tag."""
    others = Others(6, 4, UNIT)
    starts = (0, UNIT, UNIT + 1, 2 * UNIT, 2 * UNIT + 1, 9 * UNIT)
    assert [others.before(start) for start in starts] == [0, 0, 1, 4, 5, 6]
