"""A page in headless Chromium, and checks that hold for every page."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, Request, sync_playwright
from playwright.sync_api import Error as BrowserError

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
Scheme = Literal["light", "dark"]

WIDTH = 1280
HEIGHT = 860
PATIENCE = 10_000  # ms for whatever the page has to show
CONTRAST = 4.5
"""Least contrast that WCAG 2.2 (1.4.3, level AA) requires of text that is not large."""

FAINT = """(least) => {
    const numbers = (colour) => [...colour.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
    const channel = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) =>
        0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
    const contrast = (one, other) => {
        const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const faint = [];
    for (const part of document.querySelectorAll("body *")) {
        const says = [...part.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!says || !part.getClientRects().length || part.closest(".unseen, .skip, noscript")) continue;
        let ground = null, opacity = 1;
        for (let above = part; above; above = above.parentElement) {
            const style = getComputedStyle(above);
            opacity *= Number(style.opacity);
            const colour = numbers(style.backgroundColor);
            if (!ground && colour[3] === 1) ground = colour;
        }
        const ink = numbers(getComputedStyle(part).color).map((v, i) => v * opacity + ground[i] * (1 - opacity));
        const found = contrast(ink, ground);
        if (found < least) faint.push(`${found.toFixed(2)} ${part.textContent.trim().slice(0, 30)}`);
    }
    return faint;
}"""


@dataclass(frozen=True)
class Check:
    """One expectation: its text, whether it was met, and what was seen."""

    text: str
    kept: bool
    seen: str


def check(text: str, seen: Sequence[str]) -> Check:
    """Return a check that passes when nothing was seen."""
    return Check(text, not seen, "; ".join(seen[:3]) or "none")


@dataclass
class Watch:
    """The messages of a page's console, and the requests that it made."""

    origin: str
    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    @classmethod
    def over(cls, url: str) -> "Watch":
        """Watch a page at this address."""
        parts = urlsplit(url)
        return cls(f"{parts.scheme}://{parts.netloc}")

    def follow(self, page: Page) -> None:
        """Record everything from now on."""
        page.on(
            "console", lambda line: self.complaints.append(line.text) if line.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._requested)

    def _requested(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme != "data" and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.strangers.append(request.url)

    def checks(self) -> Iterator[Check]:
        """Return the checks that nothing was recorded."""
        yield check("no complaint on the console", self.complaints)
        yield check("no request to another origin", self.strangers)


def chromium() -> str | None:
    """Return the path of a Chromium on this machine."""
    return shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def browsing(program: str) -> Iterator[Browser]:
    """Start a browser with a new, empty profile."""
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=program, args=list(FLAGS)) as browser,
    ):
        yield browser


@contextmanager
def opened(browser: Browser, url: str, watch: Watch, width: int = WIDTH, scheme: Scheme = "light") -> Iterator[Page]:
    """Open a page and wait until it is drawn."""
    page = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    watch.follow(page)
    try:
        page.goto(url)
        page.wait_for_selector("#overview dd")
        yield page
    finally:
        page.close()


def appears(page: Page, selector: str, text: str, *, within: int = PATIENCE) -> str:
    """Return nothing when an element with this text appears in time (ms), else what was missed."""
    try:
        page.locator(selector, has_text=text).first.wait_for(state="attached", timeout=within)
    except BrowserError:
        return f"never: {text}"
    return ""


def faint_texts(page: Page, where: str) -> list[str]:
    """Return texts of too little contrast, by the colours and opacities that the browser computes."""
    return [f"{where}: {text}" for text in page.evaluate(FAINT, CONTRAST)]
