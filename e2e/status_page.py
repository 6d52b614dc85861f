"""Check the status page in a real browser: over a running demo, a made-up replica, or at any address.

    python -m e2e.status_page                                  the demo and a made-up replica: all checks
    python -m e2e.status_page --url http://127.0.0.1:9090/     a running one: the checks that hold for every replica
    python -m e2e.status_page --screenshots FOLDER             pictures, 1280, 768 and 390 pixels wide, light and dark

Needs Chromium (`--chromium`, or one in the PATH) and Python's playwright. Exits with 1 when a check fails.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page
from playwright.sync_api import Error as BrowserError

from e2e.browsing import (
    CONTRAST,
    WIDTH,
    Check,
    Scheme,
    Watch,
    appears,
    browsing,
    check,
    chromium,
    faint_texts,
    opened,
)
from e2e.demo_page import demo_checks
from e2e.extreme_pages import extreme_checks
from tests.observability.samples import Replica, busy, serving

WIDTHS = (WIDTH, 768, 390)
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def every_replica(browser: Browser, url: str, folder: Path | None) -> Iterator[Check]:
    """Return the checks that hold for each replica, at each width and in each scheme."""
    watch = Watch.over(url)
    overflowing: list[str] = []
    unnamed: list[str] = []
    faint: list[str] = []
    grounds: dict[str, str] = {}
    for width in WIDTHS:
        for scheme in SCHEMES:
            with opened(browser, url, watch, width, scheme) as page:
                name = f"{width} pixels, {scheme}"
                if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                    overflowing.append(name)
                grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
                unnamed += unnamed_parts(page, name)
                faint += faint_texts(page, name)
                if folder:
                    page.screenshot(path=folder / f"status-{width}-{scheme}.png", full_page=True)
    yield check("no line is wider than the screen", overflowing)
    yield Check("dark and light differ", len(set(grounds.values())) == len(SCHEMES), str(grounds))
    yield check("what is focused, drawn or tabular has a name", unnamed)
    yield check(f"every text has a contrast of {CONTRAST} to its ground", faint)
    yield from keyboard(browser, url, watch)
    yield from watch.checks()


def unnamed_parts(page: Page, where: str) -> list[str]:
    """Return the parts that have no name for a screen reader, by the browser's own computation."""
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('[role=img],[role=table],[role=region],button,main,section')]
        .filter((part) => !part.hidden && !(part.getAttribute('aria-label') || part.textContent.trim()
            || document.getElementById(part.getAttribute('aria-labelledby') || '')))
        .map((part) => part.outerHTML.slice(0, 80))"""
    )
    return [f"{where}: {part}" for part in nameless]


def keyboard(browser: Browser, url: str, watch: Watch) -> Iterator[Check]:
    """Check that the first stop skips to the status, and that the pause is pressed without a mouse."""
    with opened(browser, url, watch) as page:
        page.keyboard.press("Tab")
        first = page.evaluate("document.activeElement.className")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        word = page.locator("#pause").inner_text()
    yield Check("the keyboard reaches everything", (first, word) == ("skip", "Resume updates"), f"{first}, {word}")


def shown(page: Page, text: str) -> str:
    """Return nothing when the text is shown in time."""
    return appears(page, "body", text)


def announced(page: Page, text: str) -> str:
    """Return nothing when screen readers are told in time."""
    return appears(page, "#announcer", text)


def made_up_replica(browser: Browser, url: str, replica: Replica) -> Iterator[Check]:
    """Return checks about changes of a replica's state, with made-up answers."""
    watch = Watch.over(url)
    replica.snapshots[:] = [busy(quarantined=False)]
    with opened(browser, url, watch) as page:
        yield Check("each token is drawn", page.locator(".token[data-state]").count() > 0, "tokens")
        available = page.locator(".quota >> nth=0 >> .bucket-line strong >> nth=0").inner_text()
        replica.snapshots[:] = [busy(2)]
        yield Check("a queue grows", not (missed := shown(page, "154")), missed)
        now = page.locator(".quota >> nth=0 >> .bucket-line strong >> nth=0").inner_text()
        yield Check("tokens come back", now != available, f"{available}, then {now}")
        yield Check(
            "a key that is quarantined is said", not (missed := announced(page, "Key team-d is quarantined")), missed
        )
        replica.snapshots[:] = [busy(3, lost=True)]
        yield Check("a lost store is shown", not (missed := shown(page, "Ready, store lost")), missed)
        for text in (
            "The store does not respond: no answer within 500 ms",
            "rejected; the previous one stays in effect: clients",
        ):
            yield Check(f"in words, {text[:9]}…", not (missed := appears(page, "#notices", text)), missed)
        yield Check("and said", not (missed := announced(page, "The store is lost")), missed)
        replica.snapshots[:] = [busy(4, out=True)]
        yield Check("an outage is shown", not (missed := shown(page, "failing for 20 s: 503 three")), missed)
    yield check("no complaint on the console", watch.complaints)
    yield from staleness(browser, url, replica)


def staleness(browser: Browser, url: str, replica: Replica) -> Iterator[Check]:
    """Check that old data are marked, and that a page is fresh when it is shown again."""
    watch = Watch.over(url)
    with opened(browser, url, watch) as page:
        replica.failing = True
        yield Check("old data are called old", not (missed := shown(page, "The data shown is")), missed)
        yield check("and can be read", faint_texts(page, "old"))
        replica.failing = False
        yield Check("the end of that is said", not (missed := announced(page, "up to date again")), missed)
        page.locator("#problem").wait_for(state="hidden")
        page.get_by_role("button", name="Pause updates").click()
        appears(page, "#fresh", "paused at")
        asked = len(replica.asked)
        page.wait_for_timeout(2500)
        more = len(replica.asked) - asked
        yield Check("a paused page asks nothing", more == 0, f"asked {more} times")
        missed = resumed(page)
    yield Check("it resumes", not missed, missed)


def resumed(page: Page) -> str:
    """Press the button; return nothing when the page asks again in time."""
    try:
        with page.expect_request("**/status.json"):
            page.get_by_role("button", name="Resume updates").click()
    except BrowserError:
        return "it asks nothing"
    return ""


def every_promise(browser: Browser, url: str | None, folder: Path | None, picture: Path | None) -> Iterator[Check]:
    """Return the checks of the address, else those of the demo and of a made-up replica."""
    if url is not None:
        yield from every_replica(browser, url, folder)
        return
    replica = Replica(busy())
    with serving(replica) as address:
        yield from every_replica(browser, address, folder)
        yield from made_up_replica(browser, address, replica)
    yield from extreme_checks(browser, WIDTHS, folder)
    yield from demo_checks(browser, None if picture is None else lambda page: take(page, picture))


def take(page: Page, picture: Path) -> None:
    """Take a picture of the screen."""
    page.screenshot(path=picture)


def main() -> None:
    """Read the arguments, run, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the admin listener of a running Keyturn [the demo, and a made-up replica]")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="where to write pictures [none]")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where to write the demo's picture [none]")
    parser.add_argument("--chromium", default=chromium())
    arguments = parser.parse_args()
    if not arguments.chromium:
        sys.exit(
            "No Chromium on this machine: install it (Debian: `apt-get install chromium`) or name it by --chromium."
        )
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    broken = False
    with browsing(arguments.chromium) as browser:
        for one in every_promise(browser, arguments.url, arguments.screenshots, arguments.picture):
            print(f"{'kept  ' if one.kept else 'BROKEN'} {one.text}: {one.seen or 'yes'}", flush=True)
            broken = broken or not one.kept
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
