import json
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.model import SECOND
from keyturn.web.status.page import PAGE_PATHS, asset, status_json
from keyturn.web.status.replica_status import ClientStatus

from tests.observability.samples import AT, busy, document, quiet

DOCS = Path(__file__).parent.parent.parent.parent / "docs" / "status.md"


def leaves(value: Any, path: str = "") -> set[str]:
    """The paths of all fields of a document, lists as `[]`."""
    if isinstance(value, dict):
        return {path} | {leaf for name, inner in value.items() for leaf in leaves(inner, f"{path}.{name}".lstrip("."))}
    if isinstance(value, list):
        return {path} | {leaf for inner in value for leaf in leaves(inner, f"{path}[]")}
    return {path}


def written(path: str) -> str:
    """The name of a field, as the documentation's tables may write it."""
    return path.rpartition(".")[2].removesuffix("[]")


def test_the_document_names_its_version_and_moment() -> None:
    """A reader looks at the version first."""
    content = document(quiet())
    assert content["version"] == 2
    assert content["at"] == "2026-09-21T14:13:20.000Z"
    assert datetime.fromisoformat(content["at"]).timestamp() * SECOND == AT


def test_every_field_is_documented() -> None:
    """Each name stands in docs/status.md, marked as code."""
    text = DOCS.read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    reasons = {f"refused.{reason}" for reason in document(busy())["refused"]}
    fields = {written(path) for path in leaves(document(busy(out=True))) if path and path not in reasons}
    assert fields - named == set()


def test_tokens_are_told_in_all_their_states() -> None:
    """The number of tokens cooling down is the sum of those that return."""
    limit = document(busy())["pools"][0]["quotas"][0]["limits"][0]
    assert (limit["name"], limit["size"], limit["window"]) == ("60/60s", 60, 60.0)
    assert (limit["available"], limit["in_use"], limit["cooling_down"]) == (14, 4, 42)
    assert sum(entry["tokens"] for entry in limit["returns"]) == 42


def test_a_client_has_a_share_and_a_fair_share() -> None:
    """Fair shares follow the weights of active clients; an idle client has none."""
    clients = {client["name"]: client for client in document(busy())["pools"][0]["clients"]}
    assert clients["portal"]["fair_share"] == 0.6
    assert clients["portal"]["share"] == round(96 / 179, 4)
    assert clients["reports"]["fair_share"] is None


def test_a_client_sums_up_its_queues() -> None:
    """All waiting requests, the longest wait, and the shortest estimated wait."""
    clients = {client["name"]: client for client in document(busy())["pools"][0]["clients"]}
    crawler = clients["crawler"]
    assert (crawler["waiting"], crawler["longest_wait"], crawler["estimated_wait"]) == (158, 29.0, 1.4)
    assert crawler["queues"][1]["limits"] == ["60/60s", "10/10s"]
    assert (clients["pipeline"]["estimated_wait"], clients["pipeline"]["queues"][0]["pinned"]) == (None, "team-d")


def test_without_leases_there_are_no_shares() -> None:
    """Nothing is divided by nothing."""
    snapshot = quiet()
    pool = replace(snapshot.pools[0], clients=(ClientStatus("ci", 1, 0),))
    (client,) = document(replace(snapshot, pools=(pool,)))["pools"][0]["clients"]
    assert (client["share"], client["fair_share"], client["estimated_wait"], client["longest_wait"]) == (
        None,
        None,
        None,
        0.0,
    )


def test_what_is_not_known_is_null() -> None:
    """No reload yet, no end of a state, no month's plan."""
    content = document(quiet())
    assert content["reload"] is None
    key = content["pools"][0]["keys"][0]
    assert (key["until"], key["month_remaining"], key["reason"]) == (None, None, "")


def test_a_limit_that_is_higher_upstream_is_told() -> None:
    """With the setting that would make use of it."""
    pool = replace(quiet().pools[0], higher=[HigherLimit(0, "60/60s", 60, 300)])
    content = document(replace(quiet(), pools=(pool,)))["pools"][0]
    setting = f"pools.{pool.name}.limits[0].requests: 300"
    assert content["upstream_limits"] == [{"limit": "60/60s", "configured": 60, "reported": 300, "setting": setting}]
    assert document(quiet())["pools"][0]["upstream_limits"] == []


def text_of(path: str) -> str:
    """Return the content of one of the page's files."""
    found = asset(path)
    assert found
    return found.body.decode()


async def test_the_document_is_json_that_nobody_keeps() -> None:
    """Numbers as numbers, and no cache."""
    answer = await status_json(busy())
    assert json.loads(answer.body) == document(busy())
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", PAGE_PATHS)
def test_the_page_s_files_are_there(path: str) -> None:
    """Each with its type, guarded, and asked for anew at each visit."""
    found = asset(path)
    assert found
    assert found.body
    assert found.headers["Cache-Control"] == "no-cache"
    assert found.headers["X-Content-Type-Options"] == "nosniff"


def test_other_paths_are_no_files() -> None:
    """Nothing but the page's own files is read."""
    for path in ("/index.html", "/../status.py", "/page/status.js", ""):
        assert asset(path) is None


def test_the_policy_permits_no_inline_code_and_no_other_origin() -> None:
    """Content Security Policy, level 3."""
    found = asset("/")
    assert found
    directives = dict(part.strip().partition(" ")[::2] for part in found.headers["Content-Security-Policy"].split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["style-src"] == directives["connect-src"] == "'self'"
    assert directives["frame-ancestors"] == "'none'"
    assert "unsafe" not in found.headers["Content-Security-Policy"]


def test_the_page_needs_nothing_that_its_policy_forbids() -> None:
    """No inline script, style or handler; no address of another origin; links that work behind a path."""
    page = text_of("/")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", page)
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links
    assert "status.js" in links
    assert [link for link in links if re.match(r"[a-z]+:|/", link)] == []
    names = {path.lstrip("/") for path in PAGE_PATHS} | {"status.json", "metrics", "readyz", "#main"}
    assert set(links) <= names


SCRIPTS = [path for path in PAGE_PATHS if path.endswith(".js")]


@pytest.mark.parametrize("path", SCRIPTS)
def test_the_scripts_write_text_only(path: str) -> None:
    """Nothing that a name or a reason holds becomes markup."""
    script = text_of(path)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser", script
    )
    assert not re.search(r"https?://", script)


def test_scripts_use_only_each_other() -> None:
    """Files import each other by relative paths that exist, so the page works behind a path prefix."""
    imported = {name for path in SCRIPTS for name in re.findall(r'from "([^"]*)"', text_of(path))}
    assert {f".{path}" for path in SCRIPTS} - imported == {"./status.js"}
    assert imported < {f".{path}" for path in SCRIPTS}


def test_the_page_has_landmarks_and_says_changes_politely() -> None:
    """The page has the landmarks and names that screen readers need."""
    page = text_of("/")
    for part in ('<html lang="en">', "<header>", "<main", "<footer>", 'class="skip"', "<noscript>", 'name="viewport"'):
        assert part in page
    assert page.count("aria-live") == 1
    assert 'aria-live="polite"' in page


def test_the_style_knows_dark_screens_and_tabular_numerals() -> None:
    """Light and dark follow the reader's own choice."""
    style = text_of("/status.css")
    assert "prefers-color-scheme: dark" in style
    assert "tabular-nums" in style
    assert not re.search(r"@import|url\(", style)
