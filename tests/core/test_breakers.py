from itertools import product

import pytest
from keyturn.core.breaker import FAILURES, FAILURES_TOLD, FIRST, SUSTAINED, Failure, Scope, Trial
from keyturn.core.breakers import KEEP, MAX_CLIENTS, MAX_ROUTES, Breakers, Source
from keyturn.core.model import SECOND, Micros
from keyturn.core.signals import Route

NOW: Micros = 1_000 * SECOND
LATELY: Micros = 3 * SUSTAINED // 2

X, Y = Route.of("POST", "/x"), Route.of("GET", "/y/1")
PLAIN, REFUSED, ERROR = Failure("504"), Failure("refused", "way"), Failure("500", "request")


def fail(
    breakers: Breakers, client: str, route: Route, now: Micros, how: Failure = PLAIN, trials: tuple[Trial, ...] = ()
) -> list[Scope]:
    """A failure without any chance; returns the scopes that it opens."""
    return [view.scope for view in breakers.failed(Source(client, route), now, 0.0, how, trials)]


def fail_often(
    breakers: Breakers, client: str, route: Route, how: Failure = PLAIN, times: int = 5 * FAILURES
) -> list[Scope]:
    """At a high rate, just before `NOW`."""
    begin, step = NOW - LATELY, LATELY // times
    return [scope for number in range(times) for scope in fail(breakers, client, route, begin + number * step, how)]


def wait(breakers: Breakers, client: str, route: Route, now: Micros = NOW) -> tuple[str, Micros] | None:
    """Which scope keeps a request back, and for how long."""
    shut = breakers.shut(Source(client, route), now)
    return None if shut is None else (shut.scope.kind, shut.wait)


@pytest.mark.parametrize("how", [PLAIN, Failure("503", wait=20 * SECOND)])
def test_a_route_of_a_client_is_left_alone_by_itself(how: Failure) -> None:
    """Neither other routes of it nor the same of others, however often it fails."""
    breakers = Breakers()
    assert fail_often(breakers, "a", X, how) == [Scope("a", X)]
    assert wait(breakers, "a", X) is not None
    assert [wait(breakers, *one) for one in (("a", Y), ("b", X), ("b", Y))] == [None] * 3
    assert not breakers.idle


def test_a_client_that_fails_on_several_routes_is_left_alone_by_itself() -> None:
    """However many paths it asks for; others go on."""
    breakers = Breakers()
    opened = []
    for number in range(30 * FAILURES):
        opened += fail(
            breakers, "a", Route.of("POST", f"/p{number}"), NOW - LATELY + number * LATELY // (30 * FAILURES)
        )
    assert opened == [Scope("a")]
    assert wait(breakers, "a", Route.of("POST", "/p0"), NOW) is not None
    assert wait(breakers, "b", X) is None


@pytest.mark.parametrize("how", [PLAIN, REFUSED, ERROR])
def test_an_upstream_that_is_down_is_left_alone(how: Failure) -> None:
    """By all, after few failures of several clients on several routes; when it is not reached, by those of anyone."""
    breakers = Breakers()
    opened = []
    for number in range(FAILURES):
        client, route = ("a", X) if how is REFUSED else (("a", X), ("b", Y))[number % 2]
        opened += fail(breakers, client, route, NOW - SUSTAINED + number * SUSTAINED // (FAILURES - 1), how)
    assert opened == [Scope()]
    assert wait(breakers, "a", X) == ("pool", FIRST)


def test_one_client_alone_never_keeps_others_back() -> None:
    """Whatever it does with two routes, and whatever else is answered: all courses of so many steps."""
    steps = [*product((X, Y), (PLAIN, ERROR, Failure("503", wait=9 * SECOND), None))]
    for course in product(steps, repeat=4):
        breakers = Breakers()
        for number in range(6 * len(course)):
            route, how = course[number % len(course)]
            now = NOW + number * SECOND // 4
            if how is None:
                breakers.succeeded(Source("a", route), now)
            else:
                fail(breakers, "a", route, now, how)
            assert breakers.shut(Source("b", X), now) is None


def test_one_broken_route_never_keeps_others_back() -> None:
    """Also when several clients ask for it."""
    breakers = Breakers()
    for client in ("a", "b", "c", "d"):
        assert fail_often(breakers, client, X) == [Scope(client, X)]
    assert [wait(breakers, client, Y) for client in ("a", "e")] == [None, None]


def test_a_request_that_is_in_error_counts_for_no_route() -> None:
    """A 500 again and again is one bad request; of several routes it is an outage."""
    breakers = Breakers()
    assert fail_often(breakers, "a", X, ERROR) == []
    assert wait(breakers, "a", X) is None
    assert fail_often(breakers, "a", Y, ERROR) == [Scope("a")]


def test_a_healthy_client_has_no_part_in_an_outage_of_others() -> None:
    """Two that fail on two routes open the pool's breaker; the next request of a third closes it."""
    breakers = Breakers()
    for number in range(10 * FAILURES):
        fail(breakers, *(("a", X), ("b", Y))[number % 2], NOW - LATELY + number * LATELY // (10 * FAILURES))
    assert wait(breakers, "a", Y, NOW) is not None
    assert breakers.shut(Source("c", X), NOW) is None
    trials = breakers.enter(Source("c", X), NOW)
    assert [trial.early for trial in trials] == [True]
    shut = breakers.shut(Source("c", X), NOW)
    assert shut is not None
    assert shut.trying, "its other requests wait for that"
    assert breakers.succeeded(Source("c", X), NOW) == [Scope()]
    assert breakers.shut(Source("c", X), NOW) is None


def test_what_an_outage_left_is_tried_at_once_when_it_is_over() -> None:
    """The routes and clients within need not wait for their own times; each is tried by one request."""
    breakers = Breakers()
    for number in range(10 * FAILURES):
        fail(breakers, *(("a", X), ("b", Y))[number % 2], NOW - LATELY + number * LATELY // (10 * FAILURES))
    now = NOW + 9 * SECOND
    fail(breakers, "a", X, now, Failure("503", wait=60 * SECOND), breakers.enter(Source("a", X), now))
    assert breakers.succeeded(Source("c", X), now) == [Scope()]
    assert [wait(breakers, client, route, now) for client, route in (("a", X), ("b", Y))] == [None, None]
    trials = breakers.enter(Source("a", X), now)
    assert [trial.breaker.scope for trial in trials] == [Scope("a", X)]
    assert wait(breakers, "a", X, now) == ("route", SECOND)


def test_a_success_of_one_route_leaves_another_alone() -> None:
    """It is proof for itself, for its client as a whole, and for the pool."""
    breakers = Breakers()
    fail_often(breakers, "a", X)
    before = wait(breakers, "a", X)
    assert before is not None
    assert breakers.succeeded(Source("a", Y), NOW) == []
    assert breakers.succeeded(Source("b", X), NOW) == []
    assert wait(breakers, "a", X) == before
    assert breakers.succeeded(Source("a", X), NOW) == [Scope("a", X)]
    assert breakers.idle


def test_a_trial_ends_for_all_breakers() -> None:
    """Also if its failure counts for one of them only."""
    breakers = Breakers()
    fail_often(breakers, "a", X)
    now = NOW + 9 * SECOND
    trials = breakers.enter(Source("a", X), now)
    assert trials
    fail(breakers, "a", X, now, REFUSED, trials)
    assert not any(trial.breaker.trying for trial in trials)
    again = breakers.enter(Source("a", X), now)
    fail(breakers, "a", X, now, ERROR, again)
    assert wait(breakers, "a", X, now) == ("route", 2 * FIRST)


def test_what_is_open_is_shown() -> None:
    """The pool's own first."""
    breakers = Breakers()
    assert breakers.views(NOW) == []
    for number in range(40 * FAILURES):
        fail(breakers, *(("a", X), ("b", Y))[number % 2], NOW - LATELY + number * LATELY // (40 * FAILURES))
    views = breakers.views(NOW)
    assert [view.scope for view in views] == [Scope(), Scope("a", X), Scope("b", Y)]
    assert {view.cause for view in views} == {"504"}
    assert [view.scope.client for view in breakers.views(NOW + KEEP)] == [""]


def test_what_is_remembered_is_bounded() -> None:
    """Each client by itself: one with ever new paths does not make another's breaker forgotten; nor does time last."""
    breakers = Breakers()
    fail_often(breakers, "a", X)
    for number in range(10 * MAX_ROUTES):
        fail(breakers, "b", Route.of("POST", f"/{number}"), NOW)
    assert wait(breakers, "a", X) is not None
    assert len(breakers._clients["b"].routes) == MAX_ROUTES
    for number in range(2 * MAX_CLIENTS):
        fail(breakers, f"c{number}", X, NOW)
    assert len(breakers._clients) == MAX_CLIENTS
    breakers.succeeded(Source("z", X), NOW + KEEP)
    assert breakers.idle


def test_the_upstreams_own_words_need_fewer_failures() -> None:
    """Scopes of a route, a client and the pool."""
    breakers, how = Breakers(), Failure("503", over_within=300 * SECOND)
    opened = [fail(breakers, "a", X, NOW + number * SECOND, how) for number in range(FAILURES_TOLD)]
    assert opened == [[], [], [Scope("a", X)]]
    assert fail(breakers, "b", Y, NOW + 3 * SECOND, how) == []
    assert fail(breakers, "b", Y, NOW + 4 * SECOND, how) == [Scope()]
