import asyncio
import json
from contextlib import suppress

import pytest
from keyturn.core.breaker import STREAK_FAILURES, STREAK_FAILURES_TOLD, Scope
from keyturn.core.complaints import BODY_LIMIT
from keyturn.core.errors import Broken, LocalError, Outage, TimedOut, TooMany, Unreachable
from keyturn.core.events import BreakerChanged, PoolThrottled, Retried, UpstreamThrottled
from keyturn.core.exchange import Spent, Throttled, Unsent
from keyturn.core.http import Answer, Request
from keyturn.core.model import SECOND
from keyturn.gateway import RetryPolicy

from tests.core.worlds import limit
from tests.gateway.settings import PLAIN_429, PLAN_429, Breaking, Bytes, FakeBody, Setting, Slow, answer, error, setting
from tests.virtual import micros, task_of, virtual

SPIKE = error("serviceUnavailable", "An unexpected spike. We are usually operational within the next 5 minutes.")


@virtual
async def test_a_failed_connection_frees_its_lease_and_is_tried_again() -> None:
    """Nothing was sent: the token returns at once, the caller notices nothing."""
    async with setting(quotas=1, requests=1) as it:
        it.upstream.connecting = [Unreachable("refused")]
        assert (await it.ask()).status == 200
        await it.room.settled()
        assert isinstance(it.room.store.settled[0], Unsent)
        assert it.happened(Retried) == [Retried("default", "unreachable")]


@virtual
async def test_attempts_are_bounded() -> None:
    """After `retry.attempts` tries the caller is told."""
    async with setting() as it:
        it.upstream.connecting = [Unreachable("refused") for _ in range(9)]
        with pytest.raises(Unreachable):
            await it.ask()
        assert len(it.upstream.connecting) == 6


@virtual
async def test_a_refused_certificate_is_not_tried_again() -> None:
    """It will not get better by itself."""
    async with setting() as it:
        it.upstream.connecting = [Unreachable("certificate", transient=False)]
        with pytest.raises(Unreachable):
            await it.ask()
        assert it.upstream.sent == []


@virtual
async def test_a_broken_get_is_sent_again_on_a_second_lease() -> None:
    """Idempotent: the first lease counts as spent, the second covers the second transmission (law 10)."""
    async with setting(Broken("reset")) as it:
        assert (await it.ask()).status == 200
        await it.room.settled()
        first, second = it.room.store.settled
        assert isinstance(first, Spent)
        assert first.age < 0
        assert isinstance(second, Spent)
        assert second.age >= 0


@virtual
async def test_a_broken_post_is_never_sent_twice() -> None:
    """Its bytes may have arrived."""
    async with setting(Broken("reset")) as it:
        with pytest.raises(Broken):
            await it.ask(it.request("POST", Bytes(b"{}")))
        assert len(it.upstream.sent) == 1


@virtual
async def test_a_kept_connection_that_had_been_closed_costs_no_time() -> None:
    """The request goes out again over a new one, without any time to wait, and it was no failure of the upstream's."""
    async with setting(requests=100, retries=RetryPolicy(budget=1)) as it:
        for number in range(2 * STREAK_FAILURES):
            it.upstream.script = [Broken("stale", stale=True)]
            assert (await it.ask(it.request(wait=0))).status == 200
            assert (len(it.upstream.sent), it.upstream.fresh) == (2 * number + 2, number + 1)
        assert not it.happened(BreakerChanged)


@virtual
async def test_a_closed_connection_is_no_way_around_other_rules() -> None:
    """Once only, and neither for a POST nor beyond the attempts and the budget."""
    stale = [Broken("stale", stale=True) for _ in range(2)]
    for method, retries, tries in (
        ("GET", RetryPolicy(), 2),
        ("POST", RetryPolicy(), 1),
        ("GET", RetryPolicy(attempts=1), 1),
        ("GET", RetryPolicy(budget=0), 1),
    ):
        async with setting(*stale, retries=retries) as it:
            with pytest.raises(Broken):
                await it.ask(it.request(method, wait=0))
            assert len(it.upstream.sent) == tries


@virtual
async def test_retries_are_a_share_of_the_requests() -> None:
    """Beyond the budget failures are passed on: no retry storm."""
    async with setting(requests=100, retries=RetryPolicy(attempts=2, budget=0.1)) as it:
        it.upstream.connecting = [Unreachable("refused") for _ in range(100)]
        for _ in range(20):
            with pytest.raises(Unreachable):
                await it.ask()
        assert len(it.happened(Retried)) == 3


@virtual
async def test_a_time_out_of_an_idempotent_request_is_tried_again() -> None:
    """While its deadline allows it; a POST is not."""
    async with setting(TimedOut("slow")) as it:
        assert (await it.ask()).status == 200
        assert [event.reason for event in it.happened(Retried)] == ["timed_out"]
        it.upstream.script = [TimedOut("slow")]
        with pytest.raises(TimedOut):
            await it.ask(it.request(wait=SECOND // 10))
        it.upstream.script = [TimedOut("slow")]
        with pytest.raises(TimedOut):
            await it.ask(it.request("POST", Bytes(b"{}")))
        assert len(it.upstream.arrived) == 4


@pytest.mark.parametrize("status", [502, 503, 504])
def test_an_outage_is_tried_again(status: int) -> None:
    """Each try on a lease of its own, all of them spent."""

    @virtual
    async def scenario() -> None:
        async with setting(answer(status), answer(status)) as it:
            assert (await it.ask()).status == 200
            assert [event.reason for event in it.happened(Retried)] == ["outage", "outage"]
            await it.room.settled()
            assert [type(one) for one in it.room.store.settled] == [Spent] * 3

    scenario()


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_may_have_been_applied_is_relayed(method: str) -> None:
    """An outage's answer to a request that is not idempotent is its caller's."""

    @virtual
    async def scenario() -> None:
        async with setting(answer(503, SPIKE)) as it:
            got = await it.ask(it.request(method, Bytes(b"{}")))
            assert (got.status, await got.body.read()) in ((503, SPIKE), (503, b""))
            assert len(it.upstream.arrived) == 1

    scenario()


@virtual
async def test_an_error_of_the_api_is_relayed() -> None:
    """A 500 may have been applied, and another try would not go better."""
    async with setting(answer(500)) as it:
        assert (await it.ask(it.request("PUT", Bytes(b"{}")))).status == 500
        assert len(it.upstream.arrived) == 1


@virtual
async def test_the_upstreams_time_is_waited_for() -> None:
    """A try waits for `Retry-After` if that is before the deadline; else the caller is told it."""
    async with setting(answer(503, SPIKE, (b"Retry-After", b"20"))) as it:
        began = micros()
        assert (await it.ask()).status == 200
        assert 20 * SECOND <= micros() - began <= 21 * SECOND
        it.upstream.script = [answer(503, SPIKE, (b"RetryAfter", b"20"))]
        got = await it.ask(it.request(wait=5 * SECOND))
        assert (got.status, dict(got.fields)[b"Retry-After"]) == (503, b"20")


@virtual
async def test_an_outage_counts_though_its_answer_breaks_off() -> None:
    """Its head tells when to come again; without that it is an answer that broke off."""
    for method, status in (("GET", 200), ("POST", 503)):
        async with setting(Answer(503, b"", ((b"Retry-After", b"20"),), Breaking([b"{"]))) as it:
            began = micros()
            if status == 200:
                assert (await it.ask(it.request(method))).status == 200
                assert 20 * SECOND <= micros() - began <= 21 * SECOND
            else:
                with pytest.raises(Outage) as outage:
                    await it.ask(it.request(method, Bytes(b"{}")))
                assert outage.value.retry_after == 20
    async with setting(Answer(504, b"", (), Breaking([]))) as it:
        with pytest.raises(Broken):
            await it.ask(it.request("POST", Bytes(b"{}")))


@virtual
async def test_what_cannot_be_sent_in_time_again_is_relayed_as_it_came() -> None:
    """The upstream's 503, when no turn comes before the deadline, with the time of the turn."""
    async with setting(answer(503, SPIKE), quotas=1, requests=1) as it:
        got = await it.ask(it.request(wait=5 * SECOND))
        assert (got.status, dict(got.fields)[b"Retry-After"]) == (503, b"61")


@virtual
async def test_a_body_that_was_dropped_is_not_sent_again() -> None:
    """Beyond the spool an outage's answer is the caller's."""
    async with setting(answer(503)) as it:
        got = await it.ask(it.request("PUT", Bytes(b"x" * (1 << 20) + b"y")))
        assert got.status == 503
        assert len(it.upstream.arrived) == 1


# The breaker


async def fail(it: Setting, number: int, *, path: str = "/me", client: str = "a") -> None:
    """Requests that fail one after another, half a second apart, without being tried again."""
    for count in range(number):
        await asyncio.sleep(0.5)
        with suppress(Broken, Unreachable, TimedOut):
            await it.ask(it.request("POST", path=path.format(count), client=client))


def same(it: Setting) -> Request:
    """One more request like those."""
    return it.request("POST")


def outage(it: Setting, broken: Answer | Exception) -> None:
    """From now on everything fails like this."""
    it.upstream.rule = lambda *_: (
        broken if isinstance(broken, Exception) else answer(broken.status, SPIKE, *broken.fields)
    )


@pytest.mark.parametrize("how", [Broken("reset"), TimedOut("slow"), answer(502), answer(504)])
def test_failures_in_a_row_open_the_breaker(how: Answer | Exception) -> None:
    """Then nothing is sent, and callers are told when the next probe is; its success lets all through again."""

    @virtual
    async def scenario() -> None:
        async with setting(requests=100) as it:
            it.upstream.rule = lambda *_: how if isinstance(how, Exception) else answer(how.status)
            await fail(it, STREAK_FAILURES)
            (opened,) = it.happened(BreakerChanged)
            assert opened.opened
            assert [snapshot.scope.kind for snapshot in it.gateway.outages("default")] == ["route"]
            for _ in range(5):
                with pytest.raises(Outage) as refusal:
                    await it.ask(same(it))
                assert refusal.value.retry_after == 2
                assert "POST /me" in refusal.value.message
            assert len(it.upstream.arrived) == STREAK_FAILURES
            it.upstream.rule = lambda *_: None
            await asyncio.sleep(2)
            probe = task_of(it.ask(same(it)))
            await asyncio.sleep(0.05)
            with pytest.raises(Outage):
                await it.ask(it.request("POST", wait=0))
            assert (await probe).status == 200
            assert (await it.ask(same(it))).status == 200
            assert it.gateway.outages("default") == []
            assert [event.opened for event in it.happened(BreakerChanged)] == [True, False]

    scenario()


@virtual
async def test_a_refused_connection_opens_the_breaker_too() -> None:
    """Requests that wait when the breaker opens are refused at their turn, and their tokens return."""
    async with setting(requests=100, retries=RetryPolicy(attempts=1)) as it:
        it.upstream.connecting = [Unreachable("refused") for _ in range(STREAK_FAILURES)]
        await fail(it, STREAK_FAILURES)
        with pytest.raises(Outage):
            await it.ask()
        await it.room.settled()
        assert {type(one) for one in it.room.store.settled} == {Unsent}


@virtual
async def test_the_upstreams_own_words_open_it_sooner() -> None:
    """Told to be over "within the next 5 minutes": few failures are enough, and the probes are spread."""
    async with setting(requests=100) as it:
        outage(it, answer(503))
        await fail(it, STREAK_FAILURES_TOLD)
        with pytest.raises(Outage) as refusal:
            await it.ask(same(it))
        assert refusal.value.retry_after == 17
        await asyncio.sleep(17)
        got = await it.ask(it.request("POST"))
        assert got.status == 503
        assert dict(got.fields)[b"Retry-After"] == b"33"


@virtual
async def test_no_probe_before_the_upstreams_time() -> None:
    """`Retry-After` of the failures is honoured."""
    async with setting(requests=100) as it:
        outage(it, answer(503, b"", (b"Retry-After", b"77")))
        await fail(it, STREAK_FAILURES_TOLD)
        with pytest.raises(Outage) as refusal:
            await it.ask(same(it))
        assert refusal.value.retry_after == 77


@pytest.mark.parametrize(
    ("status", "seconds", "sent", "answered"),
    [(200, 1.5, 5, {200}), (502, 1.5, 1, {502, 503}), (200, 9.0, 1, {200, 503})],
)
def test_a_crowd_waits_a_moment_for_what_the_trial_tells(
    status: int, seconds: float, sent: int, answered: set[int]
) -> None:
    """Those who come back when they were told are served behind it, or told anew; nothing but the probe goes out."""

    @virtual
    async def scenario() -> None:
        async with setting(requests=100) as it:
            it.upstream.rule = lambda *_: answer(502)
            await fail(it, STREAK_FAILURES)
            it.upstream.rule = lambda *_: answer(status)
            it.upstream.trip = seconds
            await asyncio.sleep(2)
            before, began = len(it.upstream.arrived), micros()
            found = await asyncio.gather(*(it.ask(it.request("POST")) for _ in range(5)), return_exceptions=True)
            refusals = [one for one in found if isinstance(one, Outage)]
            assert len(it.upstream.arrived) - before == sent
            assert {one.status for one in found if isinstance(one, Answer | Outage)} == answered
            assert len(refusals) == (0 if answered == {200} else 4)
            assert micros() - began < (seconds + 0.5) * SECOND * (2 if sent > 1 else 1)

    scenario()


@virtual
async def test_a_trial_whose_caller_leaves_makes_room_for_another() -> None:
    """Nobody is shut out for longer because of it."""
    async with setting(requests=100) as it:
        outage(it, Broken("reset"))
        await fail(it, STREAK_FAILURES)
        it.upstream.rule = lambda *_: None
        await asyncio.sleep(2)
        probe = task_of(it.ask(same(it)))
        await asyncio.sleep(0.05)
        probe.cancel()
        await asyncio.sleep(0)
        assert (await it.ask(same(it))).status == 200


@virtual
async def test_one_request_that_the_api_cannot_cope_with_shuts_nobody_out() -> None:
    """However often it is repeated; errors of many routes are an outage."""
    async with setting(requests=200) as it:
        it.upstream.rule = lambda *_: answer(500)
        await fail(it, 5 * STREAK_FAILURES)
        assert it.happened(BreakerChanged) == []
        await fail(it, STREAK_FAILURES - 1, path="/r{}")
        assert [(event.scope, event.opened) for event in it.happened(BreakerChanged)] == [(Scope("a"), True)]


@virtual
async def test_a_held_answer_is_relayed_when_the_breaker_opens() -> None:
    """A request that was to be tried again gets the upstream's own answer, with the time of the next probe."""
    async with setting(requests=100) as it:
        outage(it, answer(503))
        for _ in range(STREAK_FAILURES_TOLD - 1):
            await it.ask(it.request("PUT", Bytes(b"x" * (1 << 20) + b"y")))
            await asyncio.sleep(0.5)
        got = await it.ask(it.request("PUT", Bytes(b"{}")))
        assert (got.status, dict(got.fields)[b"Retry-After"]) == (503, b"17")


# Whose failures they are


@virtual
async def test_one_client_s_failures_keep_nobody_else_back() -> None:
    """Neither on the same route nor on others, however many it asks for; each is told what is left alone."""
    for path, scope in (("/me", "route"), ("/r{}", "client")):
        async with setting(requests=1_000) as it:
            it.upstream.rule = lambda _, request: answer(504) if request.client.name == "a" else None
            with pytest.raises(Outage) as refusal:
                await fail(it, 10 * STREAK_FAILURES, path=path)
            assert 1 <= (refusal.value.retry_after or 0) <= 3
            assert [snapshot.scope.kind for snapshot in it.gateway.outages("default")] == [scope]
            for client_path in ("/me", "/other", "/r1"):
                got = await it.ask(it.request("POST", path=client_path, client="b", wait=0))
                assert got.status == 200


@virtual
async def test_an_upstream_that_is_down_is_tried_by_one_client_after_another() -> None:
    """Each has its turn; the answer to one lets all go on."""
    async with setting(requests=1_000) as it:
        it.upstream.rule = lambda *_: answer(504)
        for _ in range(STREAK_FAILURES // 2):
            await fail(it, 1, path="/x", client="a")
            await fail(it, 1, path="/y", client="b")
        assert [event.scope for event in it.happened(BreakerChanged)] == [Scope()]
        for path, client in (("/x", "a"), ("/y", "b")):
            await asyncio.sleep(5)
            assert (await it.ask(it.request("POST", path=path, client=client))).status == 504
        it.upstream.rule = lambda *_: None
        assert (await it.ask(it.request("POST", path="/x", client="c"))).status == 200, "which has not failed"
        found = [
            await it.ask(it.request("POST", path=path, client=client)) for path, client in (("/x", "a"), ("/y", "b"))
        ]
        assert [one.status for one in found] == [200, 200]


@virtual
async def test_what_is_told_of_one_client_is_told_once() -> None:
    """It may fail and be answered for ever; each of that is an event, the first of a kind is news."""
    async with setting(requests=1_000) as it:
        for _ in range(3):
            it.upstream.rule = lambda *_: answer(504)
            await fail(it, STREAK_FAILURES)
            it.upstream.rule = lambda *_: None
            await asyncio.sleep(2)
            assert (await it.ask(same(it))).status == 200
        moved = [(event.opened, event.is_new) for event in it.happened(BreakerChanged)]
        assert moved == [(True, True), (False, True), (True, False), (False, False), (True, False), (False, False)]


@virtual
async def test_one_client_s_retries_take_none_from_another() -> None:
    """The budget is each client's own."""
    async with setting(requests=1_000, retries=RetryPolicy(attempts=2, budget=0.1)) as it:
        it.upstream.trip = 0.01
        it.upstream.rule = lambda _, request: answer(504) if request.client.name == "a" else None
        for _ in range(STREAK_FAILURES - 1):
            assert (await it.ask(it.request(client="a"))).status == 504
        assert len(it.happened(Retried)) == 3
        it.upstream.script = [answer(504)]
        assert (await it.ask(it.request(client="b"))).status == 200


@virtual
async def test_local_errors_never_open_the_breaker() -> None:
    """Neither one without a connection nor one that broke; requests are tried again as ever."""
    async with setting(requests=1000, retries=RetryPolicy(attempts=1)) as it:
        for number in range(4 * STREAK_FAILURES):
            if number % 2:
                it.upstream.connecting = [LocalError("No descriptor.", cause="descriptors")]
            else:
                it.upstream.script = [Broken("No memory.", cause="memory")]
            with pytest.raises((LocalError, Broken)):
                await it.ask()
            await asyncio.sleep(1)
        assert (await it.ask()).status == 200
        assert it.happened(BreakerChanged) == []


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
        assert [quota for _, (_, quota) in it.room.store.state.tokens.shut.closed] == ["k0"]


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
    """A request that was certainly not processed is replayed from the spool."""
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


# Finding the limit


BURST = limit(10, 10 * SECOND, "GET /collections")
NARROW_429 = answer(
    429, PLAIN_429, (b"X-RateLimit-Limit", b"10"), (b"X-RateLimit-Remaining", b"0"), (b"Retry-After", b"7")
)


@virtual
async def test_the_limit_that_is_named_is_closed_and_no_other() -> None:
    """Requests outside the limit go on, on the same key."""
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
        assert not it.room.store.state.tokens.shut.closed


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
        (together,) = it.happened(PoolThrottled)
        assert together.quotas >= 3
        (view,) = it.gateway.outages("default")
        assert "keys at once" in view.cause
        it.upstream.rule = lambda *_: None
        assert [got.status for got in await asyncio.gather(*asked)] == [200] * 30
        assert [event.quotas > 0 for event in it.happened(PoolThrottled)] == [True, False]
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
