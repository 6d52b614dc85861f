import asyncio
import json

import pytest
from keyturn.core.complaints import BODY_LIMIT
from keyturn.core.errors import TooMany
from keyturn.core.events import Retried, ThrottledTogether, UpstreamThrottled
from keyturn.core.exchange import Spent, Throttled
from keyturn.core.http import Answer, Request
from keyturn.core.model import SECOND

from tests.core.worlds import limit
from tests.gateway.settings import PLAIN_429, PLAN_429, Breaking, Bytes, FakeBody, Slow, answer, setting
from tests.virtual import micros, task_of, virtual


@virtual
async def test_a_429_is_absorbed_by_another_key() -> None:
    """The upstream's 429 parks its quota, and the request goes out again under a second lease (law 10)."""
    async with setting(answer(429, PLAIN_429, (b"Retry-After", b"20"))) as it:
        got = await it.ask()
        assert got.status == 200
        assert [key for key, _ in it.upstream.sent] == ["s-k0", "s-k1"]
        assert it.happened(UpstreamThrottled) == [
            UpstreamThrottled("default", "k0", "k0", "window", 20 * SECOND, "3/60s")
        ]
        assert it.happened(Retried) == [Retried("default", "throttled")]
        await it.room.settled()
        assert isinstance(it.room.store.settled[0], Throttled)
        assert [quota for _, (_, quota) in it.room.store.state.tokens.closed] == ["k0"]


@virtual
async def test_a_429_on_the_only_key_waits_for_the_upstreams_time() -> None:
    """The caller notices nothing but time."""
    async with setting(answer(429, PLAIN_429, (b"Retry-After", b"20")), quotas=1) as it:
        began = micros()
        got = await it.ask()
        assert got.status == 200
        assert 20 * SECOND <= micros() - began <= 21 * SECOND


@virtual
async def test_a_429_that_waiting_cannot_cure_in_time_is_relayed() -> None:
    """The upstream's own body, with a `Retry-After` after which a try succeeds."""
    async with setting(answer(429, PLAIN_429, (b"Retry-After", b"20")), quotas=1) as it:
        got = await it.ask(it.request(wait=5 * SECOND))
        assert got.status == 429
        assert await got.body.read() in (PLAIN_429, b"")
        assert dict(got.fields)[b"Retry-After"] == b"21"
        await asyncio.sleep(21)
        assert (await it.ask(it.request(wait=0))).status == 200


@virtual
async def test_a_post_refused_by_429_is_sent_again_with_its_whole_body() -> None:
    """What was certainly not processed is replayed from the spool."""
    async with setting(answer(429, PLAIN_429, (b"Retry-After", b"1"))) as it:
        data = bytes(range(256)) * 1000
        assert (await it.ask(it.request("POST", Bytes(data)))).status == 200
        assert [body for _, body in it.upstream.sent] == [data, data]


@virtual
async def test_a_body_beyond_the_spool_is_not_replayed() -> None:
    """A 429 to a large upload is relayed with a time after which a try succeeds; what was said of it is translated."""
    for told, seconds in ((b"7", 8), (b"0", 1), (b"-5", 61), (b"Wed, 01 Jan 3000 00:00:00 GMT", 61)):
        async with setting(answer(429, PLAIN_429, (b"Retry-After", told)), quotas=1) as it:
            got = await it.ask(it.request("PUT", Bytes(b"x" * (1 << 20) + b"y")))
            assert got.status == 429
            assert [value for name, value in got.fields if name == b"Retry-After"] == [b"%d" % seconds]
            assert len(it.upstream.sent) == 1
            await asyncio.sleep(seconds)
            assert (await it.ask(it.request(wait=0))).status == 200


@virtual
async def test_a_large_upload_hears_of_its_turn_on_any_key() -> None:
    """The other key has tokens at hand: whoever comes back with the whole upload need not wait for the closed one."""
    for refusal in (PLAIN_429, PLAN_429):
        async with setting(answer(429, refusal, (b"Retry-After", b"3000"))) as it:
            got = await it.ask(it.request("PUT", Bytes(b"x" * (1 << 20) + b"y"), wait=0))
            fields = dict(got.fields)
            assert (got.status, fields[b"Keyturn-Key"], fields[b"Retry-After"]) == (429, b"k0", b"1")
            assert [key for key, _ in it.upstream.sent] == ["s-k0"]
            await asyncio.sleep(1)
            assert (await it.ask(it.request("PUT", Bytes(b"x" * (1 << 20) + b"y"), wait=0))).status == 200


@virtual
async def test_a_429_counts_though_its_body_breaks_off() -> None:
    """Its head says what is to be done: nothing was processed, so a POST goes out again, too."""
    for body in (Breaking([b"{"]), Slow([])):
        async with setting(Answer(429, b"", ((b"Retry-After", b"20"),), body)) as it:
            assert (await it.ask(it.request("POST", Bytes(b"{}")))).status == 200
            assert [key for key, _ in it.upstream.sent] == ["s-k0", "s-k1"]
            assert [(event.kind, event.wait) for event in it.happened(UpstreamThrottled)] == [("window", 20 * SECOND)]


@virtual
async def test_who_cannot_wait_out_a_429_that_broke_off_is_told_by_us() -> None:
    """There is no answer of the upstream's to be relayed, whether the request could go out again or not."""
    for body in (Bytes(b"{}"), Bytes(b"x" * (1 << 20) + b"y")):
        async with setting(Answer(429, b"", ((b"Retry-After", b"20"),), Breaking([])), quotas=1) as it:
            with pytest.raises(TooMany) as refusal:
                await it.ask(it.request("POST", body, wait=5 * SECOND))
            assert refusal.value.retry_after == 21


@virtual
async def test_a_refusal_that_is_waited_out_keeps_no_connection() -> None:
    """A body that is too long to be read is left at once; should no turn come in time, its caller hears of us."""
    long = [b"x" * BODY_LIMIT, b"y"]
    for wait in (300 * SECOND, 5 * SECOND):
        body = FakeBody(list(long))
        async with setting(Answer(429, b"", ((b"Retry-After", b"20"),), body), quotas=1) as it:
            asked = task_of(it.ask(it.request(wait=wait)))
            await asyncio.sleep(1)
            assert body.aborted
            if wait > 20 * SECOND:
                assert (await asked).status == 200
            else:
                with pytest.raises(TooMany):
                    await asked


# Which limit it is


BURST = limit(10, 10 * SECOND, "GET /collections")
NARROW_429 = answer(
    429, PLAIN_429, (b"X-RateLimit-Limit", b"10"), (b"X-RateLimit-Remaining", b"0"), (b"Retry-After", b"7")
)


@virtual
async def test_the_limit_that_is_named_is_closed_and_no_other() -> None:
    """What does not fall under it goes on, on the same key."""
    async with setting(NARROW_429, quotas=1, limits=(limit(60), BURST)) as it:
        got = await it.ask(it.request(path="/collections", wait=SECOND))
        assert got.status == 429
        assert dict(got.fields)[b"Retry-After"] == b"8"
        assert [event.limit for event in it.happened(UpstreamThrottled)] == ["10/10s"]
        began = micros()
        assert (await it.ask()).status == 200
        assert micros() - began < SECOND
        (look,) = it.looks()
        assert (look.state, look.reason) == ("parked", "the upstream answered 429 (10/10s)")


@virtual
async def test_a_narrower_limit_that_is_not_configured_holds_its_route_only() -> None:
    """The request goes to another quota; with none it waits, while other routes of the same key go on."""
    async with setting(NARROW_429, NARROW_429, limits=(limit(60),)) as it:
        began = micros()
        assert (await it.ask(it.request(path="/specs/1"))).status == 200
        assert it.keys == ["s-k0", "s-k1", it.keys[2]]
        assert 7 * SECOND <= micros() - began <= 8 * SECOND
        assert [event.kind for event in it.happened(UpstreamThrottled)] == ["endpoint", "endpoint"]
        await it.room.settled()
        assert [type(one) for one in it.room.store.settled] == [Spent, Spent, Spent]


@virtual
async def test_other_routes_are_not_held() -> None:
    """A narrower limit says nothing about the rest."""
    async with setting(NARROW_429, quotas=1, limits=(limit(60),)) as it:
        held = await it.ask(it.request(path="/specs/1", wait=SECOND))
        assert (held.status, dict(held.fields)[b"Retry-After"]) == (429, b"8")
        began = micros()
        assert (await it.ask(it.request(path="/me", wait=SECOND))).status == 200
        assert micros() - began < SECOND
        with pytest.raises(TooMany) as refusal:
            await it.ask(it.request(path="/specs/2", wait=SECOND))
        assert refusal.value.retry_after == 7
        assert len(it.upstream.arrived) == 2


@virtual
async def test_a_crowd_does_not_run_into_a_narrower_limit_again() -> None:
    """After its end so many go at once as it has, the others later: one refusal, not one for each of them."""
    async with setting(limits=(limit(60),), quotas=1) as it:
        window: list[int] = []

        def narrow(_key: str, _request: Request) -> Answer | None:
            window[:] = [instant for instant in window if instant > micros() - 10 * SECOND]
            if len(window) < 5:
                window.append(micros())
                return None
            wait = b"%d" % -(-(window[0] + 10 * SECOND - micros()) // SECOND)
            return answer(
                429, PLAIN_429, (b"RateLimit", b"limit=5, remaining=0, reset=" + wait), (b"RateLimit-Policy", b"5;w=10")
            )

        it.upstream.rule = narrow
        for _ in range(5):
            await it.ask(it.request(path="/specs/1"))
        crowd = await asyncio.gather(*(it.ask(it.request(path="/specs/1")) for _ in range(20)))
        assert [got.status for got in crowd] == [200] * 20
        refused = len(it.happened(UpstreamThrottled))
        assert refused == 20, "those that were under way together"
        await asyncio.gather(*(it.ask(it.request(path="/specs/1")) for _ in range(20)))
        assert len(it.happened(UpstreamThrottled)) == refused
        assert max(event.wait for event in it.happened(UpstreamThrottled)) <= 11 * SECOND, "refused together, once"


# Plans


@virtual
async def test_a_plan_that_is_used_up_is_left_for_another_one() -> None:
    """Another key's team may have requests left; the quota is not parked, for its other services go on."""
    async with setting(answer(429, PLAN_429)) as it:
        assert (await it.ask()).status == 200
        assert it.keys == ["s-k0", "s-k1"]
        for _ in range(2):
            assert (await it.ask()).status == 200
        assert it.keys[2:] == ["s-k1", "s-k1"]
        assert [event.kind for event in it.happened(UpstreamThrottled)] == ["plan"]
        await it.room.settled()
        assert not it.room.store.state.tokens.closed


@virtual
async def test_a_plan_limit_that_holds_everywhere_is_relayed_at_once() -> None:
    """No waiting cures it: the upstream's body, its time translated."""
    async with setting(*[answer(429, PLAN_429) for _ in range(3)]) as it:
        began = micros()
        got = await it.ask()
        assert got.status == 429
        assert json.loads(await got.body.read())["error"]["name"] == "serviceLimitExhausted"
        assert dict(got.fields)[b"Retry-After"] == b"604800"
        assert len(it.upstream.arrived) == 2
        assert micros() - began < SECOND
        assert (await it.ask()).status == 429
        assert len(it.upstream.arrived) == 3, "asked once more, and told by the upstream itself"


# Told once


@virtual
async def test_a_cause_is_told_once() -> None:
    """Every 429 is counted; the first of a cause is news."""
    async with setting(*[answer(429, PLAIN_429, (b"Retry-After", b"1")) for _ in range(4)], quotas=1) as it:
        assert (await it.ask()).status == 200
        assert [event.is_new for event in it.happened(UpstreamThrottled)] == [True, False, False, False]
        assert [event.reason for event in it.happened(Retried)] == ["throttled"] * 4


@virtual
async def test_a_time_that_does_not_hold_is_not_believed_for_ever() -> None:
    """An upstream that says "at once" and refuses again is asked ever less often; an answer makes it credible again."""
    at_once = [answer(429, PLAIN_429, (b"Retry-After", b"0")) for _ in range(4)]
    async with setting(*at_once, quotas=1, limits=(limit(60),)) as it:
        began = micros()
        assert (await it.ask()).status == 200
        assert [event.wait // SECOND for event in it.happened(UpstreamThrottled)] == [0, 1, 3, 7]
        assert 11 * SECOND <= micros() - began <= 13 * SECOND
        it.upstream.script = [answer(429, PLAIN_429, (b"Retry-After", b"0"))]
        began = micros()
        assert (await it.ask()).status == 200
        assert micros() - began <= SECOND


# Several quotas at once


@virtual
async def test_keys_that_are_refused_together_are_one_cause() -> None:
    """An address that the upstream refuses: a few probes in a minute, whatever the number of keys, and one line."""
    async with setting(quotas=10, requests=60) as it:
        it.upstream.rule = lambda *_: answer(429, PLAIN_429, (b"Retry-After", b"1"))
        asked = [task_of(it.ask(it.request(wait=300 * SECOND))) for _ in range(30)]
        await asyncio.sleep(0.5)
        crowd = len(it.upstream.arrived)
        await asyncio.sleep(60)
        assert len(it.upstream.arrived) - crowd <= 6
        (together,) = it.happened(ThrottledTogether)
        assert together.quotas >= 3
        (view,) = it.gateway.outages("default")
        assert "keys at once" in view.cause
        it.upstream.rule = lambda *_: None
        assert [got.status for got in await asyncio.gather(*asked)] == [200] * 30
        assert [event.quotas > 0 for event in it.happened(ThrottledTogether)] == [True, False]
        assert it.gateway.outages("default") == []


@virtual
async def test_who_cannot_wait_for_the_trial_is_told_when_it_is() -> None:
    """With a 429 of the proxy's; a probe whose caller leaves makes room for another."""
    async with setting(quotas=10, requests=60) as it:
        it.upstream.rule = lambda *_: answer(429, PLAIN_429, (b"Retry-After", b"1"))
        waiting = task_of(it.ask())
        await asyncio.sleep(0.5)
        assert len(it.upstream.arrived) == 3
        with pytest.raises(TooMany) as refusal:
            await it.ask(it.request(wait=0))
        assert refusal.value.retry_after == 1
        await asyncio.sleep(0.85)
        assert len(it.upstream.arrived) == 4
        waiting.cancel()
        await asyncio.sleep(0)
        it.upstream.rule = lambda *_: None
        assert (await it.ask(it.request(wait=5 * SECOND))).status == 200
