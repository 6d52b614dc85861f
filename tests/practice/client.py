"""Shared parts of the practice API's tests: a key, a clock that stands still, and a caller over a real socket."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import ClientSession, TCPConnector
from keyturn.practice import PracticeApi, PracticeSettings
from yarl import URL

KEY = "PMAK-practice-1"
OTHER = "PMAK-practice-2"
UNKNOWN = "PMAK-nobody-knows"


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the instant that it was set to, in seconds."""
        return self.now


def exact(path: str) -> URL:
    """Return a path that the client sends unchanged."""
    return URL(path, encoded=True)


def trusting(api: PracticeApi) -> ssl.SSLContext | bool:
    """Return the TLS context that trusts this API."""
    return ssl.create_default_context(cadata=api.ca_pem.decode()) if api.ca_pem else True


@asynccontextmanager
async def session_of(api: PracticeApi, key: str = KEY, *, raw: bool = False) -> AsyncIterator[ClientSession]:
    """Return a session that sends `key` to that API; a raw one shows bodies as they were sent."""
    headers = {"X-Api-Key": key} if key else {}
    connector = TCPConnector(ssl=trusting(api))
    async with ClientSession(api.url, headers=headers, connector=connector, auto_decompress=not raw) as session:
        yield session


@asynccontextmanager
async def practising(clock: Clock | None = None, **settings: Any) -> AsyncIterator[tuple[PracticeApi, ClientSession]]:
    """Run an API that accepts `KEY` and `OTHER`; yields it with a session that sends `KEY`."""
    settings.setdefault("keys", (KEY, OTHER))
    settings.setdefault("monitor_delay", 0.0)
    api = PracticeApi(PracticeSettings(**settings), **({"clock": clock} if clock else {}))
    async with api, session_of(api) as session:
        yield api, session
