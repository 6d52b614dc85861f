from itertools import product

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from keyturn.core.breaker import (
    CLIENT_KEPT,
    FIRST_INTERVAL,
    INTERVAL_JITTER,
    MAX_CLIENTS,
    MAX_EARLY_PROBES,
    MAX_INTERVAL,
    MAX_OPEN,
    MAX_PARTS,
    MAX_ROUTES,
    PROBE_PATIENCE,
    PROBE_TURN,
    STREAK_DURATION,
    STREAK_FAILURES,
    STREAK_FAILURES_TOLD,
    Breaker,
    Breakers,
    Failure,
    Probe,
    Scope,
    Source,
)
from keyturn.core.model import SECOND, Micros
from keyturn.core.signals import Route

NOW: Micros = 1_000 * SECOND
PLAIN = Failure("504")


def told(wait: Micros | None = None, over_within: Micros | None = None) -> Failure:
    """Fail with an answer in which the upstream says that it is out of order."""
    return Failure("503", wait=wait, over_within=over_within)


def fail(breaker: Breaker, now: Micros, *whose: str, failure: Failure = PLAIN, probe: Probe | None = None) -> bool:
    """Fail without jitter."""
    return breaker.failed(now, 0.0, failure, *whose, probes=() if probe is None else (probe,))


def opened(failure: Failure = PLAIN, whose: tuple[tuple[str, ...], ...] = ((),)) -> Breaker:
    """Return a breaker that has just opened at `NOW`, by failures of these sources in turn."""
    breaker = Breaker(Scope())
    for number in range(STREAK_FAILURES - 1):
        assert not fail(breaker, NOW - STREAK_DURATION + number, *whose[number % len(whose)])
    assert fail(breaker, NOW, *whose[-1], failure=failure)
    return breaker


def probe(breaker: Breaker, now: Micros, part: str | None = None) -> Probe:
    """Send a request as the probe."""
    assert breaker.wait(now, part) is None
    found = breaker.enter(now, part)
    assert found is not None
    return found


def test_it_opens_on_a_row_of_failures() -> None:
    """The breaker opens after enough failures in a row that are spread over enough time."""
    breaker = Breaker(Scope())
    for _ in range(3 * STREAK_FAILURES):
        assert not fail(breaker, NOW)
    assert breaker.wait(NOW) is None
    assert breaker.enter(NOW) is None
    assert fail(breaker, NOW + STREAK_DURATION)
    assert breaker.wait(NOW + STREAK_DURATION) == FIRST_INTERVAL
    assert breaker.snapshot() == (Scope(), NOW + STREAK_DURATION, "504", NOW + STREAK_DURATION + FIRST_INTERVAL)


def test_any_answer_ends_the_row() -> None:
    """One success ends a row of failures."""
    breaker = Breaker(Scope())
    for number in range(10 * STREAK_FAILURES):
        assert not fail(breaker, NOW + number * SECOND)
        if number % (STREAK_FAILURES - 1) == 0:
            assert not breaker.succeeded()
            assert breaker.idle


def test_what_the_upstream_says_of_itself_needs_fewer() -> None:
    """Fewer failures are enough when the upstream says itself that it is out of order."""
    for failure in (told(wait=20 * SECOND), told(over_within=300 * SECOND)):
        breaker = Breaker(Scope())
        for number in range(STREAK_FAILURES_TOLD - 1):
            assert not fail(breaker, NOW + number * SECOND, failure=failure)
        assert fail(breaker, NOW + 9 * SECOND, failure=failure)


@pytest.mark.parametrize("failure", [PLAIN, told(wait=5 * SECOND)])
def test_what_fails_alone_does_not_open_it(failure: Failure) -> None:
    """One client or one route counts for half of a row at most, so it takes two of each to open the breaker."""
    for others in ("ax", "ay", "bx"):
        breaker = Breaker(Scope())
        for number in range(9 * STREAK_FAILURES):
            assert not fail(breaker, NOW + number * SECOND, "a", "x", failure=failure)
            assert not fail(breaker, NOW + number * SECOND, *others, failure=failure)
    breaker = Breaker(Scope())
    found = [fail(breaker, NOW + number * SECOND, *"ax" if number % 2 else "by") for number in range(STREAK_FAILURES)]
    assert found == [False] * (STREAK_FAILURES - 1) + [True]


def test_every_course_of_few_failures() -> None:
    """In any order of failures it takes two clients and two routes, or failures to connect, to open."""
    possible = [*product("ab", "xy"), ()]
    for length in (2, 3):
        for course in product(possible, repeat=length):
            breaker = Breaker(Scope())
            for step in range(4 * STREAK_FAILURES):
                fail(breaker, NOW + step * SECOND, *course[step % length])
            several = len({whose[0] for whose in course if whose}) > 1 and len({one[1] for one in course if one}) > 1
            assert breaker.closed or several or () in course, course
            assert not breaker.closed or not several or length > 2, course


def test_no_probe_before_the_upstreams_time() -> None:
    """No probe is sent before the upstream's `Retry-After`, unless that is absurdly long."""
    assert opened(told(wait=77 * SECOND)).wait(NOW) == 77 * SECOND
    assert opened(told(wait=86_400 * SECOND)).wait(NOW) == MAX_OPEN


def test_one_probe_at_a_time() -> None:
    """One probe is in flight at a time: success closes, failure doubles the wait, silence lets another one go."""
    breaker = opened()
    assert breaker.wait(NOW) == FIRST_INTERVAL
    begin = NOW + FIRST_INTERVAL
    silent = probe(breaker, begin)
    assert breaker.wait(begin + SECOND) == SECOND
    last = probe(breaker, begin + PROBE_PATIENCE)
    fail(breaker, begin + PROBE_PATIENCE, probe=silent)
    assert breaker.wait(begin + PROBE_PATIENCE) is not None, "what was given up is not what is waited for"
    fail(breaker, begin + PROBE_PATIENCE, probe=last)
    assert not breaker.probing
    assert breaker.wait(begin + PROBE_PATIENCE) == 2 * FIRST_INTERVAL
    probe(breaker, begin + PROBE_PATIENCE + 2 * FIRST_INTERVAL)
    assert breaker.succeeded()
    assert breaker.closed
    assert not breaker.succeeded()


def test_a_probe_whose_caller_left_is_replaced() -> None:
    """When a probe's caller disconnects, the next request takes its place."""
    breaker = opened()
    first = probe(breaker, NOW + FIRST_INTERVAL)
    breaker.leave(first)
    second = probe(breaker, NOW + FIRST_INTERVAL + 1)
    breaker.leave(first)
    assert breaker.probing
    breaker.leave(second)
    assert not breaker.probing


@pytest.mark.parametrize(
    ("over_within", "first", "slowest"),
    [(None, FIRST_INTERVAL, MAX_INTERVAL), (300 * SECOND, 15 * SECOND, 60 * SECOND)],
)
def test_probes_are_spread(over_within: Micros | None, first: Micros, slowest: Micros) -> None:
    """Probes are twice as far apart each time, or spread over the usual time of an outage that was announced."""
    failure = told(over_within=over_within)
    breaker, now, apart = opened(failure), NOW, []
    for _ in range(12):
        wait = breaker.wait(now)
        assert wait is not None
        apart.append(wait)
        now += wait
        fail(breaker, now, failure=failure, probe=probe(breaker, now))
    assert apart == [min(slowest, first * 2**number) for number in range(12)]


def test_what_fails_late_changes_nothing() -> None:
    """Requests that were in flight when the breaker opened are no probes; only their answers count."""
    breaker = opened()
    assert not breaker.failed(NOW + 1, 1.0, PLAIN, probes=())
    assert breaker.wait(NOW) == FIRST_INTERVAL
    fail(breaker, NOW + 1, failure=told(wait=20 * SECOND))
    assert breaker.wait(NOW + 1) == 20 * SECOND


# Whose probe it is

TWO = (("a", "x"), ("b", "y"))


def test_one_that_has_not_failed_is_probed_at_once() -> None:
    """A source that has not failed yet is probed at once, and its failure does not prolong the outage."""
    breaker = opened(whose=TWO)
    assert breaker.wait(NOW, "a") == FIRST_INTERVAL
    early = probe(breaker, NOW, "c")
    assert breaker.wait(NOW, "c") == FIRST_INTERVAL + PROBE_TURN, "one request of it"
    fail(breaker, NOW + 1, "c", "z", probe=early)
    assert breaker.wait(NOW + 1, "a") == FIRST_INTERVAL - 1
    slow = probe(breaker, NOW + FIRST_INTERVAL, "a")
    assert breaker.wait(NOW + FIRST_INTERVAL, "b") == SECOND
    probe(breaker, NOW + FIRST_INTERVAL, "d")
    fail(breaker, NOW + FIRST_INTERVAL + 1, "a", "x", probe=slow)
    assert breaker.probing
    assert breaker.succeeded()


def test_early_probes_are_few() -> None:
    """Early probes in one outage are bounded, however many clients come."""
    breaker = opened(whose=TWO)
    early = 0
    for number in range(10 * MAX_EARLY_PROBES):
        if breaker.wait(NOW, str(number)) is None:
            early += 1
            fail(breaker, NOW, str(number), "z", probe=probe(breaker, NOW, str(number)))
    assert early == MAX_EARLY_PROBES


def test_no_early_probe_when_nothing_is_reached() -> None:
    """While no connection can be made there are no early probes."""
    breaker = opened(Failure("refused", "connection"))
    assert breaker.wait(NOW, "c") == FIRST_INTERVAL
    now = NOW + FIRST_INTERVAL
    fail(breaker, now, "a", "x", probe=probe(breaker, now, "a"))
    assert breaker.wait(now, "c") is None


def test_clients_take_turns_in_probing() -> None:
    """After a failed probe its client waits longer than the others for the next one."""
    breaker, now = opened(whose=TWO), NOW
    turns: list[str] = []
    for _ in range(6):
        now += breaker.wait(now, "a") or 0
        loud = breaker.wait(now, "b")
        part = "b" if loud is None and "b" not in turns[-1:] else "a"
        turns.append(part)
        fail(breaker, now, part, "x", probe=probe(breaker, now, part))
        other = "b" if part == "a" else "a"
        assert (breaker.wait(now, part) or 0) - (breaker.wait(now, other) or 0) in (0, PROBE_TURN)
    assert set(turns) == {"a", "b"}


def test_one_that_is_alone_is_not_held_back() -> None:
    """A client without competitors is not made to wait longer; of two, it is probed when the other stays away."""
    for whose, later in (((("a", "x"),), 0), (TWO, PROBE_TURN)):
        breaker = Breaker(Scope())
        for number in range(STREAK_FAILURES):
            fail(breaker, NOW - STREAK_DURATION + number, *(whose[number % len(whose)] if later else ()))
        assert fail(breaker, NOW, *(whose[-1] if later else ()))
        part = "a" if later else None
        fail(
            breaker,
            NOW + FIRST_INTERVAL,
            *("a", "x") if later else (),
            probe=probe(breaker, NOW + FIRST_INTERVAL, part),
        )
        assert breaker.wait(NOW + FIRST_INTERVAL, part) == 2 * FIRST_INTERVAL + later
        probe(breaker, NOW + 3 * FIRST_INTERVAL + later, part)


def test_it_remembers_so_many_only() -> None:
    """The number of remembered clients is bounded."""
    breaker = Breaker(Scope())
    for number in range(10 * MAX_PARTS):
        fail(breaker, NOW + number * SECOND, f"c{number}", f"r{number}")
    now = NOW + 20 * MAX_PARTS * SECOND
    for number in range(10 * MAX_PARTS):
        now += breaker.wait(now, f"d{number}") or 0
        fail(breaker, now, f"d{number}", "x", probe=probe(breaker, now, f"d{number}"))
    assert len(breaker._failing) <= MAX_PARTS + MAX_EARLY_PROBES
    assert len(breaker._tried) <= MAX_PARTS
    assert len(breaker._shares) <= 2 * STREAK_FAILURES * STREAK_FAILURES_TOLD


class Outages(RuleBasedStateMachine):
    """Any order of failures, answers, probes and time."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(Scope())
        self.now = NOW
        self.row: list[Micros] = []
        self.probes: list[Probe] = []

    @rule(milliseconds=st.sampled_from([0, 1, 500, 1_000, 2_000, 31_000, 400_000]))
    def pass_(self, milliseconds: int) -> None:
        self.now += milliseconds * 1_000

    @rule(
        chance=st.floats(0, 1),
        wait=st.none() | st.integers(0, 900).map(lambda s: s * SECOND),
        over_within=st.none() | st.integers(1, 900).map(lambda s: s * SECOND),
        whose=st.sampled_from([(), ("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "z")]),
        is_trial=st.booleans(),
        times=st.integers(1, 9),
    )
    def fail(
        self,
        chance: float,
        wait: Micros | None,
        over_within: Micros | None,
        whose: tuple[str, ...],
        is_trial: bool,
        times: int,
    ) -> None:
        for _ in range(times):
            was_closed = self.breaker.closed
            self.row.append(self.now)
            probes = (self.probes.pop(),) if self.probes and is_trial else ()
            failure = Failure("5xx", wait=wait, over_within=over_within)
            news = self.breaker.failed(self.now, chance, failure, *whose, probes=probes)
            assert news == (was_closed and not self.breaker.closed)
            if news:
                assert len(self.row) >= STREAK_FAILURES_TOLD
                assert self.now - self.row[0] >= STREAK_DURATION

    @rule()
    def answer(self) -> None:
        was_closed = self.breaker.closed
        assert self.breaker.succeeded() != was_closed
        assert self.breaker.idle
        self.row.clear()
        self.probes.clear()

    @precondition(lambda self: self.probes)
    @rule()
    def leave(self) -> None:
        self.breaker.leave(self.probes.pop())

    @rule(part=st.sampled_from([None, "a", "b", "c", "d"]))
    def enter(self, part: str | None) -> None:
        if self.breaker.wait(self.now, part) is not None:
            return
        found = self.breaker.enter(self.now, part)
        assert (found is None) == self.breaker.closed
        if found is not None:
            last = self.probes[-1:]
            assert found.early or not last or self.now >= last[0].since + PROBE_PATIENCE
            self.probes.append(found)

    @precondition(lambda self: not self.breaker.closed)
    @invariant()
    def it_is_tried_again(self) -> None:
        """No breaker stays closed to probes for longer than the longest pause."""
        for part in (None, "a", "d"):
            wait = self.breaker.wait(self.now, part)
            assert wait is None or 0 < wait <= max(MAX_OPEN, int(MAX_INTERVAL * (1 + INTERVAL_JITTER))) + PROBE_TURN
            assert self.breaker.wait(self.now + max(MAX_OPEN, PROBE_PATIENCE) + PROBE_TURN, part) is None


def test_any_course_of_outages() -> None:
    """The invariants hold in any order of events."""
    run_state_machine_as_test(Outages)


LATELY: Micros = 3 * STREAK_DURATION // 2

X, Y = Route.of("POST", "/x"), Route.of("GET", "/y/1")
PLAIN, REFUSED, ERROR = Failure("504"), Failure("refused", "connection"), Failure("500", "request")


def fail_request(
    breakers: Breakers, client: str, route: Route, now: Micros, how: Failure = PLAIN, probes: tuple[Probe, ...] = ()
) -> list[Scope]:
    """Fail one request without jitter; return the scopes that it opens."""
    return [snapshot.scope for snapshot in breakers.failed(Source(client, route), now, 0.0, how, probes)]


def fail_often(
    breakers: Breakers, client: str, route: Route, how: Failure = PLAIN, times: int = 5 * STREAK_FAILURES
) -> list[Scope]:
    """Fail requests at a high rate, just before `NOW`."""
    begin, step = NOW - LATELY, LATELY // times
    return [
        scope for number in range(times) for scope in fail_request(breakers, client, route, begin + number * step, how)
    ]


def wait(breakers: Breakers, client: str, route: Route, now: Micros = NOW) -> tuple[str, Micros] | None:
    """Return the scope that keeps a request back, and for how long."""
    blocked = breakers.blocked(Source(client, route), now)
    return None if blocked is None else (blocked.scope.kind, blocked.wait)


@pytest.mark.parametrize("how", [PLAIN, Failure("503", wait=20 * SECOND)])
def test_a_route_of_a_client_is_left_alone_by_itself(how: Failure) -> None:
    """A route of a client that fails is closed for this client alone, and its other routes stay open."""
    breakers = Breakers()
    assert fail_often(breakers, "a", X, how) == [Scope("a", X)]
    assert wait(breakers, "a", X) is not None
    assert [wait(breakers, *one) for one in (("a", Y), ("b", X), ("b", Y))] == [None] * 3
    assert not breakers.idle


def test_a_client_that_fails_on_several_routes_is_left_alone_by_itself() -> None:
    """A client that fails on several routes is refused as a whole; others are not."""
    breakers = Breakers()
    opened = []
    for number in range(30 * STREAK_FAILURES):
        opened += fail_request(
            breakers, "a", Route.of("POST", f"/p{number}"), NOW - LATELY + number * LATELY // (30 * STREAK_FAILURES)
        )
    assert opened == [Scope("a")]
    assert wait(breakers, "a", Route.of("POST", "/p0"), NOW) is not None
    assert wait(breakers, "b", X) is None


@pytest.mark.parametrize("how", [PLAIN, REFUSED, ERROR])
def test_an_upstream_that_is_down_is_left_alone(how: Failure) -> None:
    """Failures of several clients on several routes, or any failures to connect, close the pool for all."""
    breakers = Breakers()
    opened = []
    for number in range(STREAK_FAILURES):
        client, route = ("a", X) if how is REFUSED else (("a", X), ("b", Y))[number % 2]
        opened += fail_request(
            breakers, client, route, NOW - STREAK_DURATION + number * STREAK_DURATION // (STREAK_FAILURES - 1), how
        )
    assert opened == [Scope()]
    assert wait(breakers, "a", X) == ("pool", FIRST_INTERVAL)


def test_one_client_alone_never_keeps_others_back() -> None:
    """In all courses of so many steps one client with two routes never closes the pool for others."""
    steps = [*product((X, Y), (PLAIN, ERROR, Failure("503", wait=9 * SECOND), None))]
    for course in product(steps, repeat=4):
        breakers = Breakers()
        for number in range(6 * len(course)):
            route, how = course[number % len(course)]
            now = NOW + number * SECOND // 4
            if how is None:
                breakers.succeeded(Source("a", route), now)
            else:
                fail_request(breakers, "a", route, now, how)
            assert breakers.blocked(Source("b", X), now) is None


def test_one_broken_route_never_keeps_others_back() -> None:
    """A broken route never closes the pool, also when several clients use it."""
    breakers = Breakers()
    for client in ("a", "b", "c", "d"):
        assert fail_often(breakers, client, X) == [Scope(client, X)]
    assert [wait(breakers, client, Y) for client in ("a", "e")] == [None, None]


def test_a_request_that_is_in_error_counts_for_no_route() -> None:
    """A repeated 500 opens no route's breaker; 500s on several routes are an outage."""
    breakers = Breakers()
    assert fail_often(breakers, "a", X, ERROR) == []
    assert wait(breakers, "a", X) is None
    assert fail_often(breakers, "a", Y, ERROR) == [Scope("a")]


def test_a_healthy_client_has_no_part_in_an_outage_of_others() -> None:
    """When two clients' failures open the pool's breaker, the next request of a third one closes it."""
    breakers = Breakers()
    for number in range(10 * STREAK_FAILURES):
        fail_request(
            breakers, *(("a", X), ("b", Y))[number % 2], NOW - LATELY + number * LATELY // (10 * STREAK_FAILURES)
        )
    assert wait(breakers, "a", Y, NOW) is not None
    assert breakers.blocked(Source("c", X), NOW) is None
    probes = breakers.enter(Source("c", X), NOW)
    assert [probe.early for probe in probes] == [True]
    blocked = breakers.blocked(Source("c", X), NOW)
    assert blocked is not None
    assert blocked.probing, "its other requests wait for that"
    assert breakers.succeeded(Source("c", X), NOW) == [Scope()]
    assert breakers.blocked(Source("c", X), NOW) is None


def test_narrower_breakers_are_probed_when_a_wider_one_closes() -> None:
    """When a wider breaker closes, each route and client within it is probed at once."""
    breakers = Breakers()
    for number in range(10 * STREAK_FAILURES):
        fail_request(
            breakers, *(("a", X), ("b", Y))[number % 2], NOW - LATELY + number * LATELY // (10 * STREAK_FAILURES)
        )
    now = NOW + 9 * SECOND
    fail_request(breakers, "a", X, now, Failure("503", wait=60 * SECOND), breakers.enter(Source("a", X), now))
    assert breakers.succeeded(Source("c", X), now) == [Scope()]
    assert [wait(breakers, client, route, now) for client, route in (("a", X), ("b", Y))] == [None, None]
    probes = breakers.enter(Source("a", X), now)
    assert [probe.breaker.scope for probe in probes] == [Scope("a", X)]
    assert wait(breakers, "a", X, now) == ("route", SECOND)


def test_a_success_of_one_route_leaves_another_alone() -> None:
    """A success closes the breakers of its own route, of its client and of the pool only."""
    breakers = Breakers()
    fail_often(breakers, "a", X)
    before = wait(breakers, "a", X)
    assert before is not None
    assert breakers.succeeded(Source("a", Y), NOW) == []
    assert breakers.succeeded(Source("b", X), NOW) == []
    assert wait(breakers, "a", X) == before
    assert breakers.succeeded(Source("a", X), NOW) == [Scope("a", X)]
    assert breakers.idle


def test_a_probe_ends_for_all_breakers() -> None:
    """A probe ends in all breakers, also if its failure counts in one of them only."""
    breakers = Breakers()
    fail_often(breakers, "a", X)
    now = NOW + 9 * SECOND
    probes = breakers.enter(Source("a", X), now)
    assert probes
    fail_request(breakers, "a", X, now, REFUSED, probes)
    assert not any(probe.breaker.probing for probe in probes)
    again = breakers.enter(Source("a", X), now)
    fail_request(breakers, "a", X, now, ERROR, again)
    assert wait(breakers, "a", X, now) == ("route", 2 * FIRST_INTERVAL)


def test_what_is_open_is_shown() -> None:
    """Open breakers are listed, the pool's own first."""
    breakers = Breakers()
    assert breakers.snapshots(NOW) == []
    for number in range(40 * STREAK_FAILURES):
        fail_request(
            breakers, *(("a", X), ("b", Y))[number % 2], NOW - LATELY + number * LATELY // (40 * STREAK_FAILURES)
        )
    snapshots = breakers.snapshots(NOW)
    assert [snapshot.scope for snapshot in snapshots] == [Scope(), Scope("a", X), Scope("b", Y)]
    assert {snapshot.cause for snapshot in snapshots} == {"504"}
    assert [snapshot.scope.client for snapshot in breakers.snapshots(NOW + CLIENT_KEPT)] == [""]


def test_what_is_remembered_is_bounded() -> None:
    """Routes are remembered for each client apart and within bounds, and old ones are forgotten."""
    breakers = Breakers()
    fail_often(breakers, "a", X)
    for number in range(10 * MAX_ROUTES):
        fail_request(breakers, "b", Route.of("POST", f"/{number}"), NOW)
    assert wait(breakers, "a", X) is not None
    assert len(breakers._clients["b"].routes) == MAX_ROUTES
    for number in range(2 * MAX_CLIENTS):
        fail_request(breakers, f"c{number}", X, NOW)
    assert len(breakers._clients) == MAX_CLIENTS
    breakers.succeeded(Source("z", X), NOW + CLIENT_KEPT)
    assert breakers.idle


def test_the_upstreams_own_words_need_fewer_failures() -> None:
    """An announced outage opens the breakers of route, client and pool after fewer failures."""
    breakers, how = Breakers(), Failure("503", over_within=300 * SECOND)
    opened = [fail_request(breakers, "a", X, NOW + number * SECOND, how) for number in range(STREAK_FAILURES_TOLD)]
    assert opened == [[], [], [Scope("a", X)]]
    assert fail_request(breakers, "b", Y, NOW + 3 * SECOND, how) == []
    assert fail_request(breakers, "b", Y, NOW + 4 * SECOND, how) == [Scope()]


def test_a_debugger_sees_how_a_breaker_stands() -> None:
    """Its scope, its state, and how long its streak is."""
    assert repr(Breaker(Scope("a", Y))) == "<Breaker a GET /y/{}: closed, streak 0/24>"
    breaker = opened()
    assert repr(breaker) == f"<Breaker pool: open until {NOW + FIRST_INTERVAL}, streak 24/24>"
    probe(breaker, NOW + FIRST_INTERVAL)
    assert "probing" in repr(breaker)
