"""Lists as their query asks for them: whole, filtered, or one page of them."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

from keyturn.practice.answers import ApiError

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
