"""Fetch the status document of a running proxy, and print it once or draw it again and again."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import aiohttp
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from keyturn.core.errors import KeyturnError
from keyturn.oserrors import words
from keyturn.status_view.tables import render

STATUS_TIMEOUT = aiohttp.ClientTimeout(total=5)

StatusDocument = dict[str, Any]


class NoStatus(KeyturnError):
    """The status cannot be fetched; the message says what to do."""


class StatusClient:
    """Fetches from the admin listener at `url`: `http://host:port`, also with a path, or `unix:/path`."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        base = "http://keyturn" if url.startswith("unix:") else url.rstrip("/")
        self._target = f"{base}/status.json"

    async def fetch(self) -> StatusDocument:
        """Fetch the current document.

        Raises:
            NoStatus: there is no response, or it is not that of a proxy.
        """
        try:
            async with self._session.get(self._target, allow_redirects=False) as answer:
                found = await answer.json() if answer.ok else None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise NoStatus(f"{self._url}: not a URL. Write --url http://host:port or unix:/path.") from None
        except TimeoutError:
            raise NoStatus(f"{self._url}: no response within {STATUS_TIMEOUT.total} s. {_HINT}") from None
        except (aiohttp.ClientError, OSError, ValueError) as problem:
            raise NoStatus(f"{self._url}: {_reason(problem)}. {_HINT}") from None
        if not isinstance(found, dict) or "version" not in found:
            raise NoStatus(f"{self._url}: responds {answer.status}, and is not a Keyturn admin listener. {_HINT}")
        return found


_HINT = "Name the admin listener of a running proxy with --url."


@asynccontextmanager
async def status_client(url: str) -> AsyncIterator[StatusClient]:
    """Open a client for a while."""
    connector = aiohttp.UnixConnector(url.removeprefix("unix:")) if url.startswith("unix:") else None
    async with aiohttp.ClientSession(connector=connector, timeout=STATUS_TIMEOUT, trust_env=False) as session:
        yield StatusClient(session, url)


def _reason(problem: Exception) -> str:
    match problem:
        case aiohttp.ContentTypeError() | ValueError():
            return "the response is not that of Keyturn"
        case aiohttp.ClientConnectorError(os_error=error):
            return words(error)
        case _:
            return str(problem) or type(problem).__name__


WATCH_INTERVAL = 1.0
"""Seconds between a response and the next request."""

PIPE_WIDTH = 240
"""Width of output that does not go to a terminal: so wide that no line is folded."""


MIN_TABLE_ROWS = 2
"""Rows of a table on the smallest screen."""


def output() -> Console:
    """The console: as wide as the terminal or as `COLUMNS` says, else wide enough for every line."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH)


async def show(console: Console, url: str, *, watch: bool, as_json: bool) -> None:
    """Print the status of the proxy at `url`; with `watch` repeatedly, until cancelled.

    Raises:
        NoStatus: it cannot be fetched; with `watch` only at first, later failures are shown.
    """
    async with status_client(url) as client:
        first = await client.fetch()
        if not watch:
            console.print_json(json.dumps(first)) if as_json else console.print(render(first))
        elif as_json:
            async for document in _documents(client, first):
                if isinstance(document, dict):
                    console.out(json.dumps(document), highlight=False)
        else:
            await _draw(console, client, first)


async def _draw(console: Console, client: StatusClient, first: StatusDocument) -> None:
    """Redraw on a terminal; elsewhere print one drawing below the other."""
    shown = fitting(console, first)
    with Live(console=console, screen=True, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        async for found in _documents(client, first):
            shown, trouble = (fitting(console, found), None) if isinstance(found, dict) else (shown, found)
            drawing = _with(shown, trouble)
            live.update(drawing, refresh=True) if live else console.print(drawing)


def fitting(console: Console, document: StatusDocument) -> RenderableType:
    """Draw so that the screen is not exceeded, if possible; everything where there is no screen."""
    rows, drawing = console.height, render(document)
    if not console.is_terminal:
        return drawing
    while rows > MIN_TABLE_ROWS:
        drawing = render(document, rows)
        if len(console.render_lines(drawing)) < console.height:
            return drawing
        rows = rows * 3 // 4
    return drawing


def _with(shown: RenderableType, trouble: NoStatus | None) -> RenderableType:
    return (
        shown if trouble is None else Group(Text(f"No response, the data below is old: {trouble}", "bold red"), shown)
    )


async def _documents(client: StatusClient, first: StatusDocument) -> AsyncIterator[StatusDocument | NoStatus]:
    yield first
    while True:
        await asyncio.sleep(WATCH_INTERVAL)
        try:
            yield await client.fetch()
        except NoStatus as trouble:
            yield trouble
