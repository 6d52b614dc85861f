from keyturn.telemetry.exposition import Form
from keyturn.telemetry.series import NANOSECONDS, Counter, Histogram

BOUNDS = (0.1, 1.0)


def exposition(*collectors: Counter | Histogram) -> list[str]:
    """Their lines in OpenMetrics, without comments."""
    text = "".join(piece for collector in collectors for piece in collector.lines(Form.OPENMETRICS))
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_a_counter_counts_by_labels() -> None:
    """One series for each set of labels."""
    counter = Counter("things", "Things.", ("kind",))
    counter.add(("a",))
    counter.add(("b",), 2)
    counter.add(("a",), 3)
    assert exposition(counter) == ['things_total{kind="a"} 4.0', 'things_total{kind="b"} 2.0']
    assert len(counter) == 2


def test_a_bound_belongs_to_the_bucket_below_it() -> None:
    """`le` is less or equal; buckets add up, and what is above all bounds is in the last one."""
    histogram = Histogram("seconds", "Seconds.", (), BOUNDS)
    for value in (0.05, 0.1, 0.2, 1.0, 7.0):
        histogram.add((), value)
    assert exposition(histogram) == [
        'seconds_bucket{le="0.1"} 2.0',
        'seconds_bucket{le="1.0"} 4.0',
        'seconds_bucket{le="+Inf"} 5.0',
        "seconds_count 5.0",
        "seconds_sum 8.35",
    ]


def test_the_last_value_of_a_trace_is_its_bucket_s_exemplar() -> None:
    """With the trace's id, the value and its moment; a value without a trace leaves it."""
    histogram = Histogram("seconds", "Seconds.", ("pool",), BOUNDS, lambda: 1_790_000_000 * NANOSECONDS)
    histogram.add(("a",), 0.5, "0af7651916cd43dd8448eb211c80319c")
    histogram.add(("a",), 0.6, "4bf92f3577b34da6a3ce929d0e0e4736")
    histogram.add(("a",), 0.7)
    lines = exposition(histogram)
    assert lines[1] == (
        'seconds_bucket{le="1.0",pool="a"} 3.0 # {trace_id="4bf92f3577b34da6a3ce929d0e0e4736"} 0.6 1790000000.0'
    )
    assert not any("#" in line for line in (lines[0], *lines[2:]))
