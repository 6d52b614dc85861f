import asyncio

import pytest
from keyturn.core.events import Reloaded, RequestLog, StoreChanged, UpstreamThrottled
from keyturn.core.model import SECOND
from keyturn.telemetry import Telemetry, set_up_logs

from tests.telemetry.samples import request_log, value
from tests.telemetry.stderr import Stderr, entries


def test_an_event_is_counted_remembered_and_told(stderr: Stderr) -> None:
    """All three, by one observer."""
    set_up_logs("info", "json")
    telemetry = Telemetry()
    telemetry.observe(UpstreamThrottled("default", "k0", "k0", "plan", SECOND))
    telemetry.observe(StoreChanged("default", up=False, cause="refused", on_loss="wait"))
    throttled, lost = entries(stderr)
    assert (throttled["level"], throttled["key"], throttled["wait_seconds"]) == ("warning", "k0", 1.0)
    assert (lost["level"], lost["cause"]) == ("error", "refused")
    assert value(telemetry.metrics, "upstream_throttled_total", pool="default", key="k0", kind="plan") == 1
    assert telemetry.history.throttled()["default"].total == 1
    assert telemetry.history.lost


def test_what_there_is_not_is_left_out(stderr: Stderr) -> None:
    """A 429 whose limit nobody knows names none."""
    set_up_logs("info", "text")
    Telemetry().observe(UpstreamThrottled("default", "k0", "k0", "window", SECOND))
    assert "limit=" not in stderr.getvalue()
    assert "kind=window" in stderr.getvalue()


def test_a_request_gets_a_line_of_its_own(stderr: Stderr) -> None:
    """At its end, beside being counted; a refused one is remembered."""
    set_up_logs("info", "json")
    telemetry = Telemetry()
    telemetry.observe(request_log(code=429, outcome="refused", reason="deadline"))
    (entry,) = entries(stderr)
    assert (entry["logger"], entry["code"], entry["reason"]) == ("keyturn.requests", 429, "deadline")
    assert value(telemetry.metrics, "refused_total", pool="default", client="ci", reason="deadline") == 1
    assert telemetry.history.reasons()["deadline"].total == 1


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
    Telemetry().observe(RequestLog())
