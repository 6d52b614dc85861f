import itertools

import pytest
from keyturn.core.complaints import BODY_LIMIT
from keyturn.core.errors import Broken
from keyturn.core.http import Answer, Whole
from keyturn.gateway.peeking import SECONDS, Begun, BrokenOff, peek

from tests.gateway.settings import Breaking, FakeBody, Slow
from tests.virtual import micros, virtual


async def whole(answer: Answer) -> bytes:
    """All that its caller reads."""
    data = b""
    while part := await answer.body.read():
        data += part
    return data


@virtual
async def test_an_errors_body_is_read_and_still_there() -> None:
    """Whether it has arrived already or comes in parts."""
    for body in (Whole(b"abc"), FakeBody([b"a", b"bc"])):
        answer, said = await peek(Answer(403, b"", (), body))
        assert said == b"abc"
        assert isinstance(answer.body, Whole)
        assert await whole(answer) == b"abc"


@virtual
async def test_a_long_body_says_nothing_and_is_passed_on() -> None:
    """Byte for byte, and it can be left at any moment."""
    parts = [b"x" * BODY_LIMIT, b"y", b"z" * 10]
    body = FakeBody(list(parts))
    answer, said = await peek(Answer(403, b"", (), body))
    assert said == b""
    assert isinstance(answer.body, Begun)
    assert await whole(answer) == b"".join(parts)
    answer.body.abort()
    assert body.aborted
    body = FakeBody(list(parts))
    answer, _ = await peek(Answer(403, b"", (), body))
    await answer.body.discard()
    assert await whole(answer) == b""


@virtual
async def test_a_body_that_does_not_end_is_broken() -> None:
    """Nobody waits for it, and what the answer is about is not known."""
    for status in (401, 403):
        body, began = Slow([]), micros()
        with pytest.raises(Broken):
            await peek(Answer(status, b"", (), body))
        assert body.aborted
        assert micros() - began == SECONDS * 1_000_000


@virtual
async def test_a_head_that_says_enough_counts_without_its_body() -> None:
    """Whether the body breaks off or does not end; nobody gets the part of it that came."""
    for status, body in itertools.product((429, 502, 503, 504), (Breaking([b"half"]), Slow([]))):
        answer, said = await peek(Answer(status, b"", ((b"Retry-After", b"5"),), body))
        assert (answer.status, answer.fields, said) == (status, ((b"Retry-After", b"5"),), b"")
        assert isinstance(answer.body, BrokenOff)
        assert body.aborted
        with pytest.raises(Broken):
            await answer.body.read()
        await answer.body.discard()
        answer.body.abort()
