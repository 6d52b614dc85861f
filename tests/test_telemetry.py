import asyncio
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from aiohttp.http_exceptions import BadHttpMessage
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy.core.events import (
    AttemptFailed,
    BucketLevel,
    Event,
    Exchanged,
    ForeignSpent,
    Journal,
    LaneLevel,
    Levels,
    Reloaded,
    Retried,
    UpstreamAnswered,
    UpstreamThrottled,
)
from proxy.core.model import MILLISECOND, SECOND, Secret
from proxy.telemetry import CODES, METHODS, Metrics, Telemetry, set_up_logs

INTERFACE = {
    "keyturn_requests": ("counter", {"pool", "client", "method", "code", "outcome"}),
    "keyturn_request_seconds": ("histogram", {"pool", "client"}),
    "keyturn_queue_wait_seconds": ("histogram", {"pool", "client"}),
    "keyturn_upstream_seconds": ("histogram", {"pool"}),
    "keyturn_overhead_seconds": ("histogram", {"pool"}),
    "keyturn_waiting": ("gauge", {"pool", "client"}),
    "keyturn_in_flight": ("gauge", {"pool"}),
    "keyturn_tokens_at_hand": ("gauge", {"pool", "quota", "limit"}),
    "keyturn_tokens_limit": ("gauge", {"pool", "quota", "limit"}),
    "keyturn_upstream_responses": ("counter", {"pool", "key", "code"}),
    "keyturn_upstream_throttled": ("counter", {"pool", "key", "kind"}),
    "keyturn_refused": ("counter", {"pool", "client", "reason"}),
    "keyturn_retries": ("counter", {"pool", "reason"}),
    "keyturn_exchange_seconds": ("histogram", {"pool"}),
    "keyturn_exchange_grants": ("histogram", {"pool"}),
    "keyturn_foreign_tokens": ("counter", {"pool", "quota"}),
    "keyturn_failed_attempts": ("counter", {"why", "answered"}),
    "keyturn_store_up": ("gauge", set()),
    "keyturn_degraded_seconds": ("counter", set()),
    "keyturn_reload_success": ("gauge", set()),
    "keyturn_reload_refused": ("counter", set()),
    "keyturn_build_info": ("gauge", {"version", "python"}),
}
"""The interface's table; the exposition adds `_total` to counters."""

LEVELS = Levels(
    buckets=(BucketLevel("default", "k0", "60/60s", 17, 60), BucketLevel("default", "k1", "60/60s", 60, 60)),
    lanes=(LaneLevel("default", "ci", 3), LaneLevel("default", "portal", 1)),
    in_flight=(("default", 7),),
)


def journal(**story: object) -> Journal:
    """A request that was forwarded, but for what is told otherwise."""
    made = Journal(
        id="r-1", method="GET", path="/collections", client="ci", pool="default", key="k0", code=200,
        outcome="forwarded", queued=SECOND, upstream=2 * SECOND, streamed=3 * SECOND, total=6 * SECOND + 400, tries=1,
    )  # fmt: skip
    for name, value in story.items():
        setattr(made, name, value)
    return made


EVENTS: tuple[Event, ...] = (
    journal(),
    journal(outcome="refused", code=429, reason="deadline", tries=0),
    UpstreamAnswered("default", "k0", 200),
    UpstreamThrottled("default", "k0", "k0", "window", SECOND),
    Retried("default", "throttled"),
    Exchanged("default", 0.002, 3),
    ForeignSpent("default", "k0", 2),
    AttemptFailed("192.0.2.1", "token", "at_once"),
)


def full() -> Metrics:
    """Metrics with a series of every kind."""
    metrics = Metrics()
    metrics.watch(lambda: LEVELS)
    for event in EVENTS:
        metrics.observe(event)
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """What a series shows."""
    return metrics.registry.get_sample_value(f"keyturn_{name}", labels)


@pytest.mark.parametrize(
    ("accept", "parse"), [("", parse_text), ("application/openmetrics-text; version=1.0.0", parse_openmetrics)]
)
def test_names_types_and_labels_are_the_interfaces(accept: str, parse: Callable[[str], Iterator[Metric]]) -> None:
    """In both forms of exposition, nothing else beside."""
    body, content_type = full().exposition(accept)
    assert content_type.startswith(accept.partition(";")[0] or "text/plain")
    found = {
        family.name: (family.type, set().union(*(sample.labels for sample in family.samples)) - {"le"})
        for family in parse(body.decode())
    }
    assert found == INTERFACE


def test_counters_end_in_total() -> None:
    """As the table names them."""
    body, _ = full().exposition("")
    for name, (kind, _labels) in INTERFACE.items():
        total = re.search(rf"^{name}_total[{{ ]", body.decode(), re.MULTILINE)
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
    metrics.observe(journal())
    assert value(metrics, "request_seconds_sum", pool="default", client="ci") == pytest.approx(6.0004)
    assert value(metrics, "queue_wait_seconds_sum", pool="default", client="ci") == 1
    assert value(metrics, "upstream_seconds_sum", pool="default") == 2
    assert value(metrics, "overhead_seconds_sum", pool="default") == pytest.approx(0.0004)


def test_what_never_waited_or_went_out_does_not_dilute_the_times() -> None:
    """A request that was refused at the door has neither a wait nor an upstream's time."""
    metrics = Metrics()
    metrics.observe(Journal(method="GET", code=401, outcome="refused", reason="unauthenticated", total=300))
    assert value(metrics, "request_seconds_count", pool="none", client="none") == 1
    for name in ("queue_wait_seconds", "upstream_seconds", "overhead_seconds"):
        assert f"keyturn_{name}_count" not in metrics.exposition("")[0].decode()


def test_overhead_is_never_negative() -> None:
    """Clocks that were read one after another may differ by a little."""
    metrics = Metrics()
    metrics.observe(journal(total=SECOND))
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
    return sum(len(family.samples) for family in metrics.registry.collect())


def test_ten_thousand_methods_and_paths_add_no_series() -> None:
    """What callers make up is folded; nothing of it is kept."""
    metrics = Metrics()
    metrics.observe(journal(method="BREW-0"))
    before, kept = series(metrics), len(metrics.requests)
    for number in range(10_000):
        metrics.observe(journal(method=f"BREW-{number}", path=f"/collections/{number}"))
    assert (series(metrics), len(metrics.requests)) == (before, kept)
    labels = {"pool": "default", "client": "ci", "method": "other", "code": "200", "outcome": "forwarded"}
    assert value(metrics, "requests_total", **labels) == 10_001


@given(st.lists(st.tuples(st.text(max_size=8), st.integers(-5, 10_000)), max_size=50))
def test_methods_and_codes_are_folded_to_known_ones(rows: list[tuple[str, int]]) -> None:
    """A method is known or `other`; a code is known, a class, or 0 for none."""
    metrics = Metrics()
    for method, code in rows:
        metrics.observe(journal(method=method, code=code))
        metrics.observe(UpstreamAnswered("default", "k0", code))
    codes = {*CODES.values(), "0", *(f"{number}xx" for number in range(1, 6))}
    for family in metrics.registry.collect():
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


def test_gauges_are_read_at_each_scrape() -> None:
    """Between scrapes they cost nothing."""
    levels = [LEVELS]
    metrics = Metrics()
    metrics.watch(lambda: levels[0])
    assert value(metrics, "tokens_at_hand", pool="default", quota="k0", limit="60/60s") == 17
    assert value(metrics, "tokens_limit", pool="default", quota="k0", limit="60/60s") == 60
    assert value(metrics, "waiting", pool="default", client="ci") == 3
    assert value(metrics, "in_flight", pool="default") == 7
    levels[0] = Levels((), (), ())
    assert value(metrics, "waiting", pool="default", client="ci") is None


def test_no_series_appears_twice() -> None:
    """A client may wait in several lanes, and limits of one size for different paths share a name."""
    metrics = Metrics()
    burst = BucketLevel("default", "k0", "10/10s", 4, 10)
    metrics.watch(
        lambda: Levels(
            (burst, BucketLevel("default", "k0", "10/10s", 9, 10), BucketLevel("default", "k1", "10/10s", 1, 10)),
            (LaneLevel("default", "ci", 3), LaneLevel("default", "ci", 4)),
            (("default", 1), ("default", 2)),
        )
    )
    samples = [
        (sample.name, *sorted(sample.labels.items())) for f in metrics.registry.collect() for sample in f.samples
    ]
    assert len(samples) == len(set(samples))
    assert value(metrics, "waiting", pool="default", client="ci") == 7
    assert value(metrics, "in_flight", pool="default") == 3
    assert value(metrics, "tokens_at_hand", pool="default", quota="k0", limit="10/10s") == 4
    assert value(metrics, "tokens_at_hand", pool="default", quota="k0", limit="10/10s#2") == 9
    assert value(metrics, "tokens_at_hand", pool="default", quota="k1", limit="10/10s") == 1


def test_two_processes_in_one_do_not_share_metrics() -> None:
    """Each has a registry of its own."""
    full()
    assert value(Metrics(), "retries_total", pool="default", reason="throttled") is None


class Stderr:
    """What has been written to stderr since `forget`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        """All of it."""
        self._text += self._capsys.readouterr().err
        return self._text

    def forget(self) -> None:
        """Begin anew."""
        self.getvalue()
        self._text = ""


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Stderr]:
    """Everything that is logged; afterwards logging is as it was."""
    root = logging.getLogger()
    others = [logging.getLogger(name) for name in ("asyncio", "aiohttp.access")]
    before = [(logger, logger.level) for logger in (root, *others)]
    handlers = root.handlers[:]
    yield Stderr(capsys)
    root.handlers[:] = handlers
    for logger, level in before:
        logger.setLevel(level)
    structlog.reset_defaults()


def entries(stderr: Stderr) -> list[dict[str, Any]]:
    """What was logged as JSON, one entry a line."""
    return [json.loads(line) for line in stderr.getvalue().splitlines()]


def test_json_has_one_entry_a_line(stderr: Stderr) -> None:
    """With level, logger and instant, whether we log or a library does."""
    set_up_logs("info", "json")
    structlog.get_logger("keyturn").info("served\nwell", pool="default", number=3)
    logging.getLogger("aiohttp.server").warning("from %s", "a library")
    ours, theirs = entries(stderr)
    assert ours.pop("timestamp").endswith("Z")
    assert ours == {"event": "served\nwell", "pool": "default", "number": 3, "logger": "keyturn", "level": "info"}
    assert (theirs["event"], theirs["logger"], theirs["level"]) == ("from a library", "aiohttp.server", "warning")


def test_text_reads_well(stderr: Stderr) -> None:
    """Level, message and values in a line, without colours where nobody looks."""
    set_up_logs("info", "text")
    structlog.get_logger("keyturn").warning("parked", key="k0")
    logging.getLogger("aiohttp.server").error("broken")
    first, second = stderr.getvalue().splitlines()
    assert "warning" in first
    assert "parked" in first
    assert "key=k0" in first
    assert "\x1b" not in first
    assert "broken" in second


@pytest.mark.parametrize(("tty", "as_text"), [(True, True), (False, False)])
def test_the_form_follows_the_terminal(
    stderr: Stderr, monkeypatch: pytest.MonkeyPatch, tty: bool, as_text: bool
) -> None:
    """Text for a person, JSON for a machine, unless the configuration says which."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
    set_up_logs("info", None)
    structlog.get_logger("keyturn").info("here")
    assert (not stderr.getvalue().startswith("{")) == as_text


def test_setting_up_again_does_not_log_twice(stderr: Stderr) -> None:
    """The last form counts, for loggers that were used before too."""
    telemetry = Telemetry()
    set_up_logs("info", "text")
    telemetry.observe(UpstreamThrottled("default", "k0", "k0", "window", SECOND))
    set_up_logs("info", "json")
    stderr.forget()
    telemetry.observe(UpstreamThrottled("default", "k0", "q0", "window", 1500 * MILLISECOND))
    logging.getLogger("aiohttp.server").warning("once")
    ours, theirs = entries(stderr)
    assert (ours["key"], ours["quota"], ours["wait_seconds"]) == ("k0", "q0", 1.5)
    assert theirs["event"] == "once"


def test_the_level_holds_for_all(stderr: Stderr) -> None:
    """Ours and the libraries'; asyncio never says more than warnings."""
    set_up_logs("warning", "json")
    structlog.get_logger("keyturn").info("too fine")
    logging.getLogger("aiohttp.server").info("too fine")
    assert stderr.getvalue() == ""
    set_up_logs("debug", "json")
    structlog.get_logger("keyturn").debug("fine")
    logging.getLogger("asyncio").debug("Using selector")
    assert [entry["event"] for entry in entries(stderr)] == ["fine"]


def fail(message: str) -> None:
    """Break."""
    raise ValueError(message)


def fail_with_locals() -> None:
    """Break while holding what a request carried."""
    held = b"X-Api-Key: " + b"held-in-a-frame"
    raise RuntimeError(f"broken after {len(held)} bytes")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("who", ["keyturn", "library"])
def test_exceptions_are_shown_without_local_variables(stderr: Stderr, form: str, who: str) -> None:
    """The traceback and the message; what the frames held may be a credential."""
    set_up_logs("info", "json" if form == "json" else "text")
    try:
        fail_with_locals()
    except RuntimeError:
        if who == "keyturn":
            structlog.get_logger("keyturn").exception("that was unexpected")
        else:
            logging.getLogger("aiohttp.server").exception("that was unexpected")
    shown = stderr.getvalue()
    assert "RuntimeError: broken after 26 bytes" in shown
    assert "fail_with_locals" in shown
    assert "that was unexpected" in shown
    assert "held-in-a-frame" not in shown
    if form == "json":
        assert len(entries(stderr)) == 1


TOKEN = "kt-0123456789abcdef"


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "message",
    [
        f"GET /collections?apikey={TOKEN}&workspace=1",
        f"GET /collections?workspace=1&api_key={TOKEN}",
        f"GET /collections/1?access_key={TOKEN} HTTP/1.1",
        f"bad field: b'X-Api-Key: {TOKEN}'",
        f"{{'x-api-key': '{TOKEN}'}}",
        f"Authorization: Bearer {TOKEN}",
        f"authorization: {TOKEN}",
        f"bearer  {TOKEN}",
        f"the key PMAK-{TOKEN} is wrong",
    ],
)
def test_what_looks_like_a_credential_is_not_logged(stderr: Stderr, form: str, message: str) -> None:
    """Law 11, for what libraries put into messages, values and exceptions."""
    set_up_logs("info", "json" if form == "json" else "text")
    logging.getLogger("aiohttp.server").warning(message)
    try:
        fail(message)
    except ValueError:
        structlog.get_logger("keyturn").exception("failed", detail=message, held=Secret(TOKEN))
    assert TOKEN not in stderr.getvalue()
    assert "…" in stderr.getvalue() or "\\u2026" in stderr.getvalue()


def test_bytes_that_could_not_be_parsed_are_not_logged(stderr: Stderr) -> None:
    """The server's parser quotes them, and they may be any part of a credential."""
    set_up_logs("info", "json")
    problem = BadHttpMessage(f"Invalid header value char:\n\n  b'{TOKEN}\\x00'")
    logging.getLogger("aiohttp.server").error("Error handling request from %s", "127.0.0.1", exc_info=problem)
    (entry,) = entries(stderr)
    assert TOKEN not in stderr.getvalue()
    assert (entry["event"], entry["problem"]) == ("Error handling request from 127.0.0.1", "BadHttpMessage")


def test_access_logs_of_libraries_are_off(stderr: Stderr) -> None:
    """They show queries."""
    set_up_logs("debug", "json")
    logging.getLogger("aiohttp.access").info("GET /collections?token=%s", TOKEN)
    assert stderr.getvalue() == ""


def test_what_cannot_be_written_as_json_does_not_break_the_log(stderr: Stderr) -> None:
    """It is shown as Python would."""
    set_up_logs("info", "json")
    structlog.get_logger("keyturn").info("odd", value={1, 2}, raw=b"\xff")
    (entry,) = entries(stderr)
    assert entry["value"] == "{1, 2}"


@pytest.mark.parametrize(("kind", "part"), [("window", "lower than configured"), ("plan", "no waiting cures")])
def test_a_429_is_warned_about(stderr: Stderr, kind: str, part: str) -> None:
    """The number that should stay 0 does not rise in silence; what else is counted is not logged."""
    set_up_logs("info", "json")
    telemetry = Telemetry()
    telemetry.observe(UpstreamThrottled("default", "k0", "k0", "plan" if kind == "plan" else "window", SECOND))
    for event in EVENTS:
        if not isinstance(event, UpstreamThrottled):
            telemetry.observe(event)
    (entry,) = entries(stderr)
    assert entry["level"] == "warning"
    assert part in entry["event"]
    assert value(telemetry.metrics, "upstream_throttled_total", pool="default", key="k0", kind=kind) == 1


def test_the_last_reload_is_told(stderr: Stderr) -> None:
    """Whether it was taken; refused ones are counted, and each is logged once with every problem and its path."""
    set_up_logs("info", "json")
    telemetry = Telemetry()
    told = []
    for event in (None, Reloaded(ok=False, reasons=("pools.a: x", "clients[2].weight: y")), Reloaded(ok=True)):
        if event:
            telemetry.observe(event)
        told.append([value(telemetry.metrics, name) for name in ("reload_success", "reload_refused_total")])
    assert told == [[1, 0], [0, 1], [1, 1]]
    refused, taken = entries(stderr)
    assert refused["problems"] == ["pools.a: x", "clients[2].weight: y"]
    assert "reloaded" in taken["event"]


def test_observing_needs_no_loop() -> None:
    """It is called synchronously, from wherever something happened."""
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    Telemetry().observe(journal())
