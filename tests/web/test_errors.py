import json

import pytest
from keyturn.core import errors as tree
from keyturn.core.errors import BadRequest, NoKey, Refusal, TooMany, Unauthenticated, Unreachable
from keyturn.core.events import Journal
from keyturn.web.errors import answer

from tests.web.callers import split

JOURNAL = Journal(id="id-1", method="GET", queued=1500, upstream=20_000)
ACCEPTS_PROBLEM = ((b"accept", b"application/problem+json"),)


def test_a_refusal_has_both_shapes() -> None:
    """Clients of the Postman API read `error.name` and `error.message`, its official SDK `title` and `detail`."""
    status, fields, body = split(answer(NoKey("No key. Wait.", retry_after=7), JOURNAL, ()))
    assert status == b"HTTP/1.1 503 Service Unavailable"
    assert json.loads(body) == {
        "error": {"name": "noKeyAvailable", "message": "No key. Wait."},
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "No key. Wait.",
        "name": "noKeyAvailable",
    }
    named = dict(fields)
    date = named.pop(b"Date")
    assert date.endswith(b" GMT")
    assert named == {
        b"Content-Type": b"application/json",
        b"Content-Length": b"%d" % len(body),
        b"Via": b"1.1 keyturn",
        b"X-Request-Id": b"id-1",
        b"Server-Timing": b"queue;dur=1.5, upstream;dur=20.0",
        b"Proxy-Status": b'keyturn; error=destination_unavailable; details="No key. Wait."',
        b"Retry-After": b"7",
    }


def test_a_refusal_is_a_problem_to_who_wants_one() -> None:
    """`application/problem+json` (RFC 9457) when the caller accepts that and no JSON."""
    _, fields, body = split(answer(BadRequest("Send less."), JOURNAL, ACCEPTS_PROBLEM))
    assert dict(fields)[b"Content-Type"] == b"application/problem+json"
    assert body == split(answer(BadRequest("Send less."), JOURNAL, ()))[2], "in the same body"


def test_what_is_left_is_told() -> None:
    """If it is known whose limits they are."""
    rates = ((b"X-RateLimit-Limit", b"60"), (b"X-RateLimit-Remaining", b"0"))
    assert set(rates) < set(split(answer(NoKey("No key."), JOURNAL, (), b"", rates))[1])


def test_an_unknown_caller_is_told_how_to_come_in() -> None:
    """401 comes with `WWW-Authenticate: Bearer`, nothing else does."""
    assert (b"WWW-Authenticate", b"Bearer") in split(answer(Unauthenticated("Who?"), JOURNAL, ()))[1]
    assert b"WWW-Authenticate" not in answer(Unreachable("Gone."), JOURNAL, ())


def test_the_key_is_named_when_there_was_one() -> None:
    """`Keyturn-Key` says under which key the request failed."""
    journal = Journal(id="a", method="GET", key="team-a")
    assert (b"Keyturn-Key", b"team-a") in split(answer(Unreachable("Gone."), journal, ()))[1]


def test_head_has_no_body() -> None:
    """HEAD gets the head that GET would get."""
    status, fields, body = split(answer(NoKey("No key."), Journal(id="a", method="HEAD"), ()))
    assert status.startswith(b"HTTP/1.1 503")
    assert int(dict(fields)[b"Content-Length"]) > 0
    assert body == b""


def test_details_are_a_structured_string() -> None:
    """Quotes and backslashes are escaped, what is not ASCII is replaced (RFC 8941); no message can add a field."""
    refusal = TooMany('Say "please", \\ or…\r\nX: y', reason="turn", retry_after=1)
    _, fields, body = split(answer(refusal, JOURNAL, (), b"Connection: close"))
    assert dict(fields)[b"Proxy-Status"].endswith(b'; details="Say \\"please\\", \\\\ or???X: y"')
    assert dict(fields)[b"Connection"] == b"close"
    assert json.loads(body)["error"]["message"] == refusal.message


def every_refusal(kind: type[Refusal] = Refusal) -> list[type[Refusal]]:
    """All classes of refusals."""
    return [kind, *(found for below in kind.__subclasses__() for found in every_refusal(below))]


@pytest.mark.parametrize("kind", every_refusal(), ids=lambda kind: kind.__name__)
def test_every_refusal_can_be_answered(kind: type[Refusal]) -> None:
    """Each class of the tree has a status that HTTP knows, a name, and an error type."""
    refusal = kind.__new__(kind)
    Refusal.__init__(refusal, "What to do.")
    status, fields, body = split(answer(refusal, JOURNAL, ()))
    assert status.startswith(b"HTTP/1.1 %d " % kind.status)
    assert json.loads(body)["error"]["name"] == kind.name
    assert kind.proxy_error.encode() in dict(fields)[b"Proxy-Status"]
    assert kind.__name__ == "Refusal" or kind.__name__ in (tree.__doc__ or "")
