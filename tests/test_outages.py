"""Outages through the real process: what one client's failures do to the others, and an upstream that is down."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from keyturn.practice import PracticeApi, PracticeSettings
from keyturn.tasks import finish, spawn

from tests.process import KEYS, TOKENS, House, calling, client, document, limit, request, serving, until, write
from tests.vectors.origin import OK, WAIT, Answering, Origin

FAILS = "X-Fails"
"""A request with this field is answered by its value, as a status; `reset`: its connection is reset."""

REFUSED = "keyturn_refused_total"


class Marked(PracticeApi):
    """Fails the requests that say so themselves, or refuses all of an address that it has had enough of."""

    refusing = False

    async def _answer(self, request: web.BaseRequest, case: Any) -> web.StreamResponse:
        if self.refusing:
            return web.Response(status=429, headers={"Retry-After": "1"})
        how = request.headers.get(FAILS)
        if how == "reset":
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionResetError
        return web.Response(status=int(how)) if how else await super()._answer(request, case)


@asynccontextmanager
async def marked(folder: Path, more_keys: int = 0) -> AsyncIterator[House]:
    """A process with two clients in front of an upstream that fails what is marked."""
    more = [f"secret-of-key-{number}" for number in range(more_keys)]
    async with Marked(PracticeSettings(tls=True, keys=(*KEYS, *more), limit=10_000)) as api:
        settings = document(api, folder, clients=[client("ci"), client("reader")])
        settings["pools"]["default"]["keys"] += [{"name": f"k{n}", "secret": secret} for n, secret in enumerate(more)]
        async with serving(write(folder, settings)) as keyturn:
            yield House(api, keyturn)


class Hostile:
    """A client whose POSTs the upstream fails, one behind the other, to one path or to ever new ones."""

    def __init__(self, house: House, how: str, path: str) -> None:
        self.refused = 0
        self.failed = 0
        self._house = house
        self._how = how
        self._path = path

    async def _run(self) -> None:
        for number in count():
            path = self._path.format(number)
            reply = await self._house.ask(request(path, f"{FAILS}: {self._how}", method="POST", body=b"{}"))
            refused = reply.status == 503 and b"upstreamUnavailable" in reply.body
            assert not refused or int(reply.one("Retry-After")) >= 1
            self.refused += refused
            self.failed += not refused

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Four at a time, for as long as the block lasts."""
        tasks: set[asyncio.Task[Any]] = set()
        for _ in range(4):
            spawn(self._run(), name="hostile", owner=tasks)
        try:
            yield
        finally:
            await finish(tasks)


async def healthy(house: House) -> list[int]:
    """Another client's calls: on another route, and on the hostile one's."""
    token = TOKENS["reader"]
    elsewhere = await house.ask(request("/me", token=token))
    same = await house.ask(request("/echo/x", method="POST", token=token, body=b"{}"))
    return [elsewhere.status, same.status]


@pytest.mark.parametrize(
    ("how", "path", "scope"),
    [
        ("504", "/echo/x", "route"),
        ("503", "/echo/x", "route"),
        ("reset", "/echo/x", "route"),
        ("504", "/p{}", "client"),
        ("500", "/p{}", "client"),
    ],
)
async def test_one_client_s_failures_are_its_own(tmp_path: Path, how: str, path: str, scope: str) -> None:
    """While it is refused, another client is answered, on the same route too; log, page and metric say whose it is."""
    async with marked(tmp_path) as house, (hostile := Hostile(house, how, path)).busy():
        await until(lambda: hostile.refused, "the hostile client is refused")
        assert [await healthy(house) for _ in range(20)] == [[200, 200]] * 20
        await until(lambda: hostile.refused > 100, "it is refused again and again")
        assert [await healthy(house) for _ in range(20)] == [[200, 200]] * 20
        assert await house.keyturn.metric("keyturn_breakers_open", scope=scope) >= 1
        assert await house.keyturn.metric("keyturn_breakers_open", scope="pool") == 0
        (pool,) = (await house.keyturn.page("/status.json")).json()["pools"]
        assert pool["outage"] is None
        assert {one["client"] for one in pool["failing"]} == {"ci"}
        assert (pool["failing"][0]["route"] == "POST /echo/{}") == (scope == "route")
        assert await house.keyturn.metric(REFUSED, client="reader") == 0
        assert await house.keyturn.metric(REFUSED, client="ci", reason="outage") >= 100
        words = f"the upstream is failing for one {'route of one client' if scope == 'route' else 'client'}"
        assert sum(words in line for line in house.keyturn.process.lines) == 1


@pytest.mark.parametrize("reached", [True, False])
async def test_an_upstream_that_is_down_is_left_alone_until_a_trial_is_answered(tmp_path: Path, reached: bool) -> None:
    """All are refused and told when to come again; one trial brings it back."""
    async with marked(tmp_path) as house:
        calls = [request("/me"), request("/echo/x", method="POST", body=b"{}", token=TOKENS["reader"])]
        assert [(await house.ask(call)).status for call in calls] == [200, 200]
        if reached:
            house.api.break_down("504")
        else:
            await house.api.stop()

        async def shut() -> bool:
            replies = await asyncio.gather(*(house.ask(call) for call in calls))
            return all(reply.status == 503 and int(reply.one("Retry-After")) >= 1 for reply in replies)

        await until(shut, "all are refused")
        assert await house.keyturn.metric("keyturn_breakers_open", scope="pool") == 1
        tries = await house.keyturn.metric("keyturn_upstream_responses_total")
        assert [await shut() for _ in range(20)].count(True) >= 15
        assert await house.keyturn.metric("keyturn_upstream_responses_total") - tries <= 3, "trials only"
        assert (await house.keyturn.page("/status.json")).json()["pools"][0]["outage"]["cause"]
        if reached:
            house.api.recover()
        else:
            await house.api.start()

        async def back() -> bool:
            return (await house.ask(calls[0])).status == 200

        await until(back, "a trial is answered")
        assert await house.keyturn.metric("keyturn_breakers_open", scope="pool") == 0
        assert [(await house.ask(call)).status for call in calls] == [200, 200]


async def test_an_address_that_is_refused_is_one_cause(tmp_path: Path) -> None:
    """Ten keys are not tried one by one: the log and the page say what it looks like, and trials reopen the pool."""
    async with marked(tmp_path, more_keys=8) as house:
        assert isinstance(house.api, Marked)
        assert (await house.ask(request("/me"))).status == 200
        house.api.refusing = True
        before = len(house.api.arrivals)
        waiting = [spawn(house.ask(request("/me", "Prefer: wait=60")), name="waits", owner=set()) for _ in range(5)]
        words = "the upstream responds 429 to several keys at once"
        await until(lambda: any(words in line for line in house.keyturn.process.lines), words)
        crowd = len(house.api.arrivals) - before
        assert crowd <= 3 + len(waiting), "what was in flight together"
        assert "keys at once" in (await house.keyturn.page("/status.json")).json()["pools"][0]["outage"]["cause"]
        await until(lambda: len(house.api.arrivals) - before >= crowd + 2, "two trials")
        house.api.refusing = False
        assert [(await one).status for one in waiting] == [200] * 5
        assert sum(words in line for line in house.keyturn.process.lines) == 1


async def test_an_upstream_that_stands_still_holds_no_more_requests_than_the_limit(tmp_path: Path) -> None:
    """However many windows pass meanwhile, which requests of another pool show; when it goes on all are served."""
    still = Answering((WAIT, OK))
    async with Origin({b"/still": still}).open() as origin:
        pools = {
            name: {"limits": [limit(requests, "100ms")], "guard": "1ms", "keys": [{"name": name, "secret": secret}]}
            for name, requests, secret in (("still", 2, KEYS[0]), ("clock", 1, KEYS[1]))
        }
        settings = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "upstream": {"url": origin.url, "settle_bound": "1ms"},
            "pools": pools,
            "clients": [client("ci", pool="still"), client("reader", pool="clock")],
        }
        async with serving(write(tmp_path, settings)) as keyturn, AsyncExitStack() as stack:
            callers = [await stack.enter_async_context(calling(keyturn.data)) for _ in range(5)]
            for caller in callers:
                caller.send(request("/still", "Prefer: wait=60"))
            await until(lambda: len(origin.arrived(b"/still")) == 2, "two requests")
            await keyturn.waiting(3)
            for _ in range(4):
                assert (await keyturn.ask(request("/clock", token=TOKENS["reader"]))).status == 200
            assert len(origin.arrived(b"/still")) == 2
            still.seen.set()
            assert [(await caller.reply()).status for caller in callers] == [200] * 5
