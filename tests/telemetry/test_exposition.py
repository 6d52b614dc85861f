import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.telemetry.exposition import OPENMETRICS_END, Form, ProcessMetrics, chosen
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
    assert chosen(accept) is form


@given(st.text(alphabet='application/openmetrics-text;version="1.0q=,* \\é\udc80', max_size=80) | st.text())
def test_no_field_is_an_error(accept: str) -> None:
    """For any text at all."""
    assert chosen(accept) in Form


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
