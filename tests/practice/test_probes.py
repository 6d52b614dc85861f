import asyncio
from hashlib import sha256
from typing import Any

import pytest
from aiohttp import ClientPayloadError
from keyturn.practice.probes import noise

from tests.practice.client import KEY, exact, practising, session_of


def expected(length: int, seed: int = 1) -> bytes:
    """Return what `/bytes` sends."""
    source = noise(seed)
    return (source * (length // len(source) + 1))[:length]


async def test_echo_tells_what_arrived() -> None:
    """`/echo` returns method, target and headers as they came, and the body's length and digest."""
    async with practising() as (_, session):
        target = "/echo/a%2Fb/c%20d?x=%31&y=+&x=2"
        body = b"\x00\xff" * 100_000
        headers = [("X-One", "1"), ("x-two", "2"), ("X-One", "3")]
        async with session.put(exact(target), data=body, headers=headers) as response:
            said = await response.json()
    assert (said["method"], said["target"]) == ("PUT", target)
    assert (said["length"], said["sha256"]) == (len(body), sha256(body).hexdigest())
    pairs = [tuple(pair) for pair in said["headers"]]
    assert [pair for pair in pairs if pair[0].lower() in {"x-one", "x-two"}] == headers
    assert ("X-Api-Key", KEY) in pairs


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
async def test_echo_takes_any_method(method: str) -> None:
    """`/echo` answers to any method, and to any path under it."""
    async with practising() as (_, session), session.request(method, "/echo") as response:
        assert (await response.json())["method"] == method


async def test_echo_of_a_stream() -> None:
    """A chunked body arrives whole; a compressed one is not decompressed."""

    async def pieces() -> Any:
        for _ in range(50):
            yield b"x" * 10_000

    async with (
        practising() as (_, session),
        session.post("/echo/stream", data=pieces(), headers={"Content-Encoding": "gzip"}) as response,
    ):
        said = await response.json()
    assert (said["length"], said["sha256"]) == (500_000, sha256(b"x" * 500_000).hexdigest())


async def test_echo_may_hide_the_key() -> None:
    """With `echo_secrets` off the key's name replaces it."""
    async with (
        practising(echo_secrets=False) as (_, session),
        session.get("/echo/x", params={"apikey": KEY}) as response,
    ):
        text = await response.text()
    assert KEY not in text
    assert '["X-Api-Key","key-1"]' in text


@pytest.mark.parametrize("length", [0, 1, 65_536, 300_000])
async def test_bytes(length: int) -> None:
    """`/bytes/n` sends n pseudo-random bytes and announces them."""
    async with practising() as (_, session), session.get(f"/bytes/{length}") as response:
        assert response.headers["Content-Length"] == str(length)
        assert await response.read() == expected(length)


async def test_bytes_follow_the_seed() -> None:
    """Another seed sends other bytes."""
    async with practising(seed=2) as (_, session), session.get("/bytes/100") as response:
        assert await response.read() == expected(100, seed=2) != expected(100)


@pytest.mark.parametrize("length", [0, 1, 300_000])
async def test_chunked(length: int) -> None:
    """`/chunked/n` sends the same without announcing how many."""
    async with practising() as (_, session), session.get(f"/chunked/{length}") as response:
        assert "Content-Length" not in response.headers
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert await response.read() == expected(length)


@pytest.mark.parametrize("tls", [False, True])
async def test_truncation_is_visible(tls: bool) -> None:
    """`/truncate/n` announces n bytes and ends the connection after half of them."""
    async with practising(tls=tls) as (_, session), asyncio.timeout(30), session.get("/truncate/1000") as response:
        assert (response.status, response.headers["Content-Length"]) == (200, "1000")
        assert await response.content.readexactly(500) == expected(500)
        with pytest.raises(ClientPayloadError):
            await response.content.read()


async def test_head_of_a_stream() -> None:
    """HEAD announces the length and sends nothing; the connection stays."""
    async with practising() as (api, session):
        for _ in range(2):
            async with session.head("/bytes/300000") as response:
                assert (response.headers["Content-Length"], await response.read()) == ("300000", b"")
        assert api.connections == 1


@pytest.mark.parametrize("status", [200, 201, 204, 304, 400, 404, 418, 429, 500, 503])
async def test_any_status(status: int) -> None:
    """`/status/c` answers with that status, an error with a body in the API's shape."""
    async with practising() as (api, session), session.get(f"/status/{status}") as response:
        body = await response.read()
        assert response.status == status
        assert (b'"error"' in body) == (status >= 400)
        assert api.throttled == 0


async def test_an_unauthorized_that_is_not_about_the_key() -> None:
    """`/status/401` is not about the key."""
    async with practising() as (_, session), session.get("/status/401") as response:
        assert await response.json() == {
            "error": {"name": "Unauthorized", "message": "You are not authorized to perform this action."}
        }


async def test_gateway_timeout_page() -> None:
    """`/status/504` is nginx's page."""
    async with practising() as (_, session), session.get("/status/504") as response:
        assert (response.status, response.content_type) == (504, "text/html")
        assert "504 Gateway Time-out" in await response.text()


async def test_redirect_slow_nothing() -> None:
    """`/redirect` points elsewhere, `/slow/ms` answers late, `/nothing` has no body."""
    async with practising() as (_, session):
        async with session.get("/redirect", allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (302, "/echo/redirected")
        async with session.get("/slow/0") as response:
            assert await response.json() == {"slept": 0}
        async with session.get("/nothing") as response:
            assert (response.status, await response.read()) == (204, b"")


async def test_probes_need_a_key_too() -> None:
    """Probes need a key."""
    async with practising() as (api, _), session_of(api, key="") as session:
        for path in ("/echo/x", "/bytes/1", "/nothing"):
            async with session.get(path) as response:
                assert response.status == 401
