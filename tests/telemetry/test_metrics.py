import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.events import RequestLog, UpstreamAnswered, UpstreamThrottled
from keyturn.core.model import SECOND
from keyturn.telemetry import Metrics
from keyturn.telemetry.exposition import Form
from keyturn.telemetry.metrics import CODES, METHODS, label_of_code, label_of_method
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.telemetry.samples import LEVELS, families, full, request_log, text, value


@pytest.mark.parametrize(("given", "told"), [("GET", "GET"), ("DELETE", "DELETE"), ("BREW", "other"), ("get", "other")])
def test_a_method_is_a_known_one_or_other(given: str, told: str) -> None:
    """Methods are case-sensitive (RFC 9110, section 9.1)."""
    assert label_of_method(given) == told


@pytest.mark.parametrize(
    ("given", "told"), [(200, "200"), (404, "404"), (599, "5xx"), (450, "4xx"), (0, "0"), (-5, "0"), (600, "0")]
)
def test_a_code_is_a_known_one_its_class_or_none(given: int, told: str) -> None:
    """So that a sum over a class still holds."""
    assert label_of_code(given) == told


INTERFACE = {
    "keyturn_requests": ("counter", {"pool", "client", "method", "code", "outcome"}),
    "keyturn_request_seconds": ("histogram", {"pool", "client"}),
    "keyturn_queue_wait_seconds": ("histogram", {"pool", "client"}),
    "keyturn_upstream_seconds": ("histogram", {"pool"}),
    "keyturn_overhead_seconds": ("histogram", {"pool"}),
    "keyturn_breakers_open": ("gauge", {"pool", "scope"}),
    "keyturn_waiting": ("gauge", {"pool", "client"}),
    "keyturn_in_flight": ("gauge", {"pool"}),
    "keyturn_estimated_wait_seconds": ("gauge", {"pool", "client"}),
    "keyturn_key_state": ("gauge", {"pool", "key", "state"}),
    "keyturn_month_remaining": ("gauge", {"pool", "key"}),
    "keyturn_tokens_available": ("gauge", {"pool", "quota", "limit"}),
    "keyturn_tokens_limit": ("gauge", {"pool", "quota", "limit"}),
    "keyturn_upstream_limit": ("gauge", {"pool", "limit"}),
    "keyturn_upstream_responses": ("counter", {"pool", "key", "code"}),
    "keyturn_upstream_throttled": ("counter", {"pool", "key", "kind"}),
    "keyturn_refused": ("counter", {"pool", "client", "reason"}),
    "keyturn_retries": ("counter", {"pool", "reason"}),
    "keyturn_exchange_seconds": ("histogram", {"pool"}),
    "keyturn_exchange_grants": ("histogram", {"pool"}),
    "keyturn_foreign_tokens": ("counter", {"pool", "quota"}),
    "keyturn_local_errors": ("counter", {"cause"}),
    "keyturn_upstream_fields_ignored": ("counter", {"pool", "field"}),
    "keyturn_joined": ("counter", {"pool", "client"}),
    "keyturn_authentication_failures": ("counter", {"reason", "answered"}),
    "keyturn_connections_ended": ("counter", {"reason"}),
    "keyturn_connections": ("gauge", set()),
    "keyturn_body_bytes": ("gauge", {"where"}),
    "keyturn_spool_failures": ("counter", set()),
    "keyturn_upstream_connections": ("gauge", set()),
    "keyturn_upstream_connections_limit": ("gauge", set()),
    "keyturn_buffered_bytes": ("gauge", set()),
    "keyturn_store_up": ("gauge", set()),
    "keyturn_degraded_seconds": ("counter", set()),
    "keyturn_log_lines_dropped": ("counter", set()),
    "keyturn_reload_success": ("gauge", set()),
    "keyturn_reload_refused": ("counter", set()),
    "keyturn_build_info": ("gauge", {"version", "python"}),
}
"""The interface's table; the exposition adds `_total` to counters."""


@pytest.mark.parametrize(("form", "parse"), [(Form.TEXT, parse_text), (Form.OPENMETRICS, parse_openmetrics)])
def test_names_types_and_labels_are_the_interfaces(form: Form, parse: Callable[[str], Iterator[Metric]]) -> None:
    """In both forms of exposition, nothing else beside."""
    found = {
        family.name: (family.type, set().union(*(sample.labels for sample in family.samples)) - {"le"})
        for family in parse(text(full(), LEVELS, form))
    }
    assert found == INTERFACE


def test_counters_end_in_total() -> None:
    """As the table names them."""
    body = text(full(), LEVELS)
    for name, (kind, _labels) in INTERFACE.items():
        total = re.search(rf"^{name}_total[{{ ]", body, re.MULTILINE)
        assert (total is not None) == (kind == "counter")


def test_a_request_is_counted_once_under_its_labels() -> None:
    """By pool, client, method, code and how it ended."""
    metrics = full()
    labels = {"pool": "default", "client": "ci", "method": "GET"}
    assert value(metrics, "requests_total", **labels, code="200", outcome="forwarded") == 1
    assert value(metrics, "requests_total", **labels, code="429", outcome="refused") == 1
    assert value(metrics, "refused_total", pool="default", client="ci", reason="deadline") == 1


def test_a_requests_time_is_taken_apart() -> None:
    """Waiting, the upstream's part, and what is ours: the rest without the streaming of the body."""
    metrics = Metrics()
    metrics.observe(request_log())
    assert value(metrics, "request_seconds_sum", pool="default", client="ci") == pytest.approx(6.0004)
    assert value(metrics, "queue_wait_seconds_sum", pool="default", client="ci") == 1
    assert value(metrics, "upstream_seconds_sum", pool="default") == 2
    assert value(metrics, "overhead_seconds_sum", pool="default") == pytest.approx(0.0004)


def test_what_never_waited_or_went_out_does_not_dilute_the_times() -> None:
    """A request that was refused at the door has neither a wait nor an upstream's time."""
    metrics = Metrics()
    metrics.observe(RequestLog(method="GET", code=401, outcome="refused", reason="unauthenticated", total=300))
    assert value(metrics, "request_seconds_count", pool="none", client="none") == 1
    for name in ("queue_wait_seconds", "upstream_seconds", "overhead_seconds"):
        assert f"keyturn_{name}_count" not in text(metrics)


def test_overhead_is_never_negative() -> None:
    """Clocks that were read one after another may differ by a little."""
    metrics = Metrics()
    metrics.observe(request_log(total=SECOND))
    assert value(metrics, "overhead_seconds_sum", pool="default") == 0


def test_exchanges_and_answers_are_counted() -> None:
    """Each event by its own labels."""
    metrics = full()
    assert value(metrics, "exchange_seconds_sum", pool="default") == 0.002
    assert value(metrics, "exchange_grants_sum", pool="default") == 3
    assert value(metrics, "upstream_responses_total", pool="default", key="k0", code="200") == 1
    assert value(metrics, "upstream_throttled_total", pool="default", key="k0", kind="window") == 1
    assert value(metrics, "retries_total", pool="default", reason="throttled") == 1


def series(metrics: Metrics) -> int:
    """How many there are."""
    return sum(len(family.samples) for family in families(metrics))


def test_ten_thousand_methods_and_paths_add_no_series() -> None:
    """Values invented by callers are folded, and none is kept."""
    metrics = Metrics()
    metrics.observe(request_log(method="BREW-0"))
    before, kept = series(metrics), len(metrics.requests)
    for number in range(10_000):
        metrics.observe(request_log(method=f"BREW-{number}", path=f"/collections/{number}"))
    assert (series(metrics), len(metrics.requests)) == (before, kept)
    labels = {"pool": "default", "client": "ci", "method": "other", "code": "200", "outcome": "forwarded"}
    assert value(metrics, "requests_total", **labels) == 10_001


@given(st.lists(st.tuples(st.text(max_size=8), st.integers(-5, 10_000)), max_size=50))
def test_methods_and_codes_are_folded_to_known_ones(rows: list[tuple[str, int]]) -> None:
    """A method is known or `other`; a code is known, a class, or 0 for none."""
    metrics = Metrics()
    for method, code in rows:
        metrics.observe(request_log(method=method, code=code))
        metrics.observe(UpstreamAnswered("default", "k0", code))
    codes = {*CODES.values(), "0", *(f"{number}xx" for number in range(1, 6))}
    for family in families(metrics):
        for sample in family.samples:
            assert sample.labels.get("method", "other") in METHODS | {"other"}
            assert sample.labels.get("code", "0") in codes


def test_unknown_codes_keep_their_class() -> None:
    """So that a sum over 5xx still holds."""
    metrics = Metrics()
    for code in (520, 599, 404, 0):
        metrics.observe(UpstreamAnswered("default", "k0", code))
    for shown, number in (("5xx", 2), ("404", 1), ("0", 1), ("520", None)):
        assert value(metrics, "upstream_responses_total", pool="default", key="k0", code=shown) == number


def test_two_processes_in_one_do_not_share_metrics() -> None:
    """Each has numbers of its own."""
    full()
    assert value(Metrics(), "retries_total", pool="default", reason="throttled") is None


def test_what_should_not_happen_is_told_from_0_on() -> None:
    """A scraper sees the growth of a counter only from a number that it has seen before."""
    metrics = Metrics()
    text(metrics, LEVELS)
    labels = {"pool": "default", "key": "k1"}
    assert value(metrics, "upstream_throttled_total", **labels, kind="plan") == 0
    assert value(metrics, "retries_total", pool="default", reason="dead_key") == 0
    assert value(metrics, "foreign_tokens_total", pool="default", quota="k1") == 0
    assert value(metrics, "authentication_failures_total", reason="jwt", answered="cut") == 0
    assert value(metrics, "connections_ended_total", reason="malformed") == 0
    assert value(metrics, "upstream_fields_ignored_total", pool="default", field="body") == 0
    metrics.observe(UpstreamThrottled("default", "k1", "k1", "plan", SECOND))
    text(metrics, LEVELS)
    assert value(metrics, "upstream_throttled_total", **labels, kind="plan") == 1
