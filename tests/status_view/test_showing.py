import asyncio
import json
from io import StringIO

import pytest
from keyturn.status_view import showing
from keyturn.status_view.asking import NoStatus
from rich.console import Console

from tests.observability.extremes import crowd
from tests.observability.samples import Replica, busy, document, quiet, serving


class Screen:
    """A terminal or a file, without colours, and what has been written to it."""

    def __init__(self, *, terminal: bool = False) -> None:
        self._out = StringIO()
        self.console = Console(file=self._out, width=140, height=60, color_system=None, force_terminal=terminal)

    @property
    def text(self) -> str:
        return self._out.getvalue()


async def watched(screen: Screen, url: str, *, until: str, as_json: bool = False) -> None:
    """Watch until something is on the screen, as with Ctrl-C then."""
    watching = asyncio.create_task(showing.show(screen.console, url, watch=True, as_json=as_json))  # noqa: TID251  # ended below
    async with asyncio.timeout(30):
        while until not in screen.text and not watching.done():
            await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert until in screen.text


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second between two questions."""
    monkeypatch.setattr(showing, "EVERY", 0.01)


async def test_it_is_shown_once() -> None:
    """As tables."""
    screen = Screen()
    with serving(Replica(busy(), quiet())) as url:
        await showing.show(screen.console, url, watch=False, as_json=False)
    assert "Pool enterprise" in screen.text


async def test_the_document_is_shown_itself() -> None:
    """For other programs."""
    screen = Screen()
    with serving(Replica(busy())) as url:
        await showing.show(screen.console, url, watch=False, as_json=True)
    assert json.loads(screen.text) == document(busy())


@pytest.mark.parametrize("terminal", [True, False])
async def test_a_watcher_sees_changes(terminal: bool) -> None:
    """Each drawing is what the proxy says then; into a file they go one below the other."""
    screen = Screen(terminal=terminal)
    with serving(Replica(quiet(), busy(), busy(lost=True))) as url:
        await watched(screen, url, until="no answer within 500 ms")


async def test_a_watcher_gets_one_document_in_each_line() -> None:
    """So that a program can follow it."""
    screen = Screen()
    with serving(Replica(quiet(), busy())) as url:
        await watched(screen, url, until="enterprise", as_json=True)
    first, second = screen.text.splitlines()[:2]
    assert (json.loads(first), json.loads(second)) == (document(quiet()), document(busy()))


@pytest.mark.parametrize("terminal", [True, False])
async def test_a_watcher_stays_when_the_proxy_goes_away(terminal: bool) -> None:
    """What was seen last stays on the screen and is called old."""
    screen = Screen(terminal=terminal)
    replica = Replica(busy())
    with serving(replica) as url:
        watching = asyncio.create_task(watched(screen, url, until="this is old"))  # noqa: TID251  # awaited below
        while not replica.asked:
            await asyncio.sleep(0.01)
        replica.failing = True
        await watching
    assert "team-a" in screen.text.partition("this is old")[2]


@pytest.mark.parametrize("height", [24, 60])
async def test_what_is_watched_fits_on_the_screen(height: int) -> None:
    """However many keys and clients there are; those in trouble are seen."""
    console = Console(file=StringIO(), width=100, height=height, color_system=None, force_terminal=True)
    lines = console.render_lines(showing.fitting(console, document(crowd())))
    text = "\n".join("".join(segment.text for segment in line) for line in lines)
    assert len(lines) < height
    assert "quarantined" in text
    assert "more active clients" in text


async def test_what_goes_to_no_terminal_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program reads it by lines; `COLUMNS` says otherwise."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert showing.output().width == showing.WIDE
    monkeypatch.setenv("COLUMNS", "70")
    assert showing.output().width == 70


async def test_without_a_proxy_there_is_nothing_to_watch() -> None:
    """The first question has to be answered."""
    with pytest.raises(NoStatus):
        await showing.show(Screen().console, "unix:/nowhere", watch=True, as_json=False)
