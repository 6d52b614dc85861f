import json
from io import BytesIO

import pytest

from tests.practice.client import practising


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/collections", b"{"),
        ("POST", "/collections", b"[]"),
        ("POST", "/collections", b"\xff"),
        ("POST", "/collections", b"{}"),
        ("POST", "/collections", b'{"collection":{"info":{"name":"x"}}}'),
        ("POST", "/collections", b'{"collection":{"info":[],"item":[]}}'),
        ("POST", "/collections", b'{"collection":{"info":{"name":1},"item":[]}}'),
        ("POST", "/environments", b'{"environment":{"values":[]}}'),
        ("POST", "/environments", b'{"environment":1}'),
        ("PATCH", "/collections/{}", b'{"collection":{"info":null}}'),
        ("PATCH", "/collections/{}", b'{"collection":{"info":{"name":null}}}'),
        ("PATCH", "/collections/{}", b'{"collection":{"item":null}}'),
        ("PATCH", "/collections/{}", b'{"collection":[]}'),
        ("POST", "/collections", b"[" * 100_000),
    ],
)
async def test_malformed_bodies(method: str, path: str, body: bytes) -> None:
    """A body that is no JSON, or not what the endpoint is for, is refused with 400 in the API's shape."""
    async with (
        practising() as (api, session),
        session.request(method, path.format(api.run_collection), data=body) as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]["name"] == "malformedRequestError"


async def test_too_large_by_its_length() -> None:
    """A body that announces more than 100 MB is refused at once."""
    async with practising() as (_, session):
        headers = {"Content-Length": str(100 * 2**20 + 1), "Expect": "100-continue"}
        async with session.post("/collections", headers=headers) as response:
            assert response.status == 413
            assert (await response.json())["error"]["name"] == "requestEntityTooLarge"


async def test_a_large_collection() -> None:
    """A collection of some megabytes is taken and comes back."""
    items = [{"name": "x" * 1000} for _ in range(3000)]
    body = json.dumps({"collection": {"info": {"name": "Large"}, "item": items}}).encode()
    async with practising() as (_, session):
        async with session.post("/collections", data=BytesIO(body)) as response:
            uid = (await response.json())["collection"]["uid"]
        async with session.get(f"/collections/{uid}") as response:
            shown = (await response.json())["collection"]["item"]
    assert [item["name"] for item in shown] == [item["name"] for item in items]


async def test_continue_is_sent() -> None:
    """A caller that waits for 100 Continue gets it, and its body arrives."""
    async with practising() as (_, session), session.post("/echo/x", data=b"abc", expect100=True) as response:
        assert (response.status, (await response.json())["length"]) == (200, 3)
