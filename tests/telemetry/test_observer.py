import asyncio

import pytest

from proxy.core.events import BreakerMoved, Event, KeyChanged, LimitLowered, Reloaded, UpstreamThrottled
from proxy.core.model import SECOND
from proxy.telemetry import Telemetry, set_up_logs
from tests.telemetry.samples import EVENTS, journal, value
from tests.telemetry.stderr import Stderr, entries


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


def test_a_cause_is_warned_about_once(stderr: Stderr) -> None:
    """Every 429 is counted, the first of a cause is logged."""
    set_up_logs("info", "json")
    telemetry = Telemetry()
    for news in (True, False, False):
        telemetry.observe(UpstreamThrottled("default", "k0", "k0", "window", SECOND, "60/60s", news))
    (entry,) = entries(stderr)
    assert entry["limit"] == "60/60s"
    assert value(telemetry.metrics, "upstream_throttled_total", pool="default", key="k0", kind="window") == 3


@pytest.mark.parametrize(
    ("event", "level", "fields"),
    [
        (
            LimitLowered("p", "300/60s", 300, 60),
            "warning",
            {"setting": "pools.p.limits", "configured": 300, "told": 60},
        ),
        (KeyChanged("p", "k", "quarantined", "401"), "error", {"pool": "p", "key": "k", "reason": "401"}),
        (KeyChanged("p", "k", "ready"), "warning", {"pool": "p", "key": "k"}),
        (BreakerMoved("p", True, 2 * SECOND, "status 503"), "error", {"next_trial_seconds": 2, "cause": "status 503"}),
        (BreakerMoved("p", False), "warning", {"pool": "p"}),
    ],
)
def test_what_changes_is_told_once(stderr: Stderr, event: Event, level: str, fields: dict[str, object]) -> None:
    """Which setting to change, which key died, when the upstream is tried again."""
    set_up_logs("info", "json")
    Telemetry().observe(event)
    (entry,) = entries(stderr)
    assert entry["level"] == level
    assert fields.items() <= entry.items()


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
