"""The fields of an answer to the caller: the upstream's, with the pool's rates in place of a single key's.

`X-RateLimit-*`, `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11) speak for the caller's
whole pool; one `Retry-After` in whole seconds replaces every form of a wait (RFC 9110, section 10.2.3).

Every answer passes here, so what depends on names and on the configuration only is computed once.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import compress

from keyturn.core.events import RequestLog
from keyturn.core.exchange import LimitTokens
from keyturn.core.headers import ByNames, names_of
from keyturn.core.http import Fields
from keyturn.core.model import SECOND, Limit, Micros

VIA = b"1.1 keyturn"

_OF_ONE_KEY = (b"ratelimit", b"rate-limit", b"retryafter")
_OF_ONE_PLAN = (b"limit-month", b"remaining-month", b"reset-month")
_OURS = frozenset((b"x-request-id", b"keyturn-key"))


def to_caller(
    fields: Fields, log: RequestLog, rate_fields: Fields, retry_after: int | None, *, refused: bool = False
) -> Fields:
    """The fields for the caller: the upstream's in their order, then ours.

    `retry_after`: whole seconds, put in place of the upstream's waits; with `None` the upstream's own `Retry-After`
    stays: it tells of a task, or of something that has moved. In a refusal (`refused`) it never stays: what could be
    read of it is in `retry_after`.
    """
    beside_a_wait = refused or retry_after is not None
    return (
        *compress(fields, (_kept_beside_a_wait if beside_a_wait else _kept)[names_of(fields)]),
        (b"Via", VIA),
        (b"X-Request-Id", log.id.encode()),
        (b"Keyturn-Key", log.key.encode()),
        (b"Server-Timing", server_timing(log.queued, log.upstream)),
        *(() if retry_after is None else ((b"Retry-After", b"%d" % retry_after),)),
        *rate_fields,
    )


def interim_fields(fields: Fields) -> Fields:
    """The fields of an interim answer for the caller: the upstream's in their order, without those that we set."""
    return tuple(compress(fields, _kept[names_of(fields)]))


def _is_kept(name: bytes) -> bool:
    """Whether the upstream's field of that (lower-case) name goes to the caller."""
    return name not in _OURS and not name.endswith(_OF_ONE_PLAN) and not any(part in name for part in _OF_ONE_KEY)


_kept = ByNames(lambda names: tuple([_is_kept(name.lower()) for name in names]))
"""Selects the fields that go to the caller."""
_kept_beside_a_wait = ByNames(
    lambda names: tuple([_is_kept(name) and name != b"retry-after" for name in map(bytes.lower, names)])
)
"""The same of an answer that gets a `Retry-After` of ours, or none."""


def fields_for_another(fields: Fields, log: RequestLog, rate_fields: Fields) -> Fields:
    """Fields of `to_caller` for another request that gets the same answer: with its own id, times and rates."""
    own = {
        b"X-Request-Id": log.id.encode(),
        b"Server-Timing": server_timing(log.queued, log.upstream),
        **dict(rate_fields),
    }
    return tuple([(name, own.get(name, value)) for name, value in fields])


def server_timing(queued: Micros, upstream: Micros) -> bytes:
    """`Server-Timing`, in milliseconds."""
    return b"queue;dur=%.1f, upstream;dur=%.1f" % (queued / 1000, upstream / 1000)


def rates(limits: Sequence[tuple[Limit, LimitTokens]], wall: Micros) -> Fields:
    """Rate fields: what is left of a request's limits over the whole pool, at `wall` (epoch).

    The three `X-RateLimit` fields have room for the tightest limit only.
    """
    if len(limits) == 1:
        limit, tightest = limits[0]
        policies, left = _described(limit, tightest)
    elif limits:
        tightest = min([tokens for _, tokens in limits], key=_tightness)
        described = [_described(limit, tokens) for limit, tokens in limits]
        policies, left = (b", ".join(parts) for parts in zip(*described, strict=True))
    else:
        return ()
    return (
        (b"X-RateLimit-Limit", b"%d" % tightest.size),
        (b"X-RateLimit-Remaining", b"%d" % (max(0, tightest.available))),
        (b"X-RateLimit-Reset", b"%d" % whole_seconds(wall + tightest.returns)),
        (b"RateLimit-Policy", policies),
        (b"RateLimit", left),
    )


def _described(limit: Limit, tokens: LimitTokens) -> tuple[bytes, bytes]:
    """A limit's policy, and what is left of it."""
    policy, name = _names(limit.name, limit.window, tokens.size)
    left = max(0, tokens.available)
    return policy, b"%s;r=%d;t=%d" % (name, left, whole_seconds(tokens.returns))


def _tightness(tokens: LimitTokens) -> tuple[int, Micros]:
    """Fewest requests left; among equals the one whose next comes latest."""
    return tokens.available, -tokens.returns


@lru_cache(maxsize=1024)
def _names(limit: str, window: Micros, size: int) -> tuple[bytes, bytes]:
    """A limit's policy, and its name as a structured string (RFC 9651, section 3.3.3)."""
    name = b'"%s"' % limit.encode()
    return b"%s;q=%d;w=%d" % (name, size, whole_seconds(window)), name


def whole_seconds(duration: Micros) -> int:
    """Rounded up, never below zero."""
    return -(-duration // SECOND) if duration > 0 else 0
