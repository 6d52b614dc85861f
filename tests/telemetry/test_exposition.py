import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.telemetry.exposition import (
    NANOSECONDS,
    OPENMETRICS_END,
    Counter,
    Form,
    Histogram,
    ProcessMetrics,
    choose_form,
)
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as parse_text

parse_openmetrics: Callable[[str], Iterator[Metric]] = text_string_to_metric_families

OPENMETRICS = "application/openmetrics-text"

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (PROMETHEUS, Form.OPENMETRICS),
        (OPENMETRICS, Form.OPENMETRICS),
        (f"{OPENMETRICS}; version=1.0.0", Form.OPENMETRICS),
        (f'{OPENMETRICS}; version="1.0.0"', Form.OPENMETRICS),
        (f"{OPENMETRICS.upper()};VERSION=1.0.0;Q=0.1", Form.OPENMETRICS),
        (f"text/plain;q=0.5, {OPENMETRICS};q=0.6", Form.OPENMETRICS),
        (f"text/plain;q=0, {OPENMETRICS}", Form.OPENMETRICS),
        (f"text/plain;q=0.6, {OPENMETRICS};q=0.5", Form.TEXT),
        (f"{OPENMETRICS};q=0", Form.TEXT),
        (f"{OPENMETRICS};q=0.0, */*", Form.TEXT),
        (f"{OPENMETRICS};version=0.0.1", Form.TEXT),
        (f"{OPENMETRICS};version=2.0.0", Form.TEXT),
        (f"{OPENMETRICS};version=abc", Form.TEXT),
        (f"{OPENMETRICS};q=nan", Form.TEXT),
        (f"{OPENMETRICS};q=2", Form.TEXT),
        (f"{OPENMETRICS};q=abc", Form.TEXT),
        ("text/plain;version=abc", Form.TEXT),
        ("abc", Form.TEXT),
        ("*/*", Form.TEXT),
        ("", Form.TEXT),
        (",;=;q=,", Form.TEXT),
    ],
)
def test_the_form_is_the_one_that_is_most_welcome(accept: str, form: Form) -> None:
    """By quality, 0 being a refusal; what is not understood gets text."""
    assert choose_form(accept) is form


@given(st.text(alphabet='application/openmetrics-text;version="1.0q=,* \\é\udc80', max_size=80) | st.text())
def test_no_field_is_an_error(accept: str) -> None:
    """For any text at all."""
    assert choose_form(accept) in Form


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_process_tells_of_itself() -> None:
    """By the names that every client of Prometheus gives, in both forms."""
    process = ProcessMetrics()
    text = {family.name for family in parse_text(process.exposition(Form.TEXT))}
    body = process.exposition(Form.OPENMETRICS)
    assert text == {family.name for family in parse_openmetrics(body + OPENMETRICS_END)}
    assert text >= {
        "process_cpu_seconds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_open_fds",
        "process_max_fds",
        "python_info",
        "python_gc_collections",
    }


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
