import json
import re

import pytest
from keyturn.web.status.page import PAGE_PATHS, asset, status_json

from tests.observability.samples import busy, document


def text_of(path: str) -> str:
    """What is in a file of the page."""
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
    """What one takes from another is there, by a relative path: the page works behind a path of a proxy's."""
    imported = {name for path in SCRIPTS for name in re.findall(r'from "([^"]*)"', text_of(path))}
    assert {f".{path}" for path in SCRIPTS} - imported == {"./status.js"}
    assert imported < {f".{path}" for path in SCRIPTS}


def test_the_page_has_landmarks_and_says_changes_politely() -> None:
    """What a screen reader steers by."""
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
