from proxy.core.correspondence import RECALL, Correspondence, Sharers
from proxy.core.exchange import PULSE, Demand, Spent, Unsent
from proxy.core.ledger import Ledger
from proxy.core.letters import News, terms_of
from proxy.core.model import SECOND
from tests.core.worlds import lane, limit, pool, warm

TERMS = terms_of(pool(1, limit(3, 10 * SECOND)), 11 * SECOND)


def talk(letters: Correspondence, ledger: Ledger, now: int, *, ahead: int = 0, waiting: int = 0) -> list[str]:
    """Write until there is an answer; the leases that it grants."""
    demands = (Demand(lane(), 1, waiting),) if waiting else ()
    for _ in range(6):
        call = letters.call(now, (), demands)
        answer = letters.hear(now, now, call, ledger.exchange(now + ahead, "", call))
        if answer is not None:
            return [grant.lease for grant in answer.grants]
    raise AssertionError("no answer")


def test_what_is_out_is_told_to_a_store_that_lost_it() -> None:
    """Law 8: a new state is told every lease that is out, and grants only what is left."""
    letters = Correspondence("r", TERMS)
    old = Ledger()
    (probe,) = talk(letters, old, SECOND, waiting=3)
    letters.record.settled(SECOND, (Spent(probe, 0),))
    new = Ledger()
    talk(letters, new, 2 * SECOND)
    assert new.buckets.calendars[TERMS.limits[0].id].taken == {"k0": 1}


def test_what_has_returned_or_was_never_sent_is_forgotten() -> None:
    """The record is as large as what is out."""
    letters = Correspondence("r", TERMS)
    (probe,) = talk(letters, Ledger(), SECOND, waiting=1)
    assert len(letters.record) == 1
    letters.record.settled(SECOND, (Unsent(probe),))
    assert len(letters.record) == 0


def test_an_answer_by_a_clock_that_ran_ahead_is_not_believed() -> None:
    """More time by the store's clock than by one's own: its grants are not used, and a new era begins."""
    letters, ledger = Correspondence("r", TERMS), Ledger()
    talk(letters, ledger, SECOND)
    era = letters.era
    call = letters.call(2 * SECOND, (), (Demand(lane(), 1, 1),))
    assert letters.hear(2 * SECOND, 2 * SECOND, call, ledger.exchange(32 * SECOND, "", call)) is None
    talk(letters, ledger, 2 * SECOND, ahead=30 * SECOND)
    assert letters.era != era


def test_what_is_at_hand_is_known_as_it_was_told_last() -> None:
    """By a reply or by what all are told, whichever is newer; what is overtaken on its way is passed over."""
    letters, ledger, name = Correspondence("r", TERMS), Ledger(), TERMS.limits[0].id
    talk(letters, ledger, SECOND)
    warm(ledger)
    call = letters.call(2 * SECOND, (), ())
    reply = ledger.exchange(2 * SECOND, "", call)
    letters.learn(2 * SECOND, News(reply.tick + 1, 4, ((name, 1), ("another", 9))))
    letters.hear(2 * SECOND, 2 * SECOND, call, reply)
    assert letters.hands == {name: 1}
    assert letters.sharers.most == 4
    letters.learn(2 * SECOND, News(reply.tick, 3, ((name, 2),)))
    assert letters.hands == {name: 1}
    talk(letters, ledger, 3 * SECOND)
    talk(letters, ledger, 3 * SECOND)
    assert letters.hands == {name: 3}
    letters.learn(3 * SECOND, News(10**12, 3, ((name, 2),)))
    assert letters.hands == {name: 2}
    talk(letters, Ledger(), 4 * SECOND)
    assert letters.hands == {name: 0}, "what another life of the store tells is newer, whatever its ticks"


def test_the_clock_of_the_store_is_known() -> None:
    """As it was heard last, and the time since by one's own (law 7)."""
    letters, ledger = Correspondence("r", TERMS), Ledger()
    talk(letters, ledger, 2 * SECOND, ahead=1_000 * SECOND)
    assert letters.store_time(5 * SECOND) == 1_005 * SECOND


def test_those_who_shared_of_late_are_remembered() -> None:
    """Others may be silent for a while; who has gone for good counts no longer after a time."""
    sharers, now = Sharers(), 0
    sharers.note(now, 7)
    while now < RECALL // 2:
        now += PULSE
        sharers.note(now, 1)
    assert sharers.most == 7
    while now < 2 * RECALL + PULSE:
        now += PULSE
        sharers.note(now, 2)
    assert sharers.most == 2


def test_a_silence_makes_nobody_forgotten() -> None:
    """A store that was away for hours has heard of nobody else when it is found again."""
    sharers = Sharers()
    sharers.note(0, 7)
    for hours in range(1, 9):
        sharers.note(hours * 3600 * SECOND, 1)
    assert sharers.most == 7
