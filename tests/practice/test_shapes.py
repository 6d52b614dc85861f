"""The answers have the fields and types of the official specification.

Written by hand from the specification of the official TypeScript SDK 1.45.0, whose client refuses an answer with a
field of another type, and a collection with an item that has no id.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession

from tests.practice.client import exact, practising

Shape = type | dict[str, Any] | list[Any] | tuple[type, ...]

REFERENCE = {"id": str, "name": str, "uid": str}
WORKSPACE = {
    "id": str,
    "name": str,
    "type": str,
    "visibility": str,
    "createdBy": str,
    "about": str,
    "createdAt": str,
    "updatedAt": str,
}
ROW = {
    "id": str,
    "name": str,
    "owner": str,
    "uid": str,
    "createdAt": str,
    "updatedAt": str,
    "isPublic": bool,
}
INFO = {
    "_postman_id": str,
    "name": str,
    "schema": str,
    "uid": str,
    "createdAt": str,
    "updatedAt": str,
    "lastUpdatedBy": str,
}
ITEM = {"id": str, "uid": str, "name": str}
COLLECTION = {"collection": {"info": INFO, "item": [ITEM]}}
VALUE = {"key": str, "value": str, "enabled": bool, "type": str}
ENVIRONMENT = {
    "environment": {
        "id": str,
        "name": str,
        "owner": str,
        "createdAt": str,
        "updatedAt": str,
        "isPublic": bool,
        "values": [VALUE],
    }
}
USER = {
    "id": int,
    "sub": str,
    "username": str,
    "email": str,
    "fullName": str,
    "avatar": (str, type(None)),
    "isPublic": bool,
    "emailVerified": bool,
    "teamId": int,
    "teamName": str,
    "teamDomain": str,
    "roles": [str],
}
OPERATION = {"name": str, "limit": int, "usage": int, "overage": int}
COUNTS = {"total": int, "failed": int}
RUN = {
    "info": {"jobId": str, "monitorId": str, "name": str, "status": str, "startedAt": str, "finishedAt": str},
    "stats": {"assertions": COUNTS, "requests": COUNTS, "runCount": int, "errorCount": int, "abortedCount": int},
    "executions": list,
    "failures": list,
}
FILE = {
    "id": str,
    "name": str,
    "path": str,
    "type": str,
    "content": str,
    "createdBy": int,
    "updatedBy": int,
    "createdAt": str,
    "updatedAt": str,
}
META = {"total": int, "offset": int, "limit": int}

READS: dict[str, Shape] = {
    "/me": {"user": USER, "operations": [OPERATION]},
    "/workspaces": {"workspaces": [WORKSPACE]},
    "/workspaces?limit=2": {"workspaces": [WORKSPACE], "meta": {"nextCursor": str}},
    "/workspaces/{workspace}": {
        "workspace": {
            **WORKSPACE,
            "description": str,
            "updatedBy": str,
            "collections": [REFERENCE],
            "environments": [REFERENCE],
        }
    },
    "/collections": {"collections": [ROW]},
    "/collections?limit=2": {"collections": [ROW], "meta": META},
    "/collections/{collection}": COLLECTION,
    "/environments": {"environments": [ROW]},
    "/environments/{environment}": ENVIRONMENT,
    "/specs/s1/files/components%2Fschemas.json": FILE,
}

SCHEMA = "https://schema.postman.com/json/collection/v2.1.0/collection.json"
LEAF = {"name": "A", "request": {"method": "GET", "url": "https://a.example"}, "response": [{"name": "r", "code": 200}]}
SENT_COLLECTION = {
    "collection": {"info": {"name": "Sent", "schema": SCHEMA}, "item": [{"name": "folder", "item": [LEAF]}, LEAF]}
}
SENT_ENVIRONMENT = {"environment": {"name": "Sent", "values": [{"key": "a", "value": "1"}]}}


def unlike(value: Any, shape: Shape, where: str = "") -> Iterator[str]:
    """Return where a value differs from a shape: a type, several, an object, or a list that is not empty."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{where} is no object"
            return
        for name, inner in shape.items():
            yield from (
                unlike(value[name], inner, f"{where}.{name}") if name in value else (f"{where}.{name} is missing",)
            )
    elif isinstance(shape, list):
        if not (isinstance(value, list) and value):
            yield f"{where} is no list with something in it"
            return
        for index, item in enumerate(value):
            yield from unlike(item, shape[0], f"{where}[{index}]")
    elif not isinstance(value, shape) or (shape is int and isinstance(value, bool)):
        yield f"{where} is {value!r}"


async def answered(session: ClientSession, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """Return the JSON of an answer, whose media type has no parameter, since the SDK knows no other."""
    async with session.request(method, exact(path), json=body, headers=headers) as response:
        assert response.ok, await response.text()
        assert response.headers["Content-Type"] == "application/json"
        return await response.json()


@asynccontextmanager
async def calling() -> AsyncIterator[tuple[ClientSession, dict[str, str]]]:
    """Return a session, and the names of a workspace, a collection and an environment."""
    async with practising() as (api, session):
        entry = (await answered(session, "GET", "/workspaces"))["workspaces"][0]["id"]
        yield session, {"workspace": entry, "collection": api.run_collection, "environment": api.run_environment}


@pytest.mark.parametrize(("path", "shape"), READS.items(), ids=READS)
async def test_what_is_read(path: str, shape: Shape) -> None:
    """Each list and each page has its shape, also with a slash at the end."""
    async with calling() as (session, names):
        address, mark, query = path.format(**names).partition("?")
        for read in (address, f"{address}/"):
            assert not list(unlike(await answered(session, "GET", read + mark + query), shape))


async def test_every_collection_and_environment() -> None:
    """Every initial entry has its shape, items in folders included."""
    async with practising(limit=1000) as (_, session):
        for kind, shape in (("collection", COLLECTION), ("environment", ENVIRONMENT)):
            for row in (await answered(session, "GET", f"/{kind}s"))[f"{kind}s"]:
                page = await answered(session, "GET", f"/{kind}s/{row['uid']}")
                assert not list(unlike(page, shape))
                for item in page[kind].get("item", []):
                    assert not list(unlike(item.get("item", [ITEM | {"id": "", "uid": "", "name": ""}]), [ITEM]))


@pytest.mark.parametrize("way", ["POST", "PUT"])
async def test_a_collection_that_was_sent(way: str) -> None:
    """Items, items of folders and saved responses get ids that stay."""
    known = {**LEAF, "id": "known"}
    sent = {"collection": {**SENT_COLLECTION["collection"], "item": [*SENT_COLLECTION["collection"]["item"], known]}}
    async with calling() as (session, names):
        path = f"/collections/{names['collection']}" if way == "PUT" else f"/collections?workspace={names['workspace']}"
        made = await answered(session, way, path, sent)
        assert not list(unlike(made, {"collection": REFERENCE}))
        page = await answered(session, "GET", f"/collections/{made['collection']['uid']}")
        again = await answered(session, "GET", f"/collections/{made['collection']['id']}")
    folder, leaf, last = page["collection"]["item"]
    assert not list(unlike(page, COLLECTION))
    assert not list(unlike(folder, {"item": [{**ITEM, "response": [{"id": str, "uid": str}]}]}))
    ids = [folder["id"], folder["item"][0]["id"], leaf["id"], leaf["response"][0]["id"], last["id"]]
    assert len(set(ids)) == len(ids)
    assert (last["id"], page) == ("known", again)


async def test_changes_of_a_collection() -> None:
    """Answers to PATCH, asynchronous PUT, its task and DELETE have their shapes."""
    async with calling() as (session, names):
        path = f"/collections/{names['collection']}"
        event = {"listen": "test", "script": {"type": "text/javascript", "exec": ["1"]}}
        patched = await answered(session, "PATCH", path, {"collection": {"events": [event]}})
        shown = (await answered(session, "GET", path))["collection"]
        later = await answered(session, "PUT", path, SENT_COLLECTION, Prefer="respond-async")
        task = await answered(session, "GET", f"/collection-updates-tasks/{later['task']['id']}")
        gone = await answered(session, "DELETE", path)
    assert not list(unlike(patched, {"collection": {"id": str, "name": str, "description": str}}))
    assert (shown["event"], "events" in shown) == ([event], False)
    assert not list(unlike(later, {"task": {"id": str, "status": str}}))
    assert task == {"id": later["task"]["id"], "status": "in-progress"}
    assert not list(unlike(gone, {"collection": {"id": str, "uid": str}}))


async def test_an_environment_that_was_sent() -> None:
    """Answers to POST, PUT and DELETE have their shapes, with values completed."""
    async with calling() as (session, names):
        made = await answered(session, "POST", f"/environments?workspace={names['workspace']}", SENT_ENVIRONMENT)
        path = f"/environments/{made['environment']['uid']}"
        assert not list(unlike(await answered(session, "GET", path), ENVIRONMENT))
        assert not list(
            unlike(await answered(session, "PUT", path, {"environment": {"name": "B"}}), {"environment": REFERENCE})
        )
        assert (await answered(session, "GET", path))["environment"]["values"] == []
        gone = await answered(session, "DELETE", path)
    assert not list(unlike(made, {"environment": REFERENCE}))
    assert not list(unlike(gone, {"environment": {"id": str, "uid": str}}))


async def test_a_run_of_a_monitor() -> None:
    """A monitor's run has its shape, waited for or not."""
    async with calling() as (session, _):
        waited = await answered(session, "POST", "/monitors/m1/run")
        left = await answered(session, "POST", "/monitors/m1/run?async=true")
    assert not list(unlike(waited, {"run": RUN}))
    assert not list(unlike(left, {"run": {"info": {"monitorId": str, "status": str, "message": str}}}))


@pytest.mark.parametrize(
    "content",
    [
        {"info": {"name": "A"}, "item": [1]},
        {"info": {"name": "A"}, "item": [{"name": "folder", "item": ["text"]}]},
        {"info": {"name": "A"}, "item": [{"name": "folder", "item": None}]},
    ],
)
async def test_items_that_are_no_objects(content: dict[str, Any]) -> None:
    """A collection with items that are no objects is refused."""
    async with calling() as (session, names):
        path = f"/collections/{names['collection']}"
        for method in ("PUT", "PATCH"):
            async with session.request(method, path, json={"collection": content}) as response:
                assert (response.status, (await response.json())["error"]["name"]) == (400, "malformedRequestError")
