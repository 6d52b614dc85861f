from keyturn.core.model import SECOND
from keyturn.scheduler.refusals import no_word, queue_full, too_late, whole_seconds


def test_whole_seconds_are_rounded_up() -> None:
    """Who comes after that long does not come too early, and nobody is told to come at once."""
    assert [whole_seconds(delay) for delay in (-5, 0, 1, SECOND, SECOND + 1)] == [1, 1, 1, 1, 2]


def test_what_is_told() -> None:
    """The reason as a metric's label, and the time."""
    assert (too_late(7 * SECOND).reason, too_late(7 * SECOND).retry_after) == ("deadline", 7)
    assert (no_word().reason, no_word().retry_after) == ("store_lost", 1)
    full = queue_full("ci", 12, 7 * SECOND)
    assert (full.reason, full.retry_after) == ("queue_full", 7)
    assert "12 requests of ci" in full.message
    assert queue_full("ci", 12, 0).retry_after == 1
