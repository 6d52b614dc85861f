"""The endpoints of the practice API, and those of its own that show what arrived or provoke a proxy."""

import asyncio
from collections.abc import Iterator
from hashlib import sha256
from random import Random
from typing import Any

from aiohttp import web

from keyturn.practice.accounts import Endpoint
from keyturn.practice.answers import (
    ApiError,
    Page,
    Pour,
    dumps,
    error_answer,
    failure,
    json_answer,
    not_found,
    page_answer,
)
from keyturn.practice.catalogue import Catalogue, Entry
from keyturn.practice.contents import (
    OWNER,
    is_sound_change,
    is_sound_collection,
    is_sound_environment,
    made_uuid,
    moment,
    now,
)
from keyturn.practice.gate import Handler, Visit, body_of, malformed, read_content
from keyturn.practice.settings import PracticeSettings

_PIECE_BYTES = 2**16
_NOISE = 2**18
_MAX_DIGITS = 12
_NO_BODY = frozenset({204, 205, 304})
_STATUSES = range(200, 600)
_ERRORS_FROM = 400


class Probes:
    """These endpoints, with the bytes that they pour."""

    def __init__(self, settings: PracticeSettings) -> None:
        self._settings = settings
        self._noise = memoryview(noise(settings.seed))

    def routes(self) -> dict[Endpoint, Handler]:
        """The handlers by endpoint, except that of `/echo`, which handles all methods."""
        return {
            ("GET", "bytes", 2): self._bytes,
            ("GET", "chunked", 2): self._chunked,
            ("GET", "truncate", 2): self._truncate,
            ("GET", "slow", 2): self._slow,
            ("GET", "status", 2): self._status,
            ("GET", "redirect", 1): self._redirect,
            ("GET", "nothing", 1): self._nothing,
        }

    async def echo(self, visit: Visit) -> web.StreamResponse:
        """Say what arrived; the body is read as a stream and its digest told."""
        digest = sha256()
        length = 0
        async for piece in body_of(visit.request):
            digest.update(piece)
            length += len(piece)
        said = {
            "method": visit.request.method,
            "target": visit.target.raw,
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in visit.request.raw_headers],
            "length": length,
            "sha256": digest.hexdigest(),
        }
        return web.Response(body=self._masked(visit, said), content_type="application/json")

    def _masked(self, visit: Visit, said: dict[str, Any]) -> bytes:
        if not self._settings.echo_secrets:
            said["target"] = visit.target.shown
            said["headers"] = [[name, value.replace(visit.key, visit.key_name)] for name, value in said["headers"]]
        return dumps(said)

    async def _bytes(self, visit: Visit) -> web.StreamResponse:
        length = _number(visit)
        return self._pour(visit, length, length)

    async def _chunked(self, visit: Visit) -> web.StreamResponse:
        return self._pour(visit, _number(visit), None)

    async def _truncate(self, visit: Visit) -> web.StreamResponse:
        length = _number(visit)
        return self._pour(visit, length // 2, length)

    def _pour(self, visit: Visit, sent: int, announced: int | None) -> web.StreamResponse:
        headers = {"Content-Type": "application/octet-stream"}
        if announced is not None:
            headers["Content-Length"] = str(announced)
        pieces = _pieces(self._noise, 0 if visit.request.method == "HEAD" else sent)
        return Pour(pieces, headers, cut=announced is not None and sent < announced)

    async def _slow(self, visit: Visit) -> web.StreamResponse:
        milliseconds = _number(visit)
        await asyncio.sleep(milliseconds / 1000)
        return json_answer({"slept": milliseconds})

    async def _status(self, visit: Visit) -> web.StreamResponse:
        status = _number(visit)
        if status not in _STATUSES:
            raise not_found("A status outside 200 to 599")
        if status in _NO_BODY:
            return web.Response(status=status)
        if status >= _ERRORS_FROM:
            raise failure(status)
        return json_answer({"status": status}, status=status)

    async def _redirect(self, _visit: Visit) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/echo/redirected"})

    async def _nothing(self, _visit: Visit) -> web.StreamResponse:
        return web.Response(status=204)


def noise(seed: int) -> bytes:
    """The pseudo-random bytes that `/bytes` and its like repeat."""
    return Random(f"{seed}/noise").randbytes(_NOISE)


def _pieces(source: memoryview, length: int) -> Iterator[memoryview]:
    sent = 0
    while sent < length:
        start = sent % len(source)
        piece = source[start : min(start + _PIECE_BYTES, start + length - sent)]
        sent += len(piece)
        yield piece


def _number(visit: Visit) -> int:
    text = visit.segments[1]
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise not_found("A number in the path")
    return int(text)


_MAX_TASKS = 1000
_SPEC_FILES = ("index.yaml", "components/schemas.json", "components/responses.json", "paths/orders.json")


class Endpoints:
    """The endpoints over one catalogue."""

    def __init__(self, settings: PracticeSettings, catalogue: Catalogue) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._random = Random(f"{settings.seed}/tasks")
        self._probes = Probes(settings)
        self._users: dict[str, Page] = {}
        self._specs: dict[tuple[str, str], Page] = {}
        self._tasks: dict[str, int] = {}
        self._routes: dict[Endpoint, Handler] = {**self._reads(), **self._changes(), **self._probes.routes()}

    async def answer(self, visit: Visit) -> web.StreamResponse:
        """The response; an `ApiError` becomes an error response."""
        try:
            return await self._route(visit)(visit)
        except ApiError as error:
            return error_answer(visit.request, error)

    def _route(self, visit: Visit) -> Handler:
        if visit.segments[0] == "echo":
            return self._probes.echo
        handler = self._routes.get((visit.method, visit.segments[0], len(visit.segments)))
        return handler or _nowhere

    def _reads(self) -> dict[Endpoint, Handler]:
        return {
            ("GET", "me", 1): self._me,
            ("GET", "workspaces", 1): self._list_workspaces,
            ("GET", "workspaces", 2): self._get_workspace,
            ("GET", "collections", 1): self._list,
            ("GET", "environments", 1): self._list,
            ("GET", "collections", 2): self._get,
            ("GET", "environments", 2): self._get,
            ("GET", "specs", 4): self._spec_file,
            ("GET", "collection-updates-tasks", 2): self._task,
        }

    def _changes(self) -> dict[Endpoint, Handler]:
        return {
            ("POST", "collections", 1): self._post,
            ("POST", "environments", 1): self._post,
            ("PUT", "collections", 2): self._put,
            ("PUT", "environments", 2): self._put,
            ("PATCH", "collections", 2): self._patch,
            ("DELETE", "collections", 2): self._delete,
            ("DELETE", "environments", 2): self._delete,
            ("POST", "monitors", 3): self._run_monitor,
        }

    # Reading

    async def _me(self, visit: Visit) -> web.StreamResponse:
        page = self._users.get(visit.user)
        if page is None:
            page = self._users[visit.user] = Page(_user(visit.user))
        return page_answer(visit.request, page)

    async def _list_workspaces(self, visit: Visit) -> web.StreamResponse:
        return page_answer(visit.request, self._catalogue.workspaces(visit.target.query))

    async def _get_workspace(self, visit: Visit) -> web.StreamResponse:
        page = self._catalogue.workspace(visit.segments[1])
        if page is None:
            raise not_found("The workspace")
        return page_answer(visit.request, page)

    async def _list(self, visit: Visit) -> web.StreamResponse:
        return page_answer(visit.request, self._catalogue.entries(visit.kind, visit.target.query))

    async def _get(self, visit: Visit) -> web.StreamResponse:
        return page_answer(visit.request, self._entry(visit).page())

    async def _spec_file(self, visit: Visit) -> web.StreamResponse:
        _specs, ref, files, path = visit.segments
        if files != "files" or path not in _SPEC_FILES:
            raise not_found("The file")
        page = self._specs.get((ref, path))
        if page is None:
            page = Page(_spec_file(path))
            if len(self._specs) < _MAX_TASKS:
                self._specs[ref, path] = page
        return page_answer(visit.request, page)

    async def _task(self, visit: Visit) -> web.StreamResponse:
        ref = visit.segments[1]
        polls = self._tasks.get(ref)
        if polls is None:
            raise not_found("The task")
        self._tasks[ref] = polls + 1
        return json_answer({"id": ref, "status": "successful" if polls else "in-progress"})

    # Changing

    async def _post(self, visit: Visit) -> web.StreamResponse:
        content = await self._content(visit)
        entry = self._catalogue.add(visit.kind, content, visit.target.query.get("workspace"))
        return json_answer({visit.kind: entry.reference()})

    async def _put(self, visit: Visit) -> web.StreamResponse:
        entry = self._entry(visit)
        content = await self._content(visit)
        self._catalogue.replace(visit.kind, entry, content)
        if visit.kind == "collection" and "respond-async" in visit.request.headers.get("Prefer", ""):
            return self._accepted()
        return json_answer({visit.kind: entry.reference()})

    async def _patch(self, visit: Visit) -> web.StreamResponse:
        entry = self._entry(visit)
        change = await read_content(visit)
        if "events" in change:
            change["event"] = change.pop("events")
        if not is_sound_change(change):
            raise malformed(visit.kind)
        info = self._catalogue.patch(entry, change)
        return json_answer(
            {visit.kind: {"id": entry.id, "name": entry.name, "description": info.get("description", "")}}
        )

    async def _delete(self, visit: Visit) -> web.StreamResponse:
        entry = self._entry(visit)
        self._catalogue.remove(visit.kind, entry)
        return json_answer({visit.kind: {"id": entry.id, "uid": entry.uid}})

    async def _run_monitor(self, visit: Visit) -> web.StreamResponse:
        if visit.segments[2] != "run":
            raise not_found("The requested resource")
        monitor = visit.segments[1]
        if visit.target.query.get("async") == "true":
            info = {"monitorId": monitor, "status": "running", "message": "The monitor runs."}
            return json_answer({"run": {"info": info}}, status=202)
        started = now()
        await asyncio.sleep(self._settings.monitor_delay)
        return json_answer(_monitor_run(monitor, started, made_uuid(self._random)))

    def _accepted(self) -> web.StreamResponse:
        ref = made_uuid(self._random)
        while len(self._tasks) >= _MAX_TASKS:
            self._tasks.pop(next(iter(self._tasks)))
        self._tasks[ref] = 0
        url = f"/collection-updates-tasks/{ref}"
        return json_answer(
            {"task": {"id": ref, "status": "in-progress", "url": url}},
            status=202,
            headers={"Location": url, "Preference-Applied": "respond-async"},
        )

    def _entry(self, visit: Visit) -> Entry:
        entry = self._catalogue.find(visit.kind, visit.segments[1])
        if entry is None:
            raise not_found(f"The {visit.kind}")
        return entry

    async def _content(self, visit: Visit) -> dict[str, Any]:
        if "Content-Length" not in visit.request.headers:
            raise ApiError(411, "lengthRequired", "Send the length of the body in a Content-Length header.")
        content = await read_content(visit)
        sound = is_sound_collection if visit.kind == "collection" else is_sound_environment
        if not sound(content):
            raise malformed(visit.kind)
        return content


async def _nowhere(_visit: Visit) -> web.StreamResponse:
    raise not_found("The requested resource")


def _user(name: str) -> dict[str, Any]:
    number = int.from_bytes(sha256(name.encode()).digest()[:4], "big")
    return {
        "user": {
            "id": number,
            "sub": made_uuid(Random(name)),
            "username": name,
            "email": f"{number}@example.com",
            "fullName": name,
            "avatar": None,
            "isPublic": False,
            "emailVerified": True,
            "teamId": 1,
            "teamName": "Practice",
            "teamDomain": "practice",
            "roles": ["user"],
        },
        "operations": [
            {"name": "api_object_usage", "limit": 3, "usage": 0, "overage": 0},
            {"name": "collection_run_limit", "limit": 25, "usage": 0, "overage": 0},
        ],
    }


def _monitor_run(monitor: str, started: str, job: str) -> dict[str, Any]:
    info = {
        "jobId": job,
        "monitorId": monitor,
        "name": "Practice monitor",
        "status": "success",
        "startedAt": started,
        "finishedAt": now(),
    }
    counts = {"total": 3, "failed": 0}
    stats = {"assertions": counts, "requests": counts, "runCount": 1, "errorCount": 0, "abortedCount": 0}
    return {"run": {"info": info, "stats": stats, "executions": [], "failures": []}}


def _spec_file(path: str) -> dict[str, Any]:
    random = Random(path)
    created = moment(random)
    return {
        "id": made_uuid(random),
        "name": path.rpartition("/")[2],
        "path": path,
        "createdBy": OWNER,
        "updatedBy": OWNER,
        "createdAt": created,
        "updatedAt": created,
        "type": "ROOT" if path == _SPEC_FILES[0] else "DEFAULT",
        "content": "openapi: 3.0.3\n" if path.endswith(".yaml") else '{"type": "object"}',
    }
