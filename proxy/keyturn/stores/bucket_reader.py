"""Read the shared buckets for people and scrapers: apart from the exchange, and without any change."""

from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from typing import Any

from keyturn.core.bucket_snapshots import BucketSnapshot, LimitUsage, buckets_of
from keyturn.core.messages import Revision
from keyturn.core.model import Micros
from keyturn.stores.links import Link, Script

READ_BUCKETS = Script.of(files("keyturn.stores").joinpath("lua", "buckets.lua").read_text(encoding="utf-8"))

PAGE_SIZE = 5_000
"""Entries of a list that one call reads: the server does nothing else meanwhile."""


async def read_buckets(link: Link, key: str, revision: Revision) -> tuple[BucketSnapshot, ...]:
    """Every bucket of a revision; with more than `PAGE_SIZE` tokens its parts may be some milliseconds apart.

    Raises:
        StoreLost: no answer.
    """
    rows = [LimitUsage() for _ in revision.limits]
    begin, more = 0, bool(rows)
    while more:
        quotas = revision.quotas[begin : begin + PAGE_SIZE]
        ids = [limit.id for limit in revision.limits]
        answer = await link.run(
            READ_BUCKETS, key, begin, PAGE_SIZE, len(ids), *ids, *quotas, read=partial(_rows, quotas)
        )
        rows = [_joined(row, part) for row, part in zip(rows, answer, strict=True)]
        more = any(len(part.cooling) == PAGE_SIZE or len(part.taken) == PAGE_SIZE for part in answer)
        begin += PAGE_SIZE
    return buckets_of(revision, rows)


def _rows(quotas: Sequence[str], answer: Sequence[Any]) -> list[LimitUsage]:
    return [
        LimitUsage(tuple(zip(quotas, taken, strict=True)), _delays(cooling), _delays(closed))
        for taken, cooling, closed in answer
    ]


def _delays(pairs: Sequence[Any]) -> tuple[tuple[Micros, str], ...]:
    flat = iter(pairs)
    return tuple([(delay, quota.decode()) for delay, quota in zip(flat, flat, strict=True)])


def _joined(one: LimitUsage, other: LimitUsage) -> LimitUsage:
    return LimitUsage(one.taken + other.taken, one.cooling + other.cooling, one.closed + other.closed)
