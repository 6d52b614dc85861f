"""The status page in a real browser: headless Chromium, on any admin address or on a made-up replica.

    python -m e2e.status_page                                  a made-up replica: all promises
    python -m e2e.status_page --url http://127.0.0.1:9090/     a running one: the promises that hold for every replica
    python -m e2e.status_page --screenshots FOLDER             pictures, 1280 and 390 pixels wide, light and dark

Needs Chromium (`--chromium`, or one in the PATH) and Python's playwright. Exits with 1 when a promise is broken.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, Request, sync_playwright
from playwright.sync_api import Error as BrowserError

from tests.observability.samples import Replica, busy, serving

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
Scheme = Literal["light", "dark"]

WIDTHS = (1280, 390)
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
HEIGHT = 860
PATIENCE = 10_000  # ms for whatever the page has to show


@dataclass(frozen=True)
class Promise:
    """What is promised, whether it was kept, and what was seen."""

    text: str
    kept: bool
    seen: str


@dataclass
class Watch:
    """What a page said to its console, and whom it asked."""

    origin: str
    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        """Take down everything from now on."""
        page.on(
            "console", lambda line: self.complaints.append(line.text) if line.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._requested)

    def _requested(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme != "data" and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.strangers.append(request.url)


def promise(text: str, seen: Sequence[str]) -> Promise:
    """A promise that holds when nothing was seen."""
    return Promise(text, not seen, "; ".join(seen[:3]) or "none")


@contextmanager
def opened(
    browser: Browser, url: str, watch: Watch, width: int = WIDTHS[0], scheme: Scheme = "light"
) -> Iterator[Page]:
    """The page, drawn for the first time."""
    page = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    watch.follow(page)
    try:
        page.goto(url)
        page.wait_for_selector("#overview dd")
        yield page
    finally:
        page.close()


def every_replica(browser: Browser, url: str, folder: Path | None) -> Iterator[Promise]:
    """What holds for each replica, at each width and in each scheme."""
    parts = urlsplit(url)
    watch = Watch(f"{parts.scheme}://{parts.netloc}")
    overflowing: list[str] = []
    unnamed: list[str] = []
    grounds: dict[str, str] = {}
    for width in WIDTHS:
        for scheme in SCHEMES:
            with opened(browser, url, watch, width, scheme) as page:
                name = f"{width} pixels, {scheme}"
                if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                    overflowing.append(name)
                grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
                unnamed += unnamed_parts(page, name)
                if folder:
                    page.screenshot(path=folder / f"status-{width}-{scheme}.png", full_page=True)
    yield promise("no line is wider than the screen", overflowing)
    yield Promise("dark and light differ", len(set(grounds.values())) == len(SCHEMES), str(grounds))
    yield promise("what is focused, drawn or tabular has a name", unnamed)
    yield from keyboard(browser, url, watch)
    yield promise("no complaint on the console", watch.complaints)
    yield promise("no request to another origin", watch.strangers)


def unnamed_parts(page: Page, where: str) -> list[str]:
    """Parts that a screen reader meets without a name, by the browser's own computation."""
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('[role=img],[role=table],[role=region],button,main,section')]
        .filter((part) => !part.hidden && !(part.getAttribute('aria-label') || part.textContent.trim()
            || document.getElementById(part.getAttribute('aria-labelledby') || '')))
        .map((part) => part.outerHTML.slice(0, 80))"""
    )
    return [f"{where}: {part}" for part in nameless]


def keyboard(browser: Browser, url: str, watch: Watch) -> Iterator[Promise]:
    """The first stop skips to the status; the pause is reached and pressed without a mouse."""
    with opened(browser, url, watch) as page:
        page.keyboard.press("Tab")
        first = page.evaluate("document.activeElement.className")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        word = page.locator("#pause").inner_text()
    yield Promise("the keyboard reaches everything", (first, word) == ("skip", "Resume"), f"{first}, {word}")


def appears(page: Page, selector: str, text: str) -> str:
    """Empty when an element with this text comes up in time, else what was missed."""
    try:
        page.locator(selector, has_text=text).first.wait_for(state="attached")
    except BrowserError:
        return f"never: {text}"
    return ""


def shown(page: Page, text: str) -> str:
    """Empty when the text is shown in time."""
    return appears(page, "body", text)


def announced(page: Page, text: str) -> str:
    """Empty when it is said to screen readers in time."""
    return appears(page, "#announcer", text)


def made_up_replica(browser: Browser, url: str, replica: Replica) -> Iterator[Promise]:
    """What is seen when a replica's state changes; the answers of this one are ours."""
    watch = Watch(url.rstrip("/"))
    replica.snapshots[:] = [busy(quarantined=False)]
    with opened(browser, url, watch) as page:
        yield Promise("each token is drawn", page.locator(".token[data-state]").count() > 0, "tokens")
        at_hand = page.locator(".quota >> nth=0 >> .bucket-line strong >> nth=0").inner_text()
        replica.snapshots[:] = [busy(2)]
        yield Promise("a lane grows", not (missed := shown(page, "154")), missed)
        now = page.locator(".quota >> nth=0 >> .bucket-line strong >> nth=0").inner_text()
        yield Promise("tokens come back", now != at_hand, f"{at_hand}, then {now}")
        yield Promise(
            "a key that is quarantined is said", not (missed := announced(page, "Key team-d is quarantined")), missed
        )
        replica.snapshots[:] = [busy(3, lost=True)]
        yield Promise("a lost store is shown", not (missed := shown(page, "Ready, without its store")), missed)
        yield Promise("and said", not (missed := announced(page, "The store is lost")), missed)
    yield promise("no complaint on the console", watch.complaints)
    yield from staleness(browser, url, replica)


def staleness(browser: Browser, url: str, replica: Replica) -> Iterator[Promise]:
    """Old data are called old, and a page that is looked at again is fresh again."""
    watch = Watch(url.rstrip("/"))
    with opened(browser, url, watch) as page:
        replica.failing = True
        yield Promise("old data are called old", not (missed := shown(page, "What is shown is")), missed)
        replica.failing = False
        page.locator("#problem").wait_for(state="hidden")
        page.get_by_role("button", name="Pause").click()
        appears(page, "#fresh", "paused at")
        asked = len(replica.asked)
        page.wait_for_timeout(2500)
        more = len(replica.asked) - asked
        yield Promise("a paused page asks nothing", more == 0, f"asked {more} times")
        page.get_by_role("button", name="Resume").click()
        appears(page, "#fresh", "as of")
    yield Promise("it resumes", len(replica.asked) > asked, f"asked {len(replica.asked) - asked} times")


def run(chromium: str, url: str | None, folder: Path | None) -> bool:
    """Look at the page; whether all promises were kept."""
    replica = Replica(busy())
    with (
        serving(replica) if url is None else nullcontext(url) as address,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=list(FLAGS)) as browser,
    ):
        promises = list(every_replica(browser, address, folder))
        if url is None:
            promises += made_up_replica(browser, address, replica)
    for one in promises:
        print(f"{'kept  ' if one.kept else 'BROKEN'} {one.text}: {one.seen or 'yes'}")
    return all(one.kept for one in promises)


def main() -> None:
    """Read the arguments, run, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the admin listener of a running Keyturn [a made-up replica]")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="where to write pictures [none]")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    arguments = parser.parse_args()
    if not arguments.chromium:
        sys.exit(
            "No Chromium on this machine: install it (Debian: `apt-get install chromium`) or name it by --chromium."
        )
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if run(arguments.chromium, arguments.url, arguments.screenshots) else 1)


if __name__ == "__main__":
    main()
