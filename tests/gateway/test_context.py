import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
from keyturn.bodies import Bodies, BodySettings
from keyturn.bodies.replay import MEMORY_BOUND
from keyturn.core.breaker import Failure, Source
from keyturn.core.errors import BadRequest
from keyturn.core.events import RequestLog
from keyturn.core.exchange import DemandClass
from keyturn.core.http import Request
from keyturn.core.model import SECOND, Client
from keyturn.core.signals import Route
from keyturn.gateway.context import PoolState, RequestContext, waiter_of
from keyturn.scheduler import Scheduler

from tests.core.worlds import limit, pool
from tests.gateway.settings import Bytes
from tests.schedulers import Recorder, running_scheduler
from tests.virtual import micros, task_of, virtual

NOBODY = cast("Scheduler", None)
"""These requests do not come as far as the scheduler."""

POOL = pool(2, limit(60), limit(10, 10 * SECOND, "GET /collections"))


def context(
    method: str = "GET",
    path: str | None = "/me",
    *,
    pinned: str | None = None,
) -> RequestContext:
    """A request that came at 1 s and may wait for 5 s."""
    request = Request("id", Client("a"), method, b"/", path, (), None, 2, 5 * SECOND, pinned)
    return RequestContext(PoolState(NOBODY), request, RequestLog(), waiter_of(request, POOL, SECOND))


def test_what_a_request_waits_with() -> None:
    """Its deadline, its urgency, the limits that it falls under, the quota of the key that it names."""
    waiter = context().waiter
    assert (waiter.deadline, waiter.urgency, waiter.flow.demand_class) == (6 * SECOND, 2, DemandClass((0,)))
    assert context(path="/collections").waiter.flow.demand_class == DemandClass((0, 1))
    assert context(pinned="k1").waiter.flow.demand_class == DemandClass((0,), "k1")
    with pytest.raises(BadRequest):
        context(pinned="k9")


@pytest.mark.parametrize(
    ("method", "repeatable"),
    [
        ("GET", True),
        ("HEAD", True),
        ("PUT", True),
        ("DELETE", True),
        ("OPTIONS", True),
        ("POST", False),
        ("PATCH", False),
    ],
)
async def test_what_may_be_sent_twice(method: str, repeatable: bool) -> None:
    """Idempotent methods, as long as their body can be read again."""
    one = context(method)
    await one.read_ahead(Bytes(b"{}"), Bodies(BodySettings(), Recorder(), lambda: 0))
    assert (one.repeatable, one.replayable) == (repeatable, True)
    assert one.body is not None
    one.body.replayable = False
    assert (one.repeatable, one.replayable) == (False, False)


@virtual
async def test_the_time_to_wait_begins_behind_the_body() -> None:
    """The time to receive a body is recorded apart, and waiting for room counts as waiting."""
    bodies = Bodies(BodySettings(memory=MEMORY_BOUND // 4), Recorder(), micros)
    before, one = context(), context()
    await before.read_ahead(Slow(MEMORY_BOUND // 4), bodies)
    began = micros()
    leaving = task_of(ending(before))
    await one.read_ahead(Slow(9), bodies)
    await leaving
    assert micros() - began == 3 * SECOND
    assert (one.log.reading, one.log.queued) == (SECOND, 2 * SECOND)
    assert one.waiter.deadline == micros() + (5 - 2) * SECOND
    one.end()
    assert bodies.memory.used == 0


class Slow(Bytes):
    """A body of so many bytes that takes a second."""

    def __init__(self, length: int) -> None:
        super().__init__(bytes(length))

    async def chunks(self) -> AsyncIterator[bytes]:
        await asyncio.sleep(1)
        yield self.data


async def ending(one: RequestContext) -> None:
    """It is over in two seconds."""
    await asyncio.sleep(2)
    one.end()


def test_its_route() -> None:
    """A route covers requests that an upstream would limit together."""
    assert context("HEAD", "/collections/1").route == Route("GET", "collections", 2)


@virtual
async def test_a_debugger_sees_how_a_pool_and_a_request_stand() -> None:
    """The representations show blocked requests and the state of one request."""
    async with running_scheduler(POOL) as it:
        state = PoolState(it.scheduler)
        assert (
            repr(state) == "<PoolState default: breakers idle, <Throttles: open, 0 quotas refused>, 0 limited routes>"
        )
        state.breakers.failed(Source("a", Route.of("GET", "/me")), SECOND, 0.0, Failure("504"))
        assert "<Breaker pool: closed, streak 3/24>" in repr(state)
        one = context()
        assert repr(one) == "<RequestContext id GET /me of a: 0 tries, no lease>"
        one.lease = it.scheduler.try_lease(it.request()) or await it.scheduler.lease(it.request())
        assert repr(one).endswith(f"{one.lease!r}>")
        one.lease.unsent()
        one.end()
        await it.settled()
