import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from keyturn.status_view import status_command
from keyturn.status_view.status_command import NoStatus, status_client
from rich.console import Console

from tests.observability.extremes import crowd
from tests.observability.samples import Replica, busy, document, quiet, serving


async def told(url: str) -> str:
    """The message when there is no status."""
    async with status_client(url) as who:
        with pytest.raises(NoStatus) as refused:
            await who.fetch()
    return str(refused.value)


@asynccontextmanager
async def answering(answer: web.Response) -> AsyncIterator[str]:
    """A server that is no proxy."""

    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        return answer

    async with RawTestServer(handle) as server:
        yield str(server.make_url("/"))


@pytest.mark.parametrize("end", ["", "/", "//"])
async def test_the_document_is_asked_for_below_the_address(end: str) -> None:
    """However many slashes the address ends with."""
    replica = Replica(busy())
    with serving(replica) as url:
        async with status_client(url.rstrip("/") + end) as who:
            assert await who.fetch() == document(busy())
    assert replica.asked == ["/status.json"]


async def test_an_admin_listener_may_be_a_socket(tmp_path: Path) -> None:
    """By its path, as `admin:` names it."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"version": 2, "path": request.path})

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "admin")).start()
    async with status_client(f"unix:{tmp_path / 'admin'}") as who:
        assert await who.fetch() == {"version": 2, "path": "/status.json"}
    await runner.cleanup()


async def test_nobody_listens_there() -> None:
    """The system's own words, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert await told(url) == (f"{url}: connection refused. Name the admin listener of a running proxy with --url.")
    assert "no such file or directory" in await told("unix:/nowhere")


@pytest.mark.parametrize("url", ["127.0.0.1", "ftp://127.0.0.1/", "http://", "http://a:b/"])
async def test_what_is_no_url_is_said(url: str) -> None:
    """And what one looks like."""
    assert await told(url) == f"{url}: not a URL. Write --url http://host:port or unix:/path."


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(text="<html>"),
        web.json_response([1]),
        web.json_response({"error": {}}),
        web.Response(status=404),
        web.Response(text="{", content_type="application/json"),
    ],
    ids=["a page", "a list", "another document", "not found", "broken"],
)
async def test_something_else_listens_there(answer: web.Response) -> None:
    """One line, whatever it answers."""
    async with answering(answer) as url:
        assert "--url" in await told(url)


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
    watching = asyncio.create_task(status_command.show(screen.console, url, watch=True, as_json=as_json))  # noqa: TID251  # ended below
    async with asyncio.timeout(30):
        while until not in screen.text and not watching.done():
            await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert until in screen.text


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second between two questions."""
    monkeypatch.setattr(status_command, "WATCH_INTERVAL", 0.01)


async def test_it_is_shown_once() -> None:
    """As tables."""
    screen = Screen()
    with serving(Replica(busy(), quiet())) as url:
        await status_command.show(screen.console, url, watch=False, as_json=False)
    assert "Pool enterprise" in screen.text


async def test_the_document_is_shown_itself() -> None:
    """For other programs."""
    screen = Screen()
    with serving(Replica(busy())) as url:
        await status_command.show(screen.console, url, watch=False, as_json=True)
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
    """The last document stays on the screen, marked as old."""
    screen = Screen(terminal=terminal)
    replica = Replica(busy())
    with serving(replica) as url:
        watching = asyncio.create_task(watched(screen, url, until="the data below is old"))  # noqa: TID251  # awaited below
        while not replica.asked:
            await asyncio.sleep(0.01)
        replica.failing = True
        await watching
    assert "team-a" in screen.text.partition("the data below is old")[2]


@pytest.mark.parametrize("height", [24, 60])
async def test_what_is_watched_fits_on_the_screen(height: int) -> None:
    """However many keys and clients there are; those in trouble are seen."""
    console = Console(file=StringIO(), width=100, height=height, color_system=None, force_terminal=True)
    lines = console.render_lines(status_command.fitting(console, document(crowd())))
    text = "\n".join("".join(segment.text for segment in line) for line in lines)
    assert len(lines) < height
    assert "quarantined" in text
    assert "more active clients" in text


async def test_what_goes_to_no_terminal_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program reads it by lines; `COLUMNS` says otherwise."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert status_command.output().width == status_command.PIPE_WIDTH
    monkeypatch.setenv("COLUMNS", "70")
    assert status_command.output().width == 70


async def test_without_a_proxy_there_is_nothing_to_watch() -> None:
    """The first question has to be answered."""
    with pytest.raises(NoStatus):
        await status_command.show(Screen().console, "unix:/nowhere", watch=True, as_json=False)
