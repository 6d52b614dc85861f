"""Check the status page at its extremes: nothing to show, very much, and the longest names."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from keyturn.web.status.replica_status import BucketStatus, QuotaStatus, ReplicaStatus
from playwright.sync_api import Browser, Page

from e2e.browsing import Check, Watch, check, opened
from tests.observability.extremes import KEYS, WAITING, crowd, empty, long_names
from tests.observability.samples import MINUTE, Replica, quiet, serving

SCREENS = 6
"""Heights of a large screen in which two hundred keys and five hundred clients fit."""


def extreme_checks(browser: Browser, widths: Sequence[int], folder: Path | None) -> Iterator[Check]:
    """Return all checks about extreme pages."""
    for name, snapshot in (("empty", empty()), ("crowd", crowd()), ("long", long_names())):
        yield from at_each_width(browser, name, snapshot, widths, folder)
    yield from held_back(browser)
    with serving(Replica(empty())) as url, opened(browser, url, Watch.over(url)) as page:
        bare = page.evaluate(
            "[...document.querySelectorAll('tbody')].filter((b) => b.checkVisibility() && !b.rows.length).length"
        )
        yield Check("no table without rows is shown", bare == 0, f"{bare} are")
        texts = page.locator("main").inner_text()
        missed = [text for text in ("This pool has no key.", "No client was active") if text not in texts]
        yield check("it says what there is not", missed)
    with serving(Replica(crowd())) as url, opened(browser, url, Watch.over(url)) as page:
        yield from crowd_promises(page)
    with serving(Replica(long_names())) as url, opened(browser, url, Watch.over(url)) as page:
        seen = page.locator("td[data-tone=bad]").all_inner_texts()
        yield Check("a month that is used up is told", seen == ["used up"], str(seen))


def held_back(browser: Browser) -> Iterator[Check]:
    """Check that the part of a limit that a replica without its store leaves alone is named."""
    snapshot = quiet()
    quotas = (QuotaStatus("key-1", (BucketStatus("60/60s", 60, MINUTE, 48, 1, ()),)),)
    snapshot = replace(snapshot, pools=(replace(snapshot.pools[0], quotas=quotas),))
    with serving(Replica(snapshot)) as url, opened(browser, url, Watch.over(url)) as page:
        text = page.locator(".bucket-line").inner_text()
        drawn = page.locator(".tokens .token[data-state=held]").count()
    yield Check("what is held back is told", "11 held back" in text and drawn == 11, f"{text}, {drawn} drawn")


def at_each_width(
    browser: Browser, name: str, snapshot: ReplicaStatus, widths: Sequence[int], folder: Path | None
) -> Iterator[Check]:
    """Check that no line is wider than the screen, and the console is empty."""
    overflowing = []
    with serving(Replica(snapshot)) as url:
        watch = Watch.over(url)
        for width in widths:
            with opened(browser, url, watch, width) as page:
                if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                    overflowing.append(f"{width} pixels")
                if folder:
                    page.screenshot(path=folder / f"status-{name}-{width}.png")
    yield check(f"{name}: no line is wider than the screen", overflowing)
    yield from watch.checks()


def crowd_promises(page: Page) -> Iterator[Check]:
    """Check that a few screens show the important ones of many, and all of them on demand."""
    height = page.evaluate("document.documentElement.scrollHeight / innerHeight")
    yield Check(f"many fit on {SCREENS} screens", height <= SCREENS, f"{height:.1f}")
    states = page.locator(".keys .badge").all_inner_texts()
    yield Check("keys in trouble are among those shown", states == ["quarantined"] * 4, str(states))
    for kind, number in (("keys", KEYS), ("clients", WAITING)):
        page.get_by_role("button", name="Show all").filter(has_text=kind).click()
        page.get_by_role("button", name="Show fewer").first.wait_for()
        rows = page.locator(".keys tbody tr" if kind == "keys" else ".pool tbody tr:not(.has-badge)").count()
        yield Check(f"all {kind} are shown on demand", rows == number, f"{rows} of {number}")
        page.get_by_role("button", name="Show fewer").first.click()
