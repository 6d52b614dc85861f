"""Answers whose bodies are looked at before it is known who gets them.

A 429, and an answer that tells of an outage, says by its head what is to be done: it counts though its body breaks off.
Of a 401 or 403 the body alone tells whether it is about the key, so without one there was no answer.
"""

import asyncio
from collections import deque
from collections.abc import Iterable

from keyturn.core.complaints import BODY_LIMIT
from keyturn.core.errors import Broken
from keyturn.core.http import Answer, AnswerBody, Whole
from keyturn.core.signals import OUTAGES, TOO_MANY

SECONDS = 5.0
"""How long a refusal's body may take to arrive."""


class Begun:
    """A body of which the beginning has been read already."""

    __slots__ = ("_parts", "_rest")

    def __init__(self, parts: Iterable[bytes], rest: AnswerBody) -> None:
        self._parts = deque(parts)
        self._rest = rest

    async def read(self) -> bytes:
        """The next bytes; see `core.http.AnswerBody`."""
        return self._parts.popleft() if self._parts else await self._rest.read()

    async def discard(self) -> None:
        """Be done with it early."""
        self._parts.clear()
        await self._rest.discard()

    def abort(self) -> None:
        """Close the connection at once."""
        self._rest.abort()


class BrokenOff:
    """A body that ended early, or did not arrive in time: nobody gets anything of it."""

    __slots__ = ()

    async def read(self) -> bytes:
        """See `core.http.AnswerBody`.

        Raises:
            Broken: always.
        """
        raise Broken("The upstream broke its answer off.")

    async def discard(self) -> None:
        """Nothing is left to be done."""

    def abort(self) -> None:
        """Nothing is left to be done."""


async def peek(answer: Answer) -> tuple[Answer, bytes]:
    """Read a refusal's body; returns the answer with it still to be read, and what it says.

    A body that is longer than an error's says nothing, and is passed on as it comes; nor does one that ended early or
    did not arrive within `SECONDS`, and it is a `BrokenOff` then.

    Raises:
        Broken: the same of an answer that says by its body only what it is about.
    """
    try:
        return await _peek(answer)
    except Broken:
        answer.body.abort()
        if answer.status != TOO_MANY and answer.status not in OUTAGES:
            raise
        return Answer(answer.status, answer.reason, answer.fields, BrokenOff()), b""


async def _peek(answer: Answer) -> tuple[Answer, bytes]:
    if isinstance(answer.body, Whole):
        return answer, answer.body.data
    parts: list[bytes] = []
    left = BODY_LIMIT
    try:
        async with asyncio.timeout(SECONDS):
            while left >= 0:
                part = await answer.body.read()
                if not part:
                    body = b"".join(parts)
                    return Answer(answer.status, answer.reason, answer.fields, Whole(body)), body
                parts.append(part)
                left -= len(part)
    except TimeoutError:
        raise Broken(f"The upstream answered {answer.status}, and did not end its answer.") from None
    return Answer(answer.status, answer.reason, answer.fields, Begun(parts, answer.body)), b""
