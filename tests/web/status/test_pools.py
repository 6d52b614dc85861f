from keyturn.core.health import KeySnapshot
from keyturn.core.levels import BucketLevel
from keyturn.core.looks import BucketLook, LaneLook
from keyturn.core.model import SECOND, Client
from keyturn.core.recent import Count
from keyturn.web.status.model import BucketStatus, ClientStatus, KeyStatus, QueueStatus, QuotaStatus, Returning
from keyturn.web.status.pools import bucket_levels, clients, keys, quotas

from tests.core.worlds import limit, pool

POOL = pool(2, limit(60), limit(10, 10 * SECOND, "GET /collections"))
LOOKS = (
    BucketLook("k1", 0, 57, 1, (SECOND, 2 * SECOND)),
    BucketLook("k1", 1, 10, 0, ()),
)


def test_gauges_name_limits_and_their_sizes() -> None:
    """As the configuration does."""
    assert list(bucket_levels(POOL, LOOKS)) == [
        BucketLevel("default", "k1", "60/60s", 57, 60),
        BucketLevel("default", "k1", "10/10s", 10, 10),
    ]


def test_quotas_stand_in_the_order_of_the_configuration() -> None:
    """One of which nothing is known, since no key in use counts against it, is there without tokens."""
    wide, narrow = (POOL.stretched(limit) for limit in POOL.limits)
    assert list(quotas(POOL, LOOKS)) == [
        QuotaStatus("k0", []),
        QuotaStatus(
            "k1",
            [
                BucketStatus("60/60s", 60, wide, 57, 1, (Returning(2 * SECOND, 2),)),
                BucketStatus("10/10s", 10, narrow, 10, 0),
            ],
        ),
    ]


def test_keys_are_told_in_epoch_time() -> None:
    """Their own clock is monotonic and means nothing to a reader."""
    looks = [KeySnapshot("k0", "k0", "ready", 5), KeySnapshot("k1", "k1", "parked", 7, "429", 9, 812)]
    assert list(keys(looks, 1_000)) == [
        KeyStatus("k0", "k0", "ready", 1_005),
        KeyStatus("k1", "k1", "parked", 1_007, "429", 1_009, 812),
    ]


def test_each_client_has_its_queues_and_its_leases() -> None:
    """A client that has never called is listed, too; queues of other clients are not counted."""
    lanes = [
        LaneLook("ci", (0, 1), None, 3, SECOND, None),
        LaneLook("ci", (0,), "k1", 1, SECOND, 2 * SECOND),
        LaneLook("somebody", (0,), None, 9, SECOND, 0),
    ]
    found = list(clients(POOL, [Client("ci", weight=3), Client("idle")], lanes, {"ci": Count(900, 12)}))
    assert found == [
        ClientStatus(
            "ci",
            3,
            12,
            [
                QueueStatus(["60/60s", "10/10s"], 3, SECOND, None, None),
                QueueStatus(["60/60s"], 1, SECOND, 2 * SECOND, "k1"),
            ],
        ),
        ClientStatus("idle", 1, 0, []),
    ]
