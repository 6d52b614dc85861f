"""Answers whose bodies are looked at before it is known who gets them."""

import asyncio

from proxy.core.complaints import BODY_LIMIT
from proxy.core.errors import Broken
from proxy.core.http import Answer, AnswerBody, Whole

SECONDS = 5.0
"""How long a refusal's body may take to arrive."""


class Begun:
    """A body of which the beginning has been read already."""

    __slots__ = ("_parts", "_rest")

    def __init__(self, parts: list[bytes], rest: AnswerBody) -> None:
        self._parts = parts
        self._rest = rest

    async def read(self) -> bytes:
        """The next bytes; see `core.http.AnswerBody`."""
        return self._parts.pop(0) if self._parts else await self._rest.read()

    async def discard(self) -> None:
        """Be done with it early."""
        self._parts.clear()
        await self._rest.discard()

    def abort(self) -> None:
        """Close the connection at once."""
        self._rest.abort()


async def peek(answer: Answer) -> tuple[Answer, bytes]:
    """Read a refusal's body; returns the answer with it still to be read, and what it says.

    A body that is longer than an error's says nothing, and is passed on as it comes.

    Raises:
        Broken: it ended early, or did not arrive within `SECONDS`.
    """
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
        answer.body.abort()
        raise Broken(f"The upstream answered {answer.status}, and did not end its answer.") from None
    return Answer(answer.status, answer.reason, answer.fields, Begun(parts, answer.body)), b""
