"""Every form in which the upstream says when to come again, and what a caller hears of it, through the real process."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from email.utils import formatdate

import pytest
import pytest_asyncio

from tests.process import Keyturn, Reply, request, serving, write
from tests.vectors.origin import Answering, Origin

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT, WAIT, UNTOLD = 1_000, 7, 60
NOW = 1_795_000_000
SKEW = 100_000
"""Seconds by which some upstream's clock is off."""

PLAN, LIMITED = "serviceLimitExhausted", "rateLimited"
OURS = ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit-Policy", "RateLimit"]
FOREIGN = re.compile(r"rate-?limit|retryafter|month", re.IGNORECASE)

FULL = ["X-RateLimit-Limit: 1000", "X-RateLimit-Remaining: 0"]
FORMS: dict[str, tuple[list[str], str, int]] = {
    "seconds": (["Retry-After: 7"], "", WAIT),
    "fraction": (["Retry-After: 6.5"], "", WAIT),
    "date": ([f"Retry-After: {formatdate(NOW + WAIT, usegmt=True)}"], "", WAIT),
    "misspelt": (["RetryAfter: 7"], "", WAIT),
    "of-the-limit": (["X-RateLimit-RetryAfter: 7"], "", WAIT),
    "twice": (["Retry-After: 3", "Retry-After: 7"], "", WAIT),
    "epoch-seconds": ([*FULL, f"X-RateLimit-Reset: {NOW + WAIT}"], "", WAIT),
    "epoch-milliseconds": ([*FULL, f"X-RateLimit-Reset: {(NOW + WAIT) * 1000}"], "", WAIT),
    "delta": (["RateLimit-Limit: 1000", "RateLimit-Remaining: 0", "RateLimit-Reset: 7"], "", WAIT),
    "draft-7": (["RateLimit: limit=1000, remaining=0, reset=7", "RateLimit-Policy: 1000;w=60"], "", WAIT),
    "draft-8": (['RateLimit: "a";r=0;t=7', 'RateLimit-Policy: "a";q=1000;w=60'], "", WAIT),
    "two-policies": (
        ['RateLimit: "h";r=9;t=3000, "a";r=0;t=7', 'RateLimit-Policy: "h";q=9000;w=3600, "a";q=1000;w=60'], "", WAIT,
    ),
    "message": ([], f"Rate Limit exceeded. Please retry at {(NOW + WAIT) * 1000}", WAIT),
    "more-left-than-there-is": (["X-RateLimit-Limit: 1000", "X-RateLimit-Remaining: 1001", "Retry-After: 7"], "", WAIT),
    "at-once": (["Retry-After: 0"], "", 1),
    "negative": (["Retry-After: -5"], "", UNTOLD),
    "year-3000": (["Retry-After: Wed, 01 Jan 3000 00:00:00 GMT"], "", UNTOLD),
    "over": ([f"Retry-After: {formatdate(NOW - 30, usegmt=True)}"], "", UNTOLD),
    "nonsense": (["Retry-After: soon"], "", UNTOLD),
    "nothing": ([], "", UNTOLD),
    "skewed": ([f"Retry-After: {formatdate(NOW - SKEW + WAIT, usegmt=True)}"], "", WAIT),
}  # fmt: skip

WINDOWS = ("epoch-seconds", "epoch-milliseconds", "delta", "draft-7", "draft-8", "two-policies")
"""Forms that only describe when a limit's window is over."""


def answering(status: int, name: str, fields: list[str], message: str = "", date: int = NOW) -> Answering:
    """An error of the API's own."""
    body = json.dumps({"error": {"name": name, "message": message}})
    lines = [f"HTTP/1.1 {status} Whatever", f"Date: {formatdate(date, usegmt=True)}", *fields]
    return Answering(("\r\n".join([*lines, f"Content-Length: {len(body)}", "", body]).encode(),))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def origin() -> AsyncIterator[Origin]:
    """An upstream that answers each path with one of the forms."""
    origin = Origin()
    for form, (fields, message, _) in FORMS.items():
        date = NOW - SKEW if form == "skewed" else NOW
        origin.answers[f"/limited/{form}".encode()] = answering(429, LIMITED, fields, message, date)
        origin.answers[f"/plan/{form}".encode()] = answering(429, PLAN, fields, message, date)
        origin.answers[f"/out/{form}".encode()] = answering(503, "down", fields, message, date)
    async with origin.open():
        yield origin


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyturn(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Keyturn]:
    """The process, with a pool and a client for each form and each error, so that none hears of another's."""
    names = [f"{kind}-{form}" for form in FORMS for kind in ("small", "large", "plan", "out")]
    document = {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "upstream": {"url": origin.url},
        "pools": {
            name: {
                "guard": "20ms",
                "limits": [{"requests": LIMIT, "window": "60s"}],
                "keys": [{"name": f"key-{name}", "secret": f"secret-of-{name}"}],
            }
            for name in [*names, "other"]
        },
        "clients": [{"name": name, "token": f"token-of-{name}", "pool": name} for name in [*names, "other"]],
    }
    async with serving(write(tmp_path_factory.mktemp("waits"), document)) as keyturn:
        yield keyturn


async def told(keyturn: Keyturn, kind: str, form: str, path: str, body: bytes | None = None) -> tuple[Reply, list[int]]:
    """An answer to that client, its rate fields checked, and the `Retry-After` that it holds."""
    method = "PUT" if body else "GET"
    data = request(f"/{path}/{form}", "Prefer: wait=0", token=f"token-of-{kind}-{form}", method=method, body=body)
    reply = await keyturn.ask(data)
    assert [name for name, _ in reply.fields if FOREIGN.search(name)] == OURS
    assert (reply.one("X-RateLimit-Limit"), reply.one("RateLimit-Policy")) == ("1000", '"1000/60s";q=1000;w=60')
    assert [reply.one("Keyturn-Key"), *reply.all("Proxy-Status")] == [f"key-{kind}-{form}"]
    return reply, [int(value) for value in reply.all("Retry-After")]


@pytest.mark.parametrize("form", FORMS)
async def test_every_form_becomes_one_retry_after(keyturn: Keyturn, form: str) -> None:
    """Whole seconds from now on, by the upstream's own `Date`; what is absurd is not believed, and never passed on."""
    for kind, body in (("small", None), ("large", b"x" * (2**20 + 1))):
        reply, seconds = await told(keyturn, kind, form, "limited", body)
        assert (reply.status, reply.error) == (429, LIMITED)
        assert len(seconds) == 1
        assert FORMS[form][2] <= seconds[0] <= FORMS[form][2] + 2


@pytest.mark.parametrize("form", FORMS)
async def test_a_plan_and_an_outage_tell_what_could_be_read(keyturn: Keyturn, form: str) -> None:
    """Nobody knows when a plan is renewed, or an outage over, if the upstream does not say so; a window is no wait."""
    wait = FORMS[form][2]
    readable = [] if wait == UNTOLD or form in WINDOWS else [True]
    for kind, status in (("plan", 429), ("out", 503)):
        reply, seconds = await told(keyturn, kind, form, kind)
        assert reply.status == status
        assert [wait <= second <= wait + 1 for second in seconds] == readable


@pytest.mark.parametrize("form", ["seconds", "epoch-seconds", "draft-8", "message", "at-once"])
async def test_who_comes_back_when_it_was_told_is_served(keyturn: Keyturn, origin: Origin, form: str) -> None:
    """At once, without any time to wait."""
    data = request("/well", "Prefer: wait=0", token=f"token-of-small-{form}")
    reply = await keyturn.ask(data)
    if reply.status == 429:
        await asyncio.sleep(int(reply.one("Retry-After")))
        reply = await keyturn.ask(data)
    assert reply.status == 200


@pytest.mark.parametrize("status", [200, 202, 301, 404, 500])
async def test_what_speaks_for_one_key_reaches_nobody(keyturn: Keyturn, origin: Origin, status: int) -> None:
    """On no answer; `Retry-After` of a task or of something that has moved is the caller's."""
    fields = [
        *("X-RateLimit-Limit: 77", "ratelimit-reset: 5", 'RateLimit: "q";r=1;t=2', 'RateLimit-Policy: "q";q=77;w=60'),
        *("X-Rate-Limit-Used: 9", "X-RateLimit-RetryAfter: 3", "RetryAfter: 3", "X-Plan-Limit-Month: 3"),
        *("Remaining-Month: 3", "Retry-After: 5"),
    ]
    origin.answers[f"/other/{status}".encode()] = answering(status, "any", fields)
    reply = await keyturn.ask(request(f"/other/{status}", token="token-of-other"))
    assert [name for name, _ in reply.fields if FOREIGN.search(name)] == OURS
    assert (reply.status, reply.one("X-RateLimit-Limit"), reply.one("Retry-After")) == (status, "1000", "5")
