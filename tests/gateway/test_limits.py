import asyncio

import pytest
from keyturn.core.events import ForeignSpent, LimitHigher, LimitLowered, MonthRemaining, SignalsIgnored
from keyturn.core.exchange import ObservedLimit, Spent
from keyturn.core.http import Answer, Request
from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.model import SECOND

from tests.core.worlds import limit
from tests.gateway.settings import PLAIN_429, Setting, answer, setting
from tests.virtual import micros, task_of, virtual


def told(size: int, left: int, reset: int = 40) -> Answer:
    """An answer that names a limit."""
    return answer(200, b"{}", (b"RateLimit", b"limit=%d, remaining=%d, reset=%d" % (size, left, reset)))


async def seen(it: Setting) -> list[tuple[ObservedLimit, ...]]:
    """Return what the settlements reported."""
    await it.room.settled()
    return [one.observed for one in it.room.store.settled if isinstance(one, Spent)]


@virtual
async def test_what_others_spend_is_taken_out() -> None:
    """The difference to what is out by our own count, until the announced reset (law 9)."""
    async with setting(told(60, 20), quotas=1, requests=60) as it:
        await it.ask()
        await it.room.settled()
        assert it.happened(ForeignSpent) == [ForeignSpent("default", "k0", 39)]
        assert it.room.store.available == 20
        await asyncio.sleep(40)
        await it.ask()
        assert it.room.store.available == 58


@virtual
async def test_a_surprise_is_told_at_once() -> None:
    """Tokens that somebody else has spent must not be granted meanwhile; what is as expected rides along."""
    expected = [told(60, 58 - number) for number in range(20)]
    async with setting(*expected, told(60, 3), quotas=1, requests=60) as it:
        for _ in expected:
            await it.ask()
            await asyncio.sleep(0.1)
        assert len(it.room.store.settled) == 19, "the last one waits for the next request"
        await it.ask()
        assert len(it.room.store.settled) == 20
        await asyncio.sleep(0.05)
        assert len(it.room.store.settled) == 21


@virtual
async def test_a_cold_bucket_is_known_by_its_first_answer() -> None:
    """One request goes first, and what it hears is what opens (law 8)."""
    async with setting(told(60, 3), quotas=1, requests=60) as it:
        it.room.store.state.tokens.doubt()
        got = await asyncio.gather(*(it.ask(it.request(wait=30 * SECOND)) for _ in range(4)))
        assert [one.status for one in got] == [200] * 4
        assert it.happened(ForeignSpent) == [ForeignSpent("default", "k0", 56)]
        assert it.room.store.available == 0


@virtual
async def test_nothing_is_learnt_from_what_does_not_speak_of_this_key() -> None:
    """Not from a 401, a cache's answer, or an error."""
    body, fields = b"{}", (b"RateLimit", b"limit=60, remaining=0, reset=40")
    answers = [answer(401, body, fields), answer(200, body, fields, (b"Age", b"9")), answer(500, body, fields)]
    async with setting(*answers, quotas=1, requests=60) as it:
        for _ in answers:
            await it.ask()
        assert await seen(it) == [()] * 3
        assert it.happened(ForeignSpent) == []


@virtual
async def test_a_limit_lower_than_configured_is_believed_after_two_confirmations() -> None:
    """The setting is named, and no more than that many are sent from then on (law 9)."""
    async with setting(*[told(4, 3 - n) for n in range(3)], quotas=1, requests=60) as it:
        await it.ask(it.request(path="/a"))
        await it.ask(it.request(path="/b"))
        assert it.happened(LimitLowered) == []
        await it.ask(it.request(path="/a"))
        assert it.happened(LimitLowered) == [LimitLowered("default", "60/60s", 60, 4)]
        assert it.room.scheduler.pool.limits[0].requests == 4
        it.upstream.rule = lambda *_: told(60, 59)
        assert (await it.ask()).status == 200
        assert it.room.scheduler.pool.limits[0].requests == 4, "never up"
        assert len(it.upstream.arrived) == 4


@virtual
async def test_a_limit_as_it_is_configured_is_no_lower_one() -> None:
    """An endpoint with a limit of its own does not lower the whole pool's."""
    async with setting(quotas=1, requests=60) as it:

        def narrow(_key: str, request: Request) -> Answer:
            return told(10, 9) if request.target in (b"/a", b"/b") else told(60, 59)

        it.upstream.rule = narrow
        for path in ("/a", "/c", "/b", "/c", "/a", "/c", "/b"):
            await it.ask(it.request(path=path))
        assert it.happened(LimitLowered) == []


@virtual
async def test_a_limit_higher_than_configured_is_told_and_never_taken() -> None:
    """Once, with the setting; it is shown until an answer names it as it is configured."""
    async with setting(*[told(300, 299 - n) for n in range(5)], quotas=1, requests=60) as it:
        for number in range(5):
            assert (len(it.happened(LimitHigher)), len(it.gateway.higher("default"))) == (number // 3, number // 3)
            await it.ask()
        higher = HigherLimit(0, "60/60s", 60, 300)
        assert it.happened(LimitHigher) == [LimitHigher("default", higher)]
        assert it.gateway.higher("default") == [higher]
        assert it.room.scheduler.pool.limits[0].requests == 60
        it.upstream.rule = lambda *_: told(60, 59)
        await it.ask()
        assert it.gateway.higher("default") == []
        assert it.gateway.higher("nothing") == []


@virtual
async def test_other_windows_tell_of_no_higher_limit() -> None:
    """Neither an hour's, also in its last minute, nor a limit that stands beside the configured one."""
    hour = [told(1000, 999 - n, 3600) for n in range(2)] + [told(1000, 500 - n, 30) for n in range(5)]
    both = answer(
        200,
        b"{}",
        (b"RateLimit-Policy", b'"a";q=60;w=60, "b";q=300;w=60'),
        (b"RateLimit", b'"a";r=50;t=9, "b";r=290;t=9'),
    )
    async with setting(*hour, *[both] * 5, quotas=1, requests=60) as it:
        for _ in range(12):
            await it.ask()
        assert it.happened(LimitHigher) == []
        assert it.gateway.higher("default") == []


@virtual
async def test_a_narrower_limit_that_is_configured_may_be_higher_too() -> None:
    """Told by the length of its window, beside the general one as it is configured."""
    fields = (b"RateLimit-Policy", b'"a";q=60;w=60, "b";q=80;w=10'), (b"RateLimit", b'"a";r=50;t=9, "b";r=70;t=9')
    limits = (limit(60, 60 * SECOND), limit(25, 10 * SECOND))
    async with setting(*[answer(200, b"{}", *fields)] * 3, quotas=1, limits=limits) as it:
        for _ in range(3):
            await it.ask()
        assert it.gateway.higher("default") == [HigherLimit(1, "25/10s", 25, 80)]


@virtual
async def test_the_month_is_told_when_it_changes() -> None:
    """By key; in the looks at the keys, too."""
    left = [answer(200, b"{}", (b"X-RateLimit-Remaining-Month", b"%d" % n)) for n in (90, 90, 89)]
    async with setting(*left, quotas=1, requests=9) as it:
        for _ in left:
            await it.ask()
        assert it.happened(MonthRemaining) == [MonthRemaining("default", "k0", 90), MonthRemaining("default", "k0", 89)]
        assert it.looks()[0].month_left == 89


@virtual
async def test_what_cannot_be_read_is_told() -> None:
    """Of refusals, too."""
    bad = (b"Retry-After", b"soon")
    async with setting(answer(200, b"{}", bad), answer(429, PLAIN_429, bad), limits=(limit(9, SECOND),)) as it:
        for _ in range(2):
            await it.ask()
        assert it.happened(SignalsIgnored) == [SignalsIgnored("default", ("retry-after",))] * 2


NARROW_429 = answer(429, PLAIN_429, (b"RateLimit", b"limit=1, remaining=0, reset=7"), (b"RateLimit-Policy", b"1;w=7"))


@virtual
async def test_a_place_that_was_not_used_goes_to_the_next() -> None:
    """A caller that leaves while it waits for its turn, or a try that sent nothing, costs nobody anything."""
    async with setting(NARROW_429, quotas=1, limits=(limit(2, 20 * SECOND),)) as it:
        assert (await it.ask(it.request(path="/a", wait=SECOND))).status == 429
        await asyncio.sleep(8)
        await it.ask(it.request(path="/b"))
        leaving = task_of(it.ask(it.request(path="/a")))
        await asyncio.sleep(1)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        began = micros()
        assert (await it.ask(it.request(path="/a"))).status == 200
        assert micros() - began < 13 * SECOND


@virtual
async def test_who_insists_on_a_key_waits_for_that_quota() -> None:
    """The other one would serve, but it is not the one that was asked for."""
    async with setting(NARROW_429, limits=(limit(60),)) as it:
        began = micros()
        assert (await it.ask(it.request(path="/a", pinned="k0"))).status == 200
        assert 7 * SECOND <= micros() - began <= 8 * SECOND
        assert it.keys == ["s-k0", "s-k0"]


@virtual
async def test_a_quota_that_dies_under_who_waits_sends_them_elsewhere() -> None:
    """They were led to it by a narrower limit, and insist on nothing."""
    async with setting(NARROW_429, limits=(limit(2, 60 * SECOND),)) as it:
        assert (await it.ask(it.request(path="/a"))).status == 200
        assert it.keys == ["s-k0", "s-k1"]
        await it.ask(it.request(path="/b", pinned="k1"))
        waiting = task_of(it.ask(it.request(path="/a")))
        await asyncio.sleep(1)
        it.pause("k1")
        began = micros()
        assert (await waiting).status == 200
        assert it.keys[-1] == "s-k0"
        assert micros() - began < 10 * SECOND
