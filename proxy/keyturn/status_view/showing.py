"""Printing the status once, or drawing it again and again until the reader has seen enough."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import nullcontext

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from keyturn.status_view.asking import Asker, Document, NoStatus, asker
from keyturn.status_view.tables import render

EVERY = 1.0
"""Seconds between an answer and the next question."""

WIDE = 240
"""Characters of a line that goes to no terminal: so many that none is folded."""


FEWEST = 2
"""Rows of a table that are shown on the smallest screen."""


def output() -> Console:
    """Where the status goes: as wide as the terminal, or as what is asked for by `COLUMNS`, else wide enough."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)


async def show(console: Console, url: str, *, watch: bool, as_json: bool) -> None:
    """Print the status of the proxy at `url`; with `watch` for ever, one document or drawing after another.

    Raises:
        NoStatus: there is none; with `watch` only at the first try, later it is shown and tried again.
    """
    async with asker(url) as who:
        first = await who.ask()
        if not watch:
            console.print_json(json.dumps(first)) if as_json else console.print(render(first))
        elif as_json:
            async for document in _documents(who, first):
                if isinstance(document, dict):
                    console.out(json.dumps(document), highlight=False)
        else:
            await _draw(console, who, first)


async def _draw(console: Console, who: Asker, first: Document) -> None:
    """Draw over what was drawn before; where nothing can be drawn over, one below the other."""
    shown = fitting(console, first)
    with Live(console=console, screen=True, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        async for found in _documents(who, first):
            shown, trouble = (fitting(console, found), None) if isinstance(found, dict) else (shown, found)
            drawing = _with(shown, trouble)
            live.update(drawing, refresh=True) if live else console.print(drawing)


def fitting(console: Console, document: Document) -> RenderableType:
    """A drawing that is no higher than the screen, if it can be; all of it where there is no screen."""
    rows, drawing = console.height, render(document)
    if not console.is_terminal:
        return drawing
    while rows > FEWEST:
        drawing = render(document, rows)
        if len(console.render_lines(drawing)) < console.height:
            return drawing
        rows = rows * 3 // 4
    return drawing


def _with(shown: RenderableType, trouble: NoStatus | None) -> RenderableType:
    return shown if trouble is None else Group(Text(f"No answer now, this is old: {trouble}", "bold red"), shown)


async def _documents(who: Asker, first: Document) -> AsyncIterator[Document | NoStatus]:
    yield first
    while True:
        await asyncio.sleep(EVERY)
        try:
            yield await who.ask()
        except NoStatus as trouble:
            yield trouble
