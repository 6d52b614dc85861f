"""The data of the practice API: workspaces with collections and environments, and lists with filters and pages."""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import Any, Literal

from keyturn.practice.answers import ApiError, Page
from keyturn.practice.contents import (
    OWNER,
    PRACTICE_RUN,
    collection_of,
    complete_collection,
    completed_values,
    environment_name,
    environment_of,
    made_uuid,
    moment,
    now,
    practice_run,
    subject_name,
)

Row = dict[str, Any]
Query = Mapping[str, str]

_MAX_PAGE = 100
_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)


def matching(rows: list[Row], query: Query, names: tuple[str, ...]) -> list[Row]:
    """The rows whose fields of these names are as the query says, where it says something."""
    wanted = {name: query[name] for name in names if name in query}
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def page_by_offset(name: str, rows: list[Row], query: Query) -> Row:
    """A list under its name, cut to `limit` rows from `offset` on; `meta` tells of the cut.

    Raises:
        ApiError: One of them is not a whole number.
    """
    if not query.keys() & {"limit", "offset"}:
        return {name: rows}
    offset = _whole_number(query, "offset", 0)
    limit = _whole_number(query, "limit", len(rows))
    meta = {"total": len(rows), "offset": offset, "limit": limit}
    return {name: rows[offset : offset + limit], "meta": meta}


def page_by_cursor(name: str, rows: list[Row], query: Query) -> Row:
    """A list under its name, cut to `limit` rows from `cursor` on; `meta` has the cursor of the next page, if any.

    Raises:
        ApiError: The limit is not a whole number from 1 to 100, or the cursor is none of ours.
    """
    if not query.keys() & {"limit", "cursor"}:
        return {name: rows}
    limit = _whole_number(query, "limit", _MAX_PAGE)
    if not 1 <= limit <= _MAX_PAGE:
        raise _unusable("limit")
    begin = _position(query["cursor"]) if "cursor" in query else 0
    end = begin + limit
    return {name: rows[begin:end], "meta": {"nextCursor": _cursor(end)} if end < len(rows) else {}}


def _whole_number(query: Query, name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not _WHOLE_NUMBER.fullmatch(text):
        raise _unusable(name)
    return int(text)


def _cursor(position: int) -> str:
    return urlsafe_b64encode(str(position).encode()).decode()


def _position(cursor: str) -> int:
    try:
        text = urlsafe_b64decode(cursor.encode()).decode()
    except ValueError:
        text = ""
    if not _WHOLE_NUMBER.fullmatch(text):
        raise _unusable("cursor")
    return int(text)


def _unusable(name: str) -> ApiError:
    return ApiError(400, "malformedRequestError", f"The value of the query parameter {name} cannot be used.")


Kind = Literal["collection", "environment"]

WORKSPACES = 24
COLLECTIONS = 180
ENVIRONMENTS = 96
_WORKSPACES_QUERY = frozenset({"type", "createdBy", "elementId", "limit", "cursor"})
_COLLECTIONS_QUERY = frozenset({"name", "limit", "offset"})


class Entry:
    """A collection or an environment: its place in the lists, and its page, which is made when first asked for."""

    __slots__ = ("_build", "_page", "created", "id", "name", "uid", "updated", "workspace")

    def __init__(self, name: str, workspace: str, random: Random) -> None:
        self.id = made_uuid(random)
        self.uid = f"{OWNER}-{self.id}"
        self.name = name
        self.workspace = workspace
        self.created = self.updated = moment(random)
        self._build: Callable[[], Any] = dict
        self._page: Page | None = None

    def becomes(self, build: Callable[[], Any], name: str) -> None:
        """Take another content and its name."""
        self._build, self._page, self.name = build, None, name

    def page(self) -> Page:
        """The response to a GET of it."""
        if self._page is None:
            self._page = Page(self._build())
            self._build = dict  # what it was built from need not stay in memory
        return self._page

    def brief(self) -> dict[str, Any]:
        """How a list names it."""
        return {
            "id": self.id,
            "name": self.name,
            "owner": str(OWNER),
            "createdAt": self.created,
            "updatedAt": self.updated,
            "uid": self.uid,
            "isPublic": False,
        }

    def reference(self) -> dict[str, str]:
        """How a workspace, and the answer to a change, names it."""
        return {"id": self.id, "name": self.name, "uid": self.uid}


class Catalogue:
    """All of it; `base_url` gives the value of `baseUrl` in the environments."""

    def __init__(self, seed: int, base_url: Callable[[], str]) -> None:
        self._base_url = base_url
        self._random = Random(seed)
        self._workspaces = {workspace["id"]: workspace for workspace in map(self._workspace, range(WORKSPACES))}
        self._shelves: dict[Kind, dict[str, Entry]] = {"collection": {}, "environment": {}}
        self._pages: dict[tuple[str, str], Page] = {}
        self._fill(seed)

    def workspaces(self, query: Query) -> Page:
        """The list of workspaces as a query asks for it.

        Raises:
            ApiError: A value of the query cannot be used.
        """
        if query.keys() & _WORKSPACES_QUERY:
            return Page(self._list_workspaces(query))
        return self._page("workspaces", "", partial(self._list_workspaces, query))

    def workspace(self, ref: str) -> Page | None:
        """One workspace and what it holds."""
        if ref not in self._workspaces:
            return None
        return self._page("workspace", ref, partial(self._one_workspace, ref))

    def entries(self, kind: Kind, query: Query) -> Page:
        """The list of collections or environments as a query asks for it.

        That of an unknown workspace is empty, as the real API has it; environments cannot be asked for by more.

        Raises:
            ApiError: A value of the query cannot be used.
        """
        workspace = query.get("workspace")
        cut = kind == "collection" and query.keys() & _COLLECTIONS_QUERY
        if cut or (workspace is not None and workspace not in self._workspaces):
            return Page(self._list_entries(kind, workspace, query))
        return self._page(kind, workspace or "", partial(self._list_entries, kind, workspace, {}))

    def find(self, kind: Kind, ref: str) -> Entry | None:
        """A collection or an environment by its uid or its id."""
        shelf = self._shelves[kind]
        return shelf.get(ref) or shelf.get(f"{OWNER}-{ref}")

    def named(self, kind: Kind, name: str) -> Entry:
        """The first of that name.

        Raises:
            LookupError: There is none.
        """
        for entry in self._shelves[kind].values():
            if entry.name == name:
                return entry
        raise LookupError(name)

    def add(self, kind: Kind, content: dict[str, Any], workspace: str | None) -> Entry:
        """Put in what a caller made, into the first workspace unless it names another."""
        home = workspace if workspace in self._workspaces else next(iter(self._workspaces))
        entry = Entry("", home or "", self._random)
        entry.created = now()
        self._shelves[kind][entry.uid] = entry
        self.replace(kind, entry, content)
        return entry

    def replace(self, kind: Kind, entry: Entry, content: dict[str, Any]) -> None:
        """Give an entry another content."""
        entry.updated = now()
        shape = _shaped_collection if kind == "collection" else _shaped_environment
        name = content["info"]["name"] if kind == "collection" else content["name"]
        entry.becomes(partial(shape, entry, content), name)
        self._pages.clear()

    def patch(self, entry: Entry, change: Any) -> dict[str, Any]:
        """Change parts of a collection (RFC 7396); returns its `info`."""
        content = merged(json.loads(entry.page().body)["collection"], change)
        self.replace("collection", entry, content)
        info: dict[str, Any] = content["info"]
        return info

    def remove(self, kind: Kind, entry: Entry) -> None:
        """Take an entry out."""
        self._shelves[kind].pop(entry.uid, None)
        self._pages.clear()

    def _fill(self, seed: int) -> None:
        homes = list(self._workspaces)
        for index in range(COLLECTIONS):
            random = Random(f"{seed}/collection/{index}")
            name = subject_name(random) if index else PRACTICE_RUN
            entry = Entry(name, random.choice(homes), random)
            content = partial(collection_of, random, name) if index else self._practice_run
            self._put("collection", entry, partial(_built, _shaped_collection, entry, content))
        for index in range(ENVIRONMENTS):
            random = Random(f"{seed}/environment/{index}")
            entry = Entry(environment_name(random) if index else PRACTICE_RUN, random.choice(homes), random)
            self._put("environment", entry, partial(self._environment, entry, random))

    def _put(self, kind: Kind, entry: Entry, build: Callable[[], Any]) -> None:
        entry.becomes(build, entry.name)
        self._shelves[kind][entry.uid] = entry

    def _practice_run(self) -> dict[str, Any]:
        return practice_run(self._base_url())

    def _environment(self, entry: Entry, random: Random) -> dict[str, Any]:
        return _shaped_environment(entry, {"values": environment_of(random, self._base_url())})

    def _workspace(self, index: int) -> dict[str, Any]:
        name = f"{subject_name(self._random)} {index + 1}"
        kind = self._random.choice(("team", "personal"))
        created = moment(self._random)
        return {
            "id": made_uuid(self._random),
            "name": name,
            "type": kind,
            "visibility": kind,
            "createdBy": str(OWNER),
            "about": "Made up.",
            "createdAt": created,
            "updatedAt": created,
        }

    def _page(self, what: str, ref: str, build: Callable[[], Any]) -> Page:
        page = self._pages.get((what, ref))
        if page is None:
            page = self._pages[what, ref] = Page(build())
        return page

    def _list_workspaces(self, query: Query) -> Row:
        rows = matching(list(self._workspaces.values()), query, ("type", "createdBy"))
        if "elementId" in query:
            found = self.find("collection", query["elementId"]) if query.get("elementType") == "collection" else None
            rows = [row for row in rows if found is not None and row["id"] == found.workspace]
        return page_by_cursor("workspaces", rows, query)

    def _one_workspace(self, ref: str) -> dict[str, Any]:
        held = {
            f"{kind}s": [entry.reference() for entry in shelf.values() if entry.workspace == ref]
            for kind, shelf in self._shelves.items()
        }
        return {"workspace": {**self._workspaces[ref], "description": "Made up.", "updatedBy": str(OWNER), **held}}

    def _list_entries(self, kind: Kind, workspace: str | None, query: Query) -> Row:
        entries = self._shelves[kind].values()
        rows = [entry.brief() for entry in entries if workspace in (None, entry.workspace)]
        return page_by_offset(f"{kind}s", matching(rows, query, ("name",)), query)


def merged(target: Any, change: Any) -> Any:
    """A JSON value after a merge patch (RFC 7396, section 2)."""
    if not isinstance(change, dict):
        return change
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in change.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def _built(
    shape: Callable[[Entry, dict[str, Any]], dict[str, Any]], entry: Entry, content: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    return shape(entry, content())


def _shaped_collection(entry: Entry, content: dict[str, Any]) -> dict[str, Any]:
    complete_collection(content, str(OWNER), Random(entry.id))
    info = {
        **content["info"],
        "_postman_id": entry.id,
        "uid": entry.uid,
        "createdAt": entry.created,
        "updatedAt": entry.updated,
        "lastUpdatedBy": str(OWNER),
    }
    return {"collection": {**content, "info": info}}


def _shaped_environment(entry: Entry, content: dict[str, Any]) -> dict[str, Any]:
    return {"environment": {**content, **entry.brief(), "values": completed_values(content.get("values", []))}}
