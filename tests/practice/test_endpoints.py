import asyncio
import gzip
import json
from hashlib import sha256
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ClientResponse, ClientSession
from keyturn.practice.endpoints import noise

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


async def said(response: ClientResponse, status: int = 200) -> Any:
    """Return the JSON of an answer of that status."""
    async with response:
        assert response.status == status, await response.text()
        return await response.json()


async def first_uid(session: ClientSession, kind: str) -> str:
    """Return the uid of the first collection or environment."""
    uid = (await said(await session.get(f"/{kind}s")))[f"{kind}s"][0]["uid"]
    assert isinstance(uid, str)
    return uid


def content(kind: str, name: str) -> dict[str, Any]:
    """Return a small collection or environment, as it is sent."""
    if kind == "environment":
        return {"environment": {"name": name, "values": [{"key": "a", "value": "1", "enabled": True}]}}
    return {"collection": {"info": {"name": name, "schema": "v2.1"}, "item": []}}


async def test_me_tells_the_user() -> None:
    """`/me` returns the user of the key."""
    async with practising(users={KEY: "ann"}) as (_, session):
        body = await said(await session.get("/me"))
    assert body["user"]["username"] == "ann"
    assert body["operations"]


async def test_workspaces() -> None:
    """Workspaces are listed, and each can be read with what it holds; an unknown one is not found."""
    async with practising() as (_, session):
        workspaces = (await said(await session.get("/workspaces")))["workspaces"]
        one = (await said(await session.get(f"/workspaces/{workspaces[0]['id']}")))["workspace"]
        missing = await said(await session.get("/workspaces/none"), 404)
    assert (one["name"], one["id"]) == (workspaces[0]["name"], workspaces[0]["id"])
    assert one["collections"]
    assert missing == {"error": {"name": "notFound", "message": "The workspace was not found."}}


@pytest.mark.parametrize("kind", ["collection", "environment"])
async def test_lists_and_entries(kind: str) -> None:
    """Collections and environments are listed, can be read, and are not found under other names."""
    async with practising() as (_, session):
        uid = await first_uid(session, kind)
        assert kind in await said(await session.get(f"/{kind}s/{uid}"))
        assert (await said(await session.get(f"/{kind}s/none"), 404))["error"]["name"] == "notFound"
        assert await said(await session.get(f"/{kind}s", params={"workspace": "none"})) == {f"{kind}s": []}


@pytest.mark.parametrize("kind", ["collection", "environment"])
async def test_create_replace_delete(kind: str) -> None:
    """Collections and environments can be created, replaced and deleted; answers name the entry."""
    async with practising() as (_, session):
        made = (await said(await session.post(f"/{kind}s", json=content(kind, "One"))))[kind]
        changed = await said(await session.put(f"/{kind}s/{made['uid']}", json=content(kind, "Two")))
        shown = (await said(await session.get(f"/{kind}s/{made['uid']}")))[kind]
        gone = await said(await session.delete(f"/{kind}s/{made['uid']}"))
        await said(await session.get(f"/{kind}s/{made['uid']}"), 404)
    assert (made["name"], changed[kind]) == ("One", {**made, "name": "Two"})
    assert shown.get("name") or shown["info"]["name"] == "Two"
    assert gone == {kind: {"id": made["id"], "uid": made["uid"]}}


async def test_patch_changes_parts() -> None:
    """A PATCH changes what it names and leaves the rest."""
    async with practising() as (_, session):
        uid = await first_uid(session, "collection")
        before = (await said(await session.get(f"/collections/{uid}")))["collection"]
        await said(await session.patch(f"/collections/{uid}", json={"collection": {"info": {"name": "New"}}}))
        after = (await said(await session.get(f"/collections/{uid}")))["collection"]
    assert after["info"]["name"] == "New"
    assert after["info"]["description"] == before["info"]["description"]
    assert after["item"] == before["item"]


async def test_a_change_changes_the_validator() -> None:
    """A changed collection has another ETag."""
    async with practising() as (api, session):
        path = f"/collections/{api.run_collection}"
        async with session.get(path) as response:
            before = response.headers["ETag"]
        await said(await session.put(path, json=content("collection", "Two")))
        async with session.get(path, headers={"If-None-Match": before}) as response:
            assert response.status == 200
            assert response.headers["ETag"] != before


async def test_not_modified_is_charged() -> None:
    """A 304 takes a place in the limit."""
    async with practising() as (api, session):
        async with session.get("/collections") as response:
            etag = response.headers["ETag"]
        async with session.get("/collections", headers={"If-None-Match": etag}) as response:
            assert (response.status, await response.read()) == (304, b"")
            assert response.headers["X-RateLimit-Remaining"] == "58"
    assert [(arrival.counted, arrival.status) for arrival in api.arrivals] == [(True, 200), (True, 304)]


async def test_gzip_is_gzip() -> None:
    """With `Accept-Encoding: gzip` the bytes are gzip, of the length announced; without they are JSON."""
    async with practising() as (api, _), session_of(api, raw=True) as session:
        async with session.get("/collections", headers={"Accept-Encoding": "gzip"}) as response:
            small = await response.read()
            assert response.headers["Content-Encoding"] == "gzip"
            assert response.headers["Vary"] == "Accept-Encoding"
            assert int(response.headers["Content-Length"]) == len(small)
        async with session.get("/collections", headers={"Accept-Encoding": "identity"}) as response:
            assert "Content-Encoding" not in response.headers
            plain = await response.read()
    assert gzip.decompress(small) == plain
    assert json.loads(plain)["collections"]


async def test_head_has_no_body() -> None:
    """HEAD has the headers of GET and no body."""
    async with practising() as (_, session), session.head("/collections") as response:
        assert (response.status, await response.read()) == (200, b"")
        assert int(response.headers["Content-Length"]) > 1000


async def test_a_body_with_get_is_fine() -> None:
    """A GET with the body `{}`, as one client sends it, is answered, and so is the next on its connection."""
    async with practising() as (api, session):
        for _ in range(2):
            await said(await session.get("/me", json={}))
        assert api.connections == 1


async def test_monitor_runs() -> None:
    """A monitor's run answers with what it found."""
    async with practising() as (_, session):
        run = (await said(await session.post("/monitors/m1/run")))["run"]
        await said(await session.post("/monitors/m1/stop"), 404)
    assert (run["info"]["monitorId"], run["info"]["status"]) == ("m1", "success")


async def test_spec_files_by_encoded_path() -> None:
    """A file of a specification is found by its path with encoded slashes only."""
    async with practising() as (_, session):
        file = await said(await session.get(exact("/specs/s1/files/components%2Fschemas.json")))
        await said(await session.get(exact("/specs/s1/files/components/schemas.json")), 404)
        await said(await session.get(exact("/specs/s1/files/components%252Fschemas.json")), 404)
        await said(await session.get(exact("/specs/s1/file/index.yaml")), 404)
    assert (file["path"], file["name"]) == ("components/schemas.json", "schemas.json")


async def test_respond_async() -> None:
    """`Prefer: respond-async` gives a task at a relative address, which is done at the next request."""
    async with practising() as (api, session):
        path = f"/collections/{api.run_collection}"
        body = content("collection", "Later")
        response = await session.put(path, json=body, headers={"Prefer": "respond-async"})
        task = (await said(response, 202))["task"]
        assert response.headers["Location"] == task["url"] == f"/collection-updates-tasks/{task['id']}"
        states = [(await said(await session.get(task["url"])))["status"] for _ in range(3)]
        await said(await session.get("/collection-updates-tasks/none"), 404)
    assert states == ["in-progress", "successful", "successful"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/collections"), ("PUT", "/collections/{}"), ("POST", "/environments")]
)
async def test_length_required(method: str, path: str) -> None:
    """A collection or an environment without Content-Length is refused with 411 in the API's shape."""

    async def pieces() -> Any:
        yield json.dumps(content("collection", "One")).encode()

    async with practising() as (api, session):
        response = await session.request(method, path.format(api.run_collection), data=pieces())
        assert (await said(response, 411))["error"]["name"] == "lengthRequired"


async def test_a_query_that_cannot_be_used() -> None:
    """A page of no length is refused in the API's shape."""
    async with practising() as (_, session):
        for path in ("/workspaces?limit=0", "/collections/?limit=all"):
            assert "limit" in (await said(await session.get(path), 400))["error"]["message"]


@pytest.mark.parametrize(
    "path",
    ["/", "/nowhere", "/me//", "/collections/a/b", "/me/more", "/bytes/x", "/bytes/-1", "/status/99", "/status/600"],
)
async def test_unknown_paths(path: str) -> None:
    """An unknown path is answered 404 in the API's shape, and charged."""
    async with practising() as (api, session):
        body = await said(await session.get(path), 404)
    assert body["error"]["name"] == "notFound"
    assert [arrival.counted for arrival in api.arrivals] == [True]


async def test_unknown_methods() -> None:
    """A method that an endpoint lacks is answered 404."""
    async with practising() as (_, session):
        await said(await session.delete("/me"), 404)
        await said(await session.put("/collections", json={}), 404)


async def test_the_practice_run() -> None:
    """The collection and the environment of the practice run say where to send and what to expect."""
    async with practising() as (api, session):
        collection = (await said(await session.get(f"/collections/{api.run_collection}")))["collection"]
        environment = (await said(await session.get(f"/environments/{api.run_environment}")))["environment"]
        values = {value["key"]: value["value"] for value in environment["values"]}
        assert values["baseUrl"] == api.url
    assert collection["info"]["name"] == environment["name"] == "Practice run"
