from proxy.core.exchange import Demand
from proxy.core.ledger import HOLD, Ledger
from proxy.core.letters import Held, need, terms_of
from proxy.core.model import SECOND
from tests.core.worlds import World, lane, limit, pool


def test_terms_are_named_by_what_they_say() -> None:
    """Replicas with the same configuration name it alike, whatever the order of their keys; others do not."""
    one = terms_of(pool(2, limit(3)), 5)
    assert one.name == terms_of(pool(2, limit(3)), 5).name
    assert one.name != terms_of(pool(3, limit(3)), 5).name
    assert one.name != terms_of(pool(2, limit(4)), 5).name


def test_a_limit_keeps_its_identity_when_only_its_number_changes() -> None:
    """What was spent under 60 a minute is spent under 100 a minute."""
    (before,), (after,) = terms_of(pool(1, limit(60)), 5).limits, terms_of(pool(1, limit(100)), 5).limits
    assert before.id == after.id
    assert before.id != terms_of(pool(1, limit(60, 10 * SECOND)), 5).limits[0].id
    assert before.id != terms_of(pool(1, limit(60, 60 * SECOND, "GET /a")), 5).limits[0].id


def test_limits_that_count_the_same_are_told_apart() -> None:
    """Two limits of one window and one match have buckets of their own."""
    one, two = terms_of(pool(1, limit(60), limit(50)), 5).limits
    assert one.id != two.id


def test_a_need_says_all_of_itself_in_its_name() -> None:
    """So needs have an order that depends on nothing else."""
    assert need("t", ("a", "b"), None).name == "t|a,b|"
    assert need("t", ("a",), "k0").name == "t|a|k0"


def test_grants_that_were_not_heard_are_taken_back() -> None:
    """An answer that was lost costs no token: the next call says that it was not heard."""
    world = World.of(pool(1, limit(2)))
    world.ask(1)
    world.send("r", (), ())
    reply = world.send("r", (), ())
    assert reply.budgets[0].at_hand == 1
    lost = world.send("s", (), ())
    assert not lost.asks
    world.waiting["s"] = {lane(): 1}
    assert len(world.call("s").grants) == 1
    reply = world.send("s", (), (), heard=world.serials["s"] - 1)
    assert reply.budgets[0].at_hand == 1


def test_a_call_that_was_overtaken_does_nothing() -> None:
    """A delayed letter of a replica that has written since is void."""
    world = World.of(pool(1, limit(2)))
    world.ask(1)
    world.serials["r"] -= 1
    assert world.send("r", (), ()).asks == ("nothing",)


def test_a_state_that_lost_writes_begins_an_era_and_asks_for_what_is_held() -> None:
    """Law 8: behind the highest tick that a replica has seen, or in another life, nothing is believed."""
    world = World.of(pool(1, limit(2)))
    world.ask(1)
    era = world.ledger.era
    world.run = "b"
    assert world.send("r", (), (), era=era).asks == ("held",)
    assert world.ledger.era != era
    reply = world.send("r", (), (), era=era, held=())
    assert not reply.asks


def test_a_cold_bucket_lets_one_probe_through() -> None:
    """Law 8: one request, and the rest when it is settled."""
    world = World.of(pool(1, limit(5)))
    world.run = "b"
    era = world.ledger.era
    world.send("start", (), (), era=era, held=())
    world.send("r", (), (), era=era, held=())
    world.pass_(HOLD)
    (probe,) = world.ask(4).grants
    assert probe.probe
    assert len(world.call("r", *world.spend(probe)).grants) == 3


def test_buckets_that_are_not_known_are_used_in_turn() -> None:
    """Each is probed when it is the fullest by what is known, so that no key stands idle until the others are empty."""
    world = World.of(pool(3, limit(5)))
    world.run = "b"
    world.send("r", (), (), era=world.ledger.era, held=())
    world.pass_(HOLD)
    used = []
    for _ in range(6):
        (grant,) = world.ask(1).grants
        used.append(grant.quota)
        world.call("r", *world.spend(grant))
    assert sorted(used[:3]) == sorted(used[3:]) == sorted(world.terms.quotas)


def test_nothing_is_dealt_before_all_had_the_time_to_tell_what_they_hold() -> None:
    """Law 8: who comes back first is told nothing of how many there are, so a new era waits out its time."""
    world = World.of(pool(1, limit(5)))
    held = world.ask(5, replica="late").grants
    era, world.run = world.ledger.era, "b"
    world.send("r", (), (), era=era, held=())
    world.pass_(HOLD - 1)
    assert not world.ask(1).grants
    windows = tuple((one.id, one.window) for one in world.terms.limits)
    told = tuple(Held(grant.lease, grant.quota, "a", windows, 0, None) for grant in held)
    world.send("late", (), (), era=era, held=told)
    world.pass_(1)
    assert not world.call().grants, "all five are out"


def test_a_state_that_is_new_to_all_deals_as_soon_as_its_probe_is_settled() -> None:
    """Law 8: whoever knows no other state tells of none, so a first deployment waits for nobody."""
    world = World(Ledger(), terms_of(pool(1, limit(5)), 11 * SECOND))
    demands = (Demand(lane(), 1, 4),)
    (probe,) = world.send("first", (), demands, era="").grants
    assert probe.probe
    assert len(world.send("second", (), demands, era="").grants) == 0
    assert len(world.send("first", world.spend(probe), demands).grants) == 2, "the other two are the second's"


def test_a_state_that_is_new_to_its_first_caller_may_be_a_loss_to_others() -> None:
    """Law 8: who knows another state shows that there are others who do, from when on they have the time to tell."""
    world = World(Ledger(), terms_of(pool(1, limit(5)), 11 * SECOND))
    demands = (Demand(lane(), 1, 3),)
    (probe,) = world.send("young", (), demands, era="").grants
    world.pass_(HOLD)
    assert world.send("old", era="another").asks == ("held",)
    assert not world.send("young", world.spend(probe), demands).grants, "before anything is told"
    world.send("old", era="another", held=())
    world.pass_(HOLD - 1)
    assert not world.send("young", (), demands).grants
    world.pass_(1)
    assert len(world.send("young", (), demands).grants) == 3


def test_a_state_is_found_to_be_lost_once() -> None:
    """Law 8: whoever comes late, because it was cut off for longer, tells what it holds and holds nobody up."""
    world = World(Ledger(), terms_of(pool(1, limit(5)), 11 * SECOND))
    (probe,) = world.send("old", (), (Demand(lane(), 1, 1),), era="").grants
    world.send("old", world.spend(probe))
    world.send("other", era="another", held=())
    world.pass_(HOLD)
    world.send("late", era="another", held=())
    assert len(world.send("old", (), (Demand(lane(), 1, 3),)).grants) == 3
