"""Check the status page over two minutes of a running `keyturn demo`."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

from keyturn.demo import ADMIN_TOKEN, REVOKED
from playwright.sync_api import Browser, Page

from e2e.browsing import Check, Watch, appears, opened

KEYTURN = Path(sys.executable).with_name("keyturn")
START_SECONDS = 30
STORY_SECONDS = 240
"""Seconds in which a key is revoked, the crawler's requests come and go, and both happen at once."""

QUEUE = 5
"""Waiting requests from which on a picture is taken."""

LOOK = 0.5
"""Seconds between two reads of the page."""


class Addresses(NamedTuple):
    """Where the demo listens, with closing slashes."""

    data: str
    admin: str


@contextmanager
def demo() -> Iterator[Addresses]:
    """Run the real command."""
    ports = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    with subprocess.Popen([KEYTURN, "demo", *ports], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            ready = next((line for line in process.stderr if line.startswith("ready ")), "")
            told = dict(part.split("=", 1) for part in ready.split()[1:])
            yield Addresses(f"{told['data']}/", f"{told['admin']}/")
        finally:
            process.terminate()
            process.communicate(timeout=START_SECONDS)


@dataclass
class Story:
    """What the page has shown so far."""

    available: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    states: set[str] = field(default_factory=set)
    """Of keys, at any time."""
    in_full: bool = False
    """Whether a key is quarantined, many wait, and tokens of all ages are there, just now."""

    def look(self, page: Page) -> None:
        """Read the page once."""
        self.available.append(sum(map(int, page.locator(".bucket-line strong").all_inner_texts())))
        tile = page.locator("#overview > div", has_text="Waiting").locator("dd").first
        self.waiting.append(int(tile.inner_text().replace(",", "")))
        states = page.locator("tr.has-badge .badge").all_inner_texts()
        self.states |= set(states)
        soon = page.locator('.token[data-near="3"], .token[data-state="available"]').count()
        self.in_full = "quarantined" in states and self.waiting[-1] > QUEUE and soon > QUEUE

    def told(self) -> dict[str, bool]:
        """Return the parts of the story that have been seen."""
        return {
            "tokens are spent": falls(self.available),
            "tokens come back": rises(self.available),
            "a queue grows": rises(self.waiting),
            "a queue shrinks": falls(self.waiting),
            "a key is quarantined": "quarantined" in self.states,
        }


def rises(numbers: Sequence[int]) -> bool:
    """Return whether one value is larger than the one before."""
    return any(later > earlier for earlier, later in pairwise(numbers))


def falls(numbers: Sequence[int]) -> bool:
    """Return whether one value is smaller than the one before."""
    return rises([-number for number in numbers])


def pause(url: str, key: str) -> int:
    """Pause a key by the demo's own token; return the status of the answer."""
    call = Request(  # the loopback
        f"{url}keys/default/{key}/pause", method="POST", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}
    )
    with urlopen(call, timeout=START_SECONDS) as answer:  # the loopback
        return int(answer.status)


def watched(page: Page, picture: Callable[[Page], None] | None) -> tuple[Story, bool]:
    """Read the page until the whole story has been seen, or time is up; return whether a picture was taken."""
    story, end, taken = Story(), time.monotonic() + STORY_SECONDS, picture is None
    while time.monotonic() < end and not (taken and all(story.told().values())):
        story.look(page)
        if picture and not taken and story.in_full:
            picture(page)
            taken = True
        page.wait_for_timeout(1000 * LOOK)
    return story, taken


def demo_checks(browser: Browser, picture: Callable[[Page], None] | None) -> Iterator[Check]:
    """Return all checks about the page over the demo."""
    with demo() as (_, url):
        watch = Watch.over(url)
        with opened(browser, url, watch) as page:
            yield Check("each token is drawn", page.locator(".token[data-state]").count() >= 60, "tokens")
            story, taken = watched(page, picture)
            yield Check("there is a picture, if one is wanted", taken, span(story))
            for part, seen in story.told().items():
                yield Check(f"in the demo {part}", seen, span(story))
            yield Check("a key can be paused", pause(url, "team-a") == 200, "200")
            missed = appears(page, "tr.has-badge .badge", "paused")
            yield Check("a paused key is shown", not missed, missed)
            missed = appears(page, "#announcer", "Key team-a is paused")
            yield Check("and said", not missed, missed)
        yield from watch.checks()
        with urlopen(f"{url}status.json", timeout=START_SECONDS) as answer:  # the loopback
            keys = json.load(answer)["pools"][0]["keys"]
    reasons = {key["name"]: key["reason"] for key in keys}
    yield Check("the paused key says why", bool(re.search("operator", reasons["team-a"])), reasons["team-a"])
    yield Check("there is a key to lose", REVOKED in reasons, ", ".join(reasons))


def span(story: Story) -> str:
    """Return what was seen, in short."""
    available, waiting = story.available, story.waiting
    return f"{min(available)} to {max(available)} available, {min(waiting)} to {max(waiting)} waiting"
