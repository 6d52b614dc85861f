import asyncio
import json
from io import StringIO

import pytest
from rich.console import Console

from proxy.status_view import showing
from proxy.status_view.asking import NoStatus
from proxy.web.status.document import document
from tests.observability.samples import Replica, busy, quiet, serving


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


async def test_without_a_proxy_there_is_nothing_to_watch() -> None:
    """The first question has to be answered."""
    with pytest.raises(NoStatus):
        await showing.show(Screen().console, "unix:/nowhere", watch=True, as_json=False)
