from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.model import SECOND
from keyturn.core.recent import Count
from keyturn.status_view.tables import Bar, UnknownVersion, render
from keyturn.web.status.replica_status import FailureStatus, OutageStatus
from rich.console import Console
from rich.table import Table

from tests.observability.extremes import crowd, empty, long_names
from tests.observability.samples import busy, document, quiet


@pytest.mark.parametrize(
    ("available", "in_use", "size", "drawn"),
    [
        (60, 0, 60, "#" * 30),
        (0, 0, 60, "." * 30),
        (1, 1, 60, "#*" + "." * 28),
        (59, 1, 60, "#" * 29 + "*"),
        (2, 1, 5, "##*.."),
        (0, 0, 0, ""),
    ],
)
def test_a_bar_shows_the_least_token_and_is_full_only_when_all_are_there(
    available: int, in_use: int, size: int, drawn: str
) -> None:
    """Told apart by signs, not by colours only."""
    assert Bar({"available": available, "in_use": in_use, "size": size}).drawn(80).plain == drawn


@pytest.mark.parametrize(("width", "drawn"), [(80, 30), (20, 16), (12, 8)])
def test_a_bar_is_as_wide_as_its_column(width: int, drawn: int) -> None:
    """On one line, however little room there is."""
    table = Table.grid(padding=0)
    table.add_column(no_wrap=True)
    table.add_row("four", Bar({"available": 60, "in_use": 0, "size": 60}))
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    assert out.getvalue().split() == ["four" + "#" * drawn]


def printed(content: dict[str, Any], width: int = 140) -> str:
    """The output on a terminal without colours."""
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(render(content))
    return out.getvalue()


def line(text: str, *words: str) -> str:
    """The first line that holds all of these words."""
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_it_tells_the_process_and_its_store() -> None:
    """The head says who answers, whether it is ready, and how the store is."""
    text = printed(document(busy()))
    assert "ready" in line(text, "keyturn-7d9f8b6c5-x2lqp")
    assert "up for 20 s, 3 replicas seen" in line(text, "Store redis")
    assert "clients[2].weight: a whole number" in line(text, "Reload rejected 31 min ago")


def test_an_upstream_that_is_out_of_order_is_told_with_its_pool() -> None:
    """With the cause, and when it is tried again; of the other pool nothing is said."""
    text = printed(document(busy(out=True)))
    assert "failing for 20 s: 503 three times in a row, next probe in 40 s" in text
    assert text.count("has been failing") == 1
    assert "has been failing" not in printed(document(busy()))


def test_requests_that_fail_are_told_before_any_breaker_opens() -> None:
    """With how many in the last minute, and what failed last; an outage says it better."""
    snapshot = busy()
    last = FailureStatus(snapshot.at - 3 * SECOND, "No connection to api: connection refused.")
    pool = replace(snapshot.pools[0], failed=Count(7, 2), failure=last)
    text = printed(document(replace(snapshot, pools=[pool])))
    assert "the last request failed 3 s ago: No connection to api: connection refused." in text
    assert "failed 2 (7 total)" in line(text, "last minute:")
    late = replace(pool, failed=Count(7, 0))
    assert "the last request" not in printed(document(replace(snapshot, pools=[late])))


def test_what_is_due_now_is_not_told_in_tenths_of_a_second() -> None:
    """A trial is made with the next request."""
    snapshot = busy(out=True)
    outage = OutageStatus(snapshot.at - 20 * SECOND, "503", snapshot.at + SECOND // 20)
    text = printed(document(replace(snapshot, pools=[replace(snapshot.pools[0], outage=outage)])))
    assert "next probe with the next request" in text


def test_only_clients_that_wait_show_a_fair_share() -> None:
    """Beside one that asks for less than it might have, the number would look like a lack."""
    rows = {
        client["name"]: client for client in document(busy())["pools"][0]["clients"] if client["fair_share"] is not None
    }
    text = printed(document(busy()))
    for name, client in rows.items():
        assert (f"{client['fair_share']:.0%}" == line(text, name).split()[-1]) == bool(client["waiting"])


def test_a_limit_that_is_higher_upstream_is_told_with_its_setting() -> None:
    """As one would write it."""
    snapshot = busy()
    pool = replace(snapshot.pools[0], higher=[HigherLimit(0, "60/60s", 60, 300)])
    text = printed(document(replace(snapshot, pools=[pool])))
    setting = f"pools.{pool.name}.limits[0].requests: 300"
    assert setting in line(text, "the upstream permits 300 requests where 60/60s is configured")
    assert "permits" not in printed(document(busy()))


def test_a_lost_store_is_told_with_its_cause() -> None:
    """And with what happens meanwhile."""
    assert "lost for 20 s: no answer within 500 ms, on loss: share" in printed(document(busy(lost=True)))


@pytest.mark.parametrize(
    ("draining", "unready", "word"),
    [
        (True, ("draining",), "draining"),
        (False, ("the pool default has no key",), "not ready: the pool default has no key"),
    ],
)
def test_a_replica_that_is_not_ready_says_why(draining: bool, unready: tuple[str, ...], word: str) -> None:
    """Draining is a reason of its own."""
    snapshot = quiet()
    process = replace(snapshot.process, draining=draining, unready=unready)
    assert word in line(printed(document(replace(snapshot, process=process))), "host-1")


def test_each_key_has_its_state_in_words() -> None:
    """With its reason, and the time at which it is back."""
    text = printed(document(busy()))
    assert "401 AuthenticationError" in line(text, "team-d", "quarantined")
    assert "checked in 27 min" in line(text, "team-d", "quarantined")
    assert "429 of the upstream" in line(text, "team-c", "parked", "opens in 40 s", "312")
    assert "81,240" in line(text, "team-a", "ready")


def test_each_limit_has_its_tokens() -> None:
    """Available, in use, cooling down, and when they return."""
    text = printed(document(busy()))
    assert line(text, "team-a", "60/60s").split()[3:6] == ["14", "4", "42"]
    assert line(text, "team-c", "60/60s").split()[-7:] == ["60", "in", "40", "s", "in", "40", "s"]


def test_each_client_has_its_queue_and_its_share() -> None:
    """The client that waits most comes first, followed by its queues; idle clients are only counted."""
    text = printed(document(busy()))
    assert line(text, "crawler").split() == ["crawler", "1", "158", "29", "s", "in", "1", "s", "40%", "20%"]
    assert line(text, "60/60s + 10/10s").split()[-6:] == ["18", "29", "s", "in", "9", "s"]
    assert "unknown" in line(text, "pipeline")
    assert text.index("crawler") < text.index("pipeline") < text.index("portal")
    assert "2 clients idle" in text


def test_a_quiet_replica_fits_in_a_few_lines() -> None:
    """Nothing is told that is not there."""
    text = printed(document(quiet()))
    assert "No client was active in the last minute" in text
    assert "replica" not in text
    assert "Reload" not in text
    assert "refused  " not in text
    assert len(text.splitlines()) < 13


def test_refusals_are_told_by_reason() -> None:
    """The most frequent of the last minute first."""
    text = printed(document(busy()))
    assert line(text, "deadline").split() == ["deadline", "8", "380"]
    assert text.index("deadline") < text.index("client_rate") < text.index("unauthenticated")


def test_names_and_reasons_are_text_not_markup() -> None:
    """Text in square brackets is shown unchanged."""
    snapshot = quiet()
    key = replace(snapshot.pools[0].keys[0], reason="[red]401[/red] [link=x]")
    content = document(replace(snapshot, pools=(replace(snapshot.pools[0], keys=(key,)),)))
    assert "[red]401[/red] [link=x]" in printed(content)


def test_on_a_usual_terminal_nothing_is_folded() -> None:
    """Each limit and each client has one line of eighty characters."""
    text = printed(document(busy()), width=80)
    for words in (("team-a", "60/60s", "in 50 s"), ("shared-user", "60/60s"), ("crawler", "20%"), ("refused 9", "412")):
        assert line(text, *words)
    limits = sum(len(quota["limits"]) for pool in document(busy())["pools"] for quota in pool["quotas"])
    queues = 2
    assert len([row for row in text.splitlines() if "/60s  " in row or "/10s  " in row]) == limits + queues


def test_a_pool_tells_what_all_its_quotas_have() -> None:
    """By limit, if there are several."""
    text = printed(document(busy()))
    assert "77 of 240 (60/60s), 26 of 40 (10/10s) available, 6 in flight" in line(text, "Pool default")
    assert "211 of 300 available" in line(text, "Pool enterprise")


def test_what_is_not_there_has_no_table() -> None:
    """But a word."""
    text = printed(document(empty()))
    assert "This pool has no key" in text
    assert "no token available" in text
    assert "month left" not in text
    assert "used up" in line(printed(document(long_names())), "ready", "used up")


def test_of_many_those_are_shown_that_matter() -> None:
    """In no more lines than were asked for, and the others are counted."""
    out = StringIO()
    Console(file=out, width=100, color_system=None).print(render(document(crowd()), 10))
    text = out.getvalue()
    assert len(text.splitlines()) < 45
    assert "and 186 more quotas" in text
    assert "and 440 more active clients" in text
    assert text.count("quarantined") == 4
    assert "and 196 more keys" in text
    assert len(printed(document(crowd())).splitlines()) > 800


def test_it_fits_a_narrow_terminal() -> None:
    """No line is wider than the terminal, and no name is lost."""
    text = printed(document(busy()), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert "quarantined" in text.replace("\n", "") or "quaran" in text


@pytest.mark.parametrize("content", [{"version": 3}, {}])
def test_another_version_of_the_document_is_refused(content: dict[str, Any]) -> None:
    """Better than to show half of it, or something wrong."""
    with pytest.raises(UnknownVersion, match="reads version 2"):
        render(content)
