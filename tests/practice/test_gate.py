import json
import re
import time
from email.utils import parsedate_to_datetime
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.practice import WindowKind
from keyturn.practice.gate import ArrivalLog, Record, most_within

from tests.practice.client import KEY, OTHER, UNKNOWN, Clock, practising, session_of


def record(at: float, key: str = "key-1", user: str = "ann", *, counted: bool = True, status: int = 200) -> Record:
    """Return an arrival with only some fields set."""
    return Record(at, key, user, "GET", "/me", counted, status)


@given(st.lists(st.floats(0.0, 100.0), max_size=60), st.floats(0.1, 50.0))
def test_most_within_is_the_most(instants: list[float], window: float) -> None:
    """The most in any half-open interval equals the most in one that starts at an arrival."""
    brute = max((sum(start <= at < start + window for at in instants) for start in instants), default=0)
    assert most_within(sorted(instants), window) == brute


def test_interval_is_half_open() -> None:
    """Two requests exactly one window apart are not in one interval."""
    assert most_within([1.0, 61.0], 60.0) == 1
    assert most_within([1.0, 60.9], 60.0) == 2


def test_worst_by_key_and_by_user() -> None:
    """The worst interval is found by key or by user, with refused requests but without unknown callers."""
    log = ArrivalLog()
    for item in (
        record(0.0),
        record(1.0, "key-2"),
        record(2.0, "key-2", counted=False, status=429),
        record(3.0, "key-9", "", counted=False, status=401),
    ):
        log.add(item)
    assert log.worst(60.0) == {"key-1": 1, "key-2": 2}
    assert log.worst(60.0, per="user") == {"ann": 3}
    assert log.worst(1.0, per="user") == {"ann": 1}


def test_throttled_counts_the_limits_refusals() -> None:
    """Only 429s of the limit count as throttled, not those of an endpoint."""
    log = ArrivalLog()
    answered = record(0.0, status=0)
    log.add(answered)
    answered.status = 429
    log.add(record(1.0, counted=False, status=429))
    assert log.throttled == 1
    assert [arrival.throttled for arrival in log.arrivals] == [False, True]


def test_the_log_is_bounded() -> None:
    """The oldest arrivals go when the log is full; the number of refusals stays."""
    log = ArrivalLog(capacity=2)
    for at in (0.0, 1.0, 2.0):
        log.add(record(at, counted=False, status=429))
    assert [arrival.at for arrival in log.arrivals] == [1.0, 2.0]
    assert log.throttled == 3


def test_a_status_may_come_later() -> None:
    """An arrival shows status 0 until it is answered."""
    log = ArrivalLog()
    item = record(0.0, status=0)
    log.add(item)
    assert log.arrivals[0].status == 0
    item.status = 204
    assert log.arrivals[0].status == 204


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/collections", b"{"),
        ("POST", "/collections", b"[]"),
        ("POST", "/collections", b"\xff"),
        ("POST", "/collections", b"{}"),
        ("POST", "/collections", b'{"collection":{"info":{"name":"x"}}}'),
        ("POST", "/collections", b'{"collection":{"info":[],"item":[]}}'),
        ("POST", "/collections", b'{"collection":{"info":{"name":1},"item":[]}}'),
        ("POST", "/environments", b'{"environment":{"values":[]}}'),
        ("POST", "/environments", b'{"environment":1}'),
        ("PATCH", "/collections/{}", b'{"collection":{"info":null}}'),
        ("PATCH", "/collections/{}", b'{"collection":{"info":{"name":null}}}'),
        ("PATCH", "/collections/{}", b'{"collection":{"item":null}}'),
        ("PATCH", "/collections/{}", b'{"collection":[]}'),
        ("POST", "/collections", b"[" * 100_000),
    ],
)
async def test_malformed_bodies(method: str, path: str, body: bytes) -> None:
    """A body that is no JSON, or not what the endpoint is for, is refused with 400 in the API's shape."""
    async with (
        practising() as (api, session),
        session.request(method, path.format(api.run_collection), data=body) as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]["name"] == "malformedRequestError"


async def test_too_large_by_its_length() -> None:
    """A body that announces more than 100 MB is refused at once."""
    async with practising() as (_, session):
        headers = {"Content-Length": str(100 * 2**20 + 1), "Expect": "100-continue"}
        async with session.post("/collections", headers=headers) as response:
            assert response.status == 413
            assert (await response.json())["error"]["name"] == "requestEntityTooLarge"


async def test_a_large_collection() -> None:
    """A collection of some megabytes is taken and comes back."""
    items = [{"name": "x" * 1000} for _ in range(3000)]
    body = json.dumps({"collection": {"info": {"name": "Large"}, "item": items}}).encode()
    async with practising() as (_, session):
        async with session.post("/collections", data=BytesIO(body)) as response:
            uid = (await response.json())["collection"]["uid"]
        async with session.get(f"/collections/{uid}") as response:
            shown = (await response.json())["collection"]["item"]
    assert [item["name"] for item in shown] == [item["name"] for item in items]


async def test_continue_is_sent() -> None:
    """A caller that waits for 100 Continue gets it, and its body arrives."""
    async with practising() as (_, session), session.post("/echo/x", data=b"abc", expect100=True) as response:
        assert (response.status, (await response.json())["length"]) == (200, 3)


MISSING_BODY = (
    '{"error":{"name":"AuthenticationError",'
    '"message":"API Key missing. Every request requires an API Key to be sent."}}'
)
INVALID_BODY = (
    '{"error":{"name":"AuthenticationError",'
    '"message":"Invalid API Key. Every request requires a valid API Key to be sent."}}'
)
KINDS: tuple[WindowKind, ...] = ("fixed", "first", "rolling")


@pytest.mark.parametrize(
    ("header", "query", "status"),
    [
        (KEY, "", 200),
        ("", KEY, 200),
        (KEY, UNKNOWN, 200),
        (UNKNOWN, KEY, 401),
        (UNKNOWN, "", 401),
        ("", UNKNOWN, 401),
        ("", "", 401),
    ],
)
async def test_where_the_key_stands(header: str, query: str, status: int) -> None:
    """The key is read from the header or the query; the header wins."""
    async with (
        practising() as (api, _),
        session_of(api, key=header) as session,
        session.get("/me", params={"apikey": query} if query else {}) as response,
    ):
        assert response.status == status


async def test_the_practice_run_needs_no_key() -> None:
    """The run's requests pass without a key and uncounted; with a key they count, and a wrong one is refused."""
    async with practising() as (api, good), session_of(api, key="") as nobody, session_of(api, key=UNKNOWN) as stranger:
        async with nobody.post("/echo/practice/1", headers={"X-Api-Key": ""}) as response:
            assert response.status == 200
            assert "X-RateLimit-Limit" not in response.headers
        async with good.get("/echo/practice/1") as response:
            assert response.headers["X-RateLimit-Remaining"] == "59"
        async with stranger.get("/echo/practice/1") as response:
            assert response.status == 401
        async with nobody.get("/echo/practices") as response:
            assert response.status == 401
    assert [(arrival.key, arrival.counted) for arrival in api.arrivals[:2]] == [("", False), ("key-1", True)]


@pytest.mark.parametrize(("key", "body"), [("", MISSING_BODY), (UNKNOWN, INVALID_BODY)])
async def test_unauthenticated(key: str, body: str) -> None:
    """Without an accepted key the answer is the real API's, and nothing is charged."""
    async with practising() as (api, good), session_of(api, key=key) as session:
        for remaining in ("399", "398"):
            async with session.get("/me") as response:
                assert (response.status, await response.text()) == (401, body)
                assert response.headers["X-RateLimit-Limit"] == "400"
                assert response.headers["X-RateLimit-Remaining"] == remaining
        async with good.get("/me") as response:
            assert response.headers["X-RateLimit-Remaining"] == "59"
    assert [(arrival.counted, arrival.user) for arrival in api.arrivals] == [(False, ""), (False, ""), (True, "key-1")]


async def test_unauthenticated_as_a_problem() -> None:
    """A caller that accepts problems and not JSON gets one."""
    async with (
        practising() as (api, _),
        session_of(api, key="") as session,
        session.get("/me", headers={"Accept": "application/problem+json"}) as response,
    ):
        assert (response.status, response.content_type) == (401, "application/problem+json")
        problem = await response.json(content_type=None)
    assert problem["status"] == 401
    assert problem["detail"] == "A valid API key must be provided in the request header."


async def test_revoked_at_run_time() -> None:
    """A revoked key is refused from then on, on an open connection too, until it is restored."""
    async with practising() as (api, session):
        seen = []
        for change in (api.name_of, api.revoke, api.restore):
            change(KEY)
            async with session.get("/me") as response:
                seen.append((response.status, await response.text() == INVALID_BODY))
        async with session.get("/me", headers={"X-Api-Key": OTHER}) as response:
            assert response.status == 200
    assert seen == [(200, False), (401, True), (200, False)]


async def test_headers_of_an_answer() -> None:
    """An answer has limit, remaining, reset, date and the server's name."""
    async with practising(limit=3) as (_, session), session.get("/me") as response:
        headers = response.headers
    assert (headers["X-RateLimit-Limit"], headers["X-RateLimit-Remaining"]) == ("3", "2")
    date = parsedate_to_datetime(headers["Date"]).timestamp()
    assert abs(int(headers["X-RateLimit-Reset"]) - date - 60) <= 1
    assert headers["Server"] == "nginx"


async def test_throttled() -> None:
    """Over the limit the answer is the real API's 429 with the time to retry, and is not counted."""
    before = time.time_ns() // 1_000_000
    async with practising(Clock(), limit=2) as (api, session):
        for _ in range(2):
            async with session.get("/me"):
                pass
        async with session.get("/me") as response:
            text = await response.text()
            assert response.status == 429
            assert (response.headers["X-RateLimit-Remaining"], response.headers["Retry-After"]) == ("0", "60")
            assert int(response.headers["X-RateLimit-Reset"]) >= before // 1000 + 60
    found = re.fullmatch(
        r'\{"error":\{"name":"rateLimitError","message":"Rate Limit exceeded\. Please retry at (\d{13})"\}\}', text
    )
    assert found is not None
    assert 60_000 <= int(found[1]) - before <= 120_000
    assert [(arrival.counted, arrival.status) for arrival in api.arrivals] == [(True, 200), (True, 200), (False, 429)]
    assert api.throttled == 1


async def test_without_retry_after() -> None:
    """The Retry-After of a 429 can be switched off."""
    async with practising(limit=1, retry_after=False) as (_, session):
        async with session.get("/me"):
            pass
        async with session.get("/me") as response:
            assert response.status == 429
            assert "Retry-After" not in response.headers


@pytest.mark.parametrize("style", ["ratelimit", "draft7", "draft8", "none"])
async def test_other_styles(style: str) -> None:
    """Another style has no header of the usual one."""
    async with practising(style=style) as (_, session), session.get("/me") as response:
        names = {name.lower() for name in response.headers if "ratelimit" in name.lower()}
    assert not any(name.startswith("x-") for name in names)
    assert bool(names) == (style != "none")


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_windows_over_a_socket(kind: WindowKind, tls: bool) -> None:
    """Each kind of window admits its limit and opens again on time."""
    clock = Clock(1000.0)
    async with practising(clock, kind=kind, limit=3, window=6.0, tls=tls) as (api, session):

        async def passes() -> bool:
            async with session.get("/nothing") as response:
                assert response.status in {204, 429}
                return response.status == 204

        assert [await passes() for _ in range(2)] == [True, True]
        clock.now = 1001.9
        assert [await passes() for _ in range(2)] == [True, False]
        clock.now = 1002.0  # a multiple of the window
        assert await passes() is (kind == "fixed")
        clock.now = 1006.0  # one window after the first
        assert [await passes() for _ in range(3)] == {
            "fixed": [True, True, False],
            "first": [True, True, True],
            "rolling": [True, True, False],
        }[kind]
    most = max(api.worst(6.0).values())
    assert most >= 4  # the refused ones are in it


async def test_keys_of_one_user() -> None:
    """The keys of one user share a bucket over the socket too, and the log tells both names."""
    async with practising(limit=2, users={KEY: "ann", OTHER: "ann"}) as (api, session):
        statuses = []
        for key in (KEY, OTHER, OTHER):
            async with session.get("/nothing", headers={"X-Api-Key": key}) as response:
                statuses.append(response.status)
    assert statuses == [204, 204, 429]
    assert api.worst(60.0) == {"key-1": 1, "key-2": 2}
    assert api.worst(60.0, per="user") == {"ann": 3}


async def test_narrow_limits() -> None:
    """A list has its own narrow limit, which its headers tell; HEAD counts as GET."""
    async with practising(narrow=True, narrow_limit=2) as (_, session):
        for method, status, remaining in (("GET", 200, "1"), ("HEAD", 200, "0"), ("GET", 429, "0")):
            async with session.request(method, "/collections") as response:
                assert (response.status, response.headers["X-RateLimit-Remaining"]) == (status, remaining)
        async with session.get("/me") as response:
            assert (response.status, response.headers["X-RateLimit-Remaining"]) == (200, "57")


async def test_the_log_has_no_secret() -> None:
    """An arrival has key name, user, method and target, and no secret."""
    async with practising(Clock(5.0)) as (api, session):
        async with session.post("/echo/x?a=1&apikey=" + UNKNOWN):
            pass
        async with session.get("/me", headers={"X-Api-Key": UNKNOWN}):
            pass
    one, two = api.arrivals
    assert one[:5] == (5.0, "key-1", "key-1", "POST", "/echo/x?a=1&apikey=…")
    assert (one.counted, one.status) == (True, 200)
    assert (two.key, two.counted, two.status) == (api.name_of(UNKNOWN), False, 401)
    assert not any(secret in repr(api.arrivals) for secret in (KEY, OTHER, UNKNOWN))


async def test_a_disabled_key() -> None:
    """A disabled key gets a 403 about the key, and nothing is charged."""
    async with practising() as (api, session):
        api.disable(KEY)
        async with session.get("/me") as response:
            assert response.status == 403
            assert (await response.json())["error"]["name"] == "AuthenticationError"
            assert response.headers["X-RateLimit-Limit"] == "400"
        api.restore(KEY)
        async with session.get("/me") as response:
            assert (response.status, response.headers["X-RateLimit-Remaining"]) == (200, "59")


async def test_a_plan_that_is_used_up() -> None:
    """An exhausted month is refused with a name that says so, and without a time."""
    async with practising(plan=2) as (_, session):
        left = []
        for _ in range(3):
            async with session.get("/me") as response:
                left.append((response.status, response.headers["X-RateLimit-Remaining-Month"]))
                body = await response.json()
                assert response.headers["X-RateLimit-Limit-Month"] == "2"
                assert "Retry-After" not in response.headers
                assert response.headers["X-RateLimit-Remaining"] == str(max(58, 60 - len(left)))
    assert left == [(200, "1"), (200, "0"), (429, "0")]
    assert body["error"]["name"] == "serviceLimitExhausted"


async def test_a_plan_may_be_used_up_at_once() -> None:
    """A user's plan can be set to exhausted, whether there was one or not."""
    async with practising() as (api, session):
        api.use_up(KEY)
        for key, status in ((KEY, 429), (OTHER, 200)):
            async with session.get("/me", headers={"X-Api-Key": key}) as response:
                assert (response.status, "X-RateLimit-Remaining-Month" in response.headers) == (status, False)
