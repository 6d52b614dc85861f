import asyncio

import pytest
from keyturn.core.events import Event, Reloaded, RequestLog, StoreChanged, UpstreamThrottled
from keyturn.core.model import SECOND
from keyturn.core.recent import Count
from keyturn.telemetry import Telemetry, set_up_logs
from keyturn.telemetry.observer import History, LastFailure, LastReload

from tests.telemetry.samples import request_log, value
from tests.telemetry.stderr import Stderr, entries


class Clocks:
    """A monotonic clock and the wall's, 1,000 s apart."""

    def __init__(self) -> None:
        self.now = 0
        self.history = History(lambda: self.now, lambda: self.now + 1_000 * SECOND)

    def hear(self, *events: Event, later: int = 0) -> None:
        """Let time pass, then tell of events."""
        self.now += later * SECOND
        for event in events:
            self.history.observe(event)


def refused(reason: str, pool: str = "default") -> RequestLog:
    """A request that the proxy answered itself."""
    return RequestLog(pool=pool, outcome="refused", reason=reason)


def test_refusals_are_counted_by_pool_and_by_reason() -> None:
    """A caller that nobody knows belongs to no pool, and its refusal still has a reason."""
    clocks = Clocks()
    clocks.hear(refused("deadline"), refused("unauthenticated", ""), RequestLog(pool="default", outcome="forwarded"))
    clocks.hear(refused("deadline"), later=61)
    assert clocks.history.refused() == {"default": Count(2, 1)}
    assert clocks.history.reasons() == {"deadline": Count(2, 1), "unauthenticated": Count(1, 0)}


def test_the_upstream_s_429s_are_counted_by_pool() -> None:
    """Of any kind."""
    clocks = Clocks()
    clocks.hear(UpstreamThrottled("default", "k0", "k0", "window", SECOND))
    clocks.hear(UpstreamThrottled("default", "k1", "k1", "plan", SECOND))
    assert clocks.history.throttled() == {"default": Count(2, 2)}


def test_the_store_is_lost_while_any_pool_has_lost_it() -> None:
    """Since when is the moment of the last change between the two; the cause is one that stands."""
    clocks = Clocks()
    began = clocks.history.store_since
    clocks.hear(StoreChanged("a", up=False, cause="refused"), later=5)
    clocks.hear(StoreChanged("b", up=False, cause="refused"), later=1)
    clocks.hear(StoreChanged("a", up=True), later=1)
    assert (clocks.history.lost, clocks.history.cause) == (True, "refused")
    assert clocks.history.store_since == began + 5 * SECOND
    clocks.hear(StoreChanged("b", up=True), later=1)
    assert (clocks.history.lost, clocks.history.cause) == (False, "")
    assert clocks.history.store_since == began + 8 * SECOND


def test_the_last_reload_is_kept() -> None:
    """With its moment by the wall's clock."""
    clocks = Clocks()
    assert clocks.history.reload is None
    clocks.hear(Reloaded(ok=True), Reloaded(ok=False, reasons=("a: b",)), later=3)
    assert clocks.history.reload == LastReload(1_003 * SECOND, ok=False, reasons=("a: b",))


def test_requests_that_fail_are_counted_by_pool_and_the_last_one_is_kept() -> None:
    """Also before any breaker opens: a page that said nothing of them would call a useless proxy ready."""
    clocks = Clocks()
    clocks.hear(RequestLog(pool="default", outcome="failed", problem="No connection."), later=5)
    clocks.hear(RequestLog(pool="default", outcome="forwarded"), RequestLog(outcome="failed"))
    assert clocks.history.failed() == {"default": Count(1, 1)}
    assert clocks.history.failure("default") == LastFailure(1_005 * SECOND, "No connection.")
    assert clocks.history.failure("other") is None


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
