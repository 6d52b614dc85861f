"""The answer's fields as the caller gets them: the upstream's own, without what speaks for a single key.

`X-RateLimit-*`, `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers, its newest syntax) speak for
the caller's whole pool; one `Retry-After` in whole seconds replaces every form of a wait (RFC 9110, section 10.2.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.core.exchange import Budget
from proxy.core.http import Fields
from proxy.core.model import SECOND, Limit, Micros

VIA = b"1.1 keyturn"

_OF_ONE_KEY = (b"x-ratelimit-", b"ratelimit")
_WAITS = frozenset((b"retry-after", b"retryafter"))
_OURS = frozenset((b"x-request-id", b"keyturn-key"))


@dataclass(frozen=True, slots=True)
class Standing:
    """The budgets of the limits that a request falls under, and the wall clock in epoch microseconds."""

    limits: Sequence[tuple[Limit, Budget]]
    wall: Micros


@dataclass(frozen=True, slots=True)
class Story:
    """What an answer tells about its own way."""

    request_id: str
    key: str
    queued: Micros
    upstream: Micros


def to_caller(fields: Fields, story: Story, standing: Standing, retry_after: int | None) -> Fields:
    """The fields for the caller. `retry_after`: whole seconds, put in place of the upstream's waits; `None`: none."""
    kept = [
        (name, value)
        for name, value in fields
        if (lowered := name.lower()) not in _OURS
        and not lowered.startswith(_OF_ONE_KEY)
        and (retry_after is None or lowered not in _WAITS)
    ]
    kept += (
        (b"Via", VIA),
        (b"X-Request-Id", story.request_id.encode()),
        (b"Keyturn-Key", story.key.encode()),
        (b"Server-Timing", server_timing(story.queued, story.upstream)),
    )
    if retry_after is not None:
        kept.append((b"Retry-After", b"%d" % retry_after))
    kept.extend(_rates(standing))
    return tuple(kept)


def server_timing(queued: Micros, upstream: Micros) -> bytes:
    """`Server-Timing`, in milliseconds."""
    return b"queue;dur=%.1f, upstream;dur=%.1f" % (queued / 1000, upstream / 1000)


def _rates(standing: Standing) -> Fields:
    if not standing.limits:
        return ()
    _, budget = min(standing.limits, key=lambda item: item[1].at_hand)
    return (
        (b"X-RateLimit-Limit", b"%d" % budget.size),
        (b"X-RateLimit-Remaining", b"%d" % budget.at_hand),
        (b"X-RateLimit-Reset", b"%d" % whole_seconds(standing.wall + budget.returns)),
        (b"RateLimit-Policy", b", ".join(_policy(limit, budget) for limit, budget in standing.limits)),
        (b"RateLimit", b", ".join(_left(limit, budget) for limit, budget in standing.limits)),
    )


def _policy(limit: Limit, budget: Budget) -> bytes:
    return b'"%s";q=%d;w=%d' % (limit.name.encode(), budget.size, whole_seconds(limit.window))


def _left(limit: Limit, budget: Budget) -> bytes:
    return b'"%s";r=%d;t=%d' % (limit.name.encode(), budget.at_hand, whole_seconds(budget.returns))


def whole_seconds(duration: Micros) -> int:
    """Rounded up, never below zero."""
    return max(0, -(-duration // SECOND))
