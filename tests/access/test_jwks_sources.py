import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import ClientSession, web
from keyturn.access import jwks_sources
from keyturn.access.jwks_sources import (
    MAX_JWKS_BYTES,
    FileSource,
    SourceError,
    UrlSource,
    _trouble,
    jwks_source,
    open_session,
)
from keyturn.core.model import Issuer

from tests.authorities import FAULTS, LENIENT, Authority, Sort

DOCUMENT = b'{"keys": []}'


class Site:
    """A web site over TLS: pages by path, and who asked for them with which token."""

    def __init__(self, folder: Path, sort: Sort = "conforming") -> None:
        self.pages: dict[str, bytes | web.Response] = {"/keys": DOCUMENT}
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""
        self._authority = Authority(folder, sort)
        self.ca = self._authority.ca

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append((request.path, request.headers.get("Authorization")))
        page = self.pages.get(request.path)
        if page is None:
            return web.Response(status=404)
        return page if isinstance(page, web.Response) else web.Response(body=page)

    @asynccontextmanager
    async def open(self, *, tls: bool = True) -> AsyncIterator["Site"]:
        """For as long as the block lasts."""
        context = self._authority.server_context()
        runner = web.ServerRunner(web.Server(self._answer))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context if tls else None)
        await site.start()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def discovery(self, **document: Any) -> None:
        """Publish a discovery document."""
        usual = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        self.pages["/.well-known/openid-configuration"] = json.dumps({**usual, **document}).encode()


async def read(issuer: Issuer) -> bytes:
    """Return the keys as their source reads them."""
    session: ClientSession | None = None

    def one() -> ClientSession:
        nonlocal session
        session = session or open_session()
        return session

    try:
        return await jwks_source(issuer, one).read()
    finally:
        if session is not None:
            await session.close()


async def fails(issuer: Issuer) -> str:
    """Why it reads nothing."""
    with pytest.raises(SourceError) as caught:
        await read(issuer)
    assert caught.value.__cause__ is None
    return str(caught.value)


async def test_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    """It may be mounted, and change."""
    path = tmp_path / "keys.json"
    source = jwks_source(Issuer("i", jwks_file=str(path)), open_session)
    assert isinstance(source, FileSource)
    with pytest.raises(SourceError, match="`jwks_file` cannot be read: No such file"):
        await source.read()
    for text in (b"one", b"two"):
        path.write_bytes(text)
        assert await source.read() == text


async def test_keys_are_fetched_over_tls(tmp_path: Path) -> None:
    """From the URL that is configured, trusting the authority that is configured and no other."""
    async with Site(tmp_path).open() as site:
        url = f"{site.url}/keys"
        assert await read(Issuer("any", jwks_url=url, ca=str(site.ca))) == DOCUMENT
        unknown = f"the certificate of {site.url.removeprefix('https://')} is refused: unable to get local issuer"
        assert unknown in await fails(Issuer("any", jwks_url=url))
        stranger = tmp_path / "stranger.pem"
        trustme.CA().cert_pem.write_to_path(str(stranger))
        assert unknown in await fails(Issuer("any", jwks_url=url, ca=str(stranger)))
        assert "`ca` holds no certificate" in await fails(Issuer("any", jwks_url=url, ca=str(tmp_path)))
        assert site.asked == [("/keys", None)]


async def test_the_discovery_document_says_where_they_are(tmp_path: Path) -> None:
    """When it is the issuer's own."""
    async with Site(tmp_path).open() as site:
        issuer = Issuer(site.url, ca=str(site.ca))
        site.discovery()
        assert await read(issuer) == DOCUMENT
        site.discovery(issuer="https://another.example")
        assert "another issuer's" in await fails(issuer)
        for uri in (None, 7, "http://example.com/keys", "file:///etc/passwd"):
            site.discovery(jwks_uri=uri)
            assert "no `jwks_uri` over https" in await fails(issuer)
        site.pages["/.well-known/openid-configuration"] = b"<html>"
        assert "no JSON" in await fails(issuer)
        site.pages["/.well-known/openid-configuration"] = b"[]"
        assert "another issuer's" in await fails(issuer)


async def test_this_machine_may_be_asked_without_tls(tmp_path: Path) -> None:
    """For tests."""
    async with Site(tmp_path).open(tls=False) as site:
        site.discovery()
        assert await read(Issuer(site.url)) == DOCUMENT


async def test_a_token_is_shown_only_where_it_belongs(tmp_path: Path) -> None:
    """Our own goes to the configured place, not to one that a document names; it is read anew each time."""
    bearer = tmp_path / "token"
    (tmp_path / "other").mkdir()
    async with Site(tmp_path).open() as site, Site(tmp_path / "other").open() as other:
        both = tmp_path / "both.pem"
        both.write_text(site.ca.read_text() + other.ca.read_text())
        bearer.write_text("5ecret-1\n")
        site.discovery(jwks_uri=f"{other.url}/keys")
        issuer = Issuer(site.url, ca=str(both), bearer_file=str(bearer))
        assert await read(issuer) == DOCUMENT
        bearer.write_text("5ecret-2")
        assert await read(Issuer("i", jwks_url=f"{site.url}/keys", ca=str(both), bearer_file=str(bearer))) == DOCUMENT
        assert site.asked == [
            ("/.well-known/openid-configuration", "Bearer 5ecret-1"),
            ("/keys", "Bearer 5ecret-2"),
        ]
        assert other.asked == [("/keys", None)]
        bearer.unlink()
        assert "`bearer_file` cannot be read" in await fails(issuer)


ODD: list[tuple[Callable[[], web.Response], str]] = [
    (lambda: web.Response(status=500), "/odd answers 500: see whether it serves its keys there"),
    (lambda: web.Response(status=401), "/odd answers 401: it wants a token that may read the keys: name one in"),
    (lambda: web.Response(status=403), "/odd answers 403: it wants a token that may read the keys"),
    (lambda: web.Response(status=404), "/odd answers 404: correct `jwks_url`"),
    (lambda: web.Response(status=302, headers={"Location": "/keys"}), "/odd answers 302: redirects are not followed"),
    (lambda: web.Response(body=b"x" * (MAX_JWKS_BYTES + 1)), "more than"),
]


@pytest.mark.parametrize(("page", "why"), ODD)
async def test_odd_answers_are_no_keys(tmp_path: Path, page: Callable[[], web.Response], why: str) -> None:
    """Errors, redirects, and what is too large."""
    async with Site(tmp_path).open() as site:
        site.pages["/odd"] = page()
        said = await fails(Issuer("i", jwks_url=f"{site.url}/odd?s3cret", ca=str(site.ca)))
        assert why in said
        assert "s3cret" not in said


async def test_an_issuer_that_is_not_there_is_no_wonder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether nobody answers or the answer takes too long, there is one kind of error."""
    async with Site(tmp_path).open() as site:
        pass
    url, place = f"{site.url}/keys", site.url.removeprefix("https://")
    assert f"{place} is not reached (connection refused): see whether it runs" in await fails(Issuer("i", jwks_url=url))
    monkeypatch.setattr(jwks_sources, "FETCH_SECONDS", 0)
    assert f"{place} does not answer within 0 s: see" in await fails(Issuer("i", jwks_url=url))
    assert isinstance(jwks_source(Issuer("https://i"), open_session), UrlSource)


@pytest.mark.parametrize("sort", ["conforming", *LENIENT])
async def test_a_cluster_s_own_authority_is_accepted_unless_certificates_are_strict(tmp_path: Path, sort: Sort) -> None:
    """On every Python; a strict refusal names the host, the certificate, the extension and the setting."""
    async with Site(tmp_path, sort).open() as site:
        issuer = Issuer("any", jwks_url=f"{site.url}/keys", ca=str(site.ca))
        assert await read(issuer) == DOCUMENT
        strict = replace(issuer, strict_certificates=True)
        if sort == "conforming":
            assert await read(strict) == DOCUMENT
        else:
            said = await fails(strict)
            assert said.startswith(f"the certificate of {site.url.removeprefix('https://')} is refused: {FAULTS[sort]}")
            assert said.endswith("`strict_certificates: false`")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "closed the connection without an answer: see"),
        (b"SSH-2.0-x\r\n\r\n", "answers is no HTTP: see"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "broke off: see"),
    ],
)
async def test_what_is_no_answer_is_told(answer: bytes, why: str) -> None:
    """Each with the place and with what to do."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        place = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        said = await fails(Issuer("i", jwks_url=f"http://{place}/keys"))
        assert why in said
        assert place in said


async def test_a_port_without_tls_and_a_host_that_is_not_found_are_told(tmp_path: Path) -> None:
    """Neither is a trouble of certificates."""
    async with Site(tmp_path).open(tls=False) as site:
        place = site.url.removeprefix("http://")
        said = await fails(Issuer("i", jwks_url=f"https://{place}/keys"))
        assert re.fullmatch(rf"{place} speaks no TLS \([a-z ]+\): see whether that port does", said)
    said = await fails(Issuer("i", jwks_url="https://keys.invalid/keys"))
    assert said.startswith("keys.invalid:443 is not reached (")
    assert _trouble(ValueError("…"), "https://[::1]/k?s").startswith("`https://[::1]/k` is no URL that can be fetched")
