import json
import logging
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.events import RequestLog
from keyturn.core.model import MILLISECOND
from keyturn.core.tracing import Untraced
from keyturn.telemetry.access_log import MAX_PATH, MAX_USER_AGENT, REQUEST_LOGGER, AccessLog

from tests.telemetry.samples import request_log


@pytest.fixture(autouse=True)
def informed() -> Iterator[None]:
    """The level `info`, as by default."""
    logger = logging.getLogger(REQUEST_LOGGER)
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(logging.NOTSET)


def lines(*journals: RequestLog, form: str = "json", sample: float = 1.0, chance: float = 0.5) -> list[str]:
    """The log lines of these requests."""
    out = StringIO()
    log = AccessLog("json" if form == "json" else "text", sample, stream=out, chance=lambda: chance)
    for story in journals:
        log.write(story)
    return out.getvalue().splitlines()


def entry(story: RequestLog) -> dict[str, Any]:
    """The line of a request, for machines."""
    (line,) = lines(story)
    found: dict[str, Any] = json.loads(line)
    return found


class InTrace(Untraced):
    """A request that is recorded in a trace."""

    trace_id = "0af7651916cd43dd8448eb211c80319c"


STORY = request_log(
    queued=1_200 * MILLISECOND, upstream=300 * MILLISECOND, total=1_600 * MILLISECOND, received=3, sent=12_345,
    tries=2, attempts=2, retried=("throttled",), trace=InTrace(),
)  # fmt: skip


def test_a_line_has_the_whole_story() -> None:
    """Who, what, how it ended, where the time went, why it was tried again."""
    found = entry(STORY)
    assert found.pop("timestamp").endswith("Z")
    assert found == {
        "event": "request",
        "level": "info",
        "logger": "keyturn.requests",
        "id": "r-1",
        "client": "ci",
        "pool": "default",
        "key": "k0",
        "method": "GET",
        "path": "/collections",
        "client_address": "192.0.2.7",
        "user_agent": "curl/8.9",
        "code": 200,
        "outcome": "forwarded",
        "received_bytes": 3,
        "sent_bytes": 12345,
        "queue_seconds": 1.2,
        "upstream_seconds": 0.3,
        "total_seconds": 1.6,
        "attempts": 2,
        "retry_reasons": ["throttled"],
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }


def test_what_there_is_not_is_left_out() -> None:
    """A caller that nobody knows has neither a name nor a pool; its request went to no key."""
    found = entry(RequestLog(id="r", method="GET", path="/me", code=401, outcome="refused", reason="unauthenticated"))
    assert {"client", "pool", "key", "retry_reasons", "trace_id"} & set(found) == set()
    assert (found["attempts"], found["reason"], found["queue_seconds"]) == (0, "unauthenticated", 0)


def test_what_failed_is_told_in_words() -> None:
    """A failure of the upstream is logged with its cause: a name, a port or a certificate."""
    found = entry(
        request_log(outcome="failed", code=502, reason="upstream", problem="No connection to x: apikey=PMAK-1")
    )
    assert found["problem"] == "No connection to x: apikey=…"
    assert found["level"] == "warning"


def test_text_is_read_at_a_glance() -> None:
    """The code and the request first, times with their unit, nothing that is as usual."""
    (line,) = lines(STORY, form="text")
    for part in (
        "[info     ] 200 GET /collections", "client=ci", "key=k0", "time=1.600s", "waited=1.200s", "upstream=0.300s",
        "sent=12.3kB", "received=3B", "attempts=2", "retry_reasons=throttled",
        "from=192.0.2.7", "agent=curl/8.9", "id=r-1",
    ):  # fmt: skip
        assert part in line
    (line,) = lines(request_log(queued=0, tries=1), form="text")
    line = line.partition(" 200 ")[2]
    assert not any(name in line for name in ("waited=", "attempts=", "reason=", "received="))
    failed = request_log(
        outcome="failed", code=502, reason="upstream", problem="No connection to x.", tries=0, attempts=3,
        retried=("unreachable",) * 2,
    )  # fmt: skip
    (line,) = lines(failed, form="text")
    assert "reason='No connection to x.' attempts=3 retry_reasons=unreachable,unreachable" in line
    (line,) = lines(request_log(outcome="gone", code=0, client=""), form="text")
    assert "--- GET /collections" in line
    assert "reason=gone" in line
    assert "client=unknown" in line


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, None),
        (1, "1B"),
        (999, "999B"),
        (1000, "1.0kB"),
        (12_345, "12.3kB"),
        (2_400_000, "2.4MB"),
        (10**12, "1000.0GB"),
    ],
)
def test_sizes_are_short(number: int, shown: str | None) -> None:
    """In decimal units."""
    (line,) = lines(request_log(sent=number), form="text")
    assert (f" sent={shown} " in line) if shown else ("sent=" not in line)


@pytest.mark.parametrize(
    ("story", "level"),
    [
        ({}, "info"),
        ({"code": 404}, "info"),
        ({"code": 429, "outcome": "refused", "reason": "deadline"}, "info"),
        ({"outcome": "gone"}, "info"),
        ({"code": 502, "outcome": "failed", "reason": "unreachable"}, "warning"),
        ({"code": 500}, "warning"),
    ],
)
def test_a_failure_is_graver_than_a_refusal(story: dict[str, object], level: str) -> None:
    """Callers' mistakes and refusals by limits are not logged as faults."""
    assert entry(request_log(**story))["level"] == level


def test_levels_hold_for_requests_too() -> None:
    """From `warning` on only failures are told, from `error` on none."""
    logging.getLogger(REQUEST_LOGGER).setLevel(logging.WARNING)
    failed = request_log(code=502, outcome="failed")
    assert [json.loads(line)["code"] for line in lines(request_log(), failed)] == [502]
    logging.getLogger(REQUEST_LOGGER).setLevel(logging.ERROR)
    assert lines(request_log(), failed) == []


@pytest.mark.parametrize(("chance", "written"), [(0.0, 1), (0.09, 1), (0.1, 0), (0.99, 0)])
def test_successful_requests_may_be_sampled(chance: float, written: int) -> None:
    """So many of them get a line."""
    assert len(lines(request_log(), sample=0.1, chance=chance)) == written


def test_whatever_went_wrong_is_told_always() -> None:
    """Sampling leaves nothing out that somebody may look for."""
    stories = [
        request_log(code=404),
        request_log(code=429, outcome="refused"),
        request_log(code=502, outcome="failed"),
        request_log(outcome="gone"),
    ]
    assert len(lines(*stories, request_log(), sample=0.0)) == len(stories)


def test_a_long_path_is_cut() -> None:
    """A line stays a line."""
    found = entry(request_log(path="/" + "x" * 5_000))
    assert len(found["path"]) == MAX_PATH + 1
    assert found["path"].endswith("…")


def test_what_looks_like_a_credential_in_a_path_is_not_written() -> None:
    """A key in the wrong place is still a key (law 11)."""
    for form in ("json", "text"):
        (line,) = lines(request_log(path="/PMAK-0123456789abcdef/x"), form=form)
        assert "0123456789abcdef" not in line


@given(st.text(max_size=40))
def test_nothing_of_a_caller_forges_a_line(text: str) -> None:
    """Whatever is in it: no second line, no sequence that moves a terminal's cursor."""
    logging.getLogger(REQUEST_LOGGER).setLevel(logging.INFO)
    for form in ("json", "text"):
        for story in (request_log(path=text), request_log(agent=text)):
            written = lines(story, form=form)
            assert len(written) == 1
            assert written[0].isprintable()


def test_what_a_caller_calls_itself_is_cut() -> None:
    """And holds no credential; bytes that are no text are shown as such."""
    assert len(entry(request_log(agent="x" * 60_000))["user_agent"]) == MAX_USER_AGENT + 1
    assert entry(request_log(agent="a PMAK-0123 b"))["user_agent"] == "a … b"
    assert entry(request_log(agent="\udcff"))["user_agent"] == "\\udcff"
