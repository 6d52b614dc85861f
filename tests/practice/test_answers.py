import gzip
import json
from email.utils import parsedate_to_datetime

import pytest
from aiohttp.test_utils import make_mocked_request
from keyturn.practice.accounts import Verdict
from keyturn.practice.answers import (
    ApiError,
    Page,
    accepts_gzip,
    error_answer,
    failure,
    page_answer,
    rate_headers,
    refusal_of,
    unauthenticated,
)
from keyturn.practice.settings import HeaderStyle

VERDICT = Verdict(allowed=False, limit=60, window=60.0, remaining=0, reset=142.3, retry=142.3)


@pytest.mark.parametrize(
    ("style", "headers"),
    [
        (
            "x-ratelimit",
            {"X-RateLimit-Limit": "60", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1624391526"},
        ),
        ("ratelimit", {"RateLimit-Limit": "60", "RateLimit-Remaining": "0", "RateLimit-Reset": "43"}),
        ("draft7", {"RateLimit": "limit=60, remaining=0, reset=43", "RateLimit-Policy": "60;w=60"}),
        ("draft8", {"RateLimit": '"default";r=0;t=43', "RateLimit-Policy": '"default";q=60;w=60'}),
        ("none", {}),
    ],
)
def test_header_styles(style: HeaderStyle, headers: dict[str, str]) -> None:
    """Each style tells the same reset: epoch seconds rounded down as captured, or seconds rounded up."""
    assert rate_headers(style, VERDICT, 100.0, 1624391484.5) == headers


def test_the_captured_answer() -> None:
    """The first answer of a window has the Remaining and the Reset of the real API's captured one."""
    verdict = Verdict(allowed=True, limit=60, window=60.0, remaining=59, reset=60.25, retry=0.25)
    epoch = parsedate_to_datetime("Tue, 22 Jun 2021 19:51:24 GMT").timestamp() + 0.9
    headers = rate_headers("x-ratelimit", verdict, 0.25, epoch)
    assert (headers["X-RateLimit-Remaining"], headers["X-RateLimit-Reset"]) == ("59", "1624391544")


def test_refusal_rounds_up() -> None:
    """The moment in the body and the `Retry-After` are rounded up, so a caller that waits is admitted."""
    error, wait = refusal_of(VERDICT, 100.0, 1465452660.5431)
    assert error.message == "Rate Limit exceeded. Please retry at 1465452702844"
    assert wait == 43


@pytest.mark.parametrize(
    ("accept", "yes"),
    [
        ("gzip", True),
        ("gzip, deflate, br", True),
        ("br;q=1.0, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("identity", False),
        ("", False),
        ("*", False),
    ],
)
def test_gzip_is_for_callers_that_accept_it(accept: str, yes: bool) -> None:
    """Gzip is sent to callers that name it and do not refuse it."""
    assert accepts_gzip(accept) is yes


def test_page_is_gzip_for_those_who_take_it() -> None:
    """A page is compressed for callers that accept gzip, with the same validator."""
    page = Page({"text": "x" * 500})
    plain = page_answer(make_mocked_request("GET", "/"), page)
    small = page_answer(make_mocked_request("GET", "/", headers={"Accept-Encoding": "gzip"}), page)
    assert isinstance(small.body, bytes)
    assert gzip.decompress(small.body) == plain.body
    assert small.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert small.headers["ETag"] == plain.headers["ETag"]
    assert small.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"


@pytest.mark.parametrize("condition", ["{}", "*", '"other", {}', "{strong}"])
def test_304_for_those_who_have_it(condition: str) -> None:
    """A request with the validator, weak or strong, among others or as `*`, gets 304 without a body."""
    page = Page({"a": 1})
    given = condition.replace("{}", page.etag).replace("{strong}", page.etag.removeprefix("W/"))
    answer = page_answer(make_mocked_request("GET", "/", headers={"If-None-Match": given}), page)
    assert (answer.status, answer.body, answer.headers["ETag"]) == (304, None, page.etag)


def test_200_for_those_who_have_another() -> None:
    """A request with another validator gets the page."""
    request = make_mocked_request("GET", "/", headers={"If-None-Match": 'W/"1-x"'})
    assert page_answer(request, Page({"a": 1})).status == 200


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("application/problem+json", "application/problem+json"),
        ("application/problem+json, */*;q=0.1", "application/problem+json"),
        ("application/json, application/problem+json", "application/json"),
        ("*/*", "application/json"),
    ],
)
def test_problems_for_those_who_ask(accept: str, content_type: str) -> None:
    """An error is a problem for callers that accept that and not JSON."""
    answer = error_answer(make_mocked_request("GET", "/", headers={"Accept": accept}), unauthenticated(missing=True))
    assert (answer.status, answer.content_type) == (401, content_type)


def test_error_bodies() -> None:
    """An error has the real API's shape; as a problem it has its detail; a 504 is the gateway's page."""
    error = unauthenticated(missing=False)
    body = error_answer(make_mocked_request("GET", "/"), error).body
    assert body == (
        b'{"error":{"name":"AuthenticationError",'
        b'"message":"Invalid API Key. Every request requires a valid API Key to be sent."}}'
    )
    problem = error_answer(make_mocked_request("GET", "/", headers={"Accept": "application/problem+json"}), error).body
    assert isinstance(problem, bytes)
    assert json.loads(problem)["detail"] == "A valid API key must be provided in the request header."
    gateway = error_answer(make_mocked_request("GET", "/"), failure(504))
    assert (gateway.status, gateway.content_type) == (504, "text/html")


def test_failure_of_any_status() -> None:
    """Any status has a body, also one that the real API never used."""
    error = failure(418)
    assert isinstance(error, ApiError)
    assert (error.status, error.name) == (418, "error")
