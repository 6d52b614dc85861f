"""A caller that behaves as Postman's official SDK: it tries every method again on 429 and 5xx, POST included."""

import asyncio
from collections import Counter
from random import Random

import pytest
from keyturn.core.errors import Refusal, Unreachable
from keyturn.core.events import RequestLog
from keyturn.core.http import Answer, Request
from keyturn.core.model import SECOND, Client

from tests.core.worlds import limit
from tests.gateway.settings import KEY_INVALID, PLAIN_429, Setting, answer, error, setting
from tests.virtual import virtual

TRIES = 4
LONGEST = 60
"""Seconds of a `Retry-After` that it honours."""

SPIKE = error("serviceUnavailable", "An unexpected spike. We are usually operational within the next 5 minutes.")


async def call(it: Setting, name: str) -> int:
    """One POST, tried three times more if it must; the status that its caller sees."""
    request = Request(name, Client("a"), "POST", b"/" + name.encode(), "/" + name, (), None, 3, 30 * SECOND)
    status = 0
    for tries in range(TRIES):
        try:
            async with it.gateway.handle(request, RequestLog()) as got:
                status, told = got.status, dict(got.fields).get(b"Retry-After")
        except Refusal as refusal:
            status, told = refusal.status, b"%d" % refusal.retry_after if refusal.retry_after else None
        if status != 429 and status < 500:
            break
        await asyncio.sleep(min(LONGEST, int(told)) if told else 0.5 * 2**tries)
    return status


@pytest.mark.parametrize("seed", range(5))
def test_each_post_that_was_applied_has_one_answer(seed: int) -> None:
    """Through 429s, spikes, dead keys and connections that fail: none is applied twice, none is lost."""

    @virtual
    async def scenario() -> None:
        random, applied = Random(seed), Counter[str]()

        def rule(key: str, request: Request) -> Answer:
            if key == "s-k2":
                return answer(401, KEY_INVALID)
            if request.method == "GET":
                return answer()
            chance = random.random()
            if chance < 0.1:
                return answer(429, PLAIN_429, (b"Retry-After", b"%d" % random.randint(1, 20)))
            if chance < 0.2:
                return answer(503, SPIKE)
            applied[request.id] += 1
            return answer(201)

        async with setting(quotas=3, limits=(limit(20, 20 * SECOND),)) as it:
            it.upstream.rule = rule
            it.upstream.connecting = [Unreachable("x") if random.random() < 0.1 else 0.01 for _ in range(200)]
            names = [f"post-{number}" for number in range(60)]
            statuses = dict(zip(names, await asyncio.gather(*(call(it, name) for name in names)), strict=True))
            assert set(applied.values()) == {1}
            assert {name for name, status in statuses.items() if status == 201} == set(applied)
            assert len(applied) > 50

    scenario()
