"""Buckets that are closed: by the upstream, by a probe, or with their quota."""

from keyturn.core.closed_buckets import REOPENED, ClosedBuckets
from keyturn.core.messages import Revision, RevisionLimit
from keyturn.core.revisions import RevisionView

BUCKET = ("l", "k0")


def view(*quotas: str) -> RevisionView:
    """Return a revision with these quotas."""
    return RevisionView(Revision("one", quotas, (RevisionLimit("l", 1, 10),), 3), frozenset(quotas), {})


def test_a_probe_closes_its_bucket_until_it_is_settled() -> None:
    """Its settlement makes the bucket known; another lease's does not."""
    shut = ClosedBuckets()
    shut.probe(BUCKET, "1", 50)
    shut.end_probes("2", [BUCKET], known=True)
    assert shut.is_closed(BUCKET, 49)
    shut.end_probes("1", [BUCKET], known=True)
    assert not shut.is_closed(BUCKET, 0)
    assert shut.known == {BUCKET}


def test_a_probe_that_was_never_sent_leaves_its_bucket_unknown() -> None:
    """The next request is the probe then."""
    shut = ClosedBuckets()
    shut.probe(BUCKET, "1", 50)
    shut.end_probes("1", [BUCKET], known=False)
    assert not shut.is_closed(BUCKET, 0)
    assert not shut.known


def test_a_refusal_is_newer_than_a_probe() -> None:
    """A closed bucket is neither known nor probed, and no shorter time opens it earlier (law 9)."""
    shut = ClosedBuckets()
    shut.probe(BUCKET, "1", 50)
    shut.close(BUCKET, 90)
    shut.close(BUCKET, 70)
    assert not shut.probes
    assert shut.is_closed(BUCKET, 89)
    assert not shut.is_closed(BUCKET, 90)


def test_what_is_due_opens_and_a_bucket_probed_for_too_long_is_known() -> None:
    """A bucket stays closed until its time has come."""
    shut = ClosedBuckets()
    shut.close(("l", "k1"), 10)
    shut.close(("l", "k2"), 11)
    shut.resting.put("k3", 10)
    shut.probe(BUCKET, "1", 10)
    assert sorted(shut.reopened(10)) == ["k0", "k1", "k3"]
    assert shut.known == {BUCKET}
    assert shut.is_closed(("l", "k2"), 10)


def test_few_open_at_once() -> None:
    """The work of one exchange is bounded."""
    shut = ClosedBuckets()
    for number in range(REOPENED + 1):
        shut.close(("l", str(number)), 1)
    assert len(list(shut.reopened(2))) == REOPENED
    assert len(list(shut.reopened(2))) == 1


def test_quotas_under_a_limit_are_those_that_are_closed_under_it_or_rest() -> None:
    """Each until its latest instant; those of other revisions and limits are left out."""
    shut = ClosedBuckets()
    shut.close(BUCKET, 90)
    shut.close(("other", "k1"), 90)
    shut.close(("l", "k9"), 90)
    shut.resting.put("k0", 95)
    assert shut.quotas_under(view("k0", "k1"), "l") == {"k0": 95}
