from hypothesis import given
from hypothesis import strategies as st
from keyturn.practice.arrivals import ArrivalLog, Record, most_within


def record(at: float, key: str = "key-1", user: str = "ann", *, counted: bool = True, status: int = 200) -> Record:
    """Return an arrival with only some fields set."""
    return Record(at, key, user, "GET", "/me", counted, status)


@given(st.lists(st.floats(0.0, 100.0), max_size=60), st.floats(0.1, 50.0))
def test_most_within_is_the_most(instants: list[float], window: float) -> None:
    """The most in any half-open interval equals the most in one that starts at an arrival."""
    brute = max((sum(start <= at < start + window for at in instants) for start in instants), default=0)
    assert most_within(sorted(instants), window) == brute


def test_interval_is_half_open() -> None:
    """Two requests exactly one window apart are not in one interval."""
    assert most_within([1.0, 61.0], 60.0) == 1
    assert most_within([1.0, 60.9], 60.0) == 2


def test_worst_by_key_and_by_user() -> None:
    """The worst interval is found by key or by user, with refused requests but without unknown callers."""
    log = ArrivalLog()
    for item in (
        record(0.0),
        record(1.0, "key-2"),
        record(2.0, "key-2", counted=False, status=429),
        record(3.0, "key-9", "", counted=False, status=401),
    ):
        log.add(item)
    assert log.worst(60.0) == {"key-1": 1, "key-2": 2}
    assert log.worst(60.0, per="user") == {"ann": 3}
    assert log.worst(1.0, per="user") == {"ann": 1}


def test_throttled_counts_the_limits_refusals() -> None:
    """Only 429s of the limit count as throttled, not those of an endpoint."""
    log = ArrivalLog()
    answered = record(0.0, status=0)
    log.add(answered)
    answered.status = 429
    log.add(record(1.0, counted=False, status=429))
    assert log.throttled == 1
    assert [arrival.throttled for arrival in log.arrivals] == [False, True]


def test_the_log_is_bounded() -> None:
    """The oldest arrivals go when the log is full; the number of refusals stays."""
    log = ArrivalLog(capacity=2)
    for at in (0.0, 1.0, 2.0):
        log.add(record(at, counted=False, status=429))
    assert [arrival.at for arrival in log.arrivals] == [1.0, 2.0]
    assert log.throttled == 3


def test_a_status_may_come_later() -> None:
    """An arrival shows status 0 until it is answered."""
    log = ArrivalLog()
    item = record(0.0, status=0)
    log.add(item)
    assert log.arrivals[0].status == 0
    item.status = 204
    assert log.arrivals[0].status == 204
