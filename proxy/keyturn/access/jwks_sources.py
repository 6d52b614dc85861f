"""Reading an issuer's public keys from a file, a URL, or the URL in its discovery document.

TLS is verified by the rules of `keyturn.trust`, redirects are not followed, and what comes is bounded in size and time.
Files are read anew each time: the keys themselves, the authorities to trust and the token to show may be mounted and
change.
"""

import asyncio
import json
import ssl
from codecs import BOM_UTF8
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorError,
    ClientConnectorSSLError,
    ClientError,
    ClientPayloadError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    InvalidURL,
    ServerConnectionError,
    TCPConnector,
)

from keyturn.config.urls import discovery_url, fetchable
from keyturn.core.model import Issuer
from keyturn.keepalive import tcp_socket
from keyturn.oserrors import words
from keyturn.trust import client_context, refusal

MAX_JWKS_BYTES = 2**18
"""Bytes of a set of keys or a discovery document."""
FETCH_SECONDS = 5.0
"""Seconds for all of it."""
_OK = 200
_MAX_URL = 200
_ADVICE = {
    401: "it wants a token that may read the keys: name one in `bearer_file`",
    403: "it wants a token that may read the keys: name one in `bearer_file`, or give its holder that right",
    404: "correct `jwks_url`, or the issuer's name",
}
"""Advice by the status of an answer."""
_REDIRECT = "redirects are not followed: name the URL that it leads to in `jwks_url`"
_OTHER_ADVICE = "see whether it serves its keys there"


class SourceError(Exception):
    """The keys could not be read; the message says why and shows nothing of what was sent."""


class JwksSource(Protocol):
    """Reads an issuer's JWKS."""

    async def read(self) -> bytes:
        """The document.

        Raises:
            SourceError: it cannot be read.
        """


class FileSource:
    """A JWKS in a file."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def read(self) -> bytes:
        """See `Source`."""
        try:
            return await asyncio.to_thread(_read, self._path)
        except OSError as error:
            raise SourceError(f"`jwks_file` cannot be read: {error.strerror}") from None


class UrlSource:
    """A JWKS at a URL; `session` gives the HTTP client, which is another's to close."""

    def __init__(self, issuer: Issuer, session: Callable[[], ClientSession]) -> None:
        self._issuer = issuer
        self._session = session

    async def read(self) -> bytes:
        """See `Source`."""
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                trust, fields = await asyncio.to_thread(self._credentials)
                url = self._issuer.jwks_url or await self._discover(trust, fields)
                return await self._get(url, trust, fields)
        except TimeoutError:
            place = _place(self._issuer.jwks_url or self._issuer.name)
            late = f"{place} does not answer within {FETCH_SECONDS:.0f} s"
            raise SourceError(f"{late}: see whether it is busy, or the network drops packets") from None

    def _credentials(self) -> tuple[ssl.SSLContext, dict[str, str]]:
        issuer = self._issuer
        try:
            trust = client_context(strict=issuer.strict_certificates, ca=issuer.ca, system=issuer.ca is None)
        except OSError:
            raise SourceError("`ca` holds no certificate in PEM, or cannot be read") from None
        if self._issuer.bearer_file is None:
            return trust, {}
        try:
            token = _read(self._issuer.bearer_file).removeprefix(BOM_UTF8).decode("ascii").strip()
        except (OSError, ValueError):
            raise SourceError("`bearer_file` cannot be read") from None
        return trust, {"Authorization": f"Bearer {token}"}

    async def _discover(self, trust: ssl.SSLContext, fields: dict[str, str]) -> str:
        """The URL of the keys (OpenID Connect Discovery 1.0, sections 4 and 4.3)."""
        document = _object(await self._get(discovery_url(self._issuer.name), trust, fields))
        if document.get("issuer") != self._issuer.name:
            raise SourceError("the discovery document is another issuer's: correct the issuer's name")
        url = document.get("jwks_uri")
        if not isinstance(url, str) or not fetchable(url):
            raise SourceError("the discovery document names no `jwks_uri` over https")
        return url

    async def _get(self, url: str, trust: ssl.SSLContext, fields: dict[str, str]) -> bytes:
        try:
            return await self._fetch(url, trust, fields if self._is_trusted(url) else {})
        except TimeoutError:
            raise
        except (ClientError, OSError, ValueError) as error:
            raise SourceError(_trouble(error, url)) from None

    async def _fetch(self, url: str, trust: ssl.SSLContext, shown: dict[str, str]) -> bytes:
        async with self._session().get(url, ssl=trust, headers=shown, allow_redirects=False) as response:
            status = response.status
            if status != _OK:
                advice = _REDIRECT if status // 100 == 3 else _ADVICE.get(status, _OTHER_ADVICE)  # noqa: PLR2004
                raise SourceError(f"{_shown(url)} answers {status}: {advice}")
            parts = bytearray()
            async for part in response.content.iter_chunked(MAX_JWKS_BYTES):
                parts += part
                if len(parts) > MAX_JWKS_BYTES:
                    raise SourceError(f"what {_shown(url)} answers has more than {MAX_JWKS_BYTES} bytes")
            return bytes(parts)

    def _is_trusted(self, url: str) -> bool:
        """Whether our own token may go there: to what is configured, not to what a document names elsewhere."""
        configured = self._issuer.jwks_url or self._issuer.name
        return urlsplit(url)[:2] == urlsplit(configured)[:2]


def open_session() -> ClientSession:
    """An HTTP client that remembers nothing and takes nothing from the environment."""
    return ClientSession(
        connector=TCPConnector(socket_factory=tcp_socket),
        cookie_jar=DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "keyturn"},
        timeout=ClientTimeout(total=FETCH_SECONDS),
    )


def jwks_source(issuer: Issuer, session: Callable[[], ClientSession]) -> JwksSource:
    """The source that an issuer's settings name."""
    return FileSource(issuer.jwks_file) if issuer.jwks_file else UrlSource(issuer, session)


def _trouble(error: Exception, url: str) -> str:
    """Say why nothing was read from a URL, and what to do."""
    place, serves = _place(url), "see whether that port serves the keys"
    match error:
        case ClientConnectorCertificateError():
            cause = refusal(
                error.certificate_error, "name the authority that signed it in `ca`, and the host it is for"
            )
            told = f"the certificate of {place} is refused: {cause}"
        case ClientConnectorSSLError():
            told = f"{place} speaks no TLS ({words(error.os_error)}): see whether that port does"
        case ClientConnectorError():
            cause = words(error.os_error)
            told = f"{place} is not reached ({cause}): see whether it runs, and whether the network lets us there"
        case InvalidURL() | ValueError():
            told = f"`{_shown(url)}` is no URL that can be fetched: correct it"
        case ClientPayloadError():
            told = f"the answer of {place} broke off: see what stands between"
        case ServerConnectionError() | OSError():
            told = f"{place} closed the connection without an answer: {serves}"
        case _:
            told = f"what {place} answers is no HTTP: {serves}"
    return told


def _place(url: str) -> str:
    """The host and the port of a URL."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    host = parts.hostname or ""
    return f"{f'[{host}]' if ':' in host else host}:{port or (80 if parts.scheme == 'http' else 443)}"


def _shown(url: str) -> str:
    """A URL without its query, which may hold a secret."""
    text = url.partition("?")[0]
    return text if len(text) <= _MAX_URL else f"{text[:_MAX_URL]}…"


def _read(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(MAX_JWKS_BYTES + 1)


def _object(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise SourceError("the discovery document is no JSON: see what answers there, or set `jwks_url`") from None
    return document if isinstance(document, dict) else {}
