"""What is told to requests that are not served: why, and after how long a try would succeed."""

from keyturn.core.errors import TooMany
from keyturn.core.model import SECOND, Micros


def too_late(turn: Micros) -> TooMany:
    """The turn, expected after this time, comes after the deadline."""
    seconds = whole_seconds(turn)
    return TooMany(
        f"Every permitted request is taken until this one's turn in {seconds} s, which is beyond its deadline. "
        "Come back then, or allow more time with `Prefer: wait=SECONDS`.",
        reason="deadline",
        retry_after=seconds,
    )


def no_word() -> TooMany:
    """The store of the buckets did not answer before the deadline."""
    return TooMany(
        "The store of the rate limits does not answer, so this request's turn did not come before its deadline. "
        "Come back in a moment, or allow more time with `Prefer: wait=SECONDS`.",
        reason="store_lost",
        retry_after=1,
    )


def queue_full(client: str, waiting: int, turn: Micros) -> TooMany:
    """No more requests may wait; the turn of one more would be expected after this time."""
    return TooMany(
        f"{waiting} requests of {client} wait already. Send fewer at once, or come back later.",
        reason="queue_full",
        retry_after=whole_seconds(turn),
    )


def too_many_in_flight(client: str, most: int, wait: Micros) -> TooMany:
    """The client had as many requests in flight as it may until the deadline; one of them is expected to end then."""
    return TooMany(
        f"{most} requests of {client} are in flight, as many as its `max_in_flight` allows, and none ended before this "
        "one's deadline. Read their answers to the end, send fewer at once, or come back later.",
        reason="max_in_flight",
        retry_after=whole_seconds(wait),
    )


def no_connection(most: int, wait: Micros) -> TooMany:
    """All connections to the upstream were in use until the deadline; one is expected to be free then."""
    return TooMany(
        f"All {most} connections of this proxy to the upstream (`upstream.max_connections`) are in use, and none was "
        "free for this request before its deadline. Come back later.",
        reason="max_connections",
        retry_after=whole_seconds(wait),
    )


def whole_seconds(delay: Micros) -> int:
    """Seconds for `Retry-After`: whole, rounded up, at least one (RFC 9110, section 10.2.3)."""
    return max(1, -(-delay // SECOND))
