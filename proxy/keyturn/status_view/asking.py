"""Asking a running proxy for its status document."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from keyturn.core.errors import KeyturnError
from keyturn.oserrors import words

PATIENCE = aiohttp.ClientTimeout(total=5)

Document = dict[str, Any]


class NoStatus(KeyturnError):
    """There is no document; the message says what to do."""


class Asker:
    """Asks the proxy whose admin listener is at `url`: `http://host:port`, behind a path too, or `unix:/path`."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        base = "http://keyturn" if url.startswith("unix:") else url.rstrip("/")
        self._target = f"{base}/status.json"

    async def ask(self) -> Document:
        """The document of this moment.

        Raises:
            NoStatus: nobody answers there, or something else than a proxy does.
        """
        try:
            async with self._session.get(self._target, allow_redirects=False) as answer:
                found = await answer.json() if answer.ok else None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise NoStatus(f"{self._url}: no URL. Write --url http://host:port or unix:/path.") from None
        except TimeoutError:
            raise NoStatus(f"{self._url}: no answer within {PATIENCE.total} s.") from None
        except (aiohttp.ClientError, OSError, ValueError) as problem:
            raise NoStatus(f"{self._url}: {_why(problem)}. {_HINT}") from None
        if not isinstance(found, dict) or "version" not in found:
            raise NoStatus(f"{self._url}: answers {answer.status}, and not as a proxy. {_HINT}")
        return found


_HINT = "Name the admin listener of a running proxy with --url."


@asynccontextmanager
async def asker(url: str) -> AsyncIterator[Asker]:
    """Somebody who asks there for a while."""
    connector = aiohttp.UnixConnector(url.removeprefix("unix:")) if url.startswith("unix:") else None
    async with aiohttp.ClientSession(connector=connector, timeout=PATIENCE, trust_env=False) as session:
        yield Asker(session, url)


def _why(problem: Exception) -> str:
    match problem:
        case aiohttp.ContentTypeError() | ValueError():
            return "what is there is no proxy"
        case aiohttp.ClientConnectorError(os_error=error):
            return words(error)
        case _:
            return str(problem) or type(problem).__name__
