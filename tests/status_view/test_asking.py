import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from keyturn.status_view.asking import NoStatus, asker

from tests.observability.samples import Replica, busy, document, serving


async def told(url: str) -> str:
    """What is said when there is no status."""
    async with asker(url) as who:
        with pytest.raises(NoStatus) as refused:
            await who.ask()
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
        async with asker(url.rstrip("/") + end) as who:
            assert await who.ask() == document(busy())
    assert replica.asked == ["/status.json"]


async def test_an_admin_listener_may_be_a_socket(tmp_path: Path) -> None:
    """By its path, as `admin:` names it."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"version": 2, "path": request.path})

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "admin")).start()
    async with asker(f"unix:{tmp_path / 'admin'}") as who:
        assert await who.ask() == {"version": 2, "path": "/status.json"}
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
    assert await told(url) == f"{url}: no URL. Write --url http://host:port or unix:/path."


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
