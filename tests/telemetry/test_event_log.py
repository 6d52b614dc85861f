import re
from typing import get_args

import pytest
from keyturn.core.breaker import Scope
from keyturn.core.events import (
    BreakerChanged,
    CallerRejected,
    ConnectionEnded,
    EpochBegan,
    Event,
    Exchanged,
    ForeignSpent,
    IssuerAsked,
    Joined,
    KeyChanged,
    KeySwitched,
    LimitHigher,
    LimitLowered,
    LocalErrorMet,
    MonthRemaining,
    PoolThrottled,
    Reloaded,
    RequestLog,
    Retried,
    SignalsIgnored,
    SpoolFailed,
    StoreCannotWake,
    StoreChanged,
    UpstreamAnswered,
    UpstreamThrottled,
)
from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.model import SECOND
from keyturn.core.signals import Route
from keyturn.telemetry.event_log import LogLine, line_of

ROUTE = Route.of("POST", "/collections/1")

CHANGES: list[tuple[Event, str, str]] = [
    (StoreChanged("p", up=False, cause="refused", on_loss="share"), "error", "uses its share"),
    (StoreChanged("p", up=False, cause="refused", on_loss="wait"), "error", "requests wait"),
    (StoreChanged("p", up=False, cause="refused", on_loss="refuse"), "error", "503"),
    (StoreChanged("p", up=True, seconds=3.14159), "warning", "responds again"),
    (EpochBegan("p"), "warning", "each key is probed with one request"),
    (StoreCannotWake("p", "its ACL does not allow it"), "warning", "permit it to subscribe"),
    (KeyChanged("p", "k", "quarantined", "401"), "error", "replace its secret"),
    (KeyChanged("p", "k", "ready"), "warning", "accepted again"),
    (KeySwitched("p", "k", paused=True), "warning", "until it is resumed"),
    (KeySwitched("p", "k", paused=False), "warning", "resumed"),
    (SpoolFailed("No space left on device", is_new=True), "warning", "`inbound.spool_size` to 0"),
    (Reloaded(ok=True), "info", "reloaded"),
    (Reloaded(ok=False, reasons=("a: b",)), "error", "correct the file"),
    (UpstreamThrottled("p", "k", "q", "window", SECOND, "60/60s"), "warning", "lower than configured"),
    (UpstreamThrottled("p", "k", "q", "endpoint", SECOND), "warning", "add it to `limits`"),
    (UpstreamThrottled("p", "k", "q", "plan", SECOND), "warning", "raise the plan"),
    (PoolThrottled("p", 3, SECOND), "error", "several keys at once"),
    (PoolThrottled("p", 0, 0), "warning", "no longer responds 429"),
    (LimitLowered("p", "60/60s", 60, 50), "warning", "correct the setting"),
    (LocalErrorMet("ports", "This machine has no port left."), "error", "no failure of the upstream"),
    (LimitHigher("p", HigherLimit(0, "60/60s", 60, 300)), "warning", "higher than configured"),
    (BreakerChanged("p", Scope(), opened=True, wait=SECOND, cause="503"), "error", "is failing"),
    (BreakerChanged("p", Scope(), opened=False), "warning", "responds again"),
    (BreakerChanged("p", Scope("c"), opened=True, wait=SECOND, cause="503"), "warning", "for one client"),
    (BreakerChanged("p", Scope("c"), opened=False), "info", "responds to a client again"),
    (BreakerChanged("p", Scope("c", ROUTE), opened=True, wait=SECOND), "warning", "for one route of one client"),
    (BreakerChanged("p", Scope("c", ROUTE), opened=False), "info", "responds on a route"),
    (
        BreakerChanged("p", Scope("c", ROUTE), opened=True, wait=SECOND, is_new=False),
        "debug",
        "for one route of one client",
    ),
]

DETAILS: list[Event] = [Retried("p", "late"), ForeignSpent("p", "q", 2), SignalsIgnored("p", ("RateLimit",))]

COUNTED: list[Event] = [
    RequestLog(),
    UpstreamAnswered("p", "k", 200),
    LocalErrorMet("ports", "This machine has no port left.", is_new=False),
    UpstreamThrottled("p", "k", "q", "window", SECOND, is_new=False),
    Joined("p", "c"),
    Exchanged("p", 0.1, 1),
    MonthRemaining("p", "k", 5),
    CallerRejected("192.0.2.1", "token", "late"),
    ConnectionEnded("malformed"),
    IssuerAsked("https://issuer.example", 2),
]
"""Events that are only counted, or that their source logs itself."""


@pytest.mark.parametrize(("event", "level", "words"), CHANGES, ids=lambda value: str(value)[:40])
def test_a_change_is_told_in_fitting_words(event: Event, level: str, words: str) -> None:
    """With its values beside them."""
    line = line_of(event)
    assert line is not None
    assert line.level == level
    assert words in line.text


@pytest.mark.parametrize("event", DETAILS, ids=lambda event: type(event).__name__)
def test_what_may_come_with_every_request_is_told_to_who_asks_for_everything(event: Event) -> None:
    """At `debug`."""
    line = line_of(event)
    assert line is not None
    assert line.level == "debug"


@pytest.mark.parametrize("event", COUNTED, ids=lambda event: type(event).__name__)
def test_what_is_only_counted_is_not_told(event: Event) -> None:
    """A request has a line of another kind."""
    assert line_of(event) is None


def test_every_kind_of_event_was_considered() -> None:
    """A new one is told, or only counted, on purpose."""
    considered = {type(event) for event in (*(change[0] for change in CHANGES), *DETAILS, *COUNTED)}
    assert set(get_args(Event)) == considered


def test_values_are_what_a_program_can_read() -> None:
    """Durations in seconds under names that say so; no word of the text is needed."""
    assert line_of(UpstreamThrottled("p", "k", "q", "window", 1_500_000, "60/60s")) == LogLine(
        "warning",
        "the upstream responded 429: another user has this key, or its limit is lower than configured",
        {"pool": "p", "key": "k", "quota": "q", "kind": "window", "limit": "60/60s", "wait_seconds": 1.5},
    )
    moved = line_of(BreakerChanged("p", Scope("c", ROUTE), opened=True, wait=SECOND, cause="504"))
    values = {"pool": "p", "client": "c", "route": "POST /collections/{}", "cause": "504", "next_probe_seconds": 1.0}
    assert moved is not None
    assert moved.values == values
    assert (line_of(StoreChanged("p", up=True, seconds=3.14159)) or LogLine("debug", "", {})).values[
        "lost_seconds"
    ] == 3.1


def test_words_are_lower_case_without_an_end() -> None:
    """Lines of a log stand below one another."""
    for event, _, _ in CHANGES:
        line = line_of(event)
        assert line is not None
        assert re.fullmatch(r"[a-z].*[^.]", line.text)


def test_the_setting_for_a_higher_limit_is_written_out() -> None:
    """To be copied into the configuration."""
    line = line_of(LimitHigher("team", HigherLimit(1, "60/60s", 60, 300)))
    assert line is not None
    assert line.values == {
        "setting": "pools.team.limits[1].requests: 300",
        "limit": "60/60s",
        "configured": 60,
        "reported": 300,
    }
