from proxy.core.exchange import Kind
from proxy.core.forecast import EVENTS, HORIZON, Forecaster
from proxy.core.ledger import DEAL
from proxy.core.model import MILLISECOND, SECOND
from proxy.core.rehearsal import Rehearsal
from tests.core.worlds import World, check_conservation, lane, limit, pool, throttled

W10 = 10 * SECOND + 105 * MILLISECOND


def test_a_forecast_changes_nothing() -> None:
    """The dealing is rehearsed: line and buckets stay as they are."""
    world = World.of(pool(2, limit(3, 10 * SECOND)))
    world.call("r", *world.spend(*world.ask(6).grants))
    world.ask(20)
    world.ask(20, lane("b"))
    tags = {client: world.ledger.line.share(client).tag for client in "ab"}
    Forecaster(world.ledger.buckets, Rehearsal(world.ledger.line), world.now, ()).play()
    assert {client: world.ledger.line.share(client).tag for client in "ab"} == tags
    assert sum(world.ledger.line.waiting("r", place) for place in world.ledger.line.places("r")) == 40
    check_conservation(world.ledger)


def test_a_forecast_ends_at_its_horizon() -> None:
    """However many wait, a bounded number of tokens is dealt."""
    world = World.of(pool(1, limit(2, SECOND)))
    world.call("r", *world.spend(*world.ask(2).grants))
    world.ask(10_000)
    forecast = Forecaster(world.ledger.buckets, Rehearsal(world.ledger.line), world.now, ()).play()
    assert forecast.dealt == HORIZON


def test_returns_that_serve_nobody_do_not_go_on_for_ever() -> None:
    """Tokens of a wide limit that return while a narrow one is shut are looked at a bounded number of times."""
    world = World.of(pool(1, limit(EVENTS * 2, 10 * SECOND), limit(1, 3600 * SECOND)))
    first = [grant for _ in range(EVENTS // DEAL) for grant in world.ask(DEAL, lane("wide", (0,))).grants]
    narrow = world.ask(1, lane("narrow", (0, 1))).grants
    world.call("r", *world.spend(*first, *narrow))
    answer = world.ask(1, lane("narrow", (0, 1)))
    told = answer.turns[lane("narrow", (0, 1))]
    assert told.at(0) is None or (told.at(0) or 0) > 3600 * SECOND


def test_a_token_in_use_is_expected_a_trip_and_a_window_after_its_grant() -> None:
    """Sixty requests just sent do not promise the next caller a wait of minutes."""
    world = World.of(pool(1, limit(1, 10 * SECOND)))
    world.ask(1)
    answer = world.ask(1)
    assert answer.turns[lane()].at(0) == world.ledger.buckets.trip + W10


def test_an_overdue_answer_is_not_expected_before_a_window_from_now() -> None:
    """Its request has not been counted for sure yet, so its token is a window away at least."""
    world = World.of(pool(1, limit(1, 10 * SECOND)))
    world.ask(1)
    world.pass_(9 * SECOND)
    assert world.ask(1).turns[lane()].at(0) == W10


def test_pinned_requests_are_told_their_own_quotas_time() -> None:
    """Tokens of other quotas do not help who insists on one."""
    world = World.of(pool(2, limit(1, 10 * SECOND)))
    grants = world.ask(2).grants
    world.call("r", throttled(next(grant for grant in grants if grant.quota == "k1"), 50 * SECOND))
    world.call("r", *world.spend(next(grant for grant in grants if grant.quota == "k0")))
    pinned = lane("a", (0,), "k1")
    assert world.ask(1, pinned).turns[pinned].at(0) == 50 * SECOND
    assert (world.ask(1).turns[lane()].at(0) or 0) <= W10


def test_two_kinds_are_dealt_together() -> None:
    """A narrow and a wide lane of one pool are foretold from the same tokens."""
    world = World.of(pool(1, limit(4, 10 * SECOND), limit(1, 20 * SECOND)))
    wide, both = Kind((0,)), Kind((0, 1))
    grants = [*world.ask(3, lane("a", wide.limits)).grants, *world.ask(1, lane("b", both.limits)).grants]
    world.call("r", *world.spend(*grants))
    world.ask(2, lane("b", both.limits))
    answer = world.ask(3, lane("a", wide.limits))
    narrow = answer.turns[lane("b", both.limits)]
    assert [answer.turns[lane("a", wide.limits)].at(position) for position in range(3)] == [W10] * 3
    assert narrow.at(0) == 20 * SECOND + 110 * MILLISECOND


def test_what_waits_beyond_the_horizon_is_told_where_turns_jump() -> None:
    """Tokens that were spent together return together: nobody is told a time between two bursts."""
    world = World.of(pool(10, limit(60, 60 * SECOND)))
    for _ in range(10):  # 60 tokens every 6 s
        world.call("r", *world.spend(*world.ask(60).grants))
        world.pass_(6 * SECOND)
    told = world.ask(500).turns[lane()]
    first, *_ = told.soon
    for position in range(500):
        delay = told.at(position)
        assert delay is not None
        assert abs(delay - (first + position // 60 * 6 * SECOND)) < SECOND, (position, delay)
