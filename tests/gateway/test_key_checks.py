import asyncio
import gc

import pytest
from keyturn.core.errors import Broken, NoKey
from keyturn.core.events import KeyChanged, Retried, UpstreamThrottled
from keyturn.core.exchange import Spent
from keyturn.core.http import Answer, Request
from keyturn.core.model import SECOND, Client, Key, Pool, Secret

from tests.gateway.settings import KEY_INVALID, NOT_AUTHORIZED, PLAIN_429, Bytes, Setting, answer, error, setting
from tests.virtual import micros, task_of, virtual

FORBIDDEN_KEY = error("AuthenticationError", "This key has been disabled.")


def revoke(it: Setting, *secrets: str, status: int = 401, body: bytes = KEY_INVALID) -> None:
    """From now on the upstream accepts these keys no longer."""

    def rule(key: str, _request: Request) -> Answer | None:
        return answer(status, body) if key in secrets else None

    it.upstream.rule = rule


def states(it: Setting) -> list[str]:
    """Of every key."""
    return [look.state for look in it.looks()]


@pytest.mark.parametrize(("status", "body"), [(401, KEY_INVALID), (403, FORBIDDEN_KEY)])
def test_a_dead_key_costs_the_caller_nothing_but_time(status: int, body: bytes) -> None:
    """It is checked by one `GET /me` on a token of its own; the request goes on with another key (law 10)."""

    @virtual
    async def scenario() -> None:
        async with setting() as it:
            revoke(it, "s-k0", status=status, body=body)
            assert (await it.ask(it.request("POST", Bytes(b"{}"), path="/collections"))).status == 200
            assert it.upstream.arrived == [
                ("s-k0", "POST", b"/collections"),
                ("s-k0", "GET", b"/me"),
                ("s-k1", "POST", b"/collections"),
            ]
            assert states(it) == ["quarantined", "ready"]
            reason = f"the upstream does not accept it ({status} on GET /me)"
            assert it.happened(KeyChanged) == [KeyChanged("default", "k0", "quarantined", reason)]
            assert [event.reason for event in it.happened(Retried)] == ["dead_key"]
            assert (await it.ask()).status == 200
            assert it.keys[-1] == "s-k1"
            await it.room.settled()
            assert [type(one) for one in it.room.store.settled] == [Spent] * 4

    scenario()


@virtual
async def test_a_refusal_of_head_is_asked_about() -> None:
    """It has no body that could tell; a key that lives is not checked again at once."""
    for dead in (True, False):
        async with setting() as it:

            def rule(key: str, request: Request, dead: bool = dead) -> Answer | None:
                if request.target == b"/me":
                    return answer(401, KEY_INVALID) if dead and key == "s-k0" else None
                return answer(401, b"") if key == "s-k0" or not dead else None

            it.upstream.rule = rule
            assert (await it.ask(it.request("HEAD", path="/x"))).status == (200 if dead else 401)
            assert it.keys == (["s-k0", "s-k0", "s-k1"] if dead else ["s-k0", "s-k0"])


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_that_cannot_be_read_is_asked_about(status: int) -> None:
    """Callers ask for codings that are not known here; the key's own `GET /me` is read by us."""

    @virtual
    async def scenario() -> None:
        async with setting() as it:

            def rule(key: str, request: Request) -> Answer | None:
                if key != "s-k0":
                    return None
                if request.target == b"/me":
                    return answer(401, KEY_INVALID)
                return answer(status, b"\x0b\x02\x80", (b"Content-Encoding", b"br"))

            it.upstream.rule = rule
            assert (await it.ask(it.request(path="/collections"))).status == 200
            assert it.keys == ["s-k0", "s-k0", "s-k1"]
            assert states(it) == ["quarantined", "ready"]

    scenario()


@pytest.mark.parametrize(
    ("status", "body"),
    [(401, NOT_AUTHORIZED), (403, error("forbiddenError", "Your plan has not this feature.")), (403, KEY_INVALID[:9])],
)
def test_what_is_about_the_resource_is_relayed_at_once(status: int, body: bytes) -> None:
    """And the key stays."""

    @virtual
    async def scenario() -> None:
        async with setting(answer(status, body)) as it:
            assert (await it.ask()).status == status
            assert len(it.upstream.arrived) == 1
            assert states(it) == ["ready", "ready"]

    scenario()


@virtual
async def test_a_refusal_that_only_looks_like_a_dead_key_is_relayed() -> None:
    """The key was found alive; for a while it is not checked again."""
    async with setting() as it:
        it.upstream.rule = lambda _, request: None if request.target == b"/me" else answer(401, KEY_INVALID)
        for _ in range(3):
            assert (await it.ask(it.request(path="/scim"))).status == 401
        assert [target for _, _, target in it.upstream.arrived].count(b"/me") == 2
        assert states(it) == ["ready", "ready"]


@virtual
async def test_requests_that_meet_the_same_dead_key_share_the_asking() -> None:
    """One `GET /me`, and all of them go on."""
    async with setting(requests=10) as it:
        revoke(it, "s-k0")
        got = await asyncio.gather(*(it.ask(it.request(path="/a")) for _ in range(6)))
        assert [one.status for one in got] == [200] * 6
        assert it.upstream.arrived.count(("s-k0", "GET", b"/me")) == 1
        assert len(it.happened(KeyChanged)) == 1


@virtual
async def test_nothing_goes_out_with_a_key_that_is_being_asked_after() -> None:
    """Its quota's tokens are left for the asking."""
    async with setting(requests=10) as it:
        revoke(it, "s-k0")
        first = task_of(it.ask(it.request(path="/a")))
        await asyncio.sleep(0.15)
        more = await asyncio.gather(*(it.ask(it.request(path="/b")) for _ in range(4)))
        assert [one.status for one in [*more, await first]] == [200] * 5
        assert [key for key, _, target in it.upstream.arrived if target == b"/b"] == ["s-k1"] * 4


@virtual
async def test_the_last_keys_death_is_told_and_is_no_hang() -> None:
    """503 `noKeyAvailable` with the time at which one may be back, to the one that met it and to those who come."""
    async with setting(quotas=1, requests=10) as it:
        revoke(it, "s-k0")
        began = micros()
        for expected in (18, 18):
            with pytest.raises(NoKey) as refusal:
                await it.ask()
            assert refusal.value.retry_after == expected
        assert micros() - began < SECOND
        assert len(it.upstream.arrived) == 2
        revoke(it)
        await asyncio.sleep(18)
        assert (await it.ask()).status == 200
        assert [event.state for event in it.happened(KeyChanged)] == ["quarantined", "ready"]


@virtual
async def test_a_dead_key_is_checked_ever_less_often() -> None:
    """And serves again when it lives."""
    async with setting(quotas=1, requests=100) as it:
        revoke(it, "s-k0")
        with pytest.raises(NoKey):
            await it.ask()
        await asyncio.sleep(3600)
        assert len(it.upstream.arrived) == 2 + 7
        (look,) = it.looks()
        assert look.until is not None
        revoke(it)
        await asyncio.sleep((look.until - micros()) / SECOND + 1)
        assert states(it) == ["ready"]


@virtual
async def test_a_changed_secret_is_checked_at_once() -> None:
    """A dead key with a new secret is checked at once."""
    async with setting(quotas=1, requests=10) as it:
        revoke(it, "s-k0")
        with pytest.raises(NoKey):
            await it.ask()
        renewed = Pool("default", (Key("k0", Secret("s-new"), "k0"),), it.room.scheduler.pool.limits)
        clients = {"a": Client("a")}
        it.room.scheduler.adopt(renewed, clients, max_waiting=10)
        await asyncio.sleep(1)
        assert it.keys[-1] == "s-new"
        assert states(it) == ["ready"]
        assert (await it.ask()).status == 200


@virtual
async def test_a_resumed_key_that_was_dead_is_asked_after_first() -> None:
    """While it is paused nobody asks."""
    async with setting(quotas=1, requests=100) as it:
        revoke(it, "s-k0")
        with pytest.raises(NoKey):
            await it.ask()
        it.pause("k0")
        revoke(it)
        await asyncio.sleep(3600)
        assert len(it.upstream.arrived) == 2
        it.resume("k0")
        await asyncio.sleep(1)
        assert states(it) == ["ready"]


@pytest.mark.parametrize("how", [Broken("reset"), answer(503), answer(404)])
def test_an_asking_that_tells_nothing_leaves_the_key_as_it_was(how: Answer | Exception) -> None:
    """The upstream's answer is the caller's."""

    @virtual
    async def scenario() -> None:
        async with setting(quotas=1, requests=10) as it:
            it.upstream.script = [answer(401, KEY_INVALID), how]
            assert (await it.ask(it.request(path="/a"))).status == 401
            assert states(it) == ["ready"]

    scenario()


@virtual
async def test_nobody_waits_long_for_an_asking_while_another_key_may_serve() -> None:
    """The last token of the key is spent, so that it is checked a minute later only."""
    async with setting(quotas=3, requests=1) as it:
        revoke(it, "s-k0")
        began = micros()
        assert (await it.ask(it.request("POST", Bytes(b"{}")))).status == 200
        assert micros() - began < 3 * SECOND
        assert (await it.ask(it.request(wait=0))).status == 200
        assert it.keys == ["s-k0", "s-k1", "s-k2"]
        assert [event.reason for event in it.happened(Retried)] == ["dead_key"]
        await asyncio.sleep(70)
        assert states(it) == ["quarantined", "ready", "ready"]


@virtual
async def test_who_has_no_time_to_wait_goes_on_with_another_key_at_once() -> None:
    """One of three keys is dead: nobody hears of it."""
    async with setting(quotas=3, requests=10) as it:
        revoke(it, "s-k1")
        for _ in range(6):
            assert (await it.ask(it.request(wait=0))).status == 200
            await asyncio.sleep(1)
        assert states(it) == ["ready", "quarantined", "ready"]


@virtual
async def test_what_every_key_is_refused_is_tried_by_a_few_only() -> None:
    """Then it is about what was asked for."""
    async with setting(quotas=6, requests=10) as it:
        it.upstream.rule = lambda _, request: None if request.target == b"/me" else answer(401, KEY_INVALID)
        assert (await it.ask(it.request(path="/odd", wait=0))).status == 401
        assert [target for _, _, target in it.upstream.arrived].count(b"/odd") == 3
        await asyncio.sleep(1)
        assert states(it) == ["ready"] * 6


@virtual
async def test_who_cannot_wait_for_the_asking_gets_the_answer_as_it_came() -> None:
    """No request waits past its deadline (law 6)."""
    async with setting(quotas=1, requests=1) as it:
        revoke(it, "s-k0")
        began = micros()
        assert (await it.ask(it.request(wait=5 * SECOND))).status == 401
        assert micros() - began <= 6 * SECOND
        await asyncio.sleep(70)
        assert states(it) == ["quarantined"], "the asking had its token in time"


@virtual
async def test_a_body_that_cannot_be_sent_again_is_asked_for_once_more() -> None:
    """Nothing was processed, and the caller does not hear that its own credential is wrong."""
    async with setting() as it:
        revoke(it, "s-k0")
        with pytest.raises(NoKey) as refusal:
            await it.ask(it.request("PUT", Bytes(b"x" * (1 << 20) + b"y")))
        assert refusal.value.retry_after == 1


@virtual
async def test_who_insists_on_a_dead_key_hears_of_it() -> None:
    """No other key is put in its place."""
    async with setting() as it:
        revoke(it, "s-k0")
        with pytest.raises(NoKey) as refusal:
            await it.ask(it.request(pinned="k0"))
        assert "k0" in refusal.value.message
        assert (await it.ask(it.request(pinned="k1"))).status == 200


@virtual
async def test_a_caller_that_leaves_does_not_end_the_asking() -> None:
    """Others wait for it."""
    async with setting(requests=10) as it:
        revoke(it, "s-k0")
        task = task_of(it.ask())
        await asyncio.sleep(0.15)
        task.cancel()
        await asyncio.sleep(1)
        assert states(it) == ["quarantined", "ready"]


@virtual
async def test_whatever_happens_to_the_asking_nobody_waits_for_it_for_ever() -> None:
    """An error that nobody thought of leaves the key as it was, and comes to light."""
    async with setting(quotas=1, requests=10) as it:
        it.upstream.script = [answer(401, KEY_INVALID), RuntimeError("a bug")]
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))
        assert (await it.ask()).status == 401
        assert states(it) == ["ready"]
        gc.collect()
        assert told == ["a bug"]


@virtual
async def test_an_asking_that_is_refused_by_a_limit_shows_that_the_key_lives() -> None:
    """It is counted and its limit closed as any other's."""
    async with setting(quotas=1, requests=10) as it:
        it.upstream.script = [answer(401, KEY_INVALID), answer(429, PLAIN_429, (b"Retry-After", b"20"))]
        assert (await it.ask(it.request(path="/a"))).status == 401
        assert [look.state for look in it.looks()] == ["parked"]
        assert [event.kind for event in it.happened(UpstreamThrottled)] == ["window"]
