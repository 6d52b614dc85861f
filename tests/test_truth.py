"""Upstream responses and what callers receive, through one real process with a pool for each case."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from keyturn.practice import PracticeApi, PracticeSettings

from tests.process import TOKENS, House, Reply, client, limit, request, serving, until, write

pytestmark = pytest.mark.asyncio(loop_scope="module")

POOLS = {"keys": 2, "foreign": 2, "refused": 1, "narrow": 1, "plan": 2, "lower": 1, "outage": 1}
"""Keys of each pool; each pool has a client of its name."""

LIMIT, NARROW = 1_000, 2
"""Requests a minute of each key: in all, and of its list of collections."""


def secret(pool: str, number: int) -> str:
    """A key as the upstream knows it."""
    return f"secret-of-{pool}-{number}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """The process and its upstream."""
    folder = tmp_path_factory.mktemp("truth")
    keys = tuple(secret(pool, number) for pool, count in POOLS.items() for number in range(count))
    practice = PracticeSettings(
        tls=True, keys=keys, limit=LIMIT, narrow=True, narrow_limit=NARROW, narrow_window=60.0, window=60.0
    )
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(PracticeApi(practice))
        api.write_ca(folder / "ca.pem")
        configured = {pool: limit(2 * LIMIT if pool == "lower" else LIMIT, "60s") for pool in POOLS}
        document = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "upstream": {"url": api.url, "ca": str(folder / "ca.pem")},
            "pools": {
                pool: {
                    "guard": "20ms",
                    "limits": [configured[pool]],
                    "keys": [{"name": f"{pool}-{n}", "secret": secret(pool, n)} for n in range(count)],
                }
                for pool, count in POOLS.items()
            },
            "clients": [client(pool, pool=pool) for pool in POOLS],
            "retry": {"budget": 1},
        }
        yield House(api, await stack.enter_async_context(serving(write(folder, document))))


async def ask(home: House, pool: str, path: str = "/me", *fields: str, method: str = "GET") -> Reply:
    """A request of the client of that pool."""
    body = b"{}" if method == "POST" else None
    return await home.ask(request(path, *fields, token=TOKENS[pool], method=method, body=body))


def used(home: House, pool: str) -> list[tuple[str, int]]:
    """Keys and answers of what arrived with the keys of a pool."""
    names = {home.api.name_of(secret(pool, number)): f"{pool}-{number}" for number in range(POOLS[pool])}
    return [(names[one.key], one.status) for one in home.api.arrivals if one.key in names]


async def logged(home: House, part: str, times: int = 1) -> None:
    """See that the process has written a line with that part so many times."""
    await until(lambda: sum(part in line for line in home.keyturn.process.lines) == times, f"{part!r} in the log")


async def test_a_dead_key_is_left_and_the_last_one_told(home: House) -> None:
    """The request goes on with another key; without one callers hear 503 `noKeyAvailable`, and when to come again."""
    home.api.disable(secret("keys", 0))
    replies = [await ask(home, "keys", "/environments") for _ in range(3)]
    assert [(reply.status, reply.one("Keyturn-Key")) for reply in replies] == [(200, "keys-1")] * 3
    assert used(home, "keys")[:3] == [("keys-0", 403), ("keys-0", 403), ("keys-1", 200)]
    assert await home.keyturn.metric("keyturn_key_state", key="keys-0", state="quarantined") == 1
    status = (await home.keyturn.page("/status.json")).body.decode()
    assert "the upstream does not accept it (403 on GET /me)" in status
    home.api.revoke(secret("keys", 1))
    for _ in range(2):
        gone = await ask(home, "keys", "/environments")
        assert (gone.status, gone.error) == (503, "noKeyAvailable")
        assert 1 <= int(gone.one("Retry-After")) <= 20
        assert gone.one("Proxy-Status").startswith("keyturn; error=destination_unavailable")
    assert (await home.keyturn.page("/readyz")).status == 200, "other pools serve"
    await logged(home, "not accepted by the upstream", 2)


async def test_a_refusal_about_the_resource_is_the_callers(home: House) -> None:
    """A 401 and a 403 that are not about the key are relayed, and the key stays."""
    for status in (401, 403):
        reply = await ask(home, "outage", f"/status/{status}")
        assert (reply.status, reply.all("Proxy-Status")) == (status, [])
    assert used(home, "outage") == [("outage-0", 401), ("outage-0", 403)]
    assert await home.keyturn.metric("keyturn_key_state", key="outage-0", state="ready") == 1


async def test_what_others_spend_is_not_spent_again(home: House) -> None:
    """Each key's first answer tells what is left of it; no 429 is drawn, and the caller hears ours (law 9)."""
    for number in range(2):
        assert home.api.spend(secret("foreign", number), LIMIT - 2) == LIMIT - 2
    replies = [await ask(home, "foreign", "/me", "Prefer: wait=0") for _ in range(6)]
    assert [reply.status for reply in replies] == [200] * 4 + [429] * 2
    assert replies[-1].error == "rateLimitError"
    assert 1 <= int(replies[-1].one("Retry-After")) <= 63
    assert [status for _, status in used(home, "foreign")] == [200] * 4
    assert await home.keyturn.metric("keyturn_foreign_tokens_total", pool="foreign") == 2 * (LIMIT - 2)


async def test_a_429_that_cannot_be_cured_in_time_is_relayed(home: House) -> None:
    """The upstream's body, and one `Retry-After` of whole seconds for the pool; logged once."""
    assert home.api.spend(secret("refused", 0), LIMIT) == LIMIT
    reply = await ask(home, "refused", "/me", "Prefer: wait=2")
    assert (reply.status, reply.error) == (429, "rateLimitError")
    assert "Please retry at" in reply.body.decode()
    assert 1 <= int(reply.one("Retry-After")) <= 63
    assert int(reply.one("X-RateLimit-Limit")) == LIMIT
    ours = await ask(home, "refused", "/me", "Prefer: wait=2")
    assert ours.one("Proxy-Status").startswith("keyturn;")
    assert used(home, "refused") == [("refused-0", 429)]
    assert await home.keyturn.metric("keyturn_upstream_throttled_total", pool="refused", kind="window") == 1
    assert await home.keyturn.metric("keyturn_key_state", key="refused-0", state="parked") == 1
    await logged(home, "another user has this key")


async def test_a_narrower_limit_holds_its_endpoint_only(home: House) -> None:
    """It is not configured, and showed by a 429; the key goes on serving everything else."""
    lists = [await ask(home, "narrow", "/collections", "Prefer: wait=1") for _ in range(4)]
    assert [reply.status for reply in lists] == [200, 200, 429, 429]
    assert [status for _, status in used(home, "narrow")] == [200, 200, 429]
    assert 1 <= int(lists[-1].one("Retry-After")) <= 63
    assert (await ask(home, "narrow", "/environments")).status == 200
    assert await home.keyturn.metric("keyturn_upstream_throttled_total", pool="narrow", kind="endpoint") == 1


async def test_a_plan_that_is_used_up_is_told_by_the_upstream(home: House) -> None:
    """Another key's plan serves first; when none is left its own body is relayed at once."""
    home.api.use_up(secret("plan", 0))
    assert [(await ask(home, "plan")).status for _ in range(2)] == [200, 200]
    assert used(home, "plan").count(("plan-0", 429)) == 1
    home.api.use_up(secret("plan", 1))
    reply = await ask(home, "plan")
    assert (reply.status, reply.error, reply.all("Proxy-Status")) == (429, "serviceLimitExhausted", [])
    assert await home.keyturn.metric("keyturn_upstream_throttled_total", pool="plan", kind="plan") == 2


async def test_a_lower_limit_is_kept_and_the_setting_named(home: House) -> None:
    """Three answers of two endpoints say it; from then on no more are sent, and no 429 is drawn."""
    left = 6
    assert home.api.spend(secret("lower", 0), LIMIT - left) == LIMIT - left
    paths = ("/me", "/environments", "/me", "/environments", "/me", "/environments", "/me")
    replies = [await ask(home, "lower", path, "Prefer: wait=0") for path in paths]
    assert [reply.status for reply in replies] == [200] * left + [429]
    assert [status for _, status in used(home, "lower")] == [200] * left
    assert int(replies[-1].one("Retry-After")) <= 63
    await logged(home, "pools.lower.limits")


async def test_an_outage_is_left_alone_until_it_is_over(home: House) -> None:
    """Failures in a row: 503 `upstreamUnavailable` with the time of the next trial, nothing sent, then back to work."""
    home.api.break_down("504")
    replies: list[Reply] = []

    async def shut() -> bool:
        replies.append(await ask(home, "outage", "/environments", method="POST"))
        return replies[-1].status == 503

    await until(shut, "the breaker opens")
    assert {reply.status for reply in replies[:-1]} == {504}
    assert replies[-1].error == "upstreamUnavailable"
    assert int(replies[-1].one("Retry-After")) >= 1
    assert replies[-1].one("Proxy-Status").startswith("keyturn; error=destination_unavailable")
    home.api.recover()

    async def back() -> bool:
        return (await ask(home, "outage", "/environments")).status != 503

    await until(back, "a trial succeeds")
    await logged(home, "the upstream is failing")


async def test_nothing_secret_was_told(home: House) -> None:
    """Neither reasons nor log lines show a key (law 11)."""
    shown = "\n".join(home.keyturn.process.lines)
    for page in ("/metrics", "/status.json", "/"):
        shown += (await home.keyturn.page(page)).body.decode()
    assert "secret-of-" not in shown
    assert json.loads((await home.keyturn.page("/status.json")).body)
